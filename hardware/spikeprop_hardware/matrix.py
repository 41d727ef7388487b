"""NIR's linear nodes as sparse matrices on flattened (C-order) tensors, so that a chain of nodes is one product.

A convolution is the matrix M with M[(o,y,x), (c,y*s-p+ky*d,x*s-p+kx*d)] = w[o,c,ky,kx]; an average pooling is a
convolution within each channel with weights 1/k^2. Lava's own Conv process loops over channel pairs and is far slower
than one sparse product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import NirError
from spikeprop_hardware.graph import INTEGRATORS, NEURONS, SpikingMaxPool2d, pair, window_of

LARGEST = 2**26  # numbers of a tensor; ImageNet's largest layers have a few million
Shape = tuple[int, ...]
Margins = tuple[tuple[int, int], tuple[int, int]]  # padding (above, below), (left, right)
Linear = tuple[sparse.csr_matrix, np.ndarray, Shape]  # matrix, bias, shape of the result


def check_size(name: str, shape: Shape) -> None:
    """A tensor of a graph must have a size that a machine can hold; a file can name any size.

    Raises:
        NirError: naming the node.
    """
    if not shape or min(shape) < 1 or math.prod(shape) > LARGEST:
        raise NirError(
            f"node {name!r} has a tensor of shape {shape}; sizes are positive, and at most {LARGEST:,} numbers are laid out"
        )


def linear_of(node: Any, shape: Shape, name: str) -> Linear:
    """Matrix, bias and output shape of a linear node reading a tensor of ``shape``.

    Raises:
        NirError: a node that is not linear or not known, or whose settings do not fit the tensor.
    """
    maker = _MAKERS.get(type(node))
    if maker is None:
        known = ", ".join(t.__name__ for t in _MAKERS)
        raise NirError(
            f"node {name!r} is a {type(node).__name__}, which this simulator does not support; it supports {known}, "
            f"{', '.join(kind.__name__ for kind in (*NEURONS, *INTEGRATORS, SpikingMaxPool2d))}"
        )
    return maker(node, shape, name)


class Places(NamedTuple):
    """Where a kernel lies on images (C, H, W), and the shape of the result."""

    kernel: Shape
    stride: tuple[int, int]
    dilation: tuple[int, int]
    margins: Margins
    after: Shape


def places_of(node: Any, shape: Shape, name: str) -> Places:
    """The places of a convolution's or pooling's kernel on a tensor of ``shape``.

    Raises:
        NirError: settings out of range or that do not fit the tensor, or a result that is larger than can be laid out.
    """
    if len(shape) != 3:
        raise NirError(f"node {name!r} slides over images (C, H, W), but {shape} arrives")
    conv = isinstance(node, nir.Conv2d)
    if conv and np.ndim(node.weight) != 4:
        raise NirError(f"node {name!r} has weights with {np.ndim(node.weight)} axes; a convolution's have 4")
    kernel = np.shape(node.weight)[2:] if conv else pair(node.kernel_size)
    outputs = np.shape(node.weight)[0] if conv else shape[0]
    margins = margins_of(node, name) if conv else _even(node.padding)
    stride, dilation = pair(node.stride), pair(node.dilation) if conv else (1, 1)
    if min(*kernel, *stride, *dilation) < 1 or min(min(m) for m in margins) < 0:
        raise NirError(
            f"node {name!r} has a kernel {kernel}, stride {stride}, dilation {dilation} or padding {margins} out of range"
        )
    after = [(n + sum(m) - d * (k - 1) - 1) // s + 1 for n, m, d, k, s in zip(shape[1:], margins, dilation, kernel, stride)]
    check_size(name, (outputs, *after))
    if math.prod(after) * math.prod(kernel) > LARGEST:
        raise NirError(f"node {name!r} has a window of {kernel} at {after[0]} x {after[1]} places, more than can be laid out")
    return Places(kernel, stride, dilation, margins, (outputs, *after))


def margins_of(node: nir.Conv2d, name: str) -> Margins:
    """A convolution's padding; "same" as torch has it, an odd margin's larger half below and to the right.

    Raises:
        NirError: padding "same" with a stride, which torch does not have either.
    """
    if not isinstance(node.padding, str):
        return _even(node.padding)
    if node.padding == "valid":
        return _even(0)
    if pair(node.stride) != (1, 1):
        raise NirError(f"node {name!r} has padding 'same' with stride {pair(node.stride)}; give the padding as numbers")
    totals = [d * (k - 1) for d, k in zip(pair(node.dilation), np.shape(node.weight)[2:])]
    high, wide = ((total // 2, total - total // 2) for total in totals)
    return high, wide


def _even(padding: Any) -> Margins:
    height, width = pair(padding)
    return (height, height), (width, width)


def _conv(node: nir.Conv2d, shape: Shape, name: str) -> Linear:
    places = places_of(node, shape, name)
    weight = np.asarray(node.weight, dtype=np.float64)
    groups = int(node.groups)
    if shape[0] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise NirError(f"node {name!r} has weights {weight.shape} in {groups} groups, which do not fit {shape}, what it reads")
    _, height, width = places.after
    return _convolution(weight, shape, places, groups), np.repeat(np.asarray(node.bias, np.float64), height * width), places.after


def _conv1d(node: nir.Conv1d, shape: Shape, name: str) -> Linear:
    """A convolution over (C, N) is one over images (C, 1, N)."""
    if len(shape) != 2 or np.ndim(node.weight) != 3:
        raise NirError(
            f"node {name!r} has weights with {np.ndim(node.weight)} axes and slides over signals (C, N), but {shape} arrives"
        )
    matrix, bias, after = _conv(across(node), (shape[0], 1, shape[1]), name)
    return matrix, bias, (after[0], after[2])


def across(node: nir.Conv1d) -> nir.Conv2d:
    """The same convolution over images of height 1."""
    stride, dilation = (int(np.asarray(value).reshape(())) for value in (node.stride, node.dilation))
    padding = node.padding if isinstance(node.padding, str) else (0, int(np.asarray(node.padding).reshape(())))
    return nir.Conv2d(
        input_shape=None, weight=np.asarray(node.weight)[:, :, None], stride=(1, stride),
        padding=padding, dilation=(1, dilation), groups=node.groups, bias=node.bias,
    )  # fmt: skip


def _pool(average: bool) -> Callable[[Any, Shape, str], Linear]:
    def make(node: Any, shape: Shape, name: str) -> Linear:
        places = places_of(node, shape, name)
        weight = np.full((shape[0], 1, *places.kernel), 1 / math.prod(places.kernel) if average else 1.0)
        matrix = _convolution(weight, shape, places, groups=shape[0])
        return matrix, np.zeros(matrix.shape[0]), places.after

    return make


def _dense(node: Any, shape: Shape, name: str) -> Linear:
    weight = np.asarray(node.weight, dtype=np.float64)
    bias = np.asarray(node.bias, dtype=np.float64) if isinstance(node, nir.Affine) else np.zeros(len(weight))
    return sparse.csr_matrix(weight), bias, (len(weight),)


def _flatten(node: nir.Flatten, shape: Shape, name: str) -> Linear:
    """Values stay in C-order, so only the shape changes; NIR counts axes without the batch."""
    first, last = (int(axis) + len(shape) * (int(axis) < 0) for axis in (node.start_dim, node.end_dim))
    if not 0 <= first <= last < len(shape):
        raise NirError(f"node {name!r} flattens axes {node.start_dim} to {node.end_dim}, but {shape} arrives")
    size = int(np.prod(shape))
    merged = (*shape[:first], int(np.prod(shape[first : last + 1])), *shape[last + 1 :])
    return sparse.identity(size, format="csr"), np.zeros(size), merged


def _delay(node: nir.Delay, shape: Shape, name: str) -> Linear:
    """Passes its input on; topology.py says when."""
    size = int(np.prod(shape))
    return sparse.identity(size, format="csr"), np.zeros(size), shape


def _scale(node: nir.Scale, shape: Shape, name: str) -> Linear:
    gains = np.broadcast_to(np.asarray(node.scale, dtype=np.float64), shape).ravel()
    return sparse.diags(gains, format="csr"), np.zeros(len(gains)), shape


_MAKERS: dict[type, Callable[[Any, Shape, str], Linear]] = {
    nir.Conv2d: _conv,
    nir.Conv1d: _conv1d,
    nir.AvgPool2d: _pool(average=True),
    nir.SumPool2d: _pool(average=False),
    nir.Linear: _dense,
    nir.Affine: _dense,
    nir.Flatten: _flatten,
    nir.Scale: _scale,
    nir.Delay: _delay,
}


def _convolution(weight: np.ndarray, shape: Shape, places: Places, groups: int) -> sparse.csr_matrix:
    outputs, per_group, kernel_h, kernel_w = weight.shape
    channels, height, width = shape
    (top, _), (left, _) = places.margins
    _, out_h, out_w = places.after
    o, c = np.meshgrid(np.arange(outputs), np.arange(per_group), indexing="ij")
    source = c + (o // (outputs // groups)) * per_group  # input channel of each (output, group member)
    y, x = np.meshgrid(np.arange(out_h) * places.stride[0] - top, np.arange(out_w) * places.stride[1] - left, indexing="ij")
    target = np.arange(out_h * out_w).reshape(out_h, out_w)
    total = sparse.csr_matrix((outputs * out_h * out_w, channels * height * width))
    for ky in range(kernel_h):
        for kx in range(kernel_w):
            in_y, in_x = y + ky * places.dilation[0], x + kx * places.dilation[1]
            inside = (in_y >= 0) & (in_y < height) & (in_x >= 0) & (in_x < width)
            to, at = target[inside], (in_y * width + in_x)[inside]
            rows = (o[..., None] * (out_h * out_w) + to).ravel()
            columns = (source[..., None] * (height * width) + at).ravel()
            values = np.repeat(weight[:, :, ky, kx].ravel(), len(to))
            total = total + sparse.csr_matrix((values, (rows, columns)), shape=total.shape)
    return total


def windows_of(node: SpikingMaxPool2d, shape: Shape, name: str) -> tuple[sparse.csr_matrix, Shape]:
    """Windows of max pooling by rows and places of a tensor of ``shape`` by columns, 1 where a window holds a place; their shape.

    Raises:
        NirError: sizes that are not sizes, or do not fit the tensor.
    """
    window = window_of(node, name)
    if len(shape) != 3:
        raise NirError(f"node {name!r} pools (channels, height, width), but {shape} arrives")
    sizes = list(zip(shape[1:], window.kernel, window.stride, window.padding))
    rows, columns = (_along(*size, window.ceil_mode) for size in sizes)
    if not (rows.shape[0] and columns.shape[0]):
        raise NirError(f"node {name!r} has windows of {window.kernel}, which do not fit {shape}, what it reads")
    matrix = sparse.kron(sparse.identity(shape[0]), sparse.kron(rows, columns)).tocsr()
    matrix.eliminate_zeros()  # kron stores dense blocks where that is shorter
    return matrix, (shape[0], rows.shape[0], columns.shape[0])


def _along(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> sparse.csr_matrix:
    """Windows along one axis; with ``ceil_mode`` one more that is cut off, if it begins before the padding behind (PyTorch)."""
    room = length + 2 * padding - kernel
    count = max(0, (room + (stride - 1 if ceil_mode else 0)) // stride + 1)
    if ceil_mode and count and (count - 1) * stride >= length + padding:
        count -= 1
    held = np.zeros((count, length))
    for i in range(count):
        start = i * stride - padding
        held[i, max(start, 0) : max(start + kernel, 0)] = 1
    return sparse.csr_matrix(held)
