"""Max pooling of spikes: its node in a NIR file, and the windows of a layer as rows of a matrix.

    N[t] = N[t-1] + s[t] for each place;   o[t] = max(N[t]) - max(N[t-1]) over each window

The number of spikes that a window has sent is the largest count of its places: with rates, it is the ordinary maximum. Counts
never fall below 0, since neurons take no more spikes back than they have sent; so padding and places that never fire count 0,
and a window's spike is 0 or 1, or -1 too where the neurons before it are signed.

NIR 1.0.8 has no node for this, and a mark in the metadata of another node would be overlooked by who does not know it. So the
file holds a node of a type of its own, ``SpikingMaxPool2d``, which ``nir.read`` refuses; spikeprop writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
from nir.serialization import hdf2dict
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.matrix import Shape, pair


@dataclass(eq=False)
class SpikingMaxPool2d(nir.NIRNode):
    """Windows over (C, H, W): kernel_size, stride and padding are (height, width), ceil_mode is 0 or 1, all as PyTorch's."""

    kernel_size: np.ndarray
    stride: np.ndarray
    padding: np.ndarray
    ceil_mode: int = 0

    def __post_init__(self) -> None:
        self.input_type: Any = {"input": None}
        self.output_type: Any = {"output": None}


KIND = SpikingMaxPool2d.__name__


def is_max_pool(node: Any) -> bool:
    """Whether a node is a ``SpikingMaxPool2d``, whoever made it."""
    return type(node).__name__ == KIND


def has_max_pool(file: h5py.File) -> bool:
    """Whether an open NIR file holds one."""
    nodes: Any = file["node/nodes"]
    return any(node["type"][()] == KIND.encode() for node in nodes.values())


def read_with_max_pool(path: str | Path) -> nir.NIRGraph:
    """``nir.read`` for a file that holds one.

    Raises:
        HardwareError: a node of max pooling with fields missing or unknown.
    """
    with h5py.File(path) as file:
        found = hdf2dict(file["node"])
    pools = {name: _node(name, node) for name, node in found["nodes"].items() if node["type"] == KIND}
    others = {name: node for name, node in found["nodes"].items() if name not in pools}
    graph: Any = nir.dict2NIRNode({**found, "nodes": others, "type_check": False})
    graph.nodes = {name: pools.get(name) or graph.nodes[name] for name in found["nodes"]}
    return graph


def _node(name: str, found: dict[str, Any]) -> SpikingMaxPool2d:
    given = {key: value for key, value in found.items() if key != "type"}
    known = {field.name for field in fields(SpikingMaxPool2d) if field.init}
    if not known - {"metadata", "ceil_mode"} <= given.keys() <= known:
        raise HardwareError(f"node {name!r} is a {KIND} with the fields {sorted(given)}; it has {sorted(known)}")
    return SpikingMaxPool2d(**given)


def windows_of(node: Any, shape: Shape, name: str) -> tuple[sparse.csr_matrix, Shape]:
    """Windows by rows and places of a tensor of ``shape`` by columns, 1 where a window holds a place; and their shape.

    Raises:
        HardwareError: sizes that are not sizes, or do not fit the tensor.
    """
    kernel, stride, padding = (_size(name, what, getattr(node, what)) for what in ("kernel_size", "stride", "padding"))
    if len(shape) != 3:
        raise HardwareError(f"node {name!r} pools (channels, height, width), but {shape} arrives")
    if min(*kernel, *stride) < 1 or min(padding) < 0 or any(2 * p > k for p, k in zip(padding, kernel)):
        raise HardwareError(
            f"node {name!r} has windows of {kernel}, stride {stride} and padding {padding}; windows and strides are 1 or more, "
            "and padding at most half a window"
        )
    sizes = list(zip(shape[1:], kernel, stride, padding))
    rows, columns = (_along(*size, bool(node.ceil_mode)) for size in sizes)
    if not (rows.shape[0] and columns.shape[0]):
        raise HardwareError(f"node {name!r} has windows of {kernel}, which do not fit {shape}, what it reads")
    plane = sparse.kron(rows, columns)
    whole = sparse.kron(sparse.identity(shape[0]), plane).tocsr()
    whole.eliminate_zeros()  # kron stores dense blocks where it finds that shorter
    return whole, (shape[0], rows.shape[0], columns.shape[0])


def _size(name: str, what: str, value: Any) -> Shape:
    try:
        return pair(value)
    except (TypeError, ValueError):
        raise HardwareError(f"node {name!r} has a {what} of {value!r}; it is two numbers, (height, width)") from None


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
