"""A scale of its own for each channel of a spiking layer, or each neuron of a dense one, where one for all would round.

Spikes do not change when a neuron's weights, bias, threshold and start potential are multiplied by one number, so that the scale
S of a layer may be another S_c in each of its channels, whatever the chip: thresholds differ within a layer anyway.

    m = clip(round(w S_c / X / 2^(e+1)));   theta = theta_c S_c, whole where S_c = k / theta_c;   S_c <= room / largest current

S_c is where the channel's own weights fill their range best (some clipped where that pays), which one scale does for the largest
channel alone; of one exponent for all channels the best is taken. Rescaling neurons before weights are rounded is Nagel et al.
2019 (Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV, arXiv:1906.04721), a scale a channel
Krishnamoorthi 2018 (arXiv:1806.08342); neither needs data here, nor does the chip multiply: the threshold does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from spikeprop_hardware.acceptance import dropped
from spikeprop_hardware.grids import Range, clip
from spikeprop_hardware.network import Connection, Population

STEPS = 16  # scales tried per factor of two
CLIPPED, COARSE = 2, 4  # factors of two by which they reach beyond a channel's full range and below it
SAMPLE = 4096  # different weights of a channel that the search uses


class Grid(NamedTuple):
    """How a connection arrives: its exponent (or those of the channels), the input's scale, and how much its errors count."""

    exponent: Any
    input_scale: float
    importance: float


def channel_scales(
    p: Population, grids: Sequence[Grid], held: Range, most: np.ndarray, exponents: Sequence[int]
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Scales of the channels, and the connections' exponents.

    Args:
        p: a spiking layer; channels are its shape's first axis.
        grids: those that the best scale for all has, by connection.
        held: the range of mantissas.
        most: the largest scale of each channel.
        exponents: that connections may have.

    Returns:
        scales (channels,); exponents as those of ``grids``, all moved by one number, or each channel's by its own.
    """
    channels = [_Channel(p, i, grids, held, float(bound)) for i, bound in enumerate(most)]
    used = np.concatenate([np.ravel(g.exponent) for g in grids])
    moves = np.arange(min(exponents) - used.min(), max(exponents) - used.max() + 1)
    own = any(isinstance(g.exponent, np.ndarray) for g in grids)
    if own:  # channels whose exponents are not the outermost may move further than all can
        moves = np.arange(min(exponents) - used.max(), max(exponents) - used.min() + 1)
    tried = np.array([[channel.error(int(move), exponents)[0] for move in moves] for channel in channels])
    chosen = tried.argmin(1) if own else np.full(len(channels), tried.sum(0).argmin())
    scales = np.array([channel.best(int(moves[i]), exponents) for channel, i in zip(channels, chosen)])
    moved = moves[chosen] if own else int(moves[chosen[0]])
    return scales, tuple(g.exponent + moved for g in grids)


class _Channel:
    """Errors of one channel by scale: of its weights, of its threshold and of what shifts drop, relative."""

    def __init__(self, p: Population, i: int, grids: Sequence[Grid], held: Range, most: float):
        size = len(p.bias) // p.shape[0]
        assert p.theta is not None
        self._theta = p.theta[i * size : (i + 1) * size]
        self._held, self._most = held, most
        self._exponents = [int(g.exponent[i]) if isinstance(g.exponent, np.ndarray) else int(g.exponent) for g in grids]
        self._parts = [(*_different(c, i * size, size), g) for c, g in zip(p.connections, grids)]
        self._energy = sum(g.importance * float((n * w**2).sum()) for w, n, g in self._parts)
        reach = [
            max(w.max(initial=0.0) / held[1], w.min(initial=0.0) / held[0]) / g.input_scale / 2.0 ** (e + 1)
            for (w, _, g), e in zip(self._parts, self._exponents)
        ]
        full = 1 / max(reach) if max(reach) else most
        self._scales = full * 2.0 ** (np.arange(-COARSE * STEPS, CLIPPED * STEPS + 1) / STEPS)
        self._curve = np.array([self._weights(s, 0) for s in self._scales])  # the same for scale and exponents moved together

    def _weights(self, scale: float, move: int) -> float:
        wrong = 0.0
        for (w, n, g), e in zip(self._parts, self._exponents):
            grid = scale / g.input_scale / 2.0 ** (e + move + 1)
            wrong += g.importance * float((n * (clip(w * grid, self._held) / grid - w) ** 2).sum())
        return (wrong / self._energy) ** 0.5 if self._energy else 0.0

    def error(self, move: int, exponents: Sequence[int]) -> tuple[float, float]:
        """The least error with exponents moved so far, and its scale; infinite where the chip has no such exponents."""
        if any(e + move not in exponents for e in self._exponents):
            return np.inf, self._most
        scales = np.minimum(self._scales * 2.0**move, self._most)
        weights = np.where(self._scales * 2.0**move <= self._most, self._curve, np.inf)
        if not np.isfinite(weights).any():
            weights[0] = self._weights(self._most, move)
        total = np.minimum(weights + self._dropped(scales, move), 1.0)
        best = int(total.argmin())
        return float(total[best]), float(scales[best])

    def best(self, move: int, exponents: Sequence[int]) -> float:
        """The scale, or a neighbour of it of which the threshold is a whole number, whichever has the least error."""
        near = self.error(move, exponents)[1]
        theta = float(self._theta[0])
        whole = [max(k, 1.0) / theta for k in (np.floor(near * theta), np.ceil(near * theta))]
        tried = [near, *(s for s in whole if s <= self._most)]
        return min(tried, key=lambda s: self._weights(s, move) + float(self._dropped(s, move)) + self._threshold(s))

    def _dropped(self, scale: Any, move: int) -> Any:
        lost = sum(float(dropped(e + move)) for e in self._exponents)
        return lost / (scale * float(self._theta.mean()))

    def _threshold(self, scale: float) -> float:
        wanted = self._theta * scale
        return float(np.abs(np.maximum(np.rint(wanted), 1) / wanted - 1).mean())


def _different(c: Connection, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Different weights of some rows, and how often each is there; a convolution's rows repeat."""
    matrix = c.matrix
    rows: dict[bytes, int] = {}
    for i in range(first, first + size):
        row = matrix.data[matrix.indptr[i] : matrix.indptr[i + 1]].tobytes()
        rows[row] = rows.get(row, 0) + 1
    values = [np.frombuffer(row, matrix.data.dtype) for row in rows]
    found, places = np.unique(np.concatenate(values), return_inverse=True)
    counts = np.bincount(places, np.repeat(list(rows.values()), [len(v) for v in values]), len(found))
    thinned = slice(None, None, -(-len(found) // SAMPLE) or 1)
    return found[thinned], counts[thinned]
