"""``Loss``: the objective of a learning rule, for the rules that take any.

``CrossEntropy`` is -log softmax(scores)[y]; ``SquaredError`` is sum_k (scores_k - onehot(y)_k)^2, the loss with which Activation
Relaxation was published (Millidge et al. 2020). Both are means over the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """A scalar of class scores and labels."""

    @abstractmethod
    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        """Mean loss () of scores (B, K, ...) for labels (B, ...), int64."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy of the softmax.

    Attributes:
        label_smoothing: fraction of the target that is distributed over all classes.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it lies in [0, 1]")

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores, y, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class SquaredError(Loss):
    """Squared distance of the scores to the one-hot label, summed over classes."""

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        target = F.one_hot(y, scores.shape[1]).to(scores).movedim(-1, 1)
        return (scores - target).square().sum(1).mean()
