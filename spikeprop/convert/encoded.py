"""The encoder's output for calibration images, drawn again (the same) when it is asked for again, rather than kept.

What is drawn depends on a seed, the step, and an image's number among all: images are drawn for in blocks of 64, each with a
seed of its own. So processes that have parts of the images see together what one process with all of them sees.
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
    """Images as input, at any steps.

    Args:
        encoder: from image to input.
        x: images (B, ...).
        shard: which of all they are.
    """

    def __init__(self, encoder: Encoder, x: Tensor, shard: CalibrationShard = UNSHARDED):
        self.encoder, self.x = encoder, x
        self.seed, self.blocks = shard.seed(), list(shard.blocks(len(x)))

    def __call__(self, first: int, steps: int) -> Tensor:
        """Steps first.. of the input, (steps or 1, B, ...)."""
        if self.encoder.constant:
            return self.encoder(self.x, 1)
        with own_draws(self.x):
            return torch.cat([self._step(t) for t in range(first, first + steps)])

    def _step(self, t: int) -> Tensor:
        drawn = []
        for block in self.blocks:
            seed_torch(self.seed, t, *([block.number] if block.number else []))  # those of the first 64 need no number
            drawn.append(self.encoder(block.padded(self.x), 1)[:, block.places])
        return torch.cat(drawn, 1)


@contextmanager
def own_draws(x: Tensor) -> Iterator[None]:
    """What is drawn meanwhile leaves torch's global generators, of the CPU and of x's device, as they were."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield
