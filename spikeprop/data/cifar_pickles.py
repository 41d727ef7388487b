"""Reads CIFAR's official files, which are pickles, without running any function that a pickle names.

A pickle is a program: it names functions and calls them. Here Python's pure-Python unpickler interprets it with only the opcodes
that these files need, and the names that they contain (numpy's array, dtype and array constructor) are replaced by records that
only store their arguments. Every field of the result is checked before numpy reads the bytes.
Format: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprop.errors import MissingDataError

PIXELS = 3 * 32 * 32
LARGEST_FILE = 2**28  # bytes; CIFAR-100's training file has 155 million
MOST_READS = 4_000_000  # in a file; one of CIFAR-10 needs 70,000, and CIFAR-100 has five times as many images in a file
OPCODES = (
    "PROTO", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINUNICODE",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD",
)  # fmt: skip


class _Record:
    """Replaces an array or a dtype: stores the arguments of its constructor and its state."""

    __slots__ = ("kind", "made", "state")

    def __init__(self, kind: str, made: tuple[Any, ...]):
        self.kind, self.made, self.state = kind, made, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Name:
    """Replaces a function of numpy; a call returns a record, or the encoded bytes."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, *arguments: Any) -> Any:
        if self.kind == "bytes":
            text, encoding = arguments
            if not isinstance(text, str) or encoding != "latin1":
                raise ValueError("it encodes something other than bytes")
            return text.encode("latin1")
        return _Record(self.kind, arguments)


NAMES = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "array" for core in ("core", "_core")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "bytes",  # how Python 3 writes bytes in protocols of Python 2
}


class _Counted(io.BytesIO):
    """The file's bytes with a limit on the number of reads, because a file of a hundred million opcodes would take minutes."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise ValueError(f"it has more than {MOST_READS:,} parts")
        return super().read(size)


class _Reader(pickle._Unpickler):  # type: ignore[name-defined,misc]  # the C version allocates a memo of any size that the file requests
    dispatch = {ord(getattr(pickle, name)): pickle._Unpickler.dispatch[ord(getattr(pickle, name))] for name in OPCODES}  # type: ignore[attr-defined]  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise ValueError(f"it names {module}.{name}, which is neither an array nor a dtype of numpy")
        return _Name(NAMES[module, name])


def read_batch(path: Path, md5: str | None = None, label: str = "labels", classes: int = 10) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one file of CIFAR.

    Args:
        path: the file.
        md5: the expected hash of its bytes, or None.
        label: key of the labels.
        classes: number of classes; labels are smaller.

    Raises:
        MissingDataError: no such file, another hash than ``md5``, or content other than images and labels.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"the file has more than {LARGEST_FILE:,} bytes")
        content = path.read_bytes()
        if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise ValueError("its MD5 is not the official file's")
        return _parse(content, label, classes)
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no file {path}") from error
    except Exception as error:  # the unpickler raises many types for corrupted files
        raise MissingDataError(f"{path} is truncated, damaged or not a file of CIFAR ({error})") from error


def _parse(content: bytes, label: str, classes: int) -> tuple[Tensor, Tensor]:
    try:
        found = _Reader(_Counted(content), encoding="bytes").load()
    except KeyError as error:
        raise ValueError(f"it has the opcode {error}, which no file of CIFAR has") from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
    fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    if not {"data", label} <= set(fields):
        raise ValueError(f"it has no {label!r} and 'data'")
    images, labels = _array(fields["data"]), fields[label]
    if not (isinstance(labels, list) and all(type(n) is int and 0 <= n < classes for n in labels)):
        raise ValueError(f"its {label} are not integers from 0 to {classes - 1}")
    if len(labels) != len(images):
        raise ValueError(f"it has {len(images)} images and {len(labels)} labels")
    return torch.from_numpy(images.copy()).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def _array(record: Any) -> np.ndarray:
    """The pixels of an array's record, which must be (N, 3072) uint8."""
    state = record.state if isinstance(record, _Record) and record.kind == "array" else None
    if not (isinstance(state, tuple) and len(state) == 5):
        raise ValueError("its data are not an array")
    _, shape, dtype, fortran, content = state
    unsigned = isinstance(dtype, _Record) and dtype.kind == "dtype" and dtype.made[:1] in ((b"u1",), ("u1",))
    if not unsigned or fortran is not False or not isinstance(content, bytes):
        raise ValueError("its data are not bytes of pixels in rows")
    if not (isinstance(shape, tuple) and len(shape) == 2 and shape[1] == PIXELS and len(content) == shape[0] * PIXELS):
        raise ValueError(f"its data have {len(content):,} bytes and the shape {shape}; an image has {PIXELS}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
