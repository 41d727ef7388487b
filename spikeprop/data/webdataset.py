"""``WebDataset``: photographs in tar shards, each read directly from its offset.

A shard is an ordinary tar file with pairs of KEY.jpg (``photographs.SUFFIXES``) and KEY.cls, a class number as text (the
convention of the WebDataset library, Aizman et al. 2020, arXiv:2001.01858). Shards on a disk need not be streamed: their headers,
read once for each split, give the offset of each photograph. So order, augmentation, resuming and sharding over processes are
those of a folder of images (``ImageNet``), and nothing is unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from spikeprop.data.imagenet import FolderSplit, ImageNet, spread
from spikeprop.data.photographs import SUFFIXES, Member
from spikeprop.errors import MissingDataError

LONGEST_LABEL = 32  # bytes of a class number


@dataclass(frozen=True, kw_only=True)
class WebDataset(ImageNet):
    """Photographs with class numbers in tar shards.

    Attributes:
        train_shards, test_shards: patterns of the shards' names below ``root``, as in a shell; read in sorted order.
        classes: number of classes; class numbers are 0 to classes - 1.
        size, workers, train_limit, test_limit, mean, std: as for ``ImageNet``.
    """

    train_shards: str = "train-*.tar"
    test_shards: str = "val-*.tar"
    classes: int = 1000  # pyright: ignore[reportIncompatibleVariableOverride]
    names: ClassVar = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}; use at least 2")

    def class_names(self) -> list[str]:
        return [str(number) for number in range(self.classes)]

    def train(self, batch_size: int, seed: int) -> FolderSplit:
        return self._read(self.train_shards, batch_size, seed, self.train_limit)

    def test(self, batch_size: int) -> FolderSplit:
        return self._read(self.test_shards, batch_size, None, self.test_limit)

    def _read(self, pattern: str, batch_size: int, seed: int | None, limit: int | None) -> FolderSplit:
        root = self.folder()
        shards = sorted(root.glob(pattern))
        if not shards:
            raise MissingDataError(
                f"WebDataset: no shard {pattern} in {root}; set data.train_shards, data.test_shards or data.root"
            )
        samples = [sample for shard in shards for sample in _index(shard, self.classes)]
        if not samples:
            raise MissingDataError(
                f"WebDataset: {shards[0]} and the {len(shards) - 1} other shards contain no KEY.jpg with a KEY.cls; "
                "set data.train_shards or data.test_shards to shards that do"
            )
        return FolderSplit(spread(samples, limit), batch_size, self.mean, self.std, self.workers, seed, self.size)


def _index(shard: Path, classes: int) -> Iterator[tuple[Member, int]]:
    """Locations and class numbers of a shard's photographs, in its order.

    Raises:
        MissingDataError: not a complete tar file, a photograph without a class number or the reverse, or an invalid one.
    """
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as file:
            for entry in file:
                key, suffix = entry.name.rpartition(".")[0], Path(entry.name).suffix.lower()
                if entry.isreg() and suffix in SUFFIXES:
                    images[key] = Member(str(shard), entry.offset_data, entry.size)
                elif entry.isreg() and suffix == ".cls":
                    labels[key] = _number(file, entry, classes)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise MissingDataError(
            f"WebDataset: {shard} is truncated or not a tar file of this kind ({error}); replace it"
        ) from error
    if shard.stat().st_size < max((m.offset + m.size for m in images.values()), default=0):
        raise MissingDataError(f"WebDataset: {shard} ends within a photograph; replace it")
    for key in labels:
        if key not in images:
            raise MissingDataError(
                f"WebDataset: {shard} has no photograph for {key}.cls: photographs end in {', '.join(SUFFIXES)}; convert it"
            )
    for key, member in images.items():
        if key not in labels:
            raise MissingDataError(f"WebDataset: {shard} has no {key}.cls for photograph {key}; add one with its class number")
        yield member, labels[key]


def _number(file: tarfile.TarFile, entry: tarfile.TarInfo, classes: int) -> int:
    opened = file.extractfile(entry)
    text = b"" if opened is None or entry.size > LONGEST_LABEL else opened.read().strip()
    if not text.isdigit() or int(text) >= classes:
        raise ValueError(f"{entry.name} contains {text[:20]!r}; a class number is 0 to {classes - 1}")
    return int(text)
