"""``Backprop``: cross-entropy and ordinary backpropagation, for ANNs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.learn.rule import LearningRule


@dataclass(frozen=True, kw_only=True)
class Backprop(LearningRule):
    """Gradient of the cross-entropy.

    Attributes:
        label_smoothing: share of the target spread over all classes.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it lies in [0, 1]")

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        scores = model(x)
        loss = F.cross_entropy(scores, y, label_smoothing=self.label_smoothing)
        loss.backward()
        return {"loss": loss.detach(), "scores": scores.detach()}
