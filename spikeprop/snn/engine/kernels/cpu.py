"""CPU back end of the packed kernels: torch tensors in, ``cpu_vectors`` and ``cpu_loops`` over them on as many
threads as torch uses.

The work is cut into contiguous ranges, one result a range, so a result depends on the number of threads at most in the order
in which weight gradients are summed. Suffix legend: K steps, T all steps, B batch, S positions, P pooled positions, C channels,
O output channels, I = K*B, W words, R = S or 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprop.snn.engine.buffer_pool import new_tensor
from spikeprop.snn.engine.kernels import back_loops, cpu_loops, cpu_vectors, linear_loops, neuron_loops, tap_loops, triangle_loops
from spikeprop.snn.engine.kernels.arguments import ConvShape, PackedSpikes, ScanParameters, SpikeTrain, TrainedGradients
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import BITS, word_count
from spikeprop.snn.surrogate import STDB

TARGETS = 1 << 16  # numbers whose sums fit the second-level cache
LINEAR_BYTES = 1 << 15  # of the weights of one block of outputs that are read together: a common first-level cache
CACHE_BYTES = 1 << 20  # of weights that a spike's rows should come from: half of a common second-level cache


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="spikeprop")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has none of its parent's threads


def in_ranges(count: int, work: Callable[[int, int], Any], most: int | None = None) -> list[Any]:
    """``work(first, last)`` over contiguous ranges of ``count`` items, one a thread; most: threads, default torch's."""
    most = most or torch.get_num_threads()
    threads = max(1, min(most, count))
    if threads == 1:
        return [work(0, count)]
    borders = [count * i // threads for i in range(threads + 1)]
    return list(_pool(most).map(work, borders[:-1], borders[1:]))


class NumpyView:
    """A tensor's memory through numpy's array interface: ``Tensor.numpy`` would keep a sharded network's weights alive."""

    def __init__(self, tensor: Tensor):
        assert tensor.device.type == "cpu"
        self.tensor, size = tensor, tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "strides": tuple(size * n for n in tensor.stride()),
            "typestr": _type_string(tensor.dtype),
        }


@lru_cache
def _type_string(dtype: torch.dtype) -> str:
    return torch.empty(0, dtype=dtype).numpy().dtype.str


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(NumpyView(tensor.detach()))


