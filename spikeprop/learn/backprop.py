"""``Backprop``: ordinary backpropagation, for ANNs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from spikeprop.learn.loss import CrossEntropy, Loss
from spikeprop.learn.rule import LearningRule


@dataclass(frozen=True, kw_only=True)
class Backprop(LearningRule):
    """Gradient of the cross-entropy, or of another loss.

    Attributes:
        label_smoothing: fraction of the target that is distributed over all classes.
        loss: replaces the cross-entropy.
    """

    label_smoothing: float = 0.0
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it lies in [0, 1]")
        if self.loss is not None and self.label_smoothing:
            raise ValueError("label_smoothing belongs to the cross-entropy: give it or a loss, not both")

    @property
    def single_backward(self) -> bool:
        return True

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        scores = model(x)
        loss = (self.loss or CrossEntropy(label_smoothing=self.label_smoothing))(scores, y)
        loss.backward()
        return {"loss": loss.detach(), "scores": scores.detach()}
