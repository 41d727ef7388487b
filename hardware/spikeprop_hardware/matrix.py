"""NIR's linear nodes as sparse matrices on flattened (C-order) tensors, so that a chain of them is one product.

A convolution is the matrix M with M[(o,y,x), (c,y*s-p+ky*d,x*s-p+kx*d)] = w[o,c,ky,kx]; an average pooling is a
convolution within each channel with weights 1/k^2. Lava's own Conv process loops over channel pairs and is far slower
than one sparse product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError

LARGEST = 2**26  # numbers of a tensor; ImageNet's largest layers have a few million
Shape = tuple[int, ...]
Margins = tuple[tuple[int, int], tuple[int, int]]  # padding (above, below), (left, right)
Linear = tuple[sparse.csr_matrix, np.ndarray, Shape]  # matrix, bias, shape of the result


def check_size(name: str, shape: Shape) -> None:
    """A tensor of a graph must have a size that a machine can hold; a file can say any.

    Raises:
        HardwareError: naming the node.
    """
    if not shape or min(shape) < 1 or math.prod(shape) > LARGEST:
        raise HardwareError(
            f"node {name!r} has a tensor of shape {shape}; sizes are positive, and at most {LARGEST:,} numbers are laid out"
        )


def linear_of(node: Any, shape: Shape, name: str) -> Linear:
    """Matrix, bias and output shape of a linear node reading a tensor of ``shape``.

    Raises:
        HardwareError: a node that is not linear or not known, or whose settings do not fit the tensor.
    """
    maker = _MAKERS.get(type(node))
    if maker is None:
        known = ", ".join(t.__name__ for t in _MAKERS)
        raise HardwareError(
            f"node {name!r} is a {type(node).__name__}, which this simulator does not know; it knows {known}, IF, LIF, "
            "SpikingMaxPool2d"
        )
    if isinstance(node, (nir.Conv2d, nir.AvgPool2d, nir.SumPool2d)):
        _check_window(node, shape, name)
    return maker(node, shape, name)


def _check_window(node: Any, shape: Shape, name: str) -> None:
    """Before a convolution is laid out: that its output is no larger than can be."""
    if len(shape) != 3:
        raise HardwareError(f"node {name!r} slides over images (C, H, W), but {shape} arrives")
    conv = isinstance(node, nir.Conv2d)
    if conv and np.ndim(node.weight) != 4:
        raise HardwareError(f"node {name!r} has weights with {np.ndim(node.weight)} axes; a convolution's have 4")
    kernel = np.shape(node.weight)[2:] if conv else pair(node.kernel_size)
    outputs = np.shape(node.weight)[0] if conv else shape[0]
    margins = _margins(node, np.empty((1, 1, *kernel)), name) if conv else _even(node.padding)
    stride, dilation = pair(node.stride), pair(node.dilation) if conv else (1, 1)
    if min(*kernel, *stride, *dilation) < 1 or min(min(m) for m in margins) < 0:
        raise HardwareError(
            f"node {name!r} has a kernel {kernel}, stride {stride}, dilation {dilation} or padding {margins} out of range"
        )
    after = [(n + sum(m) - d * (k - 1) - 1) // s + 1 for n, m, d, k, s in zip(shape[1:], margins, dilation, kernel, stride)]
    check_size(name, (outputs, *after))
    if math.prod(after) * math.prod(kernel) > LARGEST:
        raise HardwareError(
            f"node {name!r} has a window of {kernel} at {after[0]} x {after[1]} places, more than can be laid out"
        )


def _conv(node: nir.Conv2d, shape: Shape, name: str) -> Linear:
    weight = np.asarray(node.weight, dtype=np.float64)
    groups = int(node.groups)
    if len(shape) != 3 or shape[0] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise HardwareError(
            f"node {name!r} has weights {weight.shape} in {groups} groups, which do not fit {shape}, what it reads"
        )
    margins = _margins(node, weight, name)
    matrix, out = _convolution(weight, shape, pair(node.stride), margins, pair(node.dilation), groups)
    return matrix, np.repeat(np.asarray(node.bias, dtype=np.float64), out[1] * out[2]), out


def _pool(average: bool) -> Callable[[Any, Shape, str], Linear]:
    def make(node: Any, shape: Shape, name: str) -> Linear:
        height, width = pair(node.kernel_size)
        weight = np.full((shape[0], 1, height, width), 1 / (height * width) if average else 1.0)
        matrix, out = _convolution(weight, shape, pair(node.stride), _even(node.padding), (1, 1), shape[0])
        return matrix, np.zeros(matrix.shape[0]), out

    return make


def _dense(node: Any, shape: Shape, name: str) -> Linear:
    weight = np.asarray(node.weight, dtype=np.float64)
    bias = np.asarray(node.bias, dtype=np.float64) if isinstance(node, nir.Affine) else np.zeros(len(weight))
    return sparse.csr_matrix(weight), bias, (len(weight),)


def _flatten(node: nir.Flatten, shape: Shape, name: str) -> Linear:
    """Values stay in C-order, so only the shape changes; NIR counts axes without the batch."""
    first, last = (int(axis) + len(shape) * (int(axis) < 0) for axis in (node.start_dim, node.end_dim))
    if not 0 <= first <= last < len(shape):
        raise HardwareError(f"node {name!r} flattens axes {node.start_dim} to {node.end_dim}, but {shape} arrives")
    size = int(np.prod(shape))
    merged = (*shape[:first], int(np.prod(shape[first : last + 1])), *shape[last + 1 :])
    return sparse.identity(size, format="csr"), np.zeros(size), merged


def _scale(node: nir.Scale, shape: Shape, name: str) -> Linear:
    gains = np.broadcast_to(np.asarray(node.scale, dtype=np.float64), shape).ravel()
    return sparse.diags(gains, format="csr"), np.zeros(len(gains)), shape


_MAKERS: dict[type, Callable[[Any, Shape, str], Linear]] = {
    nir.Conv2d: _conv,
    nir.AvgPool2d: _pool(average=True),
    nir.SumPool2d: _pool(average=False),
    nir.Linear: _dense,
    nir.Affine: _dense,
    nir.Flatten: _flatten,
    nir.Scale: _scale,
}


def _convolution(
    weight: np.ndarray, shape: Shape, stride: Shape, margins: Margins, dilation: Shape, groups: int
) -> tuple[sparse.csr_matrix, Shape]:
    outputs, per_group, kernel_h, kernel_w = weight.shape
    channels, height, width = shape
    (top, bottom), (left, right) = margins
    out_h = (height + top + bottom - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width + left + right - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    o, c = np.meshgrid(np.arange(outputs), np.arange(per_group), indexing="ij")
    source = c + (o // (outputs // groups)) * per_group  # input channel of each (output, group member)
    total = sparse.csr_matrix((outputs * out_h * out_w, channels * height * width))
    for ky in range(kernel_h):
        for kx in range(kernel_w):
            y, x = np.meshgrid(np.arange(out_h), np.arange(out_w), indexing="ij")
            in_y, in_x = y * stride[0] - top + ky * dilation[0], x * stride[1] - left + kx * dilation[1]
            inside = (in_y >= 0) & (in_y < height) & (in_x >= 0) & (in_x < width)
            to, at = (y * out_w + x)[inside], (in_y * width + in_x)[inside]
            rows = (o[..., None] * (out_h * out_w) + to).ravel()
            columns = (source[..., None] * (height * width) + at).ravel()
            values = np.repeat(weight[:, :, ky, kx].ravel(), len(to))
            total = total + sparse.csr_matrix((values, (rows, columns)), shape=total.shape)
    return total, (outputs, out_h, out_w)


def pair(value: Any) -> Shape:
    """(height, width) of a size that may be given as one number."""
    values = np.broadcast_to(np.asarray(value, dtype=int), (2,))
    return int(values[0]), int(values[1])


def _even(padding: Any) -> Margins:
    height, width = pair(padding)
    return (height, height), (width, width)


def _margins(node: nir.Conv2d, weight: np.ndarray, name: str) -> Margins:
    """The convolution's padding; "same" as torch has it, an odd margin's larger half below and to the right."""
    if not isinstance(node.padding, str):
        return _even(node.padding)
    if node.padding == "valid":
        return _even(0)
    if pair(node.stride) != (1, 1):
        raise HardwareError(f"node {name!r} has padding 'same' with stride {pair(node.stride)}; give the padding as numbers")
    totals = [d * (k - 1) for d, k in zip(pair(node.dilation), weight.shape[2:])]
    high, wide = ((total // 2, total - total // 2) for total in totals)
    return high, wide
