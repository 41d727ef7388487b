"""``TemporalLoss``: an objective on what the network outputs at each step, where a ``Loss`` reads one output for a simulation.

``EachStep`` is the mean over the steps of a loss of the output at that step, TET of Deng et al. 2022 (arXiv:2202.11946, eq. 10):

    (1 - weight) 1/T sum_t loss(o_t, y)  +  weight 1/T sum_t mean_k (o_tk - level)^2

Of a network whose output are spikes it is the cross-entropy of rates (snnTorch's ``ce_rate_loss``). ``SpikeCount`` is the squared
distance of spike counts to target counts (its ``mse_count_loss``). ``VanRossum`` is a distance of spike trains (van Rossum 2001):

    1/tau sum_t (f_t - g_t)^2,   f_t = exp(-1/tau) f_{t-1} + s_t,   g likewise for the target

to t = infinity, so it does not depend on padding. A distance of rates is ``SquaredError`` with a network that reads the mean.

Sequences of unequal length: a sample counts its own first ``lengths`` steps, and each sample weighs the same.
Suffix legend: T steps, t steps of a window, B batch, K outputs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.errors import LabelError
from spikeprop.learn.loss import CrossEntropy, Loss, Objective
from spikeprop.runtime.checks import positive
from spikeprop.runtime.labels import as_labels, read_labels
from spikeprop.snn.readout import Read, ReadState, read
from spikeprop.snn.timed_input import own_steps


@dataclass(frozen=True, kw_only=True)
class TemporalLoss(Objective):
    """A scalar of the outputs at all steps and the labels."""

    @abstractmethod
    def __call__(self, values_TBK: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mean loss () over the batch of outputs (T, B, K, ...); of sample b the first ``lengths[b]`` steps count.

        Raises:
            LabelError: the labels do not fit the outputs.
        """

    def scores(self, values_TBK: Tensor, lengths: Tensor | None, how: Read) -> Tensor:
        """What predictions are read from: the network's output (B, K, ...), or where labels change with time (B, K, T)."""
        return output_of(values_TBK, lengths, how)


