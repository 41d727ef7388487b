"""``EncodedInput``: the encoder's output for the calibration images, drawn again (the same) each time instead of being kept.

The draws depend on a seed, the step, and the number of the image among all images: images are drawn in blocks of 64, each with
a seed of its own. So several processes with shards of the images see the same input as one process with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from spikeprop.convert.shard import UNSHARDED, CalibrationShard
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import Encoder


class EncodedInput:
    """Encoded images at any steps.

    Args:
        encoder: from image to input.
        x: images (B, ...).
        timesteps: of the simulation that they are encoded for.
        shard: which of all images they are.
    """

    def __init__(self, encoder: Encoder, x: Tensor, timesteps: int, shard: CalibrationShard = UNSHARDED):
        self.encoder, self.x, self.timesteps = encoder, x, timesteps
        self.seed, self.blocks = shard.seed(), list(shard.blocks(len(x)))

    def __call__(self, first: int, steps: int) -> Tensor:
        """The input at ``steps`` steps from ``first`` on, (steps, B, ...); (1, B, ...) if it is the same at every step."""
        if self.encoder.constant:
            return self.encoder(self.x.unsqueeze(0), 0, 1)
        with isolated_rng(self.x):
            return torch.cat([self._step(t) for t in range(first, first + steps)])

    def _step(self, t: int) -> Tensor:
        drawn = []
        for block in self.blocks:
            seed_torch(self.seed, t, *([block.number] if block.number else []))  # the first block has the plain seed
            x_B = block.padded(self.x)
            x_TB = x_B.expand(self.timesteps, *x_B.shape)
            drawn.append(self.encoder(x_TB, t, t + 1)[:, block.places])
        return torch.cat(drawn, 1)


@contextmanager
def isolated_rng(x: Tensor) -> Iterator[None]:
    """Restores torch's global generators, of the CPU and of x's device, at the end."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield
