"""NIR files from anywhere: what an HDF5 file says of itself is measured before any of its numbers is read.

HDF5 can link to other files, keep its numbers in other files, and declare arrays of any size while storing a few bytes (chunks
that were never written, or that compress well). NIR needs none of it: hard links, numbers of its own, a bounded number of bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import nir
from nir.serialization import hdf2dict

from spikeprop_hardware.errors import NirError
from spikeprop_hardware.graph import OWN
from spikeprop_hardware.kinds import HDF5, wrong_kind

LARGEST = 8 * 2**30  # bytes of all arrays together
RATIO = 1100  # of an array's bytes to those stored of it; gzip reaches 1032
SMALL = 2**16  # bytes up to which an array needs none stored
MOST_OBJECTS = 100_000
DEEPEST = 16


def read_nir(path: str | Path) -> nir.NIRGraph:
    """Read a NIR file as ``nir.read`` does, and the nodes of graph.py too.

    The shapes of its tensors are not checked here: nir 1.0.8 takes every kernel as square and forgets a convolution's groups.

    Raises:
        NirError: no such file, not a complete NIR file, one that holds more than a NIR file may, or a node with missing or
            unknown fields.
    """
    if not Path(path).is_file():
        raise NirError(f"there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            _measure(file)
            found = hdf2dict(file["node"])
        if found["type"] != "NIRGraph":
            raise NirError(f"{path} holds a single node, not a graph")
        return _graph(path, found)
    except NirError:
        raise
    except Exception as error:  # HDF5's library raises errors of any type, depending on the damage
        wrong = wrong_kind(path, "a NIR file", HDF5)
        raise NirError(wrong or f"{path} is not a NIR file, or only a part of one: {error}") from error


def _graph(path: str | Path, found: dict[str, Any]) -> nir.NIRGraph:
    nodes = {name: _node(path, name, fields) for name, fields in found["nodes"].items()}
    edges = [(source.decode(), target.decode()) for source, target in found["edges"]]
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=found.get("metadata", {}), type_check=False)


def _node(path: str | Path, name: str, fields: dict[str, Any]) -> nir.NIRNode:
    try:
        if fields["type"] == "NIRGraph":
            return _graph(path, fields)
        own = OWN.get(fields["type"])
        return own.from_dict(fields) if own is not None else nir.dict2NIRNode(fields)
    except NirError:
        raise
    except Exception as error:  # nir's own message does not name the node
        raise NirError(f"{path}: node {name!r} cannot be read as {fields.get('type')}: {error}") from error


def _measure(file: h5py.File) -> None:
    """Refuse a file that is more than plain groups and arrays within bounds, with a ValueError that names the object."""
    groups: list[tuple[Any, int]] = [(file, 0)]
    objects = total = 0
    while groups:
        group, depth = groups.pop()
        for name in group:
            objects += 1
            if objects > MOST_OBJECTS or depth >= DEEPEST:
                raise ValueError(f"it holds more than {MOST_OBJECTS:,} objects, or groups deeper than {DEEPEST}")
            item = _item(group, name)
            if isinstance(item, h5py.Group):
                groups.append((item, depth + 1))
            else:
                total += _bytes(item)
            if total > LARGEST:
                raise ValueError(f"its arrays have more than {LARGEST:,} bytes")


def _item(group: Any, name: str) -> h5py.Group | h5py.Dataset:
    where = f"{group.name.rstrip('/')}/{name}"
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{where} is a link to another place")
    item = group[name]
    if not isinstance(item, h5py.Group | h5py.Dataset):
        raise ValueError(f"{where} is a {type(item).__name__}; NIR has groups and arrays")
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise ValueError(f"{where} keeps its numbers in another file")
    return item


def _bytes(array: h5py.Dataset) -> int:
    if array.shape is None:
        raise ValueError(f"{array.name} is empty")
    size = math.prod(array.shape) * array.dtype.itemsize
    if size > SMALL + RATIO * array.id.get_storage_size():
        raise ValueError(f"{array.name} says that it has {size:,} bytes, far more than is stored of it")
    return size
