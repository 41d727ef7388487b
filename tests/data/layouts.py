"""Writes recordings in the published layouts of the event sets that are not here; the readers are tested on these files."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Rows = Iterable[tuple[int, int, int, int]]  # t in microseconds, x, y, polarity


def rows(count: int, sensor: tuple[int, int, int], seed: int = 0, span: int = 1_000_000) -> list[tuple[int, int, int, int]]:
    """Random events in the order of their times; the first at time 0."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, span, count))
    t[0] = 0
    x, y, p = (rng.integers(0, bound, count).tolist() for bound in sensor[::-1])
    return list(zip(t.tolist(), x, y, p))


def nmnist(events: Rows) -> bytes:
    """5 bytes an event."""
    return b"".join(bytes((x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255)) for t, x, y, p in events)


def aedat2(events: Rows, start: int = 7_000_000) -> bytes:
    """DVS128: text, then addresses and times, big-endian."""
    head = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    words = ((127 - y) << 8 | (127 - x) << 1 | (1 - p) for _, x, y, p in events)
    return head + b"".join(struct.pack(">II", word, t + start) for word, (t, *_) in zip(words, events))


def packet(events: Rows, overflow: int = 0, kind: int = 1, valid: int = 1) -> bytes:
    """One packet of AEDAT 3.1."""
    body = b"".join(struct.pack("<II", x << 17 | y << 2 | p << 1 | valid, t) for t, x, y, p in events)
    count = len(body) // 8
    return struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, count, count, count) + body


def aedat3(*packets: bytes) -> bytes:
    """AEDAT 3.1: text, then packets."""
    return b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n" + b"".join(packets)


def spike_trains(times: list[Any], units: list[Any], labels: list[int]) -> bytes:
    """The Heidelberg sets' HDF5 layout."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        for name, values, dtype in (("times", times, np.float16), ("units", units, np.uint16)):
            array = opened.create_dataset(f"spikes/{name}", (len(values),), dtype=h5py.vlen_dtype(dtype))
            for number, value in enumerate(values):
                array[number] = np.asarray(value, dtype)
        opened["labels"] = np.asarray(labels, np.uint16)
    return file.getvalue()


def sound(samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> bytes:
    """A wav file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((channels, 2, rate, 0, "NONE", "not compressed"))
        opened.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def written(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder, with these files in it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def few_gestures(folder: Path) -> Path:
    """DVS Gesture as tonic's arrays, two recordings of each of three classes."""
    for split in ("Train", "Test"):
        for user in range(2):
            (folder / f"ibmGesture{split}/user{user:02}_led").mkdir(parents=True)
            for label in range(3):
                table = np.array([(x, y, p, t / 1000) for t, x, y, p in rows(200, (2, 128, 128), user + label)])
                np.save(folder / f"ibmGesture{split}/user{user:02}_led/{label}.npy", table)
    return folder


def few_spoken_digits(folder: Path) -> Path:
    """SHD, six recordings."""
    rng = np.random.default_rng(0)
    times = [np.sort(rng.random(50) * 0.9) for _ in range(6)]
    file = spike_trains(times, [rng.integers(0, 700, 50) for _ in times], [0, 5, 19, 3, 0, 5])
    return written(folder, {"shd_train.h5": file, "shd_test.h5": file})
