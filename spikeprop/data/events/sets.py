"""The event sets, in their published layouts on local disk: N-MNIST, DVS Gesture, CIFAR10-DVS, SHD, SSC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import ClassVar

import numpy as np

from spikeprop.data.events.base import EventData, EventFile
from spikeprop.data.events.files import (
    DVS128,
    Packet,
    packets_of_aedat3,
    read_aedat2,
    read_aedat3,
    read_gesture_array,
    read_nmnist,
    reading,
)
from spikeprop.data.events.spike_trains import CHANNELS, read_labels, read_spike_trains
from spikeprop.data.events.stream import Events
from spikeprop.data.in_memory import CIFAR10
from spikeprop.errors import MissingDataError

LARGEST_TABLE = 2**20  # bytes of a list of recordings or gestures


@dataclass(frozen=True, kw_only=True)
class NMNIST(EventData):
    """N-MNIST (Orchard et al. 2015, https://doi.org/10.3389/fnins.2015.00437): MNIST's digits seen in three saccades, 0.3 s.

    ``Train/<digit>/<number>.bin`` and ``Test/<digit>/<number>.bin``; recordings are in the order of their numbers, as in MNIST.
    """

    sensor: ClassVar = (2, 34, 34)
    classes: ClassVar = 10
    usual: ClassVar = "NMNIST"
    layout: ClassVar = "Train/<digit>/<number>.bin and Test/<digit>/<number>.bin, as in N-MNIST's zip files"

    def recordings(self, train: bool) -> list[EventFile]:
        folder = self.folder() / ("Train" if train else "Test")
        found = [(path, int(path.parent.name)) for path in folder.glob("[0-9]/*.bin")]
        return [EventFile(str(path), digit) for path, digit in sorted(found, key=lambda f: (_number(f[0]), f[1]))]

    def read(self, recordings: Sequence[EventFile]) -> Iterator[Events]:
        for recording in recordings:
            yield read_nmnist(recording.path, self.sort)


@dataclass(frozen=True, kw_only=True)
class CIFAR10DVS(EventData):
    """CIFAR10-DVS (Li et al. 2017, https://doi.org/10.3389/fnins.2017.00309): 1,000 photographs of each class, moved on a screen.

    ``<class>/*.aedat`` in AEDAT 2.0. The set has no split of its own: of each class's recordings, in the order of their numbers,
    nine of ten are for training (the first 900) and the rest for testing. Limits take the first of every class in turn.
    """

    sensor: ClassVar = DVS128
    classes: ClassVar = 10
    names: ClassVar = CIFAR10.names
    usual: ClassVar = "CIFAR10DVS"
    layout: ClassVar = "<class>/cifar10_<class>_<number>.aedat, with the names of CIFAR-10's classes"

    def recordings(self, train: bool) -> list[EventFile]:
        found: list[tuple[int, EventFile]] = []
        for label, name in enumerate(self.names):
            files = sorted((self.folder() / name).glob("*.aedat"), key=_number)
            if not files:
                raise self.missing(f"has no recordings of the class {name}")
            cut = len(files) * 9 // 10
            found += enumerate(EventFile(str(path), label) for path in (files[:cut] if train else files[cut:]))
        return [recording for _, recording in sorted(found, key=lambda f: (f[0], f[1].label))]

    def read(self, recordings: Sequence[EventFile]) -> Iterator[Events]:
        for recording in recordings:
            yield read_aedat2(recording.path, self.sort)


@dataclass(frozen=True, kw_only=True)
class DVSGesture(EventData):
    """DVS Gesture (Amir et al. 2017, https://doi.org/10.1109/CVPR.2017.781): 11 gestures of 29 people in three kinds of light.

    Either IBM's own files, ``trials_to_train.txt``, ``trials_to_test.txt`` and the ``<trial>.aedat`` (AEDAT 3.1) and
    ``<trial>_labels.csv`` that they name, or tonic's arrays, ``ibmGestureTrain/<user>_<light>/<class>.npy`` and the same in
    ``ibmGestureTest``.
    """

    sensor: ClassVar = DVS128
    classes: ClassVar = 11
    names: ClassVar = (
        "hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise",
        "left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other",
    )  # fmt: skip
    usual: ClassVar = "DVSGesture"
    layout: ClassVar = "trials_to_train.txt with the trials' .aedat and _labels.csv, or ibmGestureTrain/<user>/<class>.npy"

    def recordings(self, train: bool) -> list[EventFile]:
        arrays = self.folder() / ("ibmGestureTrain" if train else "ibmGestureTest")
        if arrays.is_dir():
            files = sorted(arrays.glob("*/*.npy"), key=lambda path: (path.parent.name, _number(path)))
            return [EventFile(str(path), self._class(_number(path), path)) for path in files]
        table = self.folder() / ("trials_to_train.txt" if train else "trials_to_test.txt")
        trials = [table.parent / name.strip() for name in _text(table).splitlines() if name.strip()]
        return [gesture for trial in trials for gesture in self._gestures(trial)]

    def _gestures(self, trial: Path) -> Iterator[EventFile]:
        """The gestures of a trial: class (1 to 11), start and end in microseconds; of each the bytes' packets."""
        table = trial.with_name(f"{trial.stem}_labels.csv")
        for number, line in enumerate(_text(table).splitlines()[1:], 2):
            with reading(table, "lines of class,startTime_usec,endTime_usec"):
                gesture, start, end = (int(value) for value in line.split(","))
                if not 0 <= start < end:
                    raise ValueError(f"line {number} has a gesture from {start} to {end} us")
            yield EventFile(str(trial), self._class(gesture - 1, f"{table}, line {number},"), (start, end))

    def _class(self, label: int, where: object) -> int:
        if not 0 <= label < self.classes:
            raise MissingDataError(f"{where} has the class {label} (counted from 0); gestures have 0 to {self.classes - 1}")
        return label

    @cached_property
    def _packets(self) -> dict[str, list[Packet]]:
        return {}

    def read(self, recordings: Sequence[EventFile]) -> Iterator[Events]:
        for recording in recordings:
            if not recording.part:
                yield read_gesture_array(recording.path, self.sort)
                continue
            if recording.path not in self._packets:
                self._packets[recording.path] = packets_of_aedat3(recording.path)
            packets, (start, end) = self._packets[recording.path], recording.part
            times = np.array([(packet.first, packet.last) for packet in packets], np.int64).reshape(-1)
            if (times[1:] >= times[:-1]).all():  # otherwise all packets are read, so that the fault is found
                packets = packets[np.searchsorted(times[1::2], start) : np.searchsorted(times[::2], end)]
            yield read_aedat3(recording.path, packets, start, end, self.sort)


@dataclass(frozen=True, kw_only=True)
class _SpikeTrains(EventData):
    """A set of the Heidelberg layout: ``<prefix>_train.h5`` and ``<prefix>_test.h5``."""

    sensor: ClassVar = (1, 1, CHANNELS)
    prefix: ClassVar[str]

    def recordings(self, train: bool) -> list[EventFile]:
        path = self.folder() / f"{self.prefix}_{'train' if train else 'test'}.h5"
        if not path.is_file():
            raise self.missing(f"has no {path.name}")
        return [EventFile(str(path), label, (number,)) for number, label in enumerate(read_labels(path, self.classes))]

    def read(self, recordings: Sequence[EventFile]) -> Iterator[Events]:
        for path, group in groupby(recordings, key=lambda recording: recording.path):
            yield from read_spike_trains(path, [recording.part[0] for recording in group], self.sort)


@dataclass(frozen=True, kw_only=True)
class SHD(_SpikeTrains):
    """Spiking Heidelberg Digits: spoken digits in English and German through an artificial cochlea of 700 channels.

    ``shd_train.h5`` (8,156 recordings) and ``shd_test.h5`` (2,264), unpacked. Batches are (B, T, 700).
    """

    classes: ClassVar = 20
    names: ClassVar = (
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        "null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun",
    )  # fmt: skip
    usual: ClassVar = "SHD"
    prefix: ClassVar = "shd"
    layout: ClassVar = "shd_train.h5 and shd_test.h5, unpacked from the .gz files"


@dataclass(frozen=True, kw_only=True)
class SSC(_SpikeTrains):
    """Spiking Speech Commands: 35 words through the same cochlea; ``ssc_train.h5`` (75,466) and ``ssc_test.h5`` (20,382)."""

    classes: ClassVar = 35
    usual: ClassVar = "SSC"
    prefix: ClassVar = "ssc"
    layout: ClassVar = "ssc_train.h5 and ssc_test.h5, unpacked from the .gz files"


def _number(path: Path) -> int:
    """The last number in a file's name."""
    numbers = re.findall(r"\d+", path.stem)
    if not numbers:
        raise MissingDataError(f"{path} has no number in its name, as the recordings of this set have; move it out of the folder")
    return int(numbers[-1][:18])


def _text(path: Path) -> str:
    with reading(path, "a text of this set"):
        if path.stat().st_size > LARGEST_TABLE:
            raise ValueError(f"it has more than {LARGEST_TABLE:,} bytes")
        return path.read_text(encoding="utf-8")
