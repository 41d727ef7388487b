"""A scale of its own for each channel of a spiking layer, or each neuron of a dense one, where one for all would round.

Spikes do not change when a neuron's weights, bias, threshold and start potential are multiplied by one number, so that the scale
S of a layer may be another S_c in each of its channels, whatever the chip: thresholds differ within a layer anyway.

    m = clip(round(w S_c / X / 2^(e+1)));   theta = theta_c S_c, whole where S_c = k / theta_c;   S_c <= room / largest current

S_c is where the channel's own weights fill their range best (some clipped where that pays), which one scale does for the largest
channel alone; of one exponent for all channels the best is taken. All channels are searched at once, large ones by quantiles of
their weights. Rescaling neurons before weights are rounded is Nagel et al. 2019 (Data-Free Quantization Through Weight
Equalization and Bias Correction, ICCV, arXiv:1906.04721), a scale a channel Krishnamoorthi 2018 (arXiv:1806.08342); neither needs
data here, nor does the chip multiply: the threshold does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from spikeprop_hardware.acceptance import NEGLIGIBLE, dropped
from spikeprop_hardware.grids import Range, clip
from spikeprop_hardware.network import Connection, Population

STEPS = 16  # scales tried per factor of two
CLIPPED, COARSE = 2, 4  # factors of two by which they reach beyond a channel's full range and below it
SAMPLE, LEAST = 2**17, 128  # weights that the search uses: of a connection, and at least of a channel
READ = 2**22  # weights of a connection among which these are chosen


class Grid(NamedTuple):
    """How a connection arrives: its exponent (or those of the channels), the input's scale, and how much its errors count."""

    exponent: Any
    input_scale: float
    importance: float


class Bounds(NamedTuple):
    """What a chip allows, and how large a layer's currents are.

    Attributes:
        held: the range of mantissas.
        exponents: that connections may have.
        most: the largest scale of each channel (channels,).
        reach: the largest current of each neuron (neurons,).
    """

    held: Range
    exponents: Sequence[int]
    most: np.ndarray
    reach: np.ndarray


