"""Examples of a torch ``Dataset`` in batches: what ``OwnDataset`` reads, one by one, each seeded, in any of the usual forms."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spikeprop.data.base import as_list, augment, rows_of_batches
from spikeprop.errors import DataError
from spikeprop.runtime.batches import Batch
from spikeprop.runtime.checks import positive
from spikeprop.runtime.seeding import mix_seed, seed_everything

PAIRS = (("image", "label"), ("pixel_values", "labels"), ("img", "target"), ("x", "y"), ("image", "target"))  # keys of examples
NO_BRIGHTNESS = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")  # modes of Pillow: numbers of a palette, and other colour spaces
HASHED = 64  # examples whose content a fingerprint reads


@dataclass(frozen=True)
class OwnSplit:
    """Examples of a dataset in batches, read one by one; each is seeded from (seed, epoch, number)."""

    dataset: Any
    rows: Tensor  # numbers of the examples
    batch_size: int
    mean: float | list[float]
    std: float | list[float]
    seed: int | None = None
    workers: int = 0
    crop: int = 0
    flip: bool = False
    classes: int | None = None

    def __post_init__(self) -> None:
        positive(self, "batch_size")

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        batches = rows_of_batches(len(self.rows), self.batch_size, self.seed, epoch)[start:]
        seed = None if self.seed is None else mix_seed(self.seed, epoch)
        yield from DataLoader(
            _Examples(self, seed),
            batch_sampler=[self.rows[batch].tolist() for batch in batches],
            num_workers=min(self.workers, len(batches)),
        )

    def fingerprint(self) -> str:
        """Hash of the number of examples and of some, at even distances: reading all may take hours."""
        digest = hashlib.sha256(f"{len(self.rows)} {self.mean} {self.std}".encode())
        for place in {i * len(self.rows) // HASHED for i in range(HASHED)}:
            x, y = _Examples(self, None)[int(self.rows[place])]
            digest.update(f"{place} {tuple(x.shape)} {y.tolist()}".encode())
            digest.update(x.contiguous().numpy().data)
        return digest.hexdigest()


class _Examples(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, split: OwnSplit, seed: int | None):
        self.split, self.seed = split, seed
        self.mean, self.std = (torch.tensor(as_list(value)).view(-1, 1, 1) for value in (split.mean, split.std))

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        with seeded(mix_seed(self.seed or 0, number)):
            x, y = example_of(self.split.dataset, number, self.split.classes)
            if self.seed is not None and (self.split.crop or self.split.flip):
                x = self._augmented(x)
        return (x - self.mean) / self.std, y

    def _augmented(self, x: Tensor) -> Tensor:
        return augment(x[None], self.split.crop, self.split.flip, torch.default_generator)[0]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators that transforms use, and sets them back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - transforms draw from the global generators
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def example_of(dataset: Any, number: int, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Image (C, H, W) float32, bytes divided by 255, and label () or (H, W) int64.

    Raises:
        DataError: the example has another form, or a label beyond the ``classes``; the message names it.
    """
    found = dataset[number]
    if isinstance(found, dict):
        found = next(((found[x], found[y]) for x, y in PAIRS if x in found and y in found), found)
    if not (isinstance(found, tuple | list) and len(found) == 2):
        shown = f"a dictionary of {', '.join(map(str, found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise DataError(f"example {number} of {type(dataset).__name__} is {shown}; give (image, label)")
    image, label = found
    if not isinstance(image, Tensor | np.ndarray):  # Pillow's; the numbers of some modes are no brightness
        image = np.array(image.convert("RGB") if getattr(image, "mode", "") in NO_BRIGHTNESS else image)
    x = torch.as_tensor(image)
    if not isinstance(image, Tensor) and x.dim() == 3 and x.shape[0] not in (1, 3) and x.shape[2] in (1, 3, 4):
        x = x.permute(2, 0, 1)  # Pillow's and OpenCV's order
    x = x.unsqueeze(0) if x.dim() == 2 else x
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    y = torch.as_tensor(label)
    if x.dim() != 3 or not x.numel() or not bool(x.isfinite().all()) or y.is_floating_point() or y.is_complex():
        raise DataError(
            f"example {number} of {type(dataset).__name__} is an image {tuple(x.shape)} and a label {y.dtype}; give a finite "
            "image (C, H, W) and the number of its class"
        )
    if classes is not None and y.dim() == 0 and not 0 <= int(y) < classes:
        raise DataError(
            f"example {number} of {type(dataset).__name__} has the label {int(y)}, and there are {classes} classes, from 0 on; "
            "set data.class_count or data.names"
        )
    return x.contiguous(), y.long()
