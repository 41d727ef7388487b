"""``Distillation``: a loss that also draws a network's scores to a teacher's: the ANN's that it was converted from.

With z the scores, t the teacher's for the same examples, tau a temperature, and u what brings z to the teacher's units (1 for an
ANN; of a spiking network whose output is a sum over T steps, its scale over T, as ``SpikingNetwork.estimate``), the loss is

    (1 - weight) loss(z, y)  +  weight tau^2 KL(softmax(t / tau) || softmax(u z / tau))

in the mean over the batch (Hinton et al. 2015, arXiv:1503.02531). Its gradient by u z is weight tau (softmax(u z / tau) -
softmax(t / tau)) / B, so it vanishes where the network says what its teacher says. A rule asks the teacher once a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.errors import DataError, LabelError
from spikeprop.learn.loss import CrossEntropy, Loss
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.checks import positive
from spikeprop.runtime.modes import evaluating


@dataclass(frozen=True, kw_only=True)
class Distillation(Loss):
    """A loss of the labels, and the distance to a teacher's scores.

    For fine-tuning a converted network: a run's ANN is the teacher.

    Attributes:
        weight: of the distance, in [0, 1]; 1 leaves the labels out.
        temperature: divides both scores; a higher one shows more of what the teacher says of other classes.
        loss: of the labels.
        teacher: gives scores for a batch of examples; set to evaluation mode while it is asked. In a recipe's fine-tuning it is
            the ANN.
    """

    weight: float = 0.5
    temperature: float = 2.0
    loss: Loss = field(default_factory=CrossEntropy)
    teacher: nn.Module | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; it is a fraction of the loss, in [0, 1]")
        positive(self, "temperature")
        if self.teacher is not None and not isinstance(self.teacher, nn.Module):
            raise ValueError(f"teacher is a {type(self.teacher).__name__}; it is a module (in a recipe, leave it out)")
        if isinstance(self.loss, Distillation):
            raise ValueError("loss is a Distillation itself; give one of the labels, such as CrossEntropy")

    @property
    def needs_teacher(self) -> bool:
        return self.teacher is None

    def taught_by(self, teacher: nn.Module) -> Distillation:
        return self if self.teacher is not None else replace(self, teacher=teacher)

    @torch.no_grad()
    def for_batch(self, x: Any, unit: float | Tensor = 1.0) -> Loss:
        """The loss of one batch: the teacher is asked here.

        Raises:
            ValueError: there is no teacher.
            DataError: sequences of unequal length, which a teacher does not read, or scores that are no tensor.
        """
        if self.teacher is None:
            raise ValueError("Distillation asks a teacher, and has none: Distillation(teacher=ann)")
        if isinstance(x, Sequences):
            raise DataError("Distillation asks a teacher for a batch's scores, and these are sequences of unequal length")
        with evaluating(self.teacher):
            said = self.teacher(x)
        if not isinstance(said, Tensor):
            raise DataError(f"the teacher returns a {type(said).__name__}; Distillation compares one tensor of scores")
        return _OfBatch(settings=self, teacher_BK=at_least_float32(said), unit=unit)

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        raise ValueError("this rule asks no teacher, so it cannot distil: use BPTT, Backprop, OTTT, EProp or RTRL, or for_batch")


@dataclass(frozen=True, kw_only=True, eq=False)
class _OfBatch(Loss):
    """The loss of a batch whose teacher's scores are known.

    Attributes:
        settings: weight, temperature and the loss of the labels.
        teacher_BK: the teacher's scores (B, K, ...).
        unit: factor that brings scores to the teacher's units.
    """

    settings: Distillation
    teacher_BK: Tensor
    unit: float | Tensor

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        """Of scores (B, K, ...); or (t*B, K, ...) of several steps, which have the same teacher."""
        weight, tau = self.settings.weight, self.settings.temperature
        known, steps = self.teacher_BK, len(scores) // max(1, len(self.teacher_BK))
        if scores.ndim < 2 or scores.shape[1] < 2 or scores.shape != (steps * len(known), *known.shape[1:]):
            raise LabelError(
                f"the teacher's scores are {tuple(known.shape)} and the network's {tuple(scores.shape)}: distillation compares "
                "two outputs of the same classes, two or more"
            )
        said = known.repeat(steps, *[1] * (known.ndim - 1))
        ours, theirs = (F.log_softmax(z / tau, 1) for z in (at_least_float32(scores) * self.unit, said))
        distance = (theirs.exp() * (theirs - ours)).sum(1).mean() * tau**2
        return weight * distance if weight == 1 else (1 - weight) * self.settings.loss(scores, y) + weight * distance


def at_least_float32(scores: Tensor) -> Tensor:
    """Autocast's scores with the digits that a softmax needs."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
