"""``TonicData``: any classification set of the library tonic (https://tonic.readthedocs.io) by its name, read by tonic itself.

tonic gives (events, label), events with fields t (microseconds), x, y and p; here they are checked and binned as all others.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from spikeprop.data.events.base import EventData, EventFile
from spikeprop.data.events.files import reading
from spikeprop.data.events.stream import Events, Sensor, checked
from spikeprop.errors import MissingDataError


@dataclass(frozen=True, kw_only=True)
class TonicData(EventData):
    """A set of tonic's; needs the extra ``events``.

    Sets without a split of their own: every tenth recording is for testing.

    Attributes:
        name: of the class in ``tonic.datasets``, such as POKERDVS or NCALTECH101.
        classes: number of classes.
        sensor_size: columns, rows and polarities, for sets whose recordings differ (all must fit in it); default tonic's.
        download: whether tonic may download the set.
    """

    name: str
    classes: int  # pyright: ignore[reportIncompatibleVariableOverride,reportGeneralTypeIssues]
    sensor_size: list[int] = field(default_factory=list)
    download: bool = False
    layout: ClassVar = "the files as tonic lays them out (data.download=true lets it download them)"

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}; use at least 2")
        if self.sensor_size and (len(self.sensor_size) != 3 or min(self.sensor_size) < 1 or self.sensor_size[2] > 2):
            raise ValueError(f"sensor_size is {self.sensor_size}; give columns, rows and polarities (1 or 2)")
        super().__post_init__()

    @property
    def usual(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ""  # tonic itself adds the set's folder

    @cached_property
    def sensor(self) -> Sensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        size = self.sensor_size or getattr(self._source, "sensor_size", None)
        if not size:
            raise ValueError(f"recordings of {self.name} differ in size; set sensor_size to columns, rows and polarities")
        return int(size[2]), int(size[1]), int(size[0])

    @property
    def _source(self) -> Any:
        try:
            from tonic import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDataError("TonicData needs tonic: pip install 'spikeprop[events]'") from error
        source = getattr(datasets, self.name, None)
        if not (inspect.isclass(source) and hasattr(source, "__getitem__")):
            raise ValueError(f"name is {self.name!r}; tonic.datasets has no such set")
        return source

    @cached_property
    def _opened(self) -> dict[tuple[bool, ...], Any]:
        return {}

    def _open(self, *train: bool) -> Any:
        """tonic's set, of which nothing is downloaded unasked; ``train`` is left out for a set without a split."""
        if train not in self._opened:
            source = self._source
            if not self.download:
                source = type(source.__name__, (source,), {"download": lambda _: _refuse(self)})
            with reading(self.folder(), f"the set {self.name} as tonic reads it"):
                try:
                    self._opened[train] = source(**dict(zip(("train",), train)), save_to=str(self.folder()))
                except FileNotFoundError as error:
                    raise self.missing(f"has no {self.name}") from error
        return self._opened[train]

    def recordings(self, train: bool) -> list[EventFile]:
        own_split = "train" in inspect.signature(self._source).parameters
        which = (train,) if own_split else ()
        found = self._open(*which)
        targets = getattr(found, "targets", None) or [found[i][1] for i in range(len(found))]
        kinds = sorted(set(targets))
        labels = [int(t) if isinstance(t, int | np.integer) else kinds.index(t) for t in targets]
        if not all(0 <= label < self.classes for label in labels):
            raise MissingDataError(f"{self.name} has labels {min(labels)} to {max(labels)}; set data.classes to their number")
        numbers = range(len(labels)) if own_split else [i for i in range(len(labels)) if (i % 10 == 9) is not train]
        return [EventFile(self._file(found, i), labels[i], (i, *map(int, which))) for i in numbers]

    def _file(self, found: Any, number: int) -> str:
        """The file of a recording, if tonic knows one; else the folder."""
        files = getattr(found, "data", None)
        file = files[number] if isinstance(files, list) and number < len(files) else None
        return str(file if isinstance(file, str | Path) and Path(file).is_file() else self.folder())

    def read(self, recordings: Sequence[EventFile]) -> Iterator[Events]:
        for recording in recordings:
            number, *train = recording.part
            with reading(str(recording), f"a recording of {self.name}"):
                events, _ = self._open(*map(bool, train))[number]
                y, p = (events[key] if key in (events.dtype.names or ()) else 0 for key in "yp")
                t = np.asarray(events["t"], dtype=np.float64)
                t = np.rint(t - t[:1])
                x, y, p = (np.asarray(values).astype(np.int64) for values in (events["x"], y, p))
                yield checked(t, x, y, p if self.sensor[0] == 2 else 0, sensor=self.sensor, where=recording, sort=self.sort)


def _refuse(data: TonicData) -> None:
    raise data.missing(f"has no {data.name}")
