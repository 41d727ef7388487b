"""What a file is, by its first bytes and not by its name, so that a file in the wrong place is named and not called damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

READ = 2**16  # bytes at the start and at the end of a file that are looked at
LARGEST_HEADER = 2**26  # bytes of a safetensors header


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: as a message says it, with its article.
        remedy: what to do with such a file, where another kind belongs.
    """

    name: str
    remedy: str


TORCH = Kind(
    "a PyTorch file (torch.save)",
    "weights in it belong in a recipe's `ann: {weights: ...}`, or go into a network by spikeprop.ann.load_weights(net, path); "
    "a checkpoint is one of the .safetensors files in a run folder",
)
PICKLE = Kind(
    "a Python pickle", "spikeprop reads no pickles, which can run code: save the tensors with safetensors or torch.save"
)
NUMPY = Kind("a NumPy file", "spikeprop reads no NumPy files here: load it with numpy.load and pass the arrays as tensors")
ONNX = Kind("an ONNX model", "make a PyTorch module of it first (onnx2torch), and convert that")
HDF5 = Kind("an HDF5 file (NIR, or weights of Keras)", "give a NIR file to `simulate` or from_nir")
CHECKPOINT = Kind("a checkpoint of spikeprop", "give it to `eval`, `export` or `simulate`; `export` writes NIR from it")
SAFETENSORS = Kind(
    "a safetensors file that spikeprop did not write",
    "its weights belong in a recipe's `ann: {weights: ...}`, or spikeprop.ann.load_weights(net, path)",
)
ZIP = Kind("a ZIP archive", "unpack it, and give the file inside")
TAR = Kind("a tar archive", "unpack it, and give the file inside")
COMPRESSED = Kind("a compressed file", "decompress it first (gunzip, unxz, bunzip2 or unzstd)")
PICTURE = Kind("a picture", "give the file that belongs here")
PDF = Kind("a PDF document", "give the file that belongs here")
POINTER = Kind("a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository")
HTML = Kind("an HTML page", "a download went wrong, or needs a login: get the file again")
JSON = Kind("a JSON file", "give the file that it describes; beside a checkpoint lies a .json only to be read")
YAML = Kind("a YAML file", "give a recipe to `run` or `check`")
TEXT = Kind("a text file", "give the file that belongs here")
EMPTY = Kind("empty (0 bytes)", "it was never written completely: get it, or make it, again")

_STARTS = {
    b"\x89HDF\r\n\x1a\n": HDF5,
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": TORCH,  # before torch 1.6
    b"\x80\x02": PICKLE,
    b"\x80\x03": PICKLE,
    b"\x80\x04\x95": PICKLE,
    b"\x80\x05\x95": PICKLE,
    b"\x93NUMPY": NUMPY,
    b"\x1f\x8b": COMPRESSED,
    b"\xfd7zXZ\x00": COMPRESSED,
    b"BZh": COMPRESSED,
    b"\x28\xb5\x2f\xfd": COMPRESSED,
    b"\x89PNG\r\n\x1a\n": PICTURE,
    b"\xff\xd8\xff": PICTURE,
    b"GIF8": PICTURE,
    b"%PDF-": PDF,
    b"version https://git-lfs": POINTER,
}


def kind_of(path: str | Path) -> Kind | None:
    """The kind of a file; None where it is of none of these, or cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(READ)
            size = file.seek(0, 2)
            file.seek(max(0, size - READ))
            end = file.read(READ)
    except OSError:
        return None
    if not start:
        return EMPTY
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip(start + end)
    if start[257:262] == b"ustar":
        return TAR
    found = next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), None)
    return found or _safetensors(start, size) or _onnx(start) or _text(start)


def wrong_kind(path: str | Path, expected: str, *right: Kind) -> str | None:
    """A message if ``path`` is recognised as something else than the kinds that are ``right``; ``expected`` names those."""
    kind = kind_of(path)
    if kind is None or kind in right:
        return None
    return f"{path} is {kind.name}, and {expected} belongs here: {kind.remedy}"


def _zip(looked_at: bytes) -> Kind:
    if b"/data.pkl" in looked_at:
        return TORCH
    return NUMPY if b".npy" in looked_at else ZIP


def _safetensors(start: bytes, size: int) -> Kind | None:
    length = int.from_bytes(start[:8], "little")
    if not (2 <= length <= min(LARGEST_HEADER, size - 8) and start[8:9] == b"{"):
        return None
    return CHECKPOINT if b'"spikeprop":' in start[: 8 + length] else SAFETENSORS


def _onnx(start: bytes) -> Kind | None:
    """A protobuf whose first field is the format's version, followed by the name of the program that wrote it."""
    return ONNX if start[:1] == b"\x08" and start[2:3] == b"\x12" and b"graph" in start else None


def _text(start: bytes) -> Kind | None:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # not the end of what was read, within a character
            return None
        text = start[: error.start].decode("utf-8")
    if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text):
        return None
    text = text.lstrip("\ufeff \t\r\n")
    if text[:14].lower().startswith(("<!doctype html", "<html")):
        return HTML
    if text[:1] in ("{", "["):
        return JSON if len(start) == READ or _is_json(text) else TEXT
    keys = [line for line in text.splitlines() if line and not line.startswith(("#", " ", "-"))]
    return YAML if keys and all(":" in line for line in keys) else TEXT


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