def _words(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().view(np.uint32)


def scan(current_KBSC: Tensor, v_BSC: Tensor, parameters: ScanParameters, words_KBSW: Tensor, *, potential: bool) -> int:
    """See ``packed_reference.scan``."""
    current, v, words = _array(current_KBSC.flatten(1, 2)), _array(v_BSC.flatten(0, 1)), _words(words_KBSW.flatten(1, 2))
    theta, leak = _array(parameters.theta_RC), _array(parameters.leak_RC)

    def work(first: int, last: int) -> int:
        return cpu_vectors.scan(current, v, theta, leak, parameters.to_zero, words, potential, first, last)

    return sum(in_ranges(len(v), work))


def any_of(words_KBSW: Tensor, any_BSW: Tensor) -> None:
    """See ``packed_reference.any_of``."""
    words, found = _words(words_KBSW.flatten(1, 2)), _words(any_BSW.flatten(0, 1))
    in_ranges(len(found), lambda first, last: cpu_loops.any_of(words, found, first, last))


def since_at_end(words_TBSW: Tensor, any_MBSW: Tensor, piece: int) -> Tensor:
    """See ``packed_reference.since_at_end``."""
    words, summary = _words(words_TBSW.flatten(1)), _words(any_MBSW.flatten(1))
    since_BSC = torch.empty(*words_TBSW.shape[1:3], words_TBSW.shape[3] * BITS, dtype=torch.int32)
    since = _array(since_BSC.view(-1, BITS))
    in_ranges(len(since), lambda first, last: cpu_loops.since_at_end(words, summary, piece, since, first, last))
    return since_BSC


def scan_back(
    gradient: Gradient,
    grad_v_BSC: Tensor,
    train: SpikeTrain,
    begin: int,
    parameters: ScanParameters,
    surrogate: STDB,
    out_KBSC: Tensor,
) -> None:
    """See ``packed_reference.scan_back``."""
    values, positions = gradient.values_KBPC, grad_v_BSC.shape[1]
    grad, out = _array(values), _array(out_KBSC.flatten(1, 2))
    grad_v, words = _array(grad_v_BSC.flatten(0, 1)), _words(train.words_TBSW.flatten(1))
    summary = _words(train.any_MBSW.flatten(1))
    theta, leak = _array(parameters.theta_RC), _array(parameters.leak_RC)
    scaled = gradient.scale_BSC is not None
    scale = _array(gradient.scale_BSC) if gradient.scale_BSC is not None else _array(grad_v_BSC)
    number = grad.dtype.type
    slopes = (surrogate.alpha * np.exp(-surrogate.beta * np.arange(max(1, begin)))).astype(grad.dtype)
    since = _array(train.since_BSC.view(-1, BITS))
    decay = number(math.exp(-surrogate.beta))
    pooling = (positions, gradient.width, gradient.pool)

    def work(first: int, last: int) -> None:
        back_loops.scan_back(
            grad, pooling, scale, scaled, grad_v, since, words, summary, train.piece, begin, theta, leak, parameters.to_zero,
            slopes, number(surrogate.alpha), decay, out, first, last,
        )  # fmt: skip

    in_ranges(len(grad_v), work)


def scan_back_slopes(
    grad_KBSC: Tensor,
    grad_v_BSC: Tensor,
    words_KBSW: Tensor,
    slope_KBSC: Tensor,
    parameters: ScanParameters,
) -> None:
    """See ``packed_reference.scan_back_slopes``."""
    grad, grad_v, words = _array(grad_KBSC.flatten(1, 2)), _array(grad_v_BSC.flatten(0, 1)), _words(words_KBSW.flatten(1, 2))
    theta, leak, slope = _array(parameters.theta_RC), _array(parameters.leak_RC), _array(slope_KBSC.flatten(1, 2))

    def work(first: int, last: int) -> None:
        cpu_loops.scan_back_slopes(grad, grad_v, words, slope, theta, leak, parameters.to_zero, first, last)

    in_ranges(len(grad_v), work)


def scan_back_trained(
    grad_KBSC: Tensor,
    grad_v_BSC: Tensor,
    words_KBSW: Tensor,
    slope_KBSC: Tensor,
    x_KBSC: Tensor,
    before_BSC: Tensor,
    parameters: ScanParameters,
    wanted: tuple[bool, bool],
) -> TrainedGradients:
    """See ``packed_reference.scan_back_trained``."""
    over_time = [_array(tensor.flatten(1, 2)) for tensor in (grad_KBSC, slope_KBSC, x_KBSC)]
    at_once = [_array(tensor.flatten(0, 1)) for tensor in (grad_v_BSC, before_BSC)]
    words, theta, leak = _words(words_KBSW.flatten(1, 2)), _array(parameters.theta_RC), _array(parameters.leak_RC)

    def work(first: int, last: int) -> np.ndarray:
        found = np.zeros((2, *theta.shape))
        neuron_loops.scan_back_trained(*over_time, *at_once, words, theta, leak, parameters.to_zero, wanted, found, first, last)
        return found

    total = torch.from_numpy(sum(in_ranges(len(words[0]), work)))
    return TrainedGradients(total[0], total[1])


def scan_back_triangle(
    gradient: Gradient,
    grad_v_BSC: Tensor,
    words_KBSW: Tensor,
    x_KBSC: Tensor,
    before_BSC: Tensor,
    parameters: ScanParameters,
    height: float,
    wanted: tuple[bool, bool],
) -> TrainedGradients:
    """``packed_reference.scan_back_trained`` with the surrogate ``Triangle``; the gradient of the currents goes over ``x_KBSC``.

    gradient: of the spikes, held as that of the pooled, masked values.
    """
    grad, x, words = _array(gradient.values_KBPC), _array(x_KBSC.flatten(1, 2)), _words(words_KBSW.flatten(1, 2))
    grad_v, before = (_array(tensor.flatten(0, 1)) for tensor in (grad_v_BSC, before_BSC))
    theta, leak = _array(parameters.theta_RC), _array(parameters.leak_RC)
    scaled, pooling = gradient.scale_BSC is not None, (grad_v_BSC.shape[1], gradient.width, gradient.pool)
    scale = _array(gradient.scale_BSC) if gradient.scale_BSC is not None else _array(grad_v_BSC)

    def work(first: int, last: int) -> np.ndarray:
        found = np.zeros((2, *theta.shape))
        triangle_loops.scan_back(
            grad, pooling, scale, scaled, height, x, grad_v, before, words, theta, leak, parameters.to_zero, wanted, found,
            first, last,
        )  # fmt: skip
        return found

    total = torch.from_numpy(sum(in_ranges(len(grad_v), work)))
    return TrainedGradients(total[0], total[1])


def max_pool(
    current_KBSC: Tensor, counts_BSC: Tensor, size: tuple[int, int], pool: tuple[int, ...], columns: int, out_KBPC: Tensor
) -> None:
    """``SpikingMaxPool`` on whole numbers, exact in any order, into ``out_KBPC`` of int8; ``counts_BSC`` is overwritten.

    Args:
        size: of the images.
        pool: rows and columns of the window, strides, paddings.
        columns: of the output.
    """
    current, counts, out = (_array(tensor) for tensor in (current_KBSC, counts_BSC, out_KBPC))
    in_ranges(len(counts), lambda i, j: neuron_loops.max_pool(current, counts, size, pool, columns, out, i, j))


def add_scaled(small_KBSC: Tensor, gain_C: Tensor, total_KBSC: Tensor) -> None:
    """Add values of int8, times the gain of their channel, to ``total_KBSC``."""
    small, total = (_array(tensor.flatten(2).flatten(0, 1)) for tensor in (small_KBSC, total_KBSC))
    gain = _array(gain_C.expand(small_KBSC.shape[2], -1).flatten())
    in_ranges(len(total), lambda first, last: neuron_loops.add_scaled(small, gain, total, first, last))


def plane(small_KBSC: Tensor, sign: int) -> Tensor:
    """Words (K, B, S, W) of the values (K, B, S, C) of int8 that have that sign."""
    words_KBSW = torch.empty((*small_KBSC.shape[:-1], word_count(small_KBSC.shape[-1])), dtype=torch.int32)
    values, words = _array(small_KBSC.flatten(0, 2)), _words(words_KBSW.flatten(0, 2))
    in_ranges(len(values), lambda first, last: neuron_loops.plane(values, sign, words, first, last))
    return words_KBSW


def unpack(words_KBSW: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """See ``words.unpack``."""
    out = torch.empty(*words_KBSW.shape[:-1], channels, dtype=dtype)
    words, flat = _words(words_KBSW.flatten(0, -2)), _array(out.flatten(0, -2))
    in_ranges(len(flat), lambda first, last: cpu_loops.unpack(words, flat, first, last))
    return out


def _spike_arrays(spikes: PackedSpikes) -> tuple[np.ndarray, np.ndarray, bool]:
    """Words (I, S, W), mask words (B, S, W), and whether there is a mask."""
    words = _words(spikes.words_KBSW.flatten(0, 1))
    return (words, words, False) if spikes.mask_BSW is None else (words, _words(spikes.mask_BSW), True)


def pooled(spikes: PackedSpikes, dtype: torch.dtype) -> Tensor:
    """The values (K, B, P, C) that the weights see, dense."""
    words_KBSW, pool = spikes.words_KBSW, spikes.pool
    steps, batch, positions = words_KBSW.shape[:3]
    if pool == 1 and spikes.scale_BSC is None:
        return unpack(words_KBSW, spikes.channels, dtype)
    out = torch.empty(steps, batch, positions // pool**2, spikes.channels, dtype=dtype)
    words, flat = _words(words_KBSW.flatten(0, 1)), _array(out.flatten(0, 1))
    scaled, factor = spikes.scale_BSC is not None, flat.dtype.type(1 / pool**2)
    scale = _array(spikes.scale_BSC) if spikes.scale_BSC is not None else flat[:1]

    def work(first: int, last: int) -> None:
        cpu_loops.pool_spikes(words, spikes.size[1], pool, scale, scaled, factor, flat, first, last)

    in_ranges(len(flat), work)
    return out


def spread(gradient: Gradient) -> Tensor:
    """See ``Gradient.dense``."""
    values = gradient.values_KBPC
    steps, batch, positions, channels = values.shape
    out_KBSC = values.new_empty(steps, batch, positions * gradient.pool**2, channels)
    grad, out = _array(values.flatten(0, 1)), _array(out_KBSC.flatten(0, 1))
    scaled, factor = gradient.scale_BSC is not None, out.dtype.type(1 / gradient.pool**2)
    scale = _array(gradient.scale_BSC) if gradient.scale_BSC is not None else out[:1]

    def work(first: int, last: int) -> None:
        cpu_loops.spread(grad, gradient.width, gradient.pool, scale, scaled, factor, out, first, last)

    in_ranges(len(out), work)
    return out_KBSC


# synapses, spike by spike -----------------------------------------------------------------------------------------------------


def event_weight(weight_OCYX: Tensor) -> Tensor:
    """Weights of a convolution as ``event_conv`` reads them: (blocks, Y, X, C, channels of a block)."""
    outputs, channels, rows, columns = weight_OCYX.shape
    block = _block(outputs, channels * rows * columns * weight_OCYX.element_size())
    return _in_blocks(weight_OCYX, block)


def tap_weight(weight_OCYX: Tensor) -> Tensor | None:
    """The same in blocks of which one tap's weights fit the first-level cache; None where output channels come in no such."""
    block = next((n for n in tap_loops.BLOCKS if len(weight_OCYX) % n == 0), None)
    return None if block is None else _in_blocks(weight_OCYX, block)


def _in_blocks(weight_OCYX: Tensor, block: int) -> Tensor:
    return weight_OCYX.detach().unflatten(0, (-1, block)).permute(0, 3, 4, 2, 1).contiguous()


@dataclass(frozen=True)
class Affine:
    """What becomes of the sum of a target's weights: gain * sum + bias."""

    gain: float
    bias_O: Tensor

    def arrays(self) -> tuple[Any, np.ndarray]:
        bias = _array(self.bias_O)
        return bias.dtype.type(self.gain), bias


def event_conv(
    spikes: PackedSpikes,
    weight: Tensor,
    padding: tuple[int, int],
    affine: Affine,
    size: tuple[int, int],
    out_KBPO: Tensor,
    *,
    by_tap: bool,
) -> None:
    """Current of a convolution (stride 1, no dilation, one group), an image of ``size``, into ``out_KBPO``.

    Its cost is proportional to the spikes it reads; one that is kept counts as 1. ``weight``: see ``event_weight``, or
    ``tap_weight`` where it goes by tap, which is faster where a tap brings several spikes to a target.
    """
    words, mask, masked = _spike_arrays(spikes)
    weights, out, (gain, bias) = _array(weight), _array(out_KBPO.flatten(0, 1)), affine.arrays()
    loops = tap_loops if by_tap else cpu_vectors

    def work(first: int, last: int) -> None:
        loops.conv(words, spikes.size, spikes.pool, mask, masked, weights, padding, gain, bias, out, size, first, last)

    in_ranges(len(out), work)


class EventConvGrad:
    """Gradient of the weights of ``event_conv``, accumulated spike by spike."""

    def __init__(self, shape_OCYX: tuple[int, ...], padding: tuple[int, int]):
        self.shape, self.padding = shape_OCYX, padding
        self.grads: list[np.ndarray] = []

    def weight_grad(self, spikes: PackedSpikes, grad_KBPO: Tensor, size: tuple[int, int]) -> None:
        """Add to the gradient that ``finish`` returns."""
        words, mask, masked = _spike_arrays(spikes)
        grad = _array(grad_KBPO.flatten(0, 1))
        threads = max(1, min(torch.get_num_threads(), len(grad)))
        while len(self.grads) < threads:
            self.grads.append(self._zeros(grad.dtype))
        total = {len(grad) * i // threads: own for i, own in enumerate(self.grads[:threads])}

        def work(first: int, last: int) -> None:
            cpu_vectors.conv_weight_grad(
                words, spikes.size, spikes.pool, mask, masked, grad, size, self.padding, TARGETS, total[first], first, last
            )

        in_ranges(len(grad), work)

    def _zeros(self, dtype: Any) -> np.ndarray:
        """A gradient in the layout of ``event_weight``."""
        outputs, channels, rows, columns = self.shape
        block = _block(outputs, channels * rows * columns * np.dtype(dtype).itemsize)
        return np.zeros((outputs // block, rows, columns, channels, block), dtype)

    def finish(self, gain: float) -> Tensor | None:
        """The weights' gradient (O, C, Y, X), where there is any."""
        if not self.grads:
            return None
        outputs, channels, rows, columns = self.shape
        total = torch.from_numpy(sum(self.grads[1:], self.grads[0])).mul_(gain)
        return total.permute(0, 4, 3, 1, 2).reshape(outputs, channels, rows, columns)


def linear_weight(weight_ON: Tensor, channels: int, threads: int | None = None) -> Tensor:
    """Weights of a fully connected layer as ``event_linear`` reads them: (P, blocks, C, outputs of a block)."""
    outputs, inputs = weight_ON.shape
    block = linear_loops.SIDE if outputs % linear_loops.SIDE == 0 else outputs
    shape = (inputs // channels, outputs // block, channels, block)
    found = new_tensor(shape, weight_ON.dtype, weight_ON.device)
    source, to = _array(weight_ON.contiguous()), _array(found)
    in_ranges(-(-inputs // linear_loops.SIDE), lambda first, last: linear_loops.blocked_weight(source, to, first, last), threads)
    return found


def conv_matrix(weight_OCYX: Tensor, shape: ConvShape) -> Tensor:
    """The matrix (outputs by position, then channel; inputs by channel, then position) of a convolution of small images."""
    taps_PQ, (outputs, channels) = _taps(shape), weight_OCYX.shape[:2]
    found = new_tensor((len(taps_PQ) * outputs, channels * taps_PQ.shape[1]), weight_OCYX.dtype, weight_OCYX.device)
    weight, to = _array(weight_OCYX.flatten(2).contiguous()), _array(found.view(len(taps_PQ), outputs, channels, -1))
    in_ranges(outputs, lambda first, last: linear_loops.conv_matrix(weight, taps_PQ, to, first, last))
    return found


def conv_matrix_grad(grad_ON: Tensor, shape_OCYX: tuple[int, ...], shape: ConvShape) -> Tensor:
    """The gradient of the weights from that of their ``conv_matrix``."""
    taps_PQ, (outputs, channels) = _taps(shape), shape_OCYX[:2]
    found = new_tensor(shape_OCYX, grad_ON.dtype, grad_ON.device)
    grad, to = _array(grad_ON.view(len(taps_PQ), outputs, channels, -1)), _array(found.flatten(2))
    in_ranges(outputs, lambda first, last: linear_loops.conv_matrix_grad(grad, taps_PQ, to, first, last))
    return found


def _taps(shape: ConvShape) -> np.ndarray:
    """Which tap of the kernel each output position reads each input position by; -1 for none."""
    found = np.full((math.prod(shape.out_size), math.prod(shape.size)), -1)
    for y, x, j, k in np.ndindex(*shape.out_size, *shape.kernel):
        row = y * shape.stride[0] - shape.padding[0] + j * shape.dilation[0]
        column = x * shape.stride[1] - shape.padding[1] + k * shape.dilation[1]
        if 0 <= row < shape.size[0] and 0 <= column < shape.size[1]:
            found[y * shape.out_size[1] + x, row * shape.size[1] + column] = j * shape.kernel[1] + k
    return found


def event_linear(spikes: PackedSpikes, weight: Tensor, affine: Affine, out_KBPO: Tensor) -> None:
    """Current of a fully connected layer into ``out_KBPO`` (its P is 1), a spike that is kept counted as 1.

    ``weight``: see ``linear_weight``.
    """
    words, mask, masked = _spike_arrays(spikes)
    weights, out, (gain, bias) = _array(weight), _array(out_KBPO.flatten(0, 2)), affine.arrays()
    together = max(1, LINEAR_BYTES // weights[0, 0].nbytes)

    def work(first: int, last: int) -> None:
        linear_loops.linear(words, spikes.size[1], spikes.pool, mask, masked, weights, gain, bias, out, together, first, last)

    in_ranges(len(out), work)


def event_linear_weight_grad(parts: Sequence[tuple[PackedSpikes, Tensor]], gain: float, out_ON: Tensor, *, adds: bool) -> None:
    """``gain`` times the gradient of ``event_linear``'s weights, as torch keeps them, into or added to ``out_ON``.

    Args:
        parts: spikes, and the gradients (I, O) of the currents that they caused.
        gain: what a spike that is kept counts.
        out_ON: the weights' gradient.
        adds: whether it holds something already.
    """
    grad_IO = torch.cat([grad for _, grad in parts])
    images, outputs = (grad_IO != 0).any(1), (grad_IO != 0).any(0).nonzero().flatten()
    if not adds:
        out_ON.zero_()
    if len(outputs) == 0:
        return
    grad_IA = grad_IO if len(outputs) == grad_IO.shape[1] else grad_IO.index_select(1, outputs)
    row_I = torch.where(images, torch.arange(len(images)) * len(outputs), -1).int().split([len(grad) for _, grad in parts])
    listed = [(_spike_arrays(spikes), spikes, _array(row)) for (spikes, _), row in zip(parts, row_I)]
    room = sum(linear_loops.count_spikes(*arrays) for arrays, _, _ in listed) + cpu_vectors.COPIED
    inputs, rows, count = np.empty(room, np.int32), np.empty(room, np.int32), 0
    for (words, mask, masked), spikes, row in listed:
        count = linear_loops.list_inputs(words, spikes.size[1], spikes.pool, mask, masked, row, inputs, rows, count)
    begins, by_input = np.empty(out_ON.shape[1], np.int64), np.empty(count + out_ON.shape[1], np.int32)
    cpu_vectors.sort_by_key(inputs, rows, count, begins, by_input)
    grad, output_A, out = _array(grad_IA), _array(outputs), _array(out_ON)
    factor = grad.dtype.type(gain)

    def work(first: int, last: int) -> None:
        linear_loops.linear_weight_grad(grad, by_input, begins, factor, output_A, out, adds, first, last)

    in_ranges(-(-len(begins) // linear_loops.SIDE), work)


def _block(outputs: int, bytes_each: int) -> int:
    """Output channels that are done together: the largest divisor of ``outputs`` whose weights fit the cache, at least 16."""
    fitting = [n for n in range(1, outputs + 1) if outputs % n == 0 and (n * bytes_each <= CACHE_BYTES or n <= 16)]
    return fitting[-1]
