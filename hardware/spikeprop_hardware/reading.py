"""NIR files from anywhere: what an HDF5 file says of itself is measured before any of it is read.

HDF5 can link to other files, keep its numbers in other files, and promise arrays of any size from a few bytes (chunks that were
never written, or that compress well). NIR needs none of it: hard links, numbers of its own, at most so many bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import nir
from nir.serialization import read_node

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.pool import KIND, has_max_pool, read_with_max_pool

LARGEST = 8 * 2**30  # bytes of all arrays together
RATIO = 1100  # of an array to what is stored of it; gzip reaches 1032
SMALL = 2**16  # bytes of an array that is never too large for what is stored of it
MOST_OBJECTS = 100_000
DEEPEST = 16


def read_graph(path: str | Path) -> nir.NIRGraph:
    """Read a NIR file. Its shapes are left to ``make_plan``: nir 1.0.8 takes kernels as square and forgets groups.

    Raises:
        HardwareError: no such file, not a whole NIR file, or one that holds more than a NIR file may.
    """
    if not Path(path).is_file():
        raise HardwareError(f"there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            _Measure().group(file, 0)
            pools = has_max_pool(file)
        graph = read_with_max_pool(path) if pools else nir.read(str(path), type_check=False)
    except Exception as error:  # HDF5's library and nir's constructors raise whatever damage leads them to
        raise HardwareError(_culprit(path) or f"{path} is not a NIR file, or only a part of one: {error}") from error
    if not isinstance(graph, nir.NIRGraph):
        raise HardwareError(f"{path} holds a single node, not a graph")
    return graph


class _Measure:
    """Walks a file's groups, adds up its arrays, and refuses what a NIR file has not."""

    def __init__(self) -> None:
        self.objects, self.bytes = 0, 0

    def group(self, group: Any, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"groups lie deeper than {DEEPEST}")
        for name in group:
            self.objects += 1
            if self.objects > MOST_OBJECTS:
                raise ValueError(f"more than {MOST_OBJECTS:,} objects")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name!r} is a link to another place")
            item = group[name]
            if isinstance(item, h5py.Group):
                self.group(item, depth + 1)
            elif isinstance(item, h5py.Dataset):
                self.array(name, item)
            else:
                raise ValueError(f"{name!r} is a {type(item).__name__}")

    def array(self, name: str, item: Any) -> None:
        if item.external or item.is_virtual:
            raise ValueError(f"{name!r} keeps its numbers in another file")
        if item.shape is None:
            raise ValueError(f"{name!r} is empty")
        size = math.prod(item.shape) * item.dtype.itemsize
        self.bytes += size
        if size > SMALL + RATIO * item.id.get_storage_size():
            raise ValueError(f"{name!r} says that it has {size:,} bytes, far more than is stored of it")
        if self.bytes > LARGEST:
            raise ValueError(f"its arrays have more than {LARGEST:,} bytes")


def _culprit(path: str | Path) -> str | None:
    """Which node nir cannot read, for its own message does not say."""
    try:
        with h5py.File(path) as file:
            _Measure().group(file, 0)
            nodes: Any = file["node/nodes"]
            for name, node in nodes.items():
                try:
                    if node["type"][()] != KIND.encode():
                        read_node(node)
                except Exception as error:
                    return f"{path}: node {name!r} cannot be read: {error}"
    except Exception:  # the file itself cannot be read, which the first error says
        return None
    return None
