"""Reads the published binary formats of event recordings, within bounds, or raises MissingDataError that names the file.

- N-MNIST ``.bin`` (Orchard et al. 2015): 5 bytes an event: x, y, then a bit of polarity and 23 bits of microseconds, big-endian.
  A record with y = 240 is no event: the sensor's counter overflowed, and 2^13 us are added to this and all later times.
- AEDAT 2.0 of a DVS128 (CIFAR10-DVS): lines of text that begin with ``#``, then 8 bytes an event, big-endian: address and
  microseconds. Address bit 0 is 1 for OFF, bits 1-7 are the column from the right, bits 8-14 the row from below, bit 15 marks a
  signal on the camera's synchronisation input, which is no event.
- AEDAT 3.1 (DVS Gesture): lines of text, then packets: a header of 28 bytes, little-endian (type, source, event size, offset of
  the timestamp, overflow of the timestamp, capacity, number, valid), and ``number`` events. In type 1 an event is two words: bit
  0 valid, bit 1 polarity, bits 2-16 y, bits 17-31 x; and a timestamp of 31 bits, to which overflow x 2^31 us are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikeprop.data.events.stream import LATEST, Events, checked
from spikeprop.errors import MissingDataError

LARGEST_FILE = 2**32  # bytes
LONGEST_HEADER = 2**16  # bytes of text before the events of an AEDAT file
OVERFLOW_ROW, OVERFLOW = 240, 2**13
PACKET, POLARITY = 28, 1  # bytes of a packet's header, and the type of packets that hold a camera's events
DVS128 = (2, 128, 128)


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Within this context every error is a MissingDataError that names the file and the remedy."""
    try:
        yield
    except MissingDataError:
        raise
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no file {path}") from error
    except Exception as error:  # numpy's and HDF5's readers raise many types for damaged files
        raise MissingDataError(f"{path} is truncated, damaged or not {what} ({error}); get it again") from error


def _content(path: str | Path) -> bytes:
    if Path(path).stat().st_size > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
    return Path(path).read_bytes()


def _records(content: Any, size: int, what: str = "events") -> np.ndarray:
    """The bytes (N, size) of fixed-size records."""
    if len(content) % size:
        raise ValueError(f"its {what} take {len(content):,} bytes, which is no multiple of {size}: the last one is cut off")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, size)


def read_nmnist(path: str | Path, sort: bool = False) -> Events:
    """One recording of N-MNIST, or of N-Caltech101's ``.bin`` format on a sensor of 34 x 34.

    Raises:
        MissingDataError: truncated, empty, events outside the sensor, or times that run backwards.
    """
    with reading(path, "an N-MNIST recording of 5 bytes an event"):
        records = _records(_content(path), 5).astype(np.int64)
        t = (records[:, 2] & 127) << 16 | records[:, 3] << 8 | records[:, 4]
        overflow = records[:, 1] == OVERFLOW_ROW
        t += np.cumsum(overflow) * OVERFLOW
        x, y, p = (column[~overflow] for column in (records[:, 0], records[:, 1], records[:, 2] >> 7))
        return checked(t[~overflow], x, y, p, sensor=(2, 34, 34), where=path, sort=sort)


def _after_text(content: bytes, version: str) -> int:
    """Where the events begin, after lines of text that begin with #."""
    at = 0
    if not content.startswith(f"#!AER-DAT{version}".encode()):
        raise ValueError(f"it does not begin with #!AER-DAT{version}")
    while content[at : at + 1] == b"#":
        at = content.find(b"\n", at, LONGEST_HEADER) + 1
        if not at:
            raise ValueError(f"its text has no end within {LONGEST_HEADER:,} bytes")
        if content[:at].endswith((b"#!END-HEADER\r\n", b"#!END-HEADER\n")):  # an event may begin with the byte of #
            break
    return at


def read_aedat2(path: str | Path, sort: bool = False) -> Events:
    """One recording of a DVS128 in AEDAT 2.0; times count from its first event.

    Raises:
        MissingDataError: truncated, empty, events outside the sensor, or times that run backwards.
    """
    with reading(path, "a DVS128 recording in AEDAT 2.0"):
        content = _content(path)
        records = _records(content[_after_text(content, "2") :], 8)
        address, t = records.view(">u4").astype(np.int64).T
        pixel = (address & 0x8000) == 0
        address, t = address[pixel], t[pixel]
        x = 127 - ((address & 0xFE) >> 1)
        row = np.where(address >> 16, -1, 127 - ((address & 0x7F00) >> 8))  # no pixel has an address of more than 16 bits
        t = t - t[:1]
        return checked(t, x, row, 1 - (address & 1), sensor=DVS128, where=path, sort=sort)


