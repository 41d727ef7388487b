"""``DigitsOnPhotographs``: MNIST's digits written on CIFAR-10's photographs, each pixel labelled with its digit or as background.

Photograph i of CIFAR-10 gets a digit of MNIST in a random bright colour at a random place, x = (1 - a) photograph + a colour with
a the digit's ink in [0, 1]; pixels of more than half ink belong to the digit's class. Digit, place and colour depend on the seed
and the split alone. Training images have digits and photographs of the training sets, test images those of the test sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.data.base import limited
from spikeprop.data.in_memory import CIFAR10, MNIST, InMemoryData
from spikeprop.runtime.seeding import generator

BACKGROUND = 0  # class; digit d has the class d + 1
BORDER = 8  # zeros around a digit of 28 pixels, so that its ink, in the middle 20, may lie anywhere in 32
DARKEST = 160  # of a digit's colour channels, of 255


@dataclass(frozen=True, kw_only=True)
class DigitsOnPhotographs(InMemoryData):
    """Segmentation: 50,000 + 10,000 images of 3x32x32, labels (B, 32, 32) of 11 classes, most pixels background.

    Attributes:
        place_seed: of digits, places and colours.
    """

    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    place_seed: int = 0
    input_shape: ClassVar = (3, 32, 32)
    label_shape: ClassVar = (32, 32)
    classes: ClassVar = 11
    names: ClassVar = ("background", *map(str, range(10)))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop or self.flip or self.cutout:
            raise ValueError("crop, flip and cutout change images and not the labels of their pixels; leave them out")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        photographs, _ = CIFAR10(root=self.root).read(train)
        digits, numbers = MNIST(root=self.root).read(train)
        count = len(photographs)
        rng = generator(self.place_seed, int(train))
        chosen = torch.randperm(len(digits), generator=rng)[:count]
        places = torch.randint(0, 28 + 2 * BORDER - 32 + 1, (count, 2), generator=rng)
        colours = torch.randint(DARKEST, 256, (count, 3), generator=rng)
        limit = self.train_limit if train else self.test_limit
        photographs, chosen = limited(photographs, chosen, limit)
        ink = _placed(digits[chosen], places[:limit])
        images = photographs + (colours[:limit, :, None, None] - photographs.int()) * ink.unsqueeze(1).int() // 255
        labels = torch.where(ink > 127, (numbers[chosen] + 1)[:, None, None], BACKGROUND)
        return images.to(torch.uint8), labels.to(torch.uint8)


def _placed(digits: Tensor, places: Tensor) -> Tensor:
    """Ink (N, 32, 32) of digits (N, 1, 28, 28) whose window of 32 pixels starts at the places (N, 2) in their border."""
    padded = F.pad(digits.squeeze(1), (BORDER,) * 4)
    rows, columns = (places[:, i, None] + torch.arange(32) for i in (0, 1))
    return padded[torch.arange(len(digits))[:, None, None], rows[:, :, None], columns[:, None, :]]
