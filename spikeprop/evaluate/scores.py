"""From predictions to figures: top-1 and top-5 with intervals, accuracy by class, confusions, intersection over union.

Intervals are Wilson's score intervals (Wilson 1927; Brown, Cai & DasGupta 2001 recommend them): for p = k/n,

    (p + z^2/2n  -+  z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

An interval covers the accuracy on all such images in 95 % of cases, if the n images are a random sample of them.

Suffix legend: N images, T numbers of steps, K best classes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.evaluate.predictor import BatchPredictions

Z95 = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Proportion:
    """A proportion of images in percent, with its 95 % interval."""

    percent: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> Proportion:
        """``count`` of ``total``."""
        return cls(100 * count / total, *(100 * bound for bound in wilson(count, total)))

    def __str__(self) -> str:
        return f"{self.percent:.2f} % ({self.low:.2f} to {self.high:.2f})"


def wilson(count: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of the proportion ``count / total``, in [0, 1].

    Raises:
        ValueError: not 0 <= count <= total, or total is 0.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"{count} of {total} is no proportion")
    p = count / total
    middle = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low = (middle - half) / scale if count else 0.0  # exactly; rounding could give a tiny number
    return low, (middle + half) / scale if count < total else 1.0


@dataclass(frozen=True)
class Predictions:
    """The predictions for a complete data set: true classes (N,) and best classes (N, T, K), best first; of how many images."""

    labels_N: Tensor
    best_NTK: Tensor
    image_count: int

    @classmethod
    def of(cls, batches: Sequence[BatchPredictions]) -> Predictions:
        """From all batches, in order."""
        best = torch.cat([b.best for b in batches])
        return cls(torch.cat([b.labels for b in batches]), best, sum(b.images for b in batches))

    @property
    def dense(self) -> bool:
        """Whether images have positions, each with a class of its own."""
        return len(self.labels_N) > self.image_count

    def top(self, k: int) -> list[Proportion]:
        """Proportion of images whose class is among the ``k`` best, at each number of steps."""
        correct_T = is_correct(self.best_NTK[..., :k], self.labels_N).sum(0)
        return [Proportion.of(int(count), len(self.labels_N)) for count in correct_T]

    def images(self, classes: int) -> Tensor:
        """Images of each class (C,)."""
        return torch.bincount(self.labels_N, minlength=classes)

    def correct(self, classes: int) -> Tensor:
        """Correctly predicted images of each class, (C, T)."""
        correct_NT = is_correct(self.best_NTK[..., :1], self.labels_N).long()
        return torch.zeros(classes, correct_NT.shape[1], dtype=torch.long).index_add_(0, self.labels_N, correct_NT)

    def confusion(self, classes: int, column: int) -> Tensor:
        """Images (C, C) by true class (row) and predicted class, at one of the numbers of steps."""
        predicted = self.best_NTK[:, column, 0].long()
        return torch.bincount(self.labels_N * classes + predicted, minlength=classes * classes).view(classes, classes)

    def mean_iou(self) -> list[float]:
        """Mean intersection over union in percent, at each number of steps.

        Of a class, positions that are truly and by prediction of the class, as a share of those that are either; the mean is over
        the classes that occur (Everingham et al. 2010).
        """
        classes = 1 + max(int(self.labels_N.max()), int(self.best_NTK[..., 0].max()))
        found = []
        for column in range(self.best_NTK.shape[1]):
            confusion = self.confusion(classes, column).double()
            both, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
            found.append(float(100 * (both / either)[either > 0].mean()))
        return found


def is_correct(best_NTK: Tensor, labels_N: Tensor) -> Tensor:
    """Whether the true class is among the best, (N, T)."""
    return (best_NTK == labels_N[:, None, None]).any(2)
