"""The gradient of a synapse's input where few neurons fire: active outputs x active inputs, torch tensors in.

With STDB the gradient of a neuron's current is zero unless the neuron fires at all, and that of its spikes is needed only from
its first spike on: both are known from the packed spikes. Nothing is approximated. ``sparse_loops`` has the loops, and the idea.
(Perez-Nieves & Goodman 2021, "Sparse Spiking Gradient Descent", keep a list of active neurons a step instead.)
Suffix legend: K steps, B batch, S positions, P pooled positions, C channels of the source, O of the synapse, W words, N = B*S,
A active neurons, L steps of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import sparse_loops
from spikeprop.snn.engine.kernels.arguments import ConvShape
from spikeprop.snn.engine.kernels.cpu import _array, _words
from spikeprop.snn.engine.kernels.words import BITS

# Seconds of a multiply-add of a row of as many steps, relative to those of torch's dense product in single precision; measured.
COST = {4: 5.2, 8: 2.4, 16: 1.6, 24: 1.6, 32: 1.5}
AT_ONCE = 24  # active outputs of a position that are done together, about: of more, the weights leave the first-level cache
LARGEST = 1 << 31  # numbers of a weight: places are 32-bit


class Active:
    """The neurons of a layer that have a gradient, over some steps: those that fire.

    Attributes:
        words_BSW: a bit each.
        channels: of the layer.
    """

    def __init__(self, words_BSW: Tensor, channels: int):
        self.words_BSW, self.channels = words_BSW, channels
        self.count_N = np.empty(words_BSW.shape[0] * words_BSW.shape[1], np.int64)
        self.count = sparse_loops.count_bits(_words(words_BSW.flatten(0, 1)), self.count_N)
        self._listed: dict[int, Listed] = {}
        self._pooled: dict[Any, tuple[Tensor | None, Active]] = {}

    def listed(self, block: int) -> Listed:
        """As a list, cut at every ``block`` channels of a position."""
        if block not in self._listed:
            blocks = -(-self.channels // block)
            starts, channel_A = np.empty(len(self.count_N) * blocks + 1, np.int32), np.empty(self.count, np.int32)
            sparse_loops.list_active(_words(self.words_BSW.flatten(0, 1)), block, starts, channel_A)
            self._listed[block] = Listed(starts, blocks, channel_A)
        return self._listed[block]

    def pooled(self, width: int, pool: int, mask_BSW: Tensor | None) -> Active:
        """The values that a synapse sees through dropout and pooling: those with an active neuron in their window."""
        if pool == 1 and mask_BSW is None:
            return self
        key = (width, pool, id(mask_BSW))
        if key not in self._pooled:
            batch, positions, count = self.words_BSW.shape
            words, out = _words(self.words_BSW), torch.empty(batch, positions // pool**2, count, dtype=torch.int32)
            mask = _words(mask_BSW) if mask_BSW is not None else words
            sparse_loops.any_of_window(words, mask, mask_BSW is not None, width, pool, _words(out))
            self._pooled[key] = mask_BSW, Active(out, self.channels)
        return self._pooled[key][1]

    def flat(self) -> Active | None:
        """The same as of one position; None where the words of a position have unused bits."""
        positions = self.words_BSW.shape[1]
        if positions == 1:
            return self
        return Active(self.words_BSW.flatten(1).unsqueeze(1), positions * self.channels) if self.channels % BITS == 0 else None

    def at_once(self) -> int:
        """Channels that are done together: a multiple of 32 with about ``AT_ONCE`` active ones."""
        each = self.count / len(self.count_N)
        return self.channels if each <= AT_ONCE else max(32, int(AT_ONCE / each * self.channels / 32) * 32)


@dataclass(frozen=True)
class Listed:
    """Active neurons one after another.

    Attributes:
        starts: how many stand before each block of channels of each position, and after the last.
        blocks: of a position.
        channel_A: the channel of each.
    """

    starts: np.ndarray
    blocks: int
    channel_A: np.ndarray


def spans(steps: int) -> list[tuple[int, int, int]]:
    """First and last step and numbers of a row, for rows of at most 32."""
    cut = [(first, min(first + 32, steps)) for first in range(0, steps, 32)]
    return [(first, last, next(n for n in COST if n >= last - first)) for first, last in cut]


def cost(steps: int) -> float:
    """Of a pair of neurons over as many steps, in multiply-adds of a dense product."""
    return sum(COST[numbers] * numbers for _, _, numbers in spans(steps))


def conv_pairs(outputs: Active, inputs: Active, shape: ConvShape) -> int:
    """Pairs of an active output and an active input that a convolution connects."""
    return sparse_loops.conv_pairs(
        outputs.count_N, shape.out_size, inputs.count_N, shape.size, shape.kernel, shape.stride, shape.padding, shape.dilation
    )


def conv_input(
    grad_KBPO: Tensor,
    outputs: Active,
    inputs: Active,
    shape: ConvShape,
    weight_YXOC: Tensor,
    out_KBPC: Tensor,
    buffers: BufferPool,
) -> None:
    """Gradient of a convolution's input, into ``out_KBPC``; zero at inactive inputs."""
    to, of, weight = outputs.listed(outputs.at_once()), inputs.listed(inputs.channels), _array(weight_YXOC)

    def multiply(*rows: np.ndarray) -> None:
        for grad_AL, out_AL in zip(rows[::2], rows[1::2]):
            if len(grad_AL) or len(out_AL):
                sparse_loops.conv_input(
                    grad_AL, to.starts, to.blocks, to.channel_A, shape.out_size, weight, shape.stride, shape.padding,
                    shape.dilation, of.starts, of.channel_A, shape.size, out_AL,
                )  # fmt: skip

    _by_spans(grad_KBPO, to, of, out_KBPC, buffers, multiply)