@dataclass(frozen=True)
class Packet:
    """One packet of polarity events in an AEDAT 3.1 file.

    Attributes:
        at, count: the first byte of its events, and their number.
        origin: microseconds to which their 31 bits are added.
        first, last: times of the first and the last event in microseconds.
    """

    at: int
    count: int
    origin: int
    first: int
    last: int


def packets_of_aedat3(path: str | Path) -> list[Packet]:
    """The packets of polarity events in a file, from their headers.

    Raises:
        MissingDataError: not a complete AEDAT 3.1 file.
    """
    found: list[Packet] = []
    with reading(path, "a DVS128 recording in AEDAT 3.1"), open(path, "rb") as file:
        size = Path(path).stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        at = _after_text(file.read(LONGEST_HEADER), "3.1")
        while at < size:
            file.seek(at)
            header = file.read(PACKET + 8)
            if len(header) < PACKET:
                raise ValueError(f"the packet at byte {at:,} is cut off in its header")
            kind = int.from_bytes(header[:2], "little")
            event, _, overflow, _, count, _ = (int(n) for n in np.frombuffer(header[4:PACKET], "<i4"))
            if event < 1 or count < 0 or at + PACKET + event * count > size:
                raise ValueError(f"the packet at byte {at:,} has {count:,} events of {event:,} bytes; the file ends at {size:,}")
            if kind == POLARITY and (event != 8 or overflow < 0):
                raise ValueError(
                    f"the packet at byte {at:,} has events of {event} bytes, not 8, or overflow {overflow} is negative"
                )
            if kind == POLARITY and count:
                file.seek(at + PACKET + 8 * count - 4)
                first, last = (int.from_bytes(word, "little") for word in (header[PACKET + 4 : PACKET + 8], file.read(4)))
                found.append(Packet(at + PACKET, count, overflow << 31, first + (overflow << 31), last + (overflow << 31)))
            at += PACKET + event * count
    return found


def read_aedat3(path: str | Path, packets: list[Packet], start: int, end: int, sort: bool = False) -> Events:
    """The valid events of a DVS128 in AEDAT 3.1 with start <= t < end; times count from ``start``.

    Args:
        path: of the file.
        packets: of the file, or those of them that may hold these events.
        start, end: microseconds of the recording's clock.
        sort: see ``checked``.

    Raises:
        MissingDataError: truncated, no events, events outside the sensor, or times that run backwards.
    """
    with reading(path, "a DVS128 recording in AEDAT 3.1"), open(path, "rb") as file:
        parts = []
        for packet in packets:
            file.seek(packet.at)
            words = _records(file.read(8 * packet.count), 8).view("<u4").astype(np.int64)
            if len(words) < packet.count:
                raise ValueError(f"the packet at byte {packet.at:,} is cut off")
            words[:, 1] += packet.origin
            parts.append(words[(words[:, 0] & 1 == 1) & (words[:, 1] >= start) & (words[:, 1] < end)])
        data, t = np.concatenate([*parts, np.zeros((0, 2), np.int64)]).T
        return checked(
            t - start, data >> 17, data >> 2 & 0x7FFF, data >> 1 & 1, sensor=DVS128,
            where=f"{path} from {start:,} to {end:,} us", sort=sort,
        )  # fmt: skip


def read_gesture_array(path: str | Path, sort: bool = False) -> Events:
    """One gesture of the sets that tonic offers: ``.npy``, (N, 4) of x, y, polarity and milliseconds; times
    count from its first event.

    Raises:
        MissingDataError: truncated, no events, events outside the sensor, or times that run backwards.
    """
    with reading(path, "an array (N, 4) of x, y, polarity, milliseconds"):
        table = np.load(path, mmap_mode="r", allow_pickle=False)  # a map is never larger than the file
        if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "fiu" or table.nbytes > LARGEST_FILE:
            raise ValueError(f"it holds {table.shape} of {table.dtype}")
        x, y, p, milliseconds = np.asarray(table, dtype=np.float64).T
        t = np.rint(milliseconds * 1000)
        if not (np.isfinite(table).all() and (np.abs(t) < LATEST).all() and all((n == np.floor(n)).all() for n in (x, y, p))):
            raise ValueError("it holds places that are not whole numbers, or times that no recording has")
        return checked(t - t[:1], x, y, p, sensor=DVS128, where=path, sort=sort)