def channel_scales(p: Population, grids: Sequence[Grid], bounds: Bounds) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Scales of the channels, and the connections' exponents.

    Args:
        p: a spiking layer; channels are its shape's first axis.
        grids: those that the best scale for all has, by connection.
        bounds: of the chip and of the layer.

    Returns:
        scales (channels,); exponents as those of ``grids``, all moved by one number, or each channel's by its own.
    """
    channels, exponents = _Channels(p, grids, bounds), bounds.exponents
    used = np.concatenate([np.ravel(g.exponent) for g in grids])
    moves = np.arange(min(exponents) - used.min(), max(exponents) - used.max() + 1)
    own = any(isinstance(g.exponent, np.ndarray) for g in grids)
    if own:  # channels whose exponents are not the outermost may move further than all can
        moves = np.arange(min(exponents) - used.max(), max(exponents) - used.min() + 1)
    tried, near = (np.array(found) for found in zip(*(channels.error(int(move)) for move in moves)))
    count = np.arange(len(bounds.most))
    chosen = tried.argmin(0) if own else np.full(len(count), tried.sum(1).argmin())
    scales = channels.whole(near[chosen, count], moves[chosen])
    moved = moves[chosen] if own else int(moves[chosen[0]])
    return scales, tuple(g.exponent + moved for g in grids)


class _Channels:
    """Errors of all channels by scale: of their weights, of thresholds and of what shifts drop, relative."""

    def __init__(self, p: Population, grids: Sequence[Grid], bounds: Bounds):
        channels = p.shape[0]
        assert p.theta is not None
        self._bounds, self._grids = bounds, grids
        self._theta = p.theta.reshape(channels, -1)
        least = NEGLIGIBLE * bounds.reach.reshape(channels, -1)  # a neuron of a threshold far below fires by its current's sign
        self._norm = np.maximum(self._theta, least).mean(1)
        self._exponents = [np.broadcast_to(g.exponent, channels) for g in grids]
        self._parts = [_sampled(c, channels) for c in p.connections]
        energy = sum(g.importance * (n * w**2).sum(1) for (w, n), g in zip(self._parts, grids))
        self._energy = np.where(energy > 0, energy, 1.0)
        low, high = bounds.held
        reach = np.max(
            [
                np.maximum(w.max(1, initial=0.0) / high, w.min(1, initial=0.0) / low) / g.input_scale / 2.0 ** (e + 1)
                for (w, _), g, e in zip(self._parts, grids, self._exponents)
            ],
            axis=0,
        )
        full = 1 / np.where(reach > 0, reach, 1 / bounds.most)
        self._scales = full * 2.0 ** (np.arange(-COARSE * STEPS, CLIPPED * STEPS + 1) / STEPS)[:, None]  # (tried, channels)
        self._curve = np.array([self._weights(s, 0) for s in self._scales])  # the same for scale and exponents moved together

    def _weights(self, scale: np.ndarray, move: Any) -> np.ndarray:
        wrong = np.zeros(len(scale))
        for (w, n), g, e in zip(self._parts, self._grids, self._exponents):
            grid = (scale / g.input_scale / 2.0 ** (e + move + 1))[:, None]
            off = w * grid
            off -= clip(off, self._bounds.held)
            off *= off
            wrong += g.importance * np.einsum("ck,ck->c", n, off) / grid[:, 0] ** 2
        return np.sqrt(wrong / self._energy)

    def error(self, move: int) -> tuple[np.ndarray, np.ndarray]:
        """The least errors with exponents moved so far, and their scales; infinite where the chip has no such exponents."""
        most = self._bounds.most
        scales = self._scales * 2.0**move
        weights = np.where(scales <= most, self._curve, np.inf)
        if (none := ~np.isfinite(weights).any(0)).any():
            weights[0] = np.where(none, self._weights(most, move), weights[0])
        scales = np.minimum(scales, most)
        total = np.minimum(weights + self._dropped(scales, move), 1.0)
        best = total.argmin(0), np.arange(len(most))
        allowed = np.all([np.isin(e + move, self._bounds.exponents) for e in self._exponents], axis=0)
        return np.where(allowed, total[best], np.inf), scales[best]

    def whole(self, near: np.ndarray, move: np.ndarray) -> np.ndarray:
        """The scales, or neighbours of them of which the threshold is a whole number, whichever have the least error."""
        theta = self._theta[:, 0]
        tried = np.array([near, *(np.maximum(k, 1.0) / theta for k in (np.floor(near * theta), np.ceil(near * theta)))])
        tried = np.where(tried <= self._bounds.most, tried, near)
        errors = [self._weights(s, move) + self._dropped(s, move) + self._threshold(s) for s in tried]
        return tried[np.argmin(errors, axis=0), np.arange(len(near))]

    def _dropped(self, scale: np.ndarray, move: Any) -> np.ndarray:
        return np.sum([dropped(e + move) for e in self._exponents], axis=0) / (scale * self._norm)

    def _threshold(self, scale: np.ndarray) -> np.ndarray:
        wanted = self._theta * scale[:, None]
        return np.abs(np.maximum(np.rint(wanted), 1) / wanted - 1).mean(1)


def _sampled(c: Connection, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of each channel (channels, K), and how many each stands for, 0 where a channel has fewer.

    Of many they are quantiles, with the least and the largest one. Of a convolution, whose rows repeat, some rows are read, the
    longest one among them.
    """
    matrix, size = c.matrix, c.matrix.shape[0] // channels
    total = np.diff(matrix.indptr[::size])
    some = total > 0
    starts = matrix.indptr[:-1:size][some]
    least, largest = (end.reduceat(matrix.data, starts) if some.any() else () for end in (np.minimum, np.maximum))
    if (rows := -(-size * READ // max(matrix.nnz, READ))) < size:
        lengths = np.diff(matrix.indptr).reshape(channels, size)
        read = np.union1d(np.linspace(0, size - 1, rows).astype(int), lengths.sum(0).argmax())
        matrix = matrix[(np.arange(channels)[:, None] * size + read).ravel()]
        size = len(read)
    count = np.diff(matrix.indptr[::size])
    places, times = _spread(count, max(LEAST, READ // channels))
    data = np.append(matrix.data, 0.0)  # for channels without weights
    values = np.where(times > 0, data[np.minimum(matrix.indptr[:-1:size, None] + places, len(data) - 1)], np.inf)
    values.sort(axis=1)
    count = np.clip(count, np.minimum(total, 2), values.shape[1])
    values[some, 0], values[some, count[some] - 1] = least, largest  # which may be among what was left out
    places, times = _spread(count, max(LEAST, SAMPLE // channels))
    values = np.take_along_axis(values, places, axis=1)
    return np.where(times > 0, values, 0.0), times * (total / np.maximum(count, 1))[:, None]


def _spread(count: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Places among each count, all of them or ``most`` from the first to the last one, and how many each stands for, 0 for none
    (len(count), K)."""
    width, count = min(most, max(2, int(count.max()))), count[:, None]
    every, apart = np.arange(width), np.rint(np.linspace(0, 1, width) * (count - 1)).astype(np.int64)
    return np.where(count <= width, every, apart), np.where(count <= width, every < count, count / width)
