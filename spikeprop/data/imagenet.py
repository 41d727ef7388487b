"""``ImageNet``: photographs in torchvision's ImageFolder layout, decoded by worker processes.

Training: random resized crop to 224 and flip; testing: the short side to 256, centre crop 224 (the usual evaluation). Another
``size`` keeps that ratio. Each image's augmentation is seeded from (seed, epoch, image), so an epoch that is resumed at any batch
gives the same images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from spikeprop.data.base import ImageData, as_list
from spikeprop.data.photographs import SUFFIXES, Member, read_photograph
from spikeprop.errors import MissingDataError, WorkerDied, worker_died
from spikeprop.runtime.batches import Batch
from spikeprop.runtime.checks import positive
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.seeding import generator, mix_seed

Sample = tuple[str | Member, int]  # location of a photograph, and its class


@dataclass(frozen=True, kw_only=True)
class ImageNet(ImageData):
    """ImageNet (ILSVRC-2012) or any folder of class folders named by WordNet id.

    ``root`` holds ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG`` (or PNG, WebP, BMP, TIFF, PPM; a warning names files that are
    not read); default ``$SPIKEPROP_DATA/imagenet``. Classes are numbered
    by the index column of ``root/classes.tsv`` (wnid, index, name) if it exists, else by their place among ILSVRC-2012's
    sorted WordNet ids, so a subset of ImageNet keeps the numbers with which a network of 1000 classes was trained. Folders with
    other names are numbered in sorted order if there are 1000 of them.

    A limit takes images at even distances, because files are sorted by class: the first thousand would have only twenty classes.

    Attributes:
        size: side of the images in pixels.
        workers: processes that decode images; no more than there are CPU cores.
    """

    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    size: int = 224
    workers: int = 4
    classes: ClassVar = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size is {self.size}; images have at least 1 pixel a side")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; use 0 to decode in this process")

    @property
    def input_shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 3, self.size, self.size

    def class_names(self) -> list[str]:
        from torchvision.models import ResNet18_Weights

        return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])

    def train(self, batch_size: int, seed: int) -> FolderSplit:
        return self._split("train", batch_size, seed, self.train_limit)

    def test(self, batch_size: int) -> FolderSplit:
        return self._split("val", batch_size, None, self.test_limit)

    def _split(self, name: str, batch_size: int, seed: int | None, limit: int | None) -> FolderSplit:
        root = self.folder() if self.root else self.folder() / "imagenet"
        samples = spread(_list_images(root, name), limit)
        return FolderSplit(samples, batch_size, self.mean, self.std, self.workers, seed, self.size)


@dataclass(frozen=True)
class FolderSplit:
    """Image files with labels, in batches."""

    samples: Sequence[Sample]
    batch_size: int
    mean: float | list[float]
    std: float | list[float]
    workers: int
    seed: int | None
    size: int = 224
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        positive(self, "batch_size")

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def shard(self, processes: Processes) -> FolderSplit:
        """The same batches, of which only one process's images are read; labels are those of the complete batch."""
        return dataclasses.replace(self, processes=processes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        order = list(range(len(self.samples)))
        if self.seed is not None:
            order = torch.randperm(len(order), generator=generator(self.seed, epoch)).tolist()
        seed = None if self.seed is None else mix_seed(self.seed, epoch)
        batches = [order[i : i + self.batch_size] for i in range(start * self.batch_size, len(order), self.batch_size)]
        loader = torch.utils.data.DataLoader(
            self.pictures(seed),
            batch_sampler=[batch[self.processes.rows(len(batch))] for batch in batches],
            num_workers=min(self.workers, len(batches), os.cpu_count() or 1),
        )
        read = iter(loader)
        try:
            for batch, (x, _) in zip(batches, read, strict=True):
                yield x, torch.tensor([self.samples[index][1] for index in batch])
        except Exception as error:  # an error that a worker raises keeps its type
            died = worker_died(error) or _closed(error, getattr(read, "_workers", ()))
            if died is None:
                raise
            raise died from error

    def pictures(self, seed: int | None) -> torch.utils.data.Dataset[tuple[Tensor, int]]:
        """The images (C, H, W) and their labels, augmented if there is a seed."""
        return _Photographs(self.samples, self.mean, self.std, seed, self.size)

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes, the labels and the crop; reading the photographs would take minutes."""
        digest = hashlib.sha256(str(self.size).encode())
        for source, label in self.samples:
            file = Path(source.path if isinstance(source, Member) else source)
            place = (source.offset, source.size) if isinstance(source, Member) else file.stat().st_size
            digest.update(f"{file.parent.name}/{file.name} {place} {label}\n".encode())
        return digest.hexdigest()


def _closed(error: Exception, workers: Sequence[Any]) -> WorkerDied | None:
    """A WorkerDied if a process died while it sent a batch, which closes its connection before torch notices."""
    if not isinstance(error, ConnectionError | EOFError):
        return None
    for worker in workers:
        worker.join(1.0)  # it may be about to end
    dead = [worker for worker in workers if worker.exitcode]
    return WorkerDied(f"process {dead[0].pid} closed its connection") if dead else None


class _Photographs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, samples: Sequence[Sample], mean: Any, std: Any, seed: int | None, size: int):
        from torchvision.transforms import v2

        crop: list[Any] = [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)]
        if seed is not None:
            crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        normalise = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((as_list(mean) * 3)[:3], (as_list(std) * 3)[:3]),
        ]
        self.transform = v2.Compose([*crop, *normalise])
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = read_photograph(path)
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(mix_seed(self.seed, index))
            return self.transform(image), label


def _list_images(root: Path, split: str) -> list[tuple[str, int]]:
    folder = root / split
    wnids = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not wnids:
        raise MissingDataError(
            f"ImageNet: no class folders at {folder}; it should hold <wnid>/*.JPEG. ImageNet must be obtained from its owners; "
            "then set data.root to the folder that holds train/ and val/"
        )
    numbers = _class_numbers(root / "classes.tsv", wnids)
    found = [(p, numbers[w]) for w in wnids for p in sorted((folder / w).iterdir())]
    samples = [(str(p), label) for p, label in found if p.suffix.lower() in SUFFIXES]
    read = {path for path, _ in samples}
    beside = [(p, -1) for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES]
    skipped = [p for p, _ in (*found, *beside) if str(p) not in read and not p.name.startswith(".")]
    _name_skipped(folder, len(found) + len(beside), skipped, sorted(set(wnids) - {Path(p).parent.name for p, _ in samples}))
    return samples


def _name_skipped(folder: Path, entries: int, skipped: Sequence[Path], empty: Sequence[str]) -> None:
    """Warn of what is not read in a folder of class folders."""
    kinds = f"photographs are files <wnid>/NAME with one of {', '.join(SUFFIXES)}"
    if skipped:
        shown = ", ".join(str(p.relative_to(folder)) for p in skipped[:3])
        warnings.warn(f"ImageNet: {len(skipped)} of {entries} entries in {folder} are not read ({shown}): {kinds}", stacklevel=5)
    if empty:
        shown = ", ".join(empty[:3])
        warnings.warn(f"ImageNet: {len(empty)} class folders in {folder} have no photograph ({shown}): {kinds}", stacklevel=5)


def spread(samples: Sequence[Sample], limit: int | None) -> Sequence[Sample]:
    """``limit`` samples at even distances, or all."""
    if limit is None or limit >= len(samples):
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]


def _class_numbers(table: Path, wnids: list[str]) -> dict[str, int]:
    """The number of each class folder: from the table, from ILSVRC-2012's list, or from the order of a thousand folders.

    Raises:
        MissingDataError: a folder without a number; the message names it and the remedy.
    """
    numbers = _read_table(table)
    known = numbers or {wnid: i for i, wnid in enumerate(_ilsvrc_wnids())}
    unknown = [wnid for wnid in wnids if wnid not in known]
    if not unknown:
        return known
    if numbers:
        raise MissingDataError(f"ImageNet: {table} has no line for class folder {unknown[0]}; add it")
    if len(wnids) == ImageNet.classes:
        return {wnid: i for i, wnid in enumerate(wnids)}
    raise MissingDataError(
        f"ImageNet: class folder {unknown[0]} is not one of ILSVRC-2012's 1000 WordNet ids, so its class is unknown "
        f"({len(wnids)} folders, {len(unknown)} of them unknown); write {table} with lines of wnid, class index (0-999) and name"
    )


def _ilsvrc_wnids() -> list[str]:
    """The WordNet ids of ILSVRC-2012's classes in order."""
    return Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="utf-8").split()


def _read_table(path: Path) -> dict[str, int]:
    """The index column of a classes.tsv; no numbers for a table without it (wnid, name)."""
    if not path.is_file():
        return {}
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
