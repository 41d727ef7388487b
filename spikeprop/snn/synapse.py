"""Synapses: the linear path from one layer's spikes to the next layer's current.

A synapse is a chain of operations without a non-linearity (convolution, linear, average pooling, interpolation, padding,
another shape, dropout, a gain, a place among concatenated channels); time is folded into the batch axis, so the chain sees
ordinary (T*B, ...) tensors. Dropout draws one mask a sample and keeps it for all time steps (Rathi et al. 2020), so the network
that is trained is one sub-network, not a new one each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.runtime.seeding import mix_seed
from spikeprop.snn.normalisation import NORMS, normalised

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # weight (in, out / groups, ...), of others out first
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear


class SampleDropout(nn.Module):
    """Dropout with probability ``p`` whose mask is drawn once a sample and held for all time steps."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, mask_B: Tensor | None = None) -> Tensor:
        """``x`` (T*B, ...) times the mask of one step (B, ...); without a mask, outside a simulation, dropout does nothing."""
        return x if mask_B is None else (x.unflatten(0, (-1, len(mask_B))) * mask_B).flatten(0, 1)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropoutMasks:
    """The dropout masks of one simulation.

    A mask is drawn from a seed of its own, made of one number from torch's global generator and the layer's name, so it depends
    neither on how many steps the encoder has drawn by then nor on the order of the layers or threads that ask: a simulation
    gives the same result however it is cut.
    """

    def __init__(self, device: torch.device):
        self._seed, self._device = int(torch.randint(2**62, ())), device
        self._drawn: dict[str, Tensor] = {}

    def get(self, key: str, p: float, like_B: Tensor) -> Tensor:
        """The mask of the layer ``key``, in the shape of one step (B, ...): 0 with probability p, else 1/(1-p)."""
        if key not in self._drawn:
            own = torch.Generator(self._device).manual_seed(mix_seed(self._seed, crc32(key.encode())))
            kept = torch.full(like_B.shape, 1 - p, dtype=like_B.dtype, device=like_B.device)
            self._drawn[key] = torch.bernoulli(kept, generator=own).div_(1 - p)
        return self._drawn[key]

    def of_samples(self, first: int, last: int, batch: int) -> DropoutMasks:
        """The same masks for the samples first..last of the ``batch``."""
        return _SliceOfMasks(self, first, last, batch)


class _SliceOfMasks(DropoutMasks):
    def __init__(self, of_batch: DropoutMasks, first: int, last: int, batch: int):
        self._of_batch, self._first, self._last, self._batch = of_batch, first, last, batch

    def get(self, key: str, p: float, like_B: Tensor) -> Tensor:
        return self._of_batch.get(key, p, like_B[:1].expand(self._batch, *like_B.shape[1:]))[self._first : self._last]


class Gain(nn.Module):
    """Multiplies by a constant, one number or one a channel (C, 1, 1): the weight of a path that has no layer of its own."""

    gain: Tensor

    def __init__(self, gain: float | Tensor):
        super().__init__()
        self.register_buffer("gain", torch.as_tensor(gain).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class ChannelPad(nn.Module):
    """Puts a path's channels at their place among those of a concatenation: zero channels before and after them."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, before + C + after, ...)."""
        return F.pad(x, (0, 0) * (x.dim() - 2) + (self.before, self.after))

    def extra_repr(self) -> str:
        return f"{self.before}, {self.after}"


class Synapse(nn.Module):
    """A chain of linear operations, applied to spikes (T, B, ...)."""

    def __init__(self, ops: Iterable[nn.Module]):
        super().__init__()
        self.ops = nn.ModuleList(ops)

    def forward(self, spikes_TB: Tensor, masks: DropoutMasks | None = None, name: str = "") -> Tensor:
        """Current (T, B, ...) for spikes (T, B, ...); ``masks`` are this simulation's, ``name`` tells them apart."""
        steps = len(spikes_TB)
        x = spikes_TB.flatten(0, 1)
        for i, op in enumerate(self.ops):
            if isinstance(op, SampleDropout) and self.training and op.p > 0 and masks is not None:
                x = op(x, masks.get(f"{name}/{i}", op.p, x.unflatten(0, (steps, -1))[0]))
            else:
                x = normalised(op, x, steps) if isinstance(op, NORMS) else op(x)
        return x.unflatten(0, (steps, -1))

    def weighted(self) -> list[Weighted]:
        """The operations that carry weights, in order."""
        return [op for op in self.ops if isinstance(op, WEIGHTED)]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.ops)
