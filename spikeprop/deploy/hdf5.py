"""HDF5 files from anywhere, measured before their numbers are read.

HDF5 knows links to other files, arrays whose numbers lie in other files, and arrays of any size of which nothing is stored, or
little. NIR writes none of these. spikeprop-hardware, which knows nothing of this package, holds its files to the same bounds.
"""

from __future__ import annotations

import math
from typing import Any

import h5py

LARGEST = 8 * 2**30  # bytes of all arrays together
RATIO = 1100  # of an array's bytes to those stored of it; gzip reaches 1032
SMALL = 2**16  # bytes up to which an array needs none stored
MOST_OBJECTS = 100_000
DEEPEST = 16


def measure(file: h5py.File) -> None:
    """Hold an open file to what a file of plain groups and arrays may be.

    Raises:
        ValueError: naming the object and what it has: a link, numbers elsewhere, or more than the bounds.
    """
    groups: list[tuple[Any, int]] = [(file, 0)]
    objects = total = 0
    while groups:
        group, depth = groups.pop()
        for name in group:
            objects += 1
            if objects > MOST_OBJECTS or depth >= DEEPEST:
                raise ValueError(f"it holds more than {MOST_OBJECTS:,} objects, or groups deeper than {DEEPEST}")
            item = _held_here(group, name)
            if isinstance(item, h5py.Group):
                groups.append((item, depth + 1))
            else:
                total += _bytes(item)
            if total > LARGEST:
                raise ValueError(f"its arrays have more than {LARGEST:,} bytes")


def _held_here(group: Any, name: str) -> h5py.Group | h5py.Dataset:
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
