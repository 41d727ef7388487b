"""One photograph from a file that may hold anything: JPEG or PNG, within bounds, or an error of ours.

The pixels that a header promises are counted before any are decoded (a few bytes can promise gigabytes), and only these two
formats are tried: among Pillow's are some that start other programs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from spikeprop.errors import MissingDataError

FORMATS = ("JPEG", "PNG")  # ILSVRC-2012 has a PNG among its .JPEG files
LARGEST_PIXELS = 89_478_485  # Pillow's own bound for a warning; the largest of ILSVRC-2012 has 34 million
LARGEST_FILE = 2**28  # bytes


@dataclass(frozen=True)
class Member:
    """A photograph within a larger file: ``size`` bytes from ``offset`` on."""

    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}, at byte {self.offset},"


def read_photograph(path: str | Path | Member) -> Any:
    """The image in RGB, as Pillow has it.

    Raises:
        MissingDataError: not a whole JPEG or PNG, or larger than ``LARGEST_PIXELS``.
    """
    from PIL import Image

    try:
        size = path.size if isinstance(path, Member) else Path(path).stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(f"the file has more than {LARGEST_FILE:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable metadata; the size has its own test here
            with Image.open(_bytes_of(path), formats=FORMATS) as file:
                if file.width * file.height > LARGEST_PIXELS:
                    raise ValueError(f"{file.width} x {file.height} pixels; at most {LARGEST_PIXELS:,} are read")
                return file.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise MissingDataError(f"{path} is truncated or not a JPEG or PNG image ({error}); replace or delete it") from error


def _bytes_of(path: str | Path | Member) -> Any:
    """What Pillow opens: a file's name, or the bytes of a member."""
    if not isinstance(path, Member):
        return path
    with open(path.path, "rb") as file:
        file.seek(path.offset)
        return BytesIO(file.read(path.size))
