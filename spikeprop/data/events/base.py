"""``EventData`` and ``EventSplit``: sets of recordings, of which a batch at a time is read, varied and binned to frames.

Memory holds events, never the frames of more than one batch: an event has 13 bytes, a frame of 128 x 128 pixels and two
polarities 131,072.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from spikeprop.data.base import LabelledData, data_root, hash_of_files, rows_of_batches
from spikeprop.data.events.binning import Augmentation, Binning
from spikeprop.data.events.stream import Events, Sensor
from spikeprop.errors import DataError, MissingDataError
from spikeprop.runtime.batches import Batch, Sequences
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.seeding import mix_seed

KEPT = 2**30  # bytes of events that a split keeps once read; the rest is read again in each epoch


@dataclass(frozen=True)
class EventFile:
    """Where a recording is, and its class.

    Attributes:
        path: of the file.
        label: number of the class.
        part: where in the file, for formats that hold several recordings.
    """

    path: str
    label: int
    part: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}{f', recording {self.part[0]},' if self.part else ''}"


@dataclass(frozen=True, kw_only=True)
class EventData(LabelledData):
    """A set of labelled recordings. Batches are (B, T, C, H, W) or, of cochleas, (B, T, channels); ``Sequences`` if T differs.

    Attributes:
        root: folder of the set; default ``$SPIKEPROP_DATA/<subfolder>``.
        subfolder: below ``$SPIKEPROP_DATA``; default the folder's usual name.
        frames, dt, duration, kind, tau, downsample: of ``Binning``; give ``frames``, or ``dt`` (ms).
        shift, flip, drop, noise: of ``Augmentation``, in training only. Flip is for sets whose classes it keeps.
        sort: whether events whose times run backwards are sorted; otherwise they are an error.
    """

    root: str | None = None
    subfolder: str | None = None
    frames: int | None = None
    dt: float | None = None
    duration: float | None = None
    kind: str = "count"
    tau: float = 30.0
    downsample: int = 1
    shift: int = 0
    flip: bool = False
    drop: float = 0.0
    noise: float = 0.0
    sort: bool = False

    in_time: ClassVar = True
    sensor: ClassVar[Sensor]
    usual: ClassVar[str]  # name of the set's folder
    layout: ClassVar[str]  # of its files, for messages

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root and self.subfolder:
            raise ValueError(f"root is {self.root} and subfolder is {self.subfolder}; a root is the set's own folder: give one")
        if self.subfolder and (Path(self.subfolder).is_absolute() or ".." in Path(self.subfolder).parts):  # a file may give it
            raise ValueError(f"subfolder is {self.subfolder}; it is a folder below $SPIKEPROP_DATA: any other is a root")
        _ = self.binning, self.augmentation

    @property
    def binning(self) -> Binning:
        """How events become frames."""
        return Binning(
            sensor=self.sensor, frames=self.frames, dt=self.dt, duration=self.duration, kind=self.kind, tau=self.tau,
            downsample=self.downsample,
        )  # fmt: skip

    @property
    def augmentation(self) -> Augmentation:
        """How recordings are varied in training."""
        return Augmentation(sensor=self.sensor, shift=self.shift, flip=self.flip, drop=self.drop, noise=self.noise)

    @property
    def input_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of one frame: (C, H, W), or (channels,) of a cochlea."""
        shape = self.binning.shape
        return shape if self.sensor[1] > 1 else shape[2:]

    @property
    def timesteps(self) -> int | None:
        """The number of frames of every recording; None if it differs."""
        return self.binning.timesteps

    def example(self, size: int) -> Tensor | Sequences:
        """Recordings without events (size, T, *input_shape); of 2 frames if T differs."""
        x = torch.zeros(size, self.timesteps or 2, *self.input_shape)
        return x if self.timesteps else Sequences(x, torch.full((size,), 2))

    def folder(self) -> Path:
        """The folder of the set.

        Raises:
            MissingDataError: neither ``root`` nor ``$SPIKEPROP_DATA`` is set.
        """
        root = data_root(self.root)
        return root if self.root else root / (self.subfolder or self.usual)

    def train(self, batch_size: int, seed: int) -> EventSplit:
        return self._split(True, batch_size, seed)

    def test(self, batch_size: int) -> EventSplit:
        return self._split(False, batch_size, None)

    def _split(self, train: bool, batch_size: int, seed: int | None) -> EventSplit:
        recordings = self.recordings(train)
        if not recordings:
            raise self.missing("holds no recordings of this split")
        recordings = recordings[: self.train_limit if train else self.test_limit]
        return EventSplit(recordings, batch_size, self.read, self.binning, self.input_shape, seed, self.augmentation)

    def missing(self, what: str) -> MissingDataError:
        """An error that names the folder, the layout and the remedy."""
        return MissingDataError(
            f"{type(self).__name__}: {self.folder()} {what}; expected {self.layout}. Copy the set there, or set data.root to the "
            "folder that holds it"
        )

    @abstractmethod
    def recordings(self, train: bool) -> Sequence[EventFile]:
        """The recordings of a split, in the order that ``test`` gives and limits cut.

        Raises:
            MissingDataError: no such files.
        """

    @abstractmethod
    def read(self, recordings: Sequence[EventFile]) -> Iterator[Events]:
        """The events of these recordings, checked.

        Raises:
            MissingDataError: a truncated, damaged or empty file; the message names it.
        """


