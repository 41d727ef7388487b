"""``Lookahead`` and ``EMA``: a slow copy of the weights, averaged over the steps, which the network has when training ends.

With w the weights and a their average, of parameters and of batch-norm's statistics alike,

    a <- d a + (1 - d) w        every ``every`` steps, and after that, with ``Lookahead``, w <- a

``Lookahead`` (Zhang et al. 2019, arXiv:1907.08610) sends training on from the average; its d grows over the training, from 0 to
``decay ** every``, so that early steps are not held back (the form of Jordan 2024, arXiv:2404.00498). ``EMA`` (Polyak & Juditsky
1992) does not touch the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeprop.learn.callback import Callback, TrainingState
from spikeprop.runtime.checks import positive


class _Average(Callback):
    """The average, its state in checkpoints, and its place in the network when training ends."""

    needs_complete_parameters: ClassVar[bool] = True  # it works on the tensors of ``state_dict``

    def __init__(self, decay: float, every: int):
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; it is the fraction of the average that a step keeps, between 0 and 1")
        self.decay, self.every = decay, every
        positive(self, "every")
        self._average: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._average = {name: value.clone() for name, value in state.items()}

    def on_start(self, training: TrainingState) -> None:
        self._begins = not self._average or training.steps_done == 0  # what another training left is not averaged
        if self._begins:
            self._average = {name: value.clone() for name, value in averaged(training.model).items()}

    @torch.no_grad()
    def on_gradient(self, training: TrainingState) -> None:
        """Read the parameters again before the first step, since callbacks after this one may have set them."""
        if self._begins:
            parameters = dict(training.model.named_parameters())
            self._average |= {name: parameters[name].clone() for name in self._average if name in parameters}
            self._begins = False

    @torch.no_grad()
    def _add(self, model: nn.Module, kept: float) -> None:
        own = averaged(model)
        slow = self._slow(own)
        torch._foreach_lerp_(slow, list(own.values()), 1 - kept)

    @torch.no_grad()
    def _put(self, model: nn.Module) -> None:
        own = averaged(model)
        torch._foreach_copy_(list(own.values()), self._slow(own))

    def _slow(self, own: Mapping[str, Tensor]) -> list[Tensor]:
        """The averages in the order, on the device and in the memory layout of the network's tensors."""
        for name, value in own.items():
            slow = self._average[name]
            if slow.device != value.device or slow.stride() != value.stride():  # after a resume
                self._average[name] = torch.empty_like(value).copy_(slow)
        return [self._average[name] for name in own]


class Lookahead(_Average):
    """Training goes on from the average of the weights every few steps.

    Args:
        decay: fraction of the average that a step keeps at the end of the training; ``every`` steps keep decay ** every.
        every: steps between two averages.
        power: the kept fraction grows as (steps done / all steps) ** power; 0 for a constant one.
    """

    def __init__(self, *, decay: float = 0.95, every: int = 5, power: float = 3.0):
        super().__init__(decay, every)
        if not power >= 0:
            raise ValueError(f"power is {power}; use 0 for a constant fraction")
        self.power = power

    def on_step(self, training: TrainingState) -> None:
        done, steps = training.steps_done, training.steps
        if done % self.every == 0:
            self._add(training.model, self.decay**self.every * (done / steps) ** self.power)
            self._put(training.model)
        elif done == steps:
            self._put(training.model)


class EMA(_Average):
    """The network has the exponential moving average of its weights when training ends; training itself is not changed.

    Early averages keep less: d = min(decay ** every, (1 + n) / (10 + n)) at the n-th, so that the initial weights are forgotten.

    Args:
        decay: fraction of the average that a step keeps.
        every: steps between two averages.
    """

    def __init__(self, *, decay: float = 0.999, every: int = 1):
        super().__init__(decay, every)

    def on_step(self, training: TrainingState) -> None:
        done = training.steps_done
        if done % self.every == 0:
            number = done // self.every
            self._add(training.model, min(self.decay**self.every, (1 + number) / (10 + number)))
        if done == training.steps:
            self._put(training.model)


def averaged(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network that can be averaged: parameters and buffers of floating point, each once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            found.setdefault(id(value), (name, value))  # tied weights are one tensor
    return {name: value.detach() for name, value in found.values()}
