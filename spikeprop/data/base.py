"""``LabelledData`` and ``ImageData``: a data set has examples of one shape, and one normalisation for ANN and SNN.

The STDB authors' code normalises with CIFAR's statistics for the ANN and with 0.5/0.5 for the SNN; here a data set has one mean
and one std, which every stage uses. The augmentation is the paper's by default: a random crop after zero padding, and a random
flip.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.errors import MissingDataError
from spikeprop.runtime.batches import Batch, Split
from spikeprop.runtime.checks import positive
from spikeprop.runtime.places import data_folder
from spikeprop.runtime.seeding import generator

Padding = Literal["zero", "reflect"]
Flip = bool | Literal["alternating"]
SHOWN = 20  # files in a message
HASHED = 2**28  # bytes of files up to which a fingerprint reads them all; of larger sets it takes names and sizes


@dataclass(frozen=True, kw_only=True)
class LabelledData(ABC):
    """Examples of one shape, each with one label, or with one label for each position, as in text.

    Attributes:
        train_limit, test_limit: use only this many examples, the first ones.
        label_shape: of an example's labels; () for one label, (H, W) for one of each pixel.
        input_shape: of one example, or of one step of it if it is a sequence: what a network reads at a step.
        names: of the classes, if their numbers do not say what they are.
        in_time: whether examples are sequences (T, *input_shape).
    """

    train_limit: int | None = None
    test_limit: int | None = None

    classes: ClassVar[int]
    label_shape: ClassVar[tuple[int, ...]] = ()
    input_shape: ClassVar[tuple[int, ...]]
    names: ClassVar[Sequence[str]] = ()
    in_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("train_limit", "test_limit"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}, which leaves no examples; use at least 1, or null for all")

    def class_names(self) -> list[str]:
        """A name for each class, for tables; its number if it has no name."""
        return list(self.names) or [str(number) for number in range(self.classes)]

    def found(self) -> dict[str, Any]:
        """Settings that the data themselves decide where they are not given, such as the size of images; for a checkpoint."""
        return {}

    def unreadable(self) -> list[str]:
        """What ``check`` finds in the data's files: a message for each that cannot be read."""
        return []

    def check_files(self) -> int:
        """How many of the data's files cannot be read and are left out; without ``on_error="skip"`` that is an error.

        Raises:
            MissingDataError: naming the files.
        """
        broken = self.unreadable()
        if broken and getattr(self, "on_error", "fail") == "fail":
            shown = "".join(f"\n  {message}" for message in broken[:SHOWN])
            count = f"{len(broken)} file{'s' if len(broken) > 1 else ''}"
            raise MissingDataError(f"data: {count} cannot be read; add data.on_error=skip to leave them out:{shown}")
        return len(broken)

    @abstractmethod
    def example(self, size: int) -> Any:
        """A batch of zeros with the examples' shape and dtype, (size, ...); ``Sequences`` if their lengths differ."""

    @abstractmethod
    def train(self, batch_size: int, seed: int) -> Split:
        """Shuffled batches of examples (B, ...) and labels (B,) or (B, positions)."""

    @abstractmethod
    def test(self, batch_size: int) -> Split:
        """Batches of the test examples in their own order."""


@dataclass(frozen=True, kw_only=True)
class ImageData(LabelledData):
    """A data set of labelled images.

    Attributes:
        root: folder that holds the data as torchvision lays it out; default ``$SPIKEPROP_DATA``, or ``~/.cache/spikeprop/data``.
        mean, std: normalisation (pixel/largest - mean) / std, largest 255 (Digits: 16), shared by ANN and SNN; one number, or
            one for each channel.
        crop: padding in pixels before a random crop in training, 0 for none.
        flip: random horizontal flip in training; "alternating" flips a random half of the images in even epochs and the other
            half in odd ones, so that two epochs show every image both ways (Jordan 2024, arXiv:2404.00498).
    """

    root: str | None = None
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0
    crop: int = 0
    flip: Flip = False

    input_shape: ClassVar[tuple[int, int, int]]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != self.input_shape[0]:
                channels = self.input_shape[0]
                raise ValueError(f"{name} is {value}; these images have {channels} channels: give one number, or one for each")
        if not min(as_list(self.std)) > 0:
            raise ValueError(f"std is {self.std}; images are divided by it, so it must be positive")
        if self.crop < 0:
            raise ValueError(f"crop is {self.crop}; use 0 for none")

    def random_flip(self) -> bool:
        """Whether images that are read one by one are flipped.

        Raises:
            ValueError: flips that alternate between epochs, which need all images in memory.
        """
        if self.flip == "alternating":
            raise ValueError("flip is 'alternating', which is for images in memory; use flip: true")
        return bool(self.flip)

    def example(self, size: int) -> Tensor:
        """Black images (size, C, H, W), before normalisation."""
        return torch.zeros(size, *self.input_shape)

    def folder(self) -> Path:
        """The data root."""
        return data_root(self.root)