@dataclass(frozen=True)
class EventSplit:
    """Recordings in batches."""

    recordings: Sequence[EventFile]
    batch_size: int
    read: Callable[[Sequence[EventFile]], Iterator[Events]]
    binning: Binning
    input_shape: tuple[int, ...]
    seed: int | None = None  # None: stored order, no augmentation
    augmentation: Augmentation | None = None
    processes: Processes = ALONE
    kept: dict[int, Events] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return -(-len(self.recordings) // self.batch_size)

    def shard(self, processes: Processes) -> EventSplit:
        """The same batches, of which only one process's recordings are read; labels are those of the complete batch."""
        return dataclasses.replace(self, processes=processes, kept={})

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        for batch in rows_of_batches(len(self.recordings), self.batch_size, self.seed, epoch)[start:]:
            own = batch[self.processes.rows(len(batch))].tolist()
            frames = [self._frames(i, events, epoch) for i, events in zip(own, self.events(own), strict=True)]
            yield self._together(frames), torch.tensor([self.recordings[i].label for i in batch.tolist()])

    def events(self, numbers: Sequence[int]) -> list[Events]:
        """The events of recordings, kept in memory while there is room."""
        new = [i for i in numbers if i not in self.kept]
        found = dict(zip(new, self.read([self.recordings[i] for i in new]), strict=True))
        room = KEPT - sum(events.nbytes for events in self.kept.values()) if found else 0
        for number, events in found.items():
            room -= events.nbytes
            if room > 0:
                self.kept[number] = events
        return [found[i] if i in found else self.kept[i] for i in numbers]

    def _frames(self, number: int, events: Events, epoch: int) -> Tensor:
        """(T, *input_shape) of a recording; its changes depend on (seed, epoch, recording) alone."""
        try:
            events = self.binning.cut(events)
            if self.seed is not None and self.augmentation is not None:
                events = self.augmentation(events, np.random.default_rng(mix_seed(self.seed, epoch, number)))
            return torch.from_numpy(self.binning(events)).view(-1, *self.input_shape)
        except DataError as error:
            raise DataError(f"{self.recordings[number]}: {error}") from error

    def _together(self, frames: list[Tensor]) -> Tensor | Sequences:
        return Sequences.of(frames) if self.binning.timesteps is None else torch.stack(frames)

    def fingerprint(self) -> str:
        """Hash of the files, the labels, their order and the binning; of more than 256 MiB, of the files' names and sizes."""
        listed = [f"{Path(recording.path).name} {recording.part} {recording.label}" for recording in self.recordings]
        return hash_of_files((recording.path for recording in self.recordings), "\n".join([repr(self.binning), *listed]))
