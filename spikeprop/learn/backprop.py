"""``Backprop``: ordinary backpropagation, for ANNs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeprop.errors import DataError
from spikeprop.learn.loss import CrossEntropy, Loss
from spikeprop.learn.rule import LearningRule


@dataclass(frozen=True, kw_only=True)
class Backprop(LearningRule):
    """Gradient of the cross-entropy, or of another loss.

    Attributes:
        label_smoothing: fraction of the target that is distributed over all classes.
        loss: replaces the cross-entropy.
        mixup: each image is mixed with another one of its batch, and their losses likewise, by a fraction from
            Beta(mixup, mixup) (Zhang et al. 2018, arXiv:1710.09412); 0 for none. The training's accuracy is that for the image
            with the larger fraction.
    """

    label_smoothing: float = 0.0
    loss: Loss | None = None
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it lies in [0, 1]")
        if not self.mixup >= 0:
            raise ValueError(f"mixup is {self.mixup}; it is the parameter of a beta distribution, or 0 for none")
        if self.loss is not None and self.label_smoothing:
            raise ValueError("label_smoothing belongs to the cross-entropy: give it or a loss, not both")

    @property
    def single_backward(self) -> bool:
        return True

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        objective = self.loss or CrossEntropy(label_smoothing=self.label_smoothing)
        if self.mixup:
            fraction, other = self._partners(x)
            x = torch.lerp(x[other], x, fraction)
            objective, scores = objective.for_batch(x), model(x)
            loss = fraction * objective(scores, y) + (1 - fraction) * objective(scores, y[other])
        else:
            scores = model(x)
            loss = objective.for_batch(x)(scores, y)
        loss.backward()
        return {"loss": loss.detach(), "scores": scores.detach()}

    def _partners(self, x: Tensor) -> tuple[float, Tensor]:
        """The fraction of an image itself, at least a half, and the numbers (B,) of the images that are mixed in."""
        if not isinstance(x, Tensor):
            raise DataError(f"mixup mixes images of one shape, and a batch is a {type(x).__name__}: use mixup=0")
        drawn = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        return max(drawn, 1 - drawn), torch.randperm(len(x)).to(x.device)