@dataclass(frozen=True)
class InMemorySplit:
    """Images held as bytes; augmentation and normalisation work on complete batches, so loading is fast."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64, or (N, H, W) of pixels
    batch_size: int
    mean: float | list[float]
    std: float | list[float]
    scale: float = 255.0
    seed: int | None = None  # None: stored order, no augmentation
    crop: int = 0
    flip: Flip = False
    padding: Padding = "zero"
    cutout: int = 0

    def __post_init__(self) -> None:
        positive(self, "batch_size")

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        mean, std = (torch.tensor(as_list(value)).view(-1, 1, 1) for value in (self.mean, self.std))
        turned_N = self._turned(epoch)
        for number, index in enumerate(rows_of_batches(len(self.labels), self.batch_size, self.seed, epoch)[start:], start):
            x, rng = self.images[index], None if self.seed is None else generator(self.seed, epoch, number)
            if rng is not None:
                flip = self.flip is True if turned_N is None else turned_N[index]
                x = augment(x, self.crop, flip, rng, self.padding)
            x = (x.float().div_(self.scale) - mean) / std
            if rng is not None and self.cutout:
                x = cut_out(x, self.cutout, rng)
            yield x, self.labels[index]

    def _turned(self, epoch: int) -> Tensor | None:
        """Which images (N,) an epoch flips, if that alternates."""
        if self.flip != "alternating" or self.seed is None:
            return None
        return (torch.rand(len(self.labels), generator=generator(self.seed)) < 0.5) ^ (epoch % 2 == 1)

    def fingerprint(self) -> str:
        """Hash of the bytes of images and labels, in order."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def data_root(root: str | None) -> Path:
    """The folder that holds the files of a data set: ``root``, or else ``$SPIKEPROP_DATA``, or ``~/.cache/spikeprop/data``."""
    return Path(root).expanduser() if root else data_folder()


def rows_of_batches(examples: int, batch_size: int, seed: int | None, epoch: int) -> Sequence[Tensor]:
    """Numbers of the examples of each batch of an epoch: shuffled from the seed and the epoch, or in order without a seed."""
    order = torch.arange(examples) if seed is None else torch.randperm(examples, generator=generator(seed, epoch))
    return order.split(batch_size)


def hash_of_files(paths: Iterable[str], about: str) -> str:
    """Hash of ``about`` and the files' names and sizes, and of their bytes if they have at most ``HASHED`` together."""
    sizes = {Path(path): Path(path).stat().st_size for path in paths}
    digest, whole = hashlib.sha256(about.encode()), sum(sizes.values()) <= HASHED
    for path, size in sizes.items():
        digest.update(f"{path.parent.name}/{path.name} {size}\n".encode())
        if whole and path.is_file():  # a set of tonic's may name its folder alone
            digest.update(path.read_bytes())
    return digest.hexdigest()


def as_list(value: float | list[float]) -> list[float]:
    """One number, or one for each channel, as a list."""
    return value if isinstance(value, list) else [value]


def augment(x: Tensor, crop: int, flip: bool | Tensor, rng: torch.Generator, padding: Padding = "zero") -> Tensor:
    """Random crop after padding by ``crop`` pixels, and horizontal flip, of a random half or of those (B,); x is (B, C, H, W)."""
    batch, _, height, width = x.shape
    if crop:
        x = x if padding == "reflect" else F.pad(x, (crop, crop, crop, crop))
        rows, columns = (
            torch.randint(0, 2 * crop + 1, (batch, 1), generator=rng) + torch.arange(size) for size in (height, width)
        )
        if padding == "reflect":
            rows, columns = (_mirrored(at - crop, size) for at, size in zip((rows, columns), (height, width)))
        picked = x[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        x = picked.permute(0, 3, 1, 2).contiguous()
    if flip is not False:
        flipped = torch.rand(batch, generator=rng) < 0.5 if flip is True else flip
        x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
    return x


def _mirrored(at: Tensor, size: int) -> Tensor:
    """Positions within 0 to size - 1, those outside mirrored at the outermost pixels."""
    return (size - 1) - ((size - 1) - at.abs()).abs()


def cut_out(x: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Zero a square of ``side`` pixels around a random pixel of each image (B, C, H, W); it may reach over the border."""
    inside = []
    for size in x.shape[2:]:
        start = torch.randint(0, size, (len(x), 1), generator=rng) - side // 2
        at = torch.arange(size)
        inside.append((at >= start) & (at < start + side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def limited(images: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """The first ``limit`` images and labels, or all."""
    return images[:limit], labels[:limit]
