"""Reads the Heidelberg sets' HDF5 files (SHD, SSC) within bounds: spike trains of 700 channels of an artificial cochlea.

``spikes/times`` and ``spikes/units`` hold one array of unequal length for each recording, seconds and channels; ``labels`` holds
the classes (Cramer et al. 2022, https://doi.org/10.1109/TNNLS.2020.3044364). HDF5 can link to other files and declare more than
it stores; neither is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spikeprop.data.events.files import LARGEST_FILE, reading
from spikeprop.data.events.stream import LATEST, Events, checked

if TYPE_CHECKING:  # imported where files are read, because it takes a while
    import h5py

CHANNELS = 700
WHAT = "an HDF5 file of spikes/times, spikes/units and labels"
RATIO = 1100  # of an array's bytes to those stored of it; gzip reaches 1032


def _array(file: h5py.File, name: str, kinds: str, ragged: bool) -> h5py.Dataset:
    """The array of this name, of numbers of these kinds, as stored in this file itself."""
    import h5py

    group: Any = file
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"it has no {name} of its own")
        group = group[part]
    if not isinstance(group, h5py.Dataset) or group.external or group.is_virtual or group.shape is None or group.ndim != 1:
        raise ValueError(f"{name} is no list in this file")
    inner = h5py.check_vlen_dtype(group.dtype) if ragged else group.dtype
    if inner is None or inner.kind not in kinds:
        raise ValueError(f"{name} holds {group.dtype}, not {'lists of ' if ragged else ''}numbers of kind {kinds}")
    if len(group) * (16 if ragged else group.dtype.itemsize) > 2**16 + RATIO * group.id.get_storage_size():
        raise ValueError(f"{name} says that it has {len(group):,} entries, far more than are stored")
    return group


def _open(path: str | Path) -> h5py.File:
    import h5py

    if Path(path).stat().st_size > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
    return h5py.File(path, "r")


def read_labels(path: str | Path, classes: int) -> list[int]:
    """The class of each recording in a file.

    Raises:
        MissingDataError: another number of times than units or labels, or a class beyond ``classes``.
    """
    with reading(path, WHAT), _open(path) as file:
        labels, times, units = _arrays(file)
        if not len(times) == len(units) == len(labels):
            raise ValueError(f"it has {len(times):,} lists of times, {len(units):,} of units and {len(labels):,} labels")
        numbers = labels[:]
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(f"its labels run from {numbers.min()} to {numbers.max()}; this set has {classes} classes")
        return [int(n) for n in numbers]


def _arrays(file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset, h5py.Dataset]:
    return (
        _array(file, "labels", "iu", ragged=False),
        _array(file, "spikes/times", "f", ragged=True),
        _array(file, "spikes/units", "iu", ragged=True),
    )


def read_spike_trains(path: str | Path, numbers: Sequence[int], sort: bool = False) -> Iterator[Events]:
    """The recordings of these numbers; times count from the beginning of the sound.

    Raises:
        MissingDataError: damaged, no events, channels beyond 699, or times that run backwards or are not finite.
    """
    with reading(path, WHAT), _open(path) as file:
        _, times, units = _arrays(file)
        for number in numbers:
            t, x = times[number].astype(np.float64) * 1e6, units[number]
            if len(t) != len(x):
                raise ValueError(f"recording {number} has {len(t):,} times and {len(x):,} units")
            if not (np.abs(t) < LATEST).all():
                raise ValueError(f"recording {number} has a time that is not finite")
            where = f"{path}, recording {number},"
            yield checked(np.rint(t), x, 0, 0, sensor=(1, 1, CHANNELS), where=where, sort=sort)
