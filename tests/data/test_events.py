"""Events: real N-MNIST recordings against MNIST and against loops; every published layout; what is refused, and how.

DVS Gesture, CIFAR10-DVS, SHD and SSC are not here: their files are written by layouts.py as their publications describe them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from spikeprop.data import CIFAR10DVS, NMNIST, SHD, SSC, DVSGesture, EventData
from spikeprop.data.events import Binning, Events
from spikeprop.data.events.binning import Augmentation
from spikeprop.data.events.files import read_aedat2, read_nmnist
from spikeprop.data.events.stream import checked
from spikeprop.errors import DataError, MissingDataError
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.processes import Processes
from tests.conftest import need
from tests.data import layouts
from tests.data.layouts import written

SENSOR = (2, 6, 8)


def recording(count: int = 200, seed: int = 0, sensor: tuple[int, int, int] = SENSOR, span: int = 90_000) -> Events:
    t, x, y, p = np.array(layouts.rows(count, sensor, seed, span)).T
    return checked(t, x, y, p, sensor=sensor, where="a recording")


def same(a: Events, b: Events) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in "txyp")


# real recordings --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nmnist(data_root: Path) -> Path:
    need(data_root, "nmnist-small")
    return data_root / "nmnist-small"


def test_nmnist_has_the_labels_of_mnist(nmnist: Path, data_root: Path) -> None:
    need(data_root, "MNIST")
    for train, count in ((True, 400), (False, 100)):
        labels = [recording.label for recording in NMNIST(root=str(nmnist), frames=2).recordings(train)]
        assert labels == datasets.MNIST(str(data_root), train=train).targets[:count].tolist()


def test_nmnist_is_read_as_its_bytes_say_and_frames_add_up(nmnist: Path) -> None:
    data = NMNIST(root=str(nmnist), frames=7, test_limit=12)
    split = data.test(5)
    recordings = split.recordings
    totals = []
    for recorded in recordings:
        raw, events = Path(recorded.path).read_bytes(), read_nmnist(recorded.path)
        assert len(events) == len(raw) // 5 > 1000
        for i in (0, 17, len(events) - 1):
            x, y, *rest = raw[5 * i : 5 * i + 5]
            word = int.from_bytes(bytes(rest), "big")
            assert (events.x[i], events.y[i], events.p[i], events.t[i]) == (x, y, word >> 23, word & 0x7FFFFF)
        totals.append(len(events))
    batches = list(split.epoch(0))
    assert [tuple(x.shape) for x, _ in batches] == [(5, 7, 2, 34, 34), (5, 7, 2, 34, 34), (2, 7, 2, 34, 34)]
    assert torch.cat([x for x, _ in batches]).flatten(1).sum(1).tolist() == totals


def test_events_of_a_digit_draw_the_digit(nmnist: Path, data_root: Path) -> None:
    need(data_root, "MNIST")
    images = datasets.MNIST(str(data_root), train=False).data[:100].float()
    x, _ = next(NMNIST(root=str(nmnist), frames=1).test(100).epoch(0))
    drawn = x.sum((1, 2))[:, 3:31, 3:31].flatten(1)
    blurred = torch.nn.functional.avg_pool2d(images.unsqueeze(1), 5, 1, 2).flatten(1)
    likeness = torch.corrcoef(torch.cat([drawn, blurred]))[:100, 100:]
    assert (likeness.argmax(1) == torch.arange(100)).float().mean() > 0.5  # chance is 0.01


# frames -----------------------------------------------------------------------------------------------------------------------


def naive(events: Events, binning: Binning) -> np.ndarray:
    """The module's definitions, an event at a time."""
    end = int(events.t[-1]) + 1 if binning.duration is None else round(binning.duration * 1000)
    wide = 0 if binning.dt is None else round(binning.dt * 1000)
    steps = binning.frames or math.ceil(end / wide)
    frames = np.zeros((steps, *binning.shape))
    last: dict[tuple[int, ...], list[int]] = {}
    for t, x, y, p in zip(*(column.tolist() for column in (events.t, events.x, events.y, events.p))):
        if t >= end:
            continue
        y, x = y // binning.downsample, x // binning.downsample
        step = t * steps // end if binning.frames else t // wide
        if binning.kind == "voxel":
            place = (steps - 1) * t / max(1, end - 1)
            for k in range(steps):
                frames[k, 0, y, x] += (2 * p - 1) * max(0.0, 1 - abs(k - place))
        elif binning.kind == "time_surface":
            last.setdefault((p, y, x), []).append(t)
        elif binning.kind == "count":
            frames[step, p, y, x] += 1
        else:
            frames[step, p, y, x] = 1
    for place, times in last.items():
        for k in range(steps):
            until = (k + 1) * (end / steps if binning.frames else wide)
            before = [t for t in times if (t * steps // end if binning.frames else t // wide) <= k]
            frames[(k, *place)] = math.exp((max(before) - until) / (binning.tau * 1000)) if before else 0
    return frames


@pytest.mark.parametrize("kind", ["count", "binary", "time_surface", "voxel"])
@pytest.mark.parametrize("how", [{"frames": 5}, {"dt": 7.0}, {"frames": 4, "duration": 50.0}, {"dt": 30.5, "duration": 120.0}])
@pytest.mark.parametrize("downsample", [1, 2])
def test_frames_equal_a_loop_over_events(kind: str, how: dict[str, Any], downsample: int) -> None:
    if kind == "voxel" and "dt" in how:
        with pytest.raises(ValueError, match="set frames, not dt"):
            Binning(sensor=SENSOR, kind=kind, **how)
        return
    for seed in range(3):
        events, binning = recording(300, seed), Binning(sensor=SENSOR, kind=kind, downsample=downsample, tau=20.0, **how)
        frames = binning(events)
        np.testing.assert_allclose(frames, naive(events, binning), atol=1e-5)
        assert frames.dtype == np.float32
        assert binning.timesteps in (None, len(frames))


def test_voxels_keep_the_sum_of_signs() -> None:
    events = recording(999)
    assert Binning(sensor=SENSOR, frames=6, kind="voxel")(events).sum() == pytest.approx(
        2.0 * events.p.sum() - len(events), abs=1e-3
    )


def test_recordings_of_unequal_length_are_padded(tmp_path: Path) -> None:
    spans = (9_900, 10_100, 35_000)  # microseconds; float16 is exact to 8 of them here
    trains = [[0.0, *np.linspace(0, span / 1e6, 4)] for span in spans]
    file = layouts.spike_trains(trains, [[0, 1, 2, 3, 699]] * 3, [0, 1, 19])
    data = SHD(root=str(written(tmp_path, {"shd_test.h5": file, "shd_train.h5": file})), dt=5.0)
    x, y = next(data.test(3).epoch(0))
    assert isinstance(x, Sequences)
    assert x.shape == (3, 8, 700)
    assert x.lengths.tolist() == [2, 3, 8]
    assert x.values.sum((1, 2)).tolist() == [5, 5, 5]
    assert x.values[0, 2:].sum() == 0
    assert y.tolist() == [0, 1, 19]
    assert data.timesteps is None
    assert isinstance(data.example(2), Sequences)
    assert len(x[1:]) == 2
    fixed = SHD(root=str(tmp_path), dt=5.0, duration=100.0)
    assert next(fixed.test(3).epoch(0))[0].shape == fixed.example(3).shape == (3, 20, 700)
    with pytest.raises(DataError, match="lengths run from 4 to 16"):
        Sequences(x.values, x.lengths * 2)


# augmentation -----------------------------------------------------------------------------------------------------------------


def test_augmentation_does_what_its_settings_say() -> None:
    events, rng = recording(4000), np.random.default_rng(0)
    dropped = Augmentation(sensor=SENSOR, drop=0.25)(events, rng)
    assert len(dropped) == pytest.approx(3000, abs=120)
    noisy = Augmentation(sensor=SENSOR, noise=0.5)(events, rng)
    assert len(noisy) == pytest.approx(6000, abs=200)
    assert (np.diff(noisy.t) >= 0).all()
    counted = Binning(sensor=SENSOR, frames=1)
    assert (counted(noisy) >= counted(events)).all()
    flipped = [Augmentation(sensor=SENSOR, flip=True)(events, rng) for _ in range(20)]
    assert {bool((f.x == events.x).all()) for f in flipped} == {True, False}
    assert {bool((f.x == 7 - events.x).all()) for f in flipped} == {True, False}
    middle = checked([0], [4], [3], [1], sensor=SENSOR, where="")
    moved = {(int(m.x[0]), int(m.y[0])) for m in (Augmentation(sensor=SENSOR, shift=2)(middle, rng) for _ in range(300))}
    assert moved == {(x, y) for x in range(2, 7) for y in range(1, 6)}
    with pytest.raises(ValueError, match="reverse a cochlea"):
        Augmentation(sensor=(1, 1, 700), flip=True)


def test_epochs_are_the_same_from_any_start_and_on_every_process(tmp_path: Path) -> None:
    files = {f"Train/{n % 10}/{n:05}.bin": layouts.nmnist(layouts.rows(40, (2, 34, 34), n)) for n in range(11)}
    data = NMNIST(root=str(written(tmp_path, files)), frames=3, shift=3, drop=0.2, noise=0.1)
    split = data.train(4, seed=5)
    whole, rest = list(split.epoch(2)), list(data.train(4, seed=5).epoch(2, start=1))
    assert all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(whole[1:], rest, strict=True))
    assert not torch.equal(whole[0][0], next(split.epoch(3))[0])
    shards = [list(split.shard(Processes(rank, 2)).epoch(2)) for rank in (0, 1)]
    for (x, y), (first, labels), (second, _) in zip(whole, *shards, strict=True):
        assert torch.equal(x, torch.cat([first, second]))
        assert torch.equal(y, labels)
    for i, batch in enumerate(data.train(4, seed=5).epoch(2)):
        assert torch.equal(batch[0], whole[i][0])
    same_files = NMNIST(root=str(tmp_path), frames=3).train(4, 0).fingerprint()
    assert same_files != NMNIST(root=str(tmp_path), frames=4).train(4, 0).fingerprint()
    (tmp_path / "Train/3/00003.bin").write_bytes(layouts.nmnist(layouts.rows(40, (2, 34, 34), 77)))
    assert same_files != NMNIST(root=str(tmp_path), frames=3).train(4, 0).fingerprint()


# published layouts ------------------------------------------------------------------------------------------------------------


def test_overflow_records_of_nmnist_add_to_later_times(tmp_path: Path) -> None:
    file = tmp_path / "1.bin"
    file.write_bytes(layouts.nmnist([(5, 1, 2, 1), (6, 0, 240, 0), (7, 3, 4, 0), (0, 0, 240, 0), (1, 33, 33, 1)]))
    events = read_nmnist(file)
    assert events.t.tolist() == [5, 7 + 8192, 1 + 2 * 8192]
    assert events.x.tolist() == [1, 3, 33]


def test_cifar10_dvs_layout(tmp_path: Path) -> None:
    events = layouts.rows(60, (2, 128, 128), 3)
    files = {f"{name}/cifar10_{name}_{n}.aedat": layouts.aedat2(events) for name in CIFAR10DVS.names for n in range(20)}
    data = CIFAR10DVS(root=str(written(tmp_path, files)), frames=4)
    train, test = data.train(8, 0), data.test(8)
    assert (len(train.recordings), len(test.recordings)) == (180, 20)
    assert {Path(r.path).stem.rpartition("_")[2] for r in test.recordings} == {"18", "19"}
    assert [r.label for r in CIFAR10DVS(root=str(tmp_path), frames=4, test_limit=10).test(8).recordings] == list(range(10))
    (read,) = data.read(test.recordings[:1])
    assert list(zip(*(c.tolist() for c in (read.t, read.x, read.y, read.p)))) == events
    file = tmp_path / "special.aedat"
    file.write_bytes(layouts.aedat2(events) + b"\x00\x00\x80\x00" + (9_000_000).to_bytes(4, "big"))
    assert len(read_aedat2(file)) == 60  # a signal on the camera's synchronisation input is no event


def test_dvs_gesture_layout(tmp_path: Path) -> None:
    events = layouts.rows(90, (2, 128, 128), 4, span=900_000)
    parts = [layouts.packet(events[i : i + 15]) for i in range(0, 90, 15)]
    parts.insert(2, layouts.packet([(1, 0, 0, 0)], kind=0))  # of another type
    parts.insert(4, layouts.packet([(events[44][0], 1, 1, 1)], valid=0))
    late = layouts.aedat3(*(layouts.packet(events[i : i + 30], overflow=1) for i in range(0, 90, 30)))
    labels = "class,startTime_usec,endTime_usec\n2,100000,450000\n11,500000,800000\n"
    shifted = f"class,startTime_usec,endTime_usec\n1,{2**31 + 100_000},{2**31 + 450_000}\n"
    files = {
        "trials_to_train.txt": b"user01_led.aedat\n", "trials_to_test.txt": b"user02_led.aedat\n",
        "user01_led.aedat": layouts.aedat3(*parts), "user01_led_labels.csv": labels.encode(),
        "user02_led.aedat": late, "user02_led_labels.csv": shifted.encode(),
    }  # fmt: skip
    data = DVSGesture(root=str(written(tmp_path, files)), frames=4, downsample=4)
    train, test = data.train(2, 0), data.test(2)
    assert [r.label for r in train.recordings] == [1, 10]
    for split, start, end in ((train, 100_000, 450_000), (train, 500_000, 800_000), (test, 100_000, 450_000)):
        read = split.events([int(start == 500_000)])[0]
        wanted = [(t - start, x, y, p) for t, x, y, p in events if start <= t < end]
        assert list(zip(*(c.tolist() for c in (read.t, read.x, read.y, read.p)))) == wanted
    assert next(test.epoch(0))[0].shape == (1, 4, 2, 32, 32)


def test_dvs_gesture_arrays_of_tonic(tmp_path: Path) -> None:
    events = layouts.rows(50, (2, 128, 128), 5, span=80_000)
    for split in ("Train", "Test"):
        (tmp_path / f"ibmGesture{split}/user01_led").mkdir(parents=True)
        table = np.array([(x, y, p, t / 1000 + 700) for t, x, y, p in events])
        np.save(tmp_path / f"ibmGesture{split}/user01_led/7.npy", table)
    data = DVSGesture(root=str(tmp_path), dt=10.0)
    (read,) = data.test(1).events([0])
    assert list(zip(*(c.tolist() for c in (read.t, read.x, read.y, read.p)))) == events
    assert data.class_names()[data.test(1).recordings[0].label] == "arm roll"


@pytest.mark.parametrize(("kind", "prefix"), [(SHD, "shd"), (SSC, "ssc")])
def test_heidelberg_layout(kind: Any, prefix: str, tmp_path: Path) -> None:
    times, units = [np.array([0.0, 0.25, 0.5], np.float16), np.array([0.125], np.float16)], [[3, 699, 0], [12]]
    file = layouts.spike_trains(times, units, [4, 9])
    data = kind(root=str(written(tmp_path, {f"{prefix}_{split}.h5": file for split in ("train", "test")})), frames=4)
    first, second = data.test(2).events([0, 1])
    assert (first.t.tolist(), first.x.tolist()) == ([0, 250_000, 500_000], [3, 699, 0])
    assert (second.t.tolist(), second.x.tolist()) == ([125_000], [12])
    x, y = next(data.test(2).epoch(0))
    assert x.shape == (2, 4, 700)
    assert x[0].nonzero().tolist() == [[0, 3], [1, 699], [3, 0]]
    assert y.tolist() == [4, 9]


# what is refused --------------------------------------------------------------------------------------------------------------

GOOD = layouts.rows(20, (2, 34, 34))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no events"),
        (layouts.nmnist(GOOD)[:-1], "no multiple of 5"),
        (layouts.nmnist([*GOOD, (10**6, 34, 3, 0)]), "event 20 of 21 has the column 34, and this sensor has 0 to 33"),
        (layouts.nmnist([*GOOD, (10**6, 3, 99, 0)]), "event 20 of 21 has the row 99"),
        (layouts.nmnist([*GOOD, (1, 3, 9, 0)]), r"runs backwards at event 20 of 21.*data.sort=true"),
    ],
)
def test_impossible_recordings_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    written(tmp_path, {"Test/3/00001.bin": content})
    with pytest.raises(MissingDataError, match=rf"00001.bin.*{message}"):
        next(NMNIST(root=str(tmp_path), frames=2).test(1).epoch(0))


