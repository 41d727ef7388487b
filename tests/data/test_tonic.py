"""``TonicData`` on a stand-in with the interface of the sets of tonic, which is not part of the tests' environment."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from spikeprop.data import TonicData
from spikeprop.errors import MissingDataError
from tests.data import layouts

DTYPE = np.dtype([("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "i1")])


class Few:
    """Sixty recordings of three classes; without a split, as tonic's NCALTECH101, and without files."""

    sensor_size = (8, 6, 2)

    def __init__(self, save_to: str):
        self.data: list[str] = []
        self.targets = ["cat", "dog", "owl"] * 20
        if not Path(save_to, "here").exists():
            self.download()

    def download(self) -> None:
        raise AssertionError("a download was started")

    def __len__(self) -> int:
        return 60

    def __getitem__(self, number: int) -> tuple[np.ndarray, str]:
        rows = [(x, y, t + 500, p) for t, x, y, p in layouts.rows(20, (2, 6, 8), number)]
        return np.array(rows if number != 59 else [(8, 0, 0, 0)], DTYPE), self.targets[number]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    tonic: Any = ModuleType("tonic")
    sets: Any = ModuleType("tonic.datasets")
    tonic.datasets, sets.Few = sets, Few
    monkeypatch.setitem(sys.modules, "tonic", tonic)
    monkeypatch.setitem(sys.modules, "tonic.datasets", sets)
    return tmp_path


def test_a_set_without_a_split_gives_every_tenth_recording_for_testing(library: Path) -> None:
    (library / "here").touch()
    data = TonicData(name="Few", classes=3, root=str(library), frames=4)
    train, test = data.train(10, 0), data.test(3)
    assert (len(train.recordings), len(test.recordings)) == (54, 6)
    x, y = next(test.epoch(0))
    assert x.shape == (3, 4, *data.input_shape) == (3, 4, 2, 6, 8)
    assert x.sum() == 60
    assert y.tolist() == [0, 1, 2]  # numbers 9, 19 and 29 of cat, dog, owl
    assert test.fingerprint() == data.test(3).fingerprint() != train.fingerprint()
    with pytest.raises(MissingDataError, match=r"recording 59,: event 0 of 1 has the column 8"):
        list(test.epoch(0))
    with pytest.raises(MissingDataError, match=r"labels 0 to 2; set data\.classes"):
        TonicData(name="Few", classes=2, root=str(library), frames=4).test(1)


def test_nothing_is_downloaded_unasked(library: Path) -> None:
    with pytest.raises(MissingDataError, match=r"has no Few.*data\.download=true"):
        TonicData(name="Few", classes=3, root=str(library), frames=4).test(1)
    with pytest.raises(ValueError, match="has no such set"):
        TonicData(name="Many", classes=3, root=str(library), frames=4)


def test_tonic_itself_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(MissingDataError, match=r"spikeprop\[events\]"):
        TonicData(name="POKERDVS", classes=4, root=str(tmp_path), frames=4)
