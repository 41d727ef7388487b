"""``BPTT``: backpropagation through time with a surrogate derivative; with ``STDB`` it is the paper's fine-tuning.

Rathi et al. 2020: the loss is the cross-entropy of the output accumulated over T steps; the gradient flows back through the leak
and the weights and, at each spike, through the neuron's surrogate; none flows through the reset. The neuron's settings decide
which surrogate is used, and whether its threshold and leak are trained too (DIET-SNN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spikeprop.learn.loss import CrossEntropy
from spikeprop.learn.rule import LearningRule
from spikeprop.snn import SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class BPTT(LearningRule):
    """Gradient of the cross-entropy on the accumulated output.

    Attributes:
        timesteps: steps of a simulation.
        chunk: steps that a layer computes at once; default what ``snn/engine/sizes.py`` says (at most 64 on the CPU).
        average: divide the accumulated output by the number of steps (the paper takes the sum).
    """

    single_backward: ClassVar[bool] = True

    timesteps: int
    chunk: int | None = None
    average: bool = False

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise ValueError(f"timesteps is {self.timesteps}; a simulation needs at least 1 step")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; use at least 1 step, or null for the default, at most 64 on the CPU")

    def step(self, model: SpikingNetwork, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        scores = model(x, self.timesteps, chunk=self.chunk)
        if self.average:
            scores = scores / self.timesteps
        loss = CrossEntropy()(scores, y)
        loss.backward()
        return {"loss": loss.detach(), "scores": scores.detach()}