def test_unsorted_events_are_sorted_on_request(tmp_path: Path) -> None:
    written(tmp_path, {"Test/3/00001.bin": layouts.nmnist(GOOD[::-1])})
    (events,) = NMNIST(root=str(tmp_path), frames=2, sort=True).test(1).events([0])
    assert events.t.tolist() == [t for t, *_ in GOOD]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00" * 80, "does not begin with #!AER-DAT2"),
        (layouts.aedat2(GOOD)[:-3], "no multiple of 8"),
        (b"#!AER-DAT2.0\r\n" + b"#" * 100, "text has no end"),
        (b"#!AER-DAT2.0\r\n", "has no events"),
        (layouts.aedat2(GOOD) + b"\x00\x01\x00\x00\x7f\xff\xff\xff", "has the row -1"),
    ],
)
def test_impossible_aedat2_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.aedat"
    file.write_bytes(content)
    with pytest.raises(MissingDataError, match=rf"a.aedat.*{message}"):
        read_aedat2(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (layouts.aedat3(layouts.packet(GOOD))[:-1], "the file ends at"),
        (layouts.aedat3(layouts.packet(GOOD), b"\x01\x00\x01"), "cut off in its header"),
        (layouts.aedat3(layouts.packet(GOOD).replace(b"\x14\0\0\0", b"\xff\xff\xff\x7f")), "2,147,483,647 events"),
        (layouts.aedat3(layouts.packet(GOOD[10:]), layouts.packet(GOOD[:10])), "runs backwards"),
        (layouts.aedat3(), "has no events"),
        (layouts.aedat3(layouts.packet([(5, 300, 1, 1)])), "has the column 300"),
    ],
)
def test_impossible_aedat3_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    table = b"class,startTime_usec,endTime_usec\n3,0,2000000\n"
    written(tmp_path, {"trials_to_test.txt": b"a.aedat", "a.aedat": content, "a_labels.csv": table})
    with pytest.raises(MissingDataError, match=rf"a.aedat.*{message}"):
        next(DVSGesture(root=str(tmp_path), frames=2).test(1).epoch(0))