def linear_input(
    grad_KBO: Tensor, outputs: Active, inputs: Active, weight_PXCJ: Tensor, out_KBPC: Tensor, buffers: BufferPool
) -> None:
    """The same of a fully connected layer; ``weight_PXCJ``: see ``cpu.linear_weight``."""
    channels, block = weight_PXCJ.shape[2:]
    to, of = outputs.listed(block), inputs.listed(channels)
    weight, place_A = _array(weight_PXCJ), of.channel_A * np.int32(block)

    def multiply(grad_AL: np.ndarray, out_AL: np.ndarray, grad_2: np.ndarray, out_2: np.ndarray) -> None:
        sparse_loops.linear_input(
            grad_AL, to.starts, to.channel_A, weight, of.starts, place_A, out_AL, grad_2, out_2
        )  # fmt: skip

    _by_spans(grad_KBO.unsqueeze(2), to, of, out_KBPC, buffers, multiply)


def _by_spans(
    grad_KBPO: Tensor,
    to: Listed,
    of: Listed,
    out_KBPC: Tensor,
    buffers: BufferPool,
    multiply: Callable[..., None],
) -> None:
    """``multiply`` on rows of two spans at once; those of the second are empty where there is no more."""
    grad, out = _array(grad_KBPO.flatten(1, 2)), _array(out_KBPC.flatten(1, 2))
    cut = spans(len(grad))
    for here in zip(cut[::2], [*cut[1::2], (0, 0, 4)]):
        rows = []
        for first, last, numbers in here:
            empty = first == last
            grad_AL = buffers.take((0 if empty else len(to.channel_A), numbers), grad_KBPO.dtype)
            out_AL = buffers.take((0 if empty else len(of.channel_A), numbers), grad_KBPO.dtype)
            if not empty:
                sparse_loops.to_rows(grad[first:last], to.starts, to.blocks, to.channel_A, _array(grad_AL))
            rows += [grad_AL, out_AL]
        multiply(*(_array(row) for row in rows))
        for (first, last, _), out_AL in zip(here, rows[1::2]):
            if first < last:
                sparse_loops.from_rows(_array(out_AL), of.starts, of.blocks, of.channel_A, out[first:last])
        for row in rows:
            buffers.give(row)
