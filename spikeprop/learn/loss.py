"""``Loss``: the objective of a learning rule, for the rules that take any; ``learn/temporal.py`` has those of outputs over time.

``CrossEntropy`` is -log softmax(scores)[y]; ``SquaredError`` is sum_k (scores_k - onehot(y)_k)^2, the loss with which Activation
Relaxation was published (Millidge et al. 2020). Both are means over the batch.
``spikeprop.runtime.labels`` says what labels mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.errors import LabelError
from spikeprop.runtime.labels import IGNORED, as_labels, read_labels


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What a rule that simulates minimises: a ``Loss`` of the output, or a ``TemporalLoss`` of the outputs at all steps."""

    @property
    def needs_teacher(self) -> bool:
        """Whether another network's scores are part of it, and there is none yet."""
        return False

    def taught_by(self, teacher: nn.Module) -> Self:
        """The same with this teacher, where one is needed."""
        return self

    def for_batch(self, x: Any, unit: float | Tensor = 1.0) -> Objective:
        """The objective for one batch, of those that read the examples too.

        Args:
            x: examples, as the rule is given them.
            unit: factor that brings the network's scores to an ANN's units.
        """
        return self

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """A scalar ()."""


@dataclass(frozen=True, kw_only=True)
class Loss(Objective):
    """A scalar of class scores and labels."""

    def for_batch(self, x: Any, unit: float | Tensor = 1.0) -> Loss:
        return self

    @abstractmethod
    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        """Mean loss () of scores (B, K, ...) for labels: classes (B, ...), or as ``read_labels`` has them.

        Raises:
            LabelError: the labels do not fit the scores.
        """


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy of the softmax; of the logistic function for a network of one output, whose labels are 0 and 1.

    Attributes:
        label_smoothing: fraction of the target that is distributed over all classes.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it lies in [0, 1]")

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        if scores.dtype in (torch.float16, torch.bfloat16):  # autocast's, on the CPU: the softmax needs more digits
            scores = scores.float()
        labels = read_labels(scores, y)
        if labels.kind == "binary":
            target = labels.values * (1 - self.label_smoothing) + self.label_smoothing / 2
            return F.binary_cross_entropy_with_logits(scores, target)
        return F.cross_entropy(scores, labels.values, ignore_index=IGNORED, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class SquaredError(Loss):
    """Squared distance of the scores to the one-hot label, summed over classes; or to real-valued targets (regression).

    Targets of regression are floats in the scores' shape, or (B,) for one output.
    """

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        target = self._target(scores, as_labels(y))
        return (scores - target).square().sum(1).mean() if scores.ndim > 1 else (scores - target).square().mean()

    def _target(self, scores: Tensor, y: Tensor) -> Tensor:
        one = scores.ndim == 1 or scores.shape[1] == 1
        if y.is_floating_point() and (y.shape == scores.shape or (one and y.shape in (scores.shape[:1], (len(scores), 1)))):
            return y.to(scores).reshape(scores.shape)
        labels = read_labels(scores, y, ignorable=False)
        if labels.kind == "binary":
            raise LabelError("squared error of one output needs float targets (labels.float()), or CrossEntropy for a logit")
        if labels.kind == "probabilities":
            return labels.values
        return F.one_hot(labels.values, scores.shape[1]).to(scores).movedim(-1, 1)