@pytest.mark.parametrize(
    ("table", "message"),
    [(b"c\n12,0,5\n", "class 11"), (b"c\n3,9,5\n", "line 2 has a gesture from 9"), (b"c\n3,x,5\n", "a_labels.csv is truncated")],
)
def test_impossible_gesture_tables_are_named(table: bytes, message: str, tmp_path: Path) -> None:
    files = {"trials_to_test.txt": b"a.aedat", "a.aedat": layouts.aedat3(layouts.packet(GOOD)), "a_labels.csv": table}
    with pytest.raises(MissingDataError, match=message):
        DVSGesture(root=str(written(tmp_path, files)), frames=2).test(1)


@pytest.mark.parametrize(
    ("times", "units", "labels", "message"),
    [
        ([[0.1]], [[700]], [0], "recording 0, event 0 of 1 has the channel 700|recording 0,: event 0"),
        ([[0.1, 0.05]], [[1, 2]], [0], "runs backwards"),
        ([[0.1, np.nan]], [[1, 2]], [0], "not finite"),
        ([[]], [[]], [0], "has no events"),
        ([[0.1]], [[1, 2]], [0], "1 times and 2 units"),
        ([[0.1]], [[1]], [20], "labels run from 20 to 20"),
        ([[0.1]], [[1]], [0, 1], "1 lists of times, 1 of units and 2 labels"),
    ],
)
def test_impossible_spike_trains_are_named(times: Any, units: Any, labels: list[int], message: str, tmp_path: Path) -> None:
    written(tmp_path, {"shd_test.h5": layouts.spike_trains(times, units, labels)})
    with pytest.raises(MissingDataError, match=rf"shd_test.h5.*({message})"):
        next(SHD(root=str(tmp_path), frames=2).test(1).epoch(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of them"), ({"frames": 3, "dt": 1.0}, "give one of them"),
        ({"frames": 0}, "frames is 0; it must be positive"), ({"dt": 1e-9}, "at least 0.001"),
        ({"frames": 2, "kind": "video"}, "use one of count"), ({"frames": 2, "downsample": 3}, "does not divide"),
        ({"frames": 2, "drop": 1.0}, "probability below 1"), ({"frames": 2, "shift": -1}, "cannot be negative"),
        ({"frames": 2, "root": "a", "subfolder": "b"}, "give one"),
        ({"frames": 2, "subfolder": "../b"}, "below .SPIKEPROP_DATA"),
        ({"frames": 2, "subfolder": "/b"}, "below .SPIKEPROP_DATA"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NMNIST(**settings)


def test_frames_beyond_memory_and_an_empty_duration_name_the_recording(tmp_path: Path) -> None:
    written(tmp_path, {"Test/3/00001.bin": layouts.nmnist([(5000, 1, 1, 1), (8_000_000, 2, 2, 0)])})
    with pytest.raises(DataError, match=r"00001.bin.*8,000,001 frames.*longer data.dt"):
        next(NMNIST(root=str(tmp_path), dt=0.001).test(1).epoch(0))
    with pytest.raises(DataError, match=r"00001.bin.*first 4.0 ms.*raise data.duration"):
        next(NMNIST(root=str(tmp_path), frames=2, duration=4.0).test(1).epoch(0))


@pytest.mark.parametrize("kind", [NMNIST, CIFAR10DVS, DVSGesture, SHD, SSC])
def test_absent_sets_name_the_folder_and_the_layout(
    kind: type[EventData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKEPROP_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match=str(tmp_path / kind.usual)):
        kind(frames=2).test(1)
    assert kind(frames=2).example(3).shape == (3, 2, *kind(frames=2).input_shape)
    assert len(kind(frames=2).class_names()) == kind.classes