@dataclass(frozen=True, kw_only=True)
class LocalLoss(TemporalLoss):
    """A temporal loss that is a sum over the steps, so that its gradient at a step needs no other step: for online rules."""

    @abstractmethod
    def part(self, values_tBK: Tensor, y: Tensor, lengths: Tensor | None, first: int, timesteps: int) -> Tensor:
        """What the steps from ``first`` on, of ``timesteps`` in all, contribute to the loss."""

    def __call__(self, values_TBK: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.part(values_TBK, y, lengths, 0, len(values_TBK))


@dataclass(frozen=True, kw_only=True)
class ReadOut(TemporalLoss):
    """A loss of the output that is read from the values at all steps.

    Attributes:
        loss: of the output (B, K, ...).
        how: as ``network.read``.
    """

    loss: Loss
    how: Read

    def __call__(self, values_TBK: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.loss(output_of(values_TBK, lengths, self.how), y)


@dataclass(frozen=True, kw_only=True)
class EachStep(LocalLoss):
    """The mean over the steps of a loss of the output at each step.

    Attributes:
        loss: of the outputs (B, K, ...) at one step.
        changing: labels change with time, y (B, T, ...), with -100 (no class) at steps past a sequence's end; otherwise y is the
            label of all steps.
        weight: of the squared distance to ``level``, lambda in TET; in [0, 1).
        level: to which TET draws all outputs, where the paper takes the threshold.
    """

    loss: Loss = field(default_factory=CrossEntropy)
    changing: bool = False
    weight: float = 0.0
    level: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < 1:
            raise ValueError(f"weight is {self.weight}; it lies in [0, 1), with 0 for the loss alone")

    def part(self, values_tBK: Tensor, y: Tensor, lengths: Tensor | None, first: int, timesteps: int) -> Tensor:
        y = self._labels(y, values_tBK.shape[1], timesteps)
        total = values_tBK.new_zeros(())
        for length, rows in _by_length(lengths, timesteps, values_tBK.shape[1]):
            steps = min(length - first, len(values_tBK))
            if steps > 0:
                own_tBK, own_y = values_tBK[:steps, rows], y[rows]
                labels = own_y[:, first : first + steps].transpose(0, 1) if self.changing else own_y.expand(steps, *own_y.shape)
                loss = self.loss(own_tBK.flatten(0, 1), labels.flatten(0, 1))
                if self.weight:
                    loss = (1 - self.weight) * loss + self.weight * (own_tBK - self.level).square().mean()
                total = total + loss * (len(own_y) / values_tBK.shape[1] * steps / length)
        return total

    @property
    def needs_teacher(self) -> bool:
        return self.loss.needs_teacher

    def taught_by(self, teacher: nn.Module) -> EachStep:
        return replace(self, loss=self.loss.taught_by(teacher))

    def for_batch(self, x: Any, unit: float | Tensor = 1.0) -> EachStep:
        return replace(self, loss=self.loss.for_batch(x, unit))

    def scores(self, values_TBK: Tensor, lengths: Tensor | None, how: Read) -> Tensor:
        return values_TBK.movedim(0, 2) if self.changing else super().scores(values_TBK, lengths, how)

    def _labels(self, y: Tensor, batch: int, timesteps: int) -> Tensor:
        y = as_labels(y)
        if y.ndim == 0 or len(y) != batch:
            raise LabelError(f"{batch} sequences and labels {tuple(y.shape)}: give each sequence its label")
        if self.changing and (y.ndim < 2 or y.shape[1] != timesteps):
            raise LabelError(
                f"labels that change with time have the shape (batch, {timesteps} steps, ...), and these are {tuple(y.shape)}; "
                "for one label a sequence use changing=False"
            )
        return y


@dataclass(frozen=True, kw_only=True)
class SpikeCount(TemporalLoss):
    """Squared distance of each output's spike count to its target, over the number of steps; mean over the outputs.

    Attributes:
        correct: target spikes a step of the true class's output.
        incorrect: those of the others.
    """

    correct: float = 0.9
    incorrect: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.incorrect < self.correct:
            raise ValueError(f"correct is {self.correct} and incorrect {self.incorrect}; the true class fires more, none below 0")

    def __call__(self, values_TBK: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        count_BK = own_steps(values_TBK, 0, lengths).sum(0)
        steps_B = step_counts(values_TBK, lengths)
        labels = read_labels(count_BK, y, ignorable=False)
        true_BK = labels.values
        if labels.kind == "classes":
            true_BK = torch.nn.functional.one_hot(labels.values, count_BK.shape[1]).movedim(-1, 1)
        target_BK = (self.incorrect + (self.correct - self.incorrect) * true_BK.to(count_BK)) * steps_B
        return ((count_BK - target_BK).square() / steps_B).mean()


@dataclass(frozen=True, kw_only=True)
class VanRossum(TemporalLoss):
    """Van Rossum's distance of the output's spike trains to target trains (B, T, K, ...), summed over the outputs.

    Two trains that differ in one spike are 1/2 apart, for a long ``tau``.

    Attributes:
        tau: time constant of the exponential kernel, in steps.
    """

    tau: float = 10.0

    def __post_init__(self) -> None:
        positive(self, "tau")

    def __call__(self, values_TBK: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        target_TBK = as_labels(y).transpose(0, 1) if y.ndim > 1 else y
        if target_TBK.shape != values_TBK.shape:
            wanted = (values_TBK.shape[1], len(values_TBK), *values_TBK.shape[2:])
            raise LabelError(f"spike trains are {tuple(y.shape)}; for this output give target trains {wanted}, examples first")
        decay = math.exp(-1 / self.tau)
        distance, trace_BK = values_TBK.new_zeros(()), torch.zeros_like(values_TBK[0])
        for difference_BK in own_steps(values_TBK - target_TBK.to(values_TBK), 0, lengths):
            trace_BK = decay * trace_BK + difference_BK
            distance = distance + trace_BK.square().sum()
        tail = trace_BK.square().sum() * decay**2 / (1 - decay**2)  # after the last step, where the trace only decays
        return (distance + tail) / (self.tau * values_TBK.shape[1])


def output_of(values_TBK: Tensor, lengths: Tensor | None, how: Read) -> Tensor:
    """The network's output (B, K, ...) for the values at all steps."""
    outputs_TBK, _ = read(how, values_TBK, ReadState(), lengths)
    return outputs_TBK[-1]


def step_counts(values_TBK: Tensor, lengths: Tensor | None) -> Tensor:
    """Steps of each sample that count, broadcastable to one step (B, K, ...)."""
    if lengths is None:
        return values_TBK.new_full((), len(values_TBK))
    return lengths.to(values_TBK).reshape(-1, *[1] * (values_TBK.ndim - 2))


def _by_length(lengths: Tensor | None, timesteps: int, batch: int) -> list[tuple[int, Tensor | slice]]:
    """Samples of equal length: (length, rows). A mean over each sample's own steps is then one call a length."""
    if lengths is None:
        return [(timesteps, slice(0, batch))]
    return [(int(length), (lengths == length).nonzero().flatten()) for length in lengths.unique().tolist()]
