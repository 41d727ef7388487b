"""``PictureFiles``: photographs of one's own, of any size, grey and in colour; the base of ``ImageFolder`` and ``CSVLabels``.

An image is read in ``channels`` channels, resized until it covers ``size``, and cut to ``size`` from its centre (or goes through
``transforms`` instead), then normalised: (pixel/255 - mean) / std. Augmentation is seeded from (seed, epoch, image).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from spikeprop.data.base import ImageData, as_list
from spikeprop.data.imagenet import FolderSplit, Sample, spread
from spikeprop.data.photographs import read_photograph
from spikeprop.errors import DataError, MissingDataError
from spikeprop.runtime.seeding import mix_seed

LARGEST_SIDE = 2**14  # pixels; also of numbers in a transform
SHOWN = 3  # files in a warning
Named = tuple[str, str]  # a file, and the name of its class


@dataclass(frozen=True, kw_only=True)
class PictureFiles(ImageData):
    """Base of the data sets of image files, which only implement how files are listed.

    Attributes:
        size: of the images that a network reads, one side or [height, width]; null for the size of the first image.
        channels: 3, or 1 for grey.
        transforms: classes of torchvision.transforms.v2 in place of resizing and cutting, as in [{use: Resize, size: [32, 32]}].
        train_transforms: the same before ``transforms``, in training only, as in [{use: ColorJitter, brightness: 0.2}].
        holdout: every so many-th image of a class is a test image, where no folder or column says which are.
        names: of the classes, in the order of the network's outputs; default sorted.
        on_error: "fail" or "skip" images that cannot be read; to skip them, all are read once at the start.
        workers: processes that decode images; 0 for none.
    """

    size: int | list[int] | None = None
    channels: int = 3
    transforms: list[Any] = field(default_factory=list)
    train_transforms: list[Any] = field(default_factory=list)
    holdout: int = 5
    names: list[str] = field(default_factory=list)  # pyright: ignore[reportIncompatibleVariableOverride]
    on_error: Literal["fail", "skip"] = "fail"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; use 3, or 1 for grey")
        sides = self.size if isinstance(self.size, list) else [self.size or 1] * 2
        if len(sides) != 2 or not 1 <= min(sides) <= max(sides) <= LARGEST_SIDE:
            raise ValueError(f"size is {self.size}; give one side, or [height, width], from 1 to {LARGEST_SIDE:,} pixels")
        if self.holdout < 2:
            raise ValueError(f"holdout is {self.holdout}; every so many-th image is a test image: at least 2")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; use 0 to decode in this process")
        if len({*self.names}) < len(self.names):
            raise ValueError(f"names holds a class twice: {self.names}")
        self.random_flip()
        for described in (*self.transforms, *self.train_transforms):
            transform_of(described)
        super().__post_init__()

    @abstractmethod
    def listed(self) -> tuple[list[Named], list[Named]]:
        """Training and test files, each with the name of its class."""

    @property
    def classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.class_names())

    def class_names(self) -> list[str]:
        return list(self.names) or self._names

    @property
    def input_shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.channels, *self._sides

    def found(self) -> dict[str, Any]:
        return {"size": list(self._sides), "names": self.class_names()}

    def unreadable(self) -> list[str]:
        for samples, which in zip(self._listed, ("training", "test"), strict=True):
            self._check_any(samples, which)
        return [message for _, message in self._broken([*self._listed[0], *self._listed[1]])]

    def train(self, batch_size: int, seed: int) -> PictureSplit:
        return self._split(self._samples[0], batch_size, seed, self.train_limit)

    def test(self, batch_size: int) -> PictureSplit:
        return self._split(self._samples[1], batch_size, None, self.test_limit)

    def _split(self, samples: list[Sample], batch_size: int, seed: int | None, limit: int | None) -> PictureSplit:
        self._check_any(samples, "test" if seed is None else "training")
        reading = _Reading(self._sides, self.channels, self.transforms)
        if seed is not None:
            reading = replace(reading, train_transforms=self.train_transforms, crop=self.crop, flip=self.random_flip())
        return PictureSplit(
            spread(samples, limit), batch_size, self.mean, self.std, self.workers, seed, self._sides[0], reading=reading
        )

    def _check_any(self, samples: Sequence[Any], which: str) -> None:
        if not samples:
            raise MissingDataError(f"{type(self).__name__}: there are no {which} images in {self.folder()}; see data.holdout")

    @cached_property
    def _listed(self) -> tuple[list[Named], list[Named]]:
        return self.listed()

    @cached_property
    def _names(self) -> list[str]:
        return self.ordered({name for split in self._listed for _, name in split})

    def ordered(self, found: set[str]) -> list[str]:
        """Names of the classes in the order of their numbers."""
        return sorted(found)

    @cached_property
    def _sides(self) -> tuple[int, int]:
        if self.size is not None:
            height, width = self.size if isinstance(self.size, list) else (self.size, self.size)
            return height, width
        listed = (file for split in self._listed for file, _ in split)
        first = next((file for file in listed if self.on_error == "fail" or not _reason(file)), None)
        if first is None:
            raise MissingDataError(f"{type(self).__name__}: there are no images in {self.folder()}; set data.root")
        width, height = _photograph(first, "RGB").size
        return height, width

    @cached_property
    def _samples(self) -> tuple[list[Sample], list[Sample]]:
        """Files with class numbers, without those that cannot be read if these are skipped."""
        numbers = {name: number for number, name in enumerate(self.class_names())}
        for file, name in (pair for split in self._listed for pair in split):
            if name not in numbers:
                raise MissingDataError(f"{file} has class {name!r}, which data.names lacks: {', '.join(numbers)}")
        broken: set[str] = set()
        if self.on_error == "skip":
            every = [*self._listed[0], *self._listed[1]]
            broken = {file for file, _ in self._broken(every)}
            if broken:
                shown = ", ".join(sorted(broken)[:SHOWN])
                warnings.warn(f"{len(broken)} of {len(every)} images cannot be read and are left out: {shown}", stacklevel=4)
        train, test = ([(file, numbers[name]) for file, name in split if file not in broken] for split in self._listed)
        return [*train], [*test]

    def _broken(self, files: Sequence[Named]) -> list[tuple[str, str]]:
        """Those that cannot be read, with the reason."""
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            reasons = pool.map(_reason, (file for file, _ in files))
            return [(file, reason) for (file, _), reason in zip(files, reasons, strict=True) if reason]


def _photograph(file: Any, mode: str) -> Any:
    try:
        return read_photograph(file, mode)
    except MissingDataError as error:
        raise MissingDataError(f"{error}; data.on_error=skip leaves it out") from error


def _reason(file: str) -> str:
    """Why a file cannot be read; it is read once, though a command builds its data several times."""
    try:
        found = os.stat(file)
    except OSError:
        return _reason_read(file, 0, 0)
    return _reason_read(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=2**20)
def _reason_read(file: str, size: int, changed: int) -> str:  # of another size or time it is read again
    try:
        read_photograph(file)
    except MissingDataError as error:
        return str(error)
    return ""


def held_out(files: Sequence[Named], holdout: int) -> tuple[list[Named], list[Named]]:
    """Training and test files: every ``holdout``-th file of each class, from the first on, is a test file."""
    seen: dict[str, int] = {}
    train: list[Named] = []
    test: list[Named] = []
    for file, name in files:
        place = seen[name] = seen.get(name, -1) + 1
        (train if place % holdout else test).append((file, name))
    return train, test


def transform_of(described: Any) -> Any:
    """The transform of torchvision.transforms.v2 that a recipe names: "Grayscale" or {use: Resize, size: [32, 32]}.

    Raises:
        ValueError: no such transform, or wrong arguments.
    """
    from torchvision.transforms import v2

    settings = {"use": described} if isinstance(described, str) else described
    if not isinstance(settings, dict) or not isinstance(settings.get("use"), str):
        raise ValueError(f"a transform is a name or {{use: Name, argument: value}}, not {described!r}")
    name, given = settings["use"].removeprefix("torchvision.transforms.v2."), {k: v for k, v in settings.items() if k != "use"}
    cls = getattr(v2, name, None) if name.isidentifier() and name[:1].isupper() else None
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise ValueError(f"torchvision.transforms.v2 has no transform {name!r}")
    numbers = [n for value in given.values() for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
    if any(abs(n) > LARGEST_SIDE for n in numbers):
        raise ValueError(f"transform {name} has a number above {LARGEST_SIDE:,}: {given}")
    try:
        return cls(**given)
    except Exception as error:  # a transform's constructor may raise anything
        raise ValueError(f"transform {name}: {error}") from error


@dataclass(frozen=True)
class _Reading:
    """How an image file becomes a tensor; the last three are for training."""

    sides: tuple[int, int] = (1, 1)
    channels: int = 3
    transforms: Sequence[Any] = ()
    train_transforms: Sequence[Any] = ()
    crop: int = 0
    flip: bool = False


@dataclass(frozen=True)
class PictureSplit(FolderSplit):
    """Image files with labels, in batches; ``reading`` says how they become tensors."""

    reading: _Reading = _Reading()

    def pictures(self, seed: int | None) -> torch.utils.data.Dataset[tuple[Tensor, int]]:
        return _Pictures(self.samples, self.mean, self.std, seed, self.reading)

    def fingerprint(self) -> str:
        """As of ``FolderSplit``, and how files are read."""
        return hashlib.sha256(f"{super().fingerprint()} {self.reading}".encode()).hexdigest()


class _Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, samples: Sequence[Sample], mean: Any, std: Any, seed: int | None, reading: _Reading):
        from torchvision.transforms import v2

        height, width = reading.sides
        own = [transform_of(described) for described in reading.transforms]
        steps: list[Any] = [*map(transform_of, reading.train_transforms), *(own or [v2.Lambda(self._fitted)])]
        steps += [v2.RandomCrop((height, width), padding=reading.crop)] if reading.crop else []
        steps += [v2.RandomHorizontalFlip()] if reading.flip else []
        channels = reading.channels
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose(steps)
        self.mean, self.std = (torch.tensor((as_list(value) * channels)[:channels]).view(-1, 1, 1) for value in (mean, std))
        self.samples, self.seed, self.reading = samples, seed, reading

    def _fitted(self, image: Any) -> Any:
        """The image with its short side resized, and cut from its centre."""
        from torchvision.transforms.v2 import functional

        height, width = self.reading.sides
        if image.size == (width, height):
            return image
        scale = max(height / image.height, width / image.width)
        larger = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        if max(larger) > LARGEST_SIDE:
            raise DataError(f"it is {image.width} x {image.height} pixels: too long for its height")
        return functional.center_crop(functional.resize(image, larger, antialias=True), [height, width])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = _photograph(path, "RGB" if self.reading.channels == 3 else "L")
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(mix_seed(self.seed, index))
            try:
                x = self.transform(image)
            except Exception as error:  # a transform may raise anything
                raise DataError(f"{path}: its transforms fail: {error}") from error
        wanted = (self.reading.channels, *self.reading.sides)
        if tuple(x.shape) != wanted:
            raise DataError(f"{path} is {tuple(x.shape)} after its transforms, and data.size and channels say {wanted}")
        return (x - self.mean) / self.std, label
