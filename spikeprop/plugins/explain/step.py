"""``trace_step``: the loss of a network on a few samples, forward and backward, in double precision, as a ``Trace``.

The network is copied, so the caller's network is not changed. The copy computes in float64, so that finite differences are
meaningful and the numbers of the page can be reproduced with many digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.errors import ExplainError
from spikeprop.plugins.explain.spiking import unrolled
from spikeprop.plugins.explain.trace import Trace, Tracer
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.timed_input import TimedInput, time_first

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The training step to explain.

    Attributes:
        name: displayed name.
        model: any torch module, or a SpikingNetwork.
        x: inputs (B, ...); of a spiking network also sequences, (B, T, ...) or ``Sequences``.
        y: targets, as the loss takes them.
        loss: function of outputs and targets with a scalar result.
        timesteps: simulation steps of a SpikingNetwork on still samples; sequences have their own.
        training: True for training mode, False for evaluation mode.
        seed: seed of dropout and encoders.
    """

    name: str
    model: nn.Module
    x: Any
    y: Tensor
    loss: LossFunction = F.cross_entropy
    timesteps: int | None = None
    training: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.x, Sequences) and not self.spiking:
            raise ExplainError(f"{self.name} is no spiking network; it is shown on a tensor, not on sequences of unequal length")
        if self.spiking and not self.in_time and not self.timesteps:
            raise ExplainError(f"{self.name} is a spiking network: give its number of steps (--timesteps)")
        if self.in_time and self.timesteps not in (None, self.x.shape[1]):
            raise ExplainError(f"the sequences have {self.x.shape[1]} steps, not {self.timesteps}: leave the number out")

    @property
    def spiking(self) -> bool:
        return isinstance(self.model, SpikingNetwork)

    @property
    def in_time(self) -> bool:
        """Whether the inputs are sequences."""
        return isinstance(self.model, SpikingNetwork) and len(self.x.shape) == len(self.model.input_shape) + 2

    @property
    def steps(self) -> int | None:
        """Of the simulation; None of other networks."""
        return self.x.shape[1] if self.in_time else self.timesteps

    def double(self) -> tuple[nn.Module, Any, Tensor]:
        """Copies of the network, inputs and targets in float64 on the CPU."""
        model = copy.deepcopy(self.model).cpu().double().train(self.training)
        values, y = (t.detach().cpu().clone() for t in (self.x.values if isinstance(self.x, Sequences) else self.x, self.y))
        values, y = (t.double() if t.is_floating_point() else t for t in (values, y))
        return model, Sequences(values, self.x.lengths.cpu()) if isinstance(self.x, Sequences) else values, y


@dataclass(frozen=True)
class TracedStep:
    """A traced step.

    Attributes:
        trace: the recorded calls.
        model: the copy of the network, with ``.grad`` from autograd.
        loss: value of the loss.
        itemsize: bytes of one number of the original network.
    """

    trace: Trace
    model: nn.Module
    loss: float
    itemsize: int


def trace_step(subject: TrainingStep) -> TracedStep:
    """Run and record a training step, forward and backward.

    Raises:
        ExplainError: nothing has a gradient, the loss is not finite, or a call cannot be shown.
    """
    model, batch, y = subject.double()
    x = batch.values if isinstance(batch, Sequences) else batch
    lengths = batch.lengths if isinstance(batch, Sequences) else None
    if isinstance(model, SpikingNetwork):
        _check_input(model, batch, subject.steps)
    model.zero_grad(set_to_none=True)
    if x.is_floating_point():
        x.requires_grad_()
    tracer = Tracer(model)
    if not (isinstance(model, SpikingNetwork) and model.encoder.spikes):  # random spikes are constants
        tracer.add_input(x, "input")
    tracer.add_input(y, "target")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(subject.seed)
        with tracer.recording() as trace:
            if isinstance(model, SpikingNetwork):
                assert subject.steps is not None
                scores = unrolled(model, x, subject.steps, lengths, tracer)
            else:
                scores = model(x)
            loss = subject.loss(scores, y)
        _check_loss(loss, trace)
        loss.backward()
    trace.loss = tracer.index_of(loss)
    first = next(subject.model.parameters(), x)
    return TracedStep(trace, model, float(loss.detach()), first.element_size())


def _check_input(network: SpikingNetwork, batch: Any, steps: int | None) -> None:
    x, lengths = time_first(network, batch)
    try:
        TimedInput.of(x, steps, lengths, network.input_shape).check_values(network.encoder)
    except ValueError as error:
        raise ExplainError(str(error)) from error


def _check_loss(loss: Tensor, trace: Trace) -> None:
    if loss.numel() != 1:
        raise ExplainError(f"the loss has shape {tuple(loss.shape)}; it must be one number")
    if not loss.requires_grad or not trace.nodes:
        raise ExplainError("nothing has a gradient: the loss depends on no trainable parameter")
    if not torch.isfinite(loss).all():
        raise ExplainError(f"the loss is {float(loss.detach())}; there is no gradient to show")
