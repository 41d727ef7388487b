"""The gradients of a 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3): a quarter of the multiplications.

The gradient of the input is itself a convolution, with the kernel turned by half a circle. Each 6x6 tile d of it gives a 4x4 tile

    y = A^T [ (G g G^T) * (B^T d B) ] A

where * is element by element and, over channels, a matrix product for each of the 36 elements. With z the gradient of y,

    dL/dg = G^T [ sum over tiles of (A z A^T) * (B^T d B) ] G

is that of the kernel: here d are tiles of what the convolution reads and z tiles of the gradient of its output. Single precision
loses about a decimal digit against the direct sum (1e-6 of the norm). That is accurate enough for a gradient; spikes are not
computed this way. Source: Lavin & Gray 2016 (arXiv:1509.09308), sec. 4.3; the second is the transpose of the first.
Suffix legend: I images, S positions, C channels of the source, O of the convolution, N tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from spikeprop.snn.engine.buffer_pool import BufferPool, new_tensor
from spikeprop.snn.engine.kernels.cpu import _array, in_ranges

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")
_TWO, _FOUR, _FIVE, _EIGHT = (np.float32(n) for n in (2, 4, 5, 8))
_QUARTER, _SIXTH, _12TH, _24TH = (np.float32(1 / n) for n in (4, 6, 12, 24))
TILES_BYTES = (2 << 20, 8 << 20)  # of transformed tiles at once: as many as of the transformed weights, within these
LEAST_CHANNELS, LEAST_WEIGHTS = 64, 64 * 128  # with fewer, the transforms cost more than the multiplications that they save
LEAST_SAVED = 2  # times as many multiplications, at least


def serves(
    weight_OCYX: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], size: tuple[int, int]
) -> bool:
    """Whether this module can and should be used on the CPU for a convolution of images of ``size``."""
    outputs, channels, *kernel = weight_OCYX.shape
    tiles = -(-size[0] // 4) * -(-size[1] // 4)
    return (
        weight_OCYX.dtype is torch.float32
        and (kernel, stride, dilation) == ([3, 3], (1, 1), (1, 1))
        and max(padding) <= 2
        and min(outputs, channels) >= LEAST_CHANNELS
        and outputs * channels >= LEAST_WEIGHTS
        and size[0] * size[1] * 9 >= LEAST_SAVED * tiles * 36  # small images fill their tiles badly
    )


def share(outputs: int, channels: int) -> float:
    """Seconds of the weights' gradient relative to torch's direct products; measured. The rest is transforms."""
    return 0.3 + 15 / outputs + 15 / channels


def transformed(weight_OCYX: Tensor, threads: int) -> Tensor:
    """G g G^T of the turned kernel, (36, O, C), on as many threads."""
    weight_OYXC = weight_OCYX.detach().permute(0, 2, 3, 1).contiguous()
    out = new_tensor((36, *weight_OCYX.shape[:2]), torch.float32, weight_OCYX.device)
    weight, to = _array(weight_OYXC), out.numpy()
    in_ranges(len(weight), lambda first, last: _from_kernels(weight, to, first, last), threads)
    return out


def input_grad(
    grad_ISO: Tensor,
    size: tuple[int, int],
    weight: Tensor,
    padding: tuple[int, int],
    out_ISC: Tensor,
    out_size: tuple[int, int],
    buffers: BufferPool,
) -> None:
    """Gradient of the input of a convolution, into ``out_ISC``.

    Args:
        grad_ISO: gradient of its output, images of ``size``.
        weight: ``transformed`` weights.
        padding: the convolution's.
        out_ISC: images of ``out_size``, contiguous.
        buffers: memory for the tiles.
    """
    grad_ISO = grad_ISO.contiguous()
    tiles = (-(-out_size[0] // 4), -(-out_size[1] // 4))
    margin = (2 - padding[0], 2 - padding[1])
    each = tiles[0] * tiles[1]
    for here in _groups(len(grad_ISO), each * grad_ISO.shape[2], weight[0].numel()):
        shape = (36, len(grad_ISO[here]) * each, grad_ISO.shape[2])
        tiles_36NO = buffers.take(shape, torch.float32)
        _tiles_in(grad_ISO[here].numpy(), size, margin, tiles, tiles_36NO.numpy())
        products_36NC = buffers.take((*shape[:2], weight.shape[2]), torch.float32)
        for tile_NO, weight_OC, product_NC in zip(tiles_36NO, weight, products_36NC):
            torch.mm(tile_NO, weight_OC, out=product_NC)
        _tiles_out(products_36NC.numpy(), tiles, out_ISC[here].numpy(), out_size)
        buffers.give(tiles_36NO)
        buffers.give(products_36NC)


def weight_grad(
    values_ISC: Tensor,
    size: tuple[int, int],
    grad_ISO: Tensor,
    out_size: tuple[int, int],
    padding: tuple[int, int],
    buffers: BufferPool,
) -> Tensor:
    """Gradient (O, C, 3, 3) of the weights of a convolution.

    Args:
        values_ISC: what it reads, images of ``size``.
        grad_ISO: gradient of its output, images of ``out_size``.
        padding: the convolution's.
        buffers: memory for the tiles.
    """
    values, grad = values_ISC.contiguous(), grad_ISO.contiguous()
    outputs, channels = grad.shape[2], values.shape[2]
    tiles = (-(-out_size[0] // 4), -(-out_size[1] // 4))
    each = tiles[0] * tiles[1]
    total_36OC = buffers.take((36, outputs, channels), torch.float32)
    for here in _groups(len(grad), each * max(channels, outputs), channels * outputs):
        count = len(grad[here]) * each
        read_36NC, found_36NO = (buffers.take((36, count, n), torch.float32) for n in (channels, outputs))
        _tiles_in(values[here].numpy(), size, padding, tiles, read_36NC.numpy())
        _gradient_tiles(grad[here].numpy(), out_size, tiles, found_36NO.numpy())
        for total_OC, read_NC, found_NO in zip(total_36OC, read_36NC, found_36NO):
            if here.start == 0:
                torch.mm(found_NO.T, read_NC, out=total_OC)
            else:
                total_OC.addmm_(found_NO.T, read_NC)
        buffers.give(read_36NC)
        buffers.give(found_36NO)
    out = new_tensor((outputs, channels, 3, 3), torch.float32, grad.device)
    _to_kernels(total_36OC.numpy(), out.numpy())
    buffers.give(total_36OC)
    return out


def _groups(images: int, numbers: int, weights: int) -> Iterator[slice]:
    """Images that are transformed together; each has tiles of 36 x ``numbers``, the weights are 36 x ``weights``."""
    most = min(max(TILES_BYTES[0], 36 * 4 * weights), TILES_BYTES[1])
    groups = -(-images // max(1, most // (36 * 4 * numbers)))
    for n in range(groups):
        yield slice(images * n // groups, images * (n + 1) // groups)


@_jit
def _to_tile(x, run, at, out):
    """B^T applied along the first axis of x (6 runs from ``at``), into out (6, run)."""
    x0, x1, x2 = x[0, at : at + run], x[1, at : at + run], x[2, at : at + run]
    x3, x4, x5 = x[3, at : at + run], x[4, at : at + run], x[5, at : at + run]
    o0, o1, o2, o3, o4, o5 = out[0], out[1], out[2], out[3], out[4], out[5]
    for c in range(run):
        o0[c] = _FOUR * x0[c] - _FIVE * x2[c] + x4[c]
    for c in range(run):
        o1[c] = x4[c] + x3[c] - _FOUR * (x1[c] + x2[c])
    for c in range(run):
        o2[c] = x4[c] - x3[c] + _FOUR * (x1[c] - x2[c])
    for c in range(run):
        o3[c] = x4[c] - x2[c] + _TWO * (x3[c] - x1[c])
    for c in range(run):
        o4[c] = x4[c] - x2[c] - _TWO * (x3[c] - x1[c])
    for c in range(run):
        o5[c] = _FOUR * x1[c] - _FIVE * x3[c] + x5[c]


@_jit
def _tiles_in(images_ISO, size, margin, tiles, out_36NO):
    """B^T d B of every tile, the images with ``margin`` zeros around them."""
    channels = images_ISO.shape[2]
    padded = np.zeros((4 * tiles[0] + 2, (4 * tiles[1] + 2) * channels), images_ISO.dtype)
    columns = np.empty((6, 6 * channels), images_ISO.dtype)
    turned = np.empty((6, channels), images_ISO.dtype)
    left, width = margin[1] * channels, size[1] * channels
    n = 0
    for i in range(images_ISO.shape[0]):
        image = images_ISO[i].reshape(-1)
        for y in range(min(size[0], padded.shape[0] - margin[0])):
            row = padded[margin[0] + y]
            for c in range(min(width, row.shape[0] - left)):
                row[left + c] = image[y * width + c]
        for a in range(tiles[0]):
            for b in range(tiles[1]):
                _to_tile(padded[4 * a : 4 * a + 6], 6 * channels, 4 * b * channels, columns)
                for r in range(6):
                    _to_tile(columns[r].reshape(6, channels), channels, 0, turned)
                    for s in range(6):
                        to, source = out_36NO[r * 6 + s, n], turned[s]
                        for c in range(channels):
                            to[c] = source[c]
                n += 1


@_jit
def _spread_tile(z, run, at, out):
    """A applied along the first axis of z (4 runs from ``at``), into out (6, run)."""
    z0, z1, z2, z3 = z[0, at : at + run], z[1, at : at + run], z[2, at : at + run], z[3, at : at + run]
    o0, o1, o2, o3, o4, o5 = out[0], out[1], out[2], out[3], out[4], out[5]
    for c in range(run):
        even, odd = z0[c] + z2[c], z1[c] + z3[c]
        o0[c] = z0[c]
        o1[c] = even + odd
        o2[c] = even - odd
    for c in range(run):
        even, odd = z0[c] + _FOUR * z2[c], _TWO * z1[c] + _EIGHT * z3[c]
        o3[c] = even + odd
        o4[c] = even - odd
        o5[c] = z3[c]


@_jit
def _gradient_tiles(images_ISO, size, tiles, out_36NO):
    """A z A^T of every 4x4 tile, the images with zeros behind them."""
    channels = images_ISO.shape[2]
    padded = np.zeros((4 * tiles[0], 4 * tiles[1] * channels), images_ISO.dtype)
    columns = np.empty((6, 4 * channels), images_ISO.dtype)
    turned = np.empty((6, channels), images_ISO.dtype)
    width, n = size[1] * channels, 0
    for i in range(images_ISO.shape[0]):
        image = images_ISO[i].reshape(-1)
        for y in range(size[0]):
            padded[y, :width] = image[y * width : (y + 1) * width]
        for a in range(tiles[0]):
            for b in range(tiles[1]):
                _spread_tile(padded[4 * a : 4 * a + 4], 4 * channels, 4 * b * channels, columns)
                for r in range(6):
                    _spread_tile(columns[r].reshape(4, channels), channels, 0, turned)
                    for s in range(6):
                        to, source = out_36NO[r * 6 + s, n], turned[s]
                        for c in range(channels):
                            to[c] = source[c]
                n += 1


@_jit
def _to_taps(m0, m1, m2, m3, m4, m5, out):
    """G^T applied to six runs, into out (3, run)."""
    o0, o1, o2 = out[0], out[1], out[2]
    for c in range(m0.shape[0]):
        near, far = (m1[c] + m2[c]) * _SIXTH, m3[c] + m4[c]
        o0[c] = m0[c] * _QUARTER - near + far * _24TH
        o1[c] = (m2[c] - m1[c]) * _SIXTH + (m3[c] - m4[c]) * _12TH
        o2[c] = far * _SIXTH - near + m5[c]


@_jit
def _to_kernels(m, out_OCYX):
    """G^T m G for every output and channel (m: (36, O, C))."""
    channels = m.shape[2]
    rows, taps = np.empty((6, 3, channels), m.dtype), np.empty((3, 3, channels), m.dtype)
    for o in range(m.shape[1]):
        for s in range(6):
            _to_taps(m[s, o], m[6 + s, o], m[12 + s, o], m[18 + s, o], m[24 + s, o], m[30 + s, o], rows[s])
        for y in range(3):
            _to_taps(rows[0, y], rows[1, y], rows[2, y], rows[3, y], rows[4, y], rows[5, y], taps[y])
        for y in range(3):
            for x in range(3):
                to, source = out_OCYX[o, :, y, x], taps[y, x]
                for c in range(channels):
                    to[c] = source[c]


@_jit
def _from_taps(k0, k1, k2, out):
    """G applied to three runs, into out (6, run)."""
    o0, o1, o2, o3, o4, o5 = out[0], out[1], out[2], out[3], out[4], out[5]
    for c in range(k0.shape[0]):
        outer, middle = (k0[c] + k2[c]) * _SIXTH, k1[c] * _SIXTH
        o0[c] = k0[c] * _QUARTER
        o1[c] = -outer - middle
        o2[c] = middle - outer
    for c in range(k0.shape[0]):
        outer, middle = k0[c] * _24TH + k2[c] * _SIXTH, k1[c] * _12TH
        o3[c] = outer + middle
        o4[c] = outer - middle
        o5[c] = k2[c]


@_jit
def _from_kernels(weight_OYXC, out_36OC, first, last):
    """G g G^T of the turned kernels of the outputs first..last."""
    channels = weight_OYXC.shape[3]
    columns, tile = np.empty((3, 6, channels), weight_OYXC.dtype), np.empty((6, channels), weight_OYXC.dtype)
    for o in range(first, last):
        w = weight_OYXC[o]
        for x in range(3):
            _from_taps(w[2, 2 - x], w[1, 2 - x], w[0, 2 - x], columns[x])
        for r in range(6):
            _from_taps(columns[0, r], columns[1, r], columns[2, r], tile)
            for s in range(6):
                to, source = out_36OC[r * 6 + s, o], tile[s]
                for c in range(channels):
                    to[c] = source[c]


@_jit
def _from_tile(m0, m1, m2, m3, m4, m5, out):
    """A^T applied to six runs, into out (4, run)."""
    o0, o1, o2, o3 = out[0], out[1], out[2], out[3]
    for c in range(m0.shape[0]):
        o0[c] = m0[c] + (m1[c] + m2[c]) + (m3[c] + m4[c])
    for c in range(m0.shape[0]):
        o1[c] = (m1[c] - m2[c]) + _TWO * (m3[c] - m4[c])
    for c in range(m0.shape[0]):
        o2[c] = (m1[c] + m2[c]) + _FOUR * (m3[c] + m4[c])
    for c in range(m0.shape[0]):
        o3[c] = (m1[c] - m2[c]) + _EIGHT * (m3[c] - m4[c]) + m5[c]


@_jit
def _tiles_out(m, tiles, out_ISC, out_size):
    """A^T m A of every tile (m: products (36, N, C)), cut at the image's right and lower border."""
    channels = out_ISC.shape[2]
    rows = np.empty((6, 4, channels), out_ISC.dtype)
    tile = np.empty((4, channels), out_ISC.dtype)
    n = 0
    for i in range(out_ISC.shape[0]):
        for a in range(tiles[0]):
            for b in range(tiles[1]):
                for r in range(6):
                    _from_tile(m[r, n], m[6 + r, n], m[12 + r, n], m[18 + r, n], m[24 + r, n], m[30 + r, n], rows[r])
                for y in range(min(4, out_size[0] - 4 * a)):
                    _from_tile(rows[0, y], rows[1, y], rows[2, y], rows[3, y], rows[4, y], rows[5, y], tile)
                    for x in range(min(4, out_size[1] - 4 * b)):
                        to, source = out_ISC[i, (4 * a + y) * out_size[1] + 4 * b + x], tile[x]
                        for c in range(channels):
                            to[c] = source[c]
                n += 1
