"""Reads one photograph from an untrusted file, within bounds, or raises MissingDataError; and says which files are photographs.

The number of pixels in the header is checked before any pixel is decoded (a few bytes can claim gigabytes), and only the formats
of torchvision's ImageFolder are tried, because some of Pillow's formats start other programs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from spikeprop.errors import MissingDataError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # one .JPEG file of ILSVRC-2012 is a PNG
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision
LARGEST_PIXELS = 89_478_485  # above this Pillow warns; the largest image of ILSVRC-2012 has 34 million
LARGEST_FILE = 2**28  # bytes


@dataclass(frozen=True)
class Member:
    """A photograph within a larger file: ``size`` bytes, which start at ``offset``."""

    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}, at byte {self.offset},"


def read_photograph(path: str | Path | Member, mode: str = "RGB") -> Any:
    """The image in ``mode`` ("RGB", or "L" for grey), as a Pillow image.

    Raises:
        MissingDataError: not a complete image of ``FORMATS``, larger than ``LARGEST_PIXELS``, or with more than 8 bits a channel.
    """
    from PIL import Image

    try:
        size = path.size if isinstance(path, Member) else Path(path).stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(f"the file has more than {LARGEST_FILE:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual but readable metadata; the size is checked below
            with Image.open(_bytes_of(path), formats=FORMATS) as file:
                if file.width * file.height > LARGEST_PIXELS:
                    raise ValueError(f"{file.width} x {file.height} pixels; at most {LARGEST_PIXELS:,} are read")
                if file.mode[0] in "IF":  # Pillow would clip them to white
                    raise ValueError(f"it has pixels of mode {file.mode}; only 8 bits a channel are read")
                return file.convert(mode)
    except Exception as error:  # Pillow's decoders raise many types for corrupted files
        raise MissingDataError(
            f"{path} is truncated or not a {', '.join(FORMATS)} image ({error}); get it again, or move it out of the folder"
        ) from error


def _bytes_of(path: str | Path | Member) -> Any:
    """A file's name, or the bytes of a member, for Pillow to open."""
    if not isinstance(path, Member):
        return path
    with open(path.path, "rb") as file:
        file.seek(path.offset)
        return BytesIO(file.read(path.size))
