"""``trace_step``: the loss of a network on a few samples, forward and backward, in double precision, as a ``Trace``.

The network is copied, so the caller's network is not changed. The copy computes in float64, so that finite differences are
meaningful and the numbers of the page can be reproduced with many digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.errors import ExplainError
from spikeprop.plugins.explain.spiking import unrolled
from spikeprop.plugins.explain.trace import Trace, Tracer
from spikeprop.snn import SpikingNetwork

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The training step to explain.

    Attributes:
        name: displayed name.
        model: any torch module, or a SpikingNetwork.
        x: inputs (B, ...).
        y: targets, as the loss takes them.
        loss: function of outputs and targets with a scalar result.
        timesteps: simulation steps of a SpikingNetwork.
        training: True for training mode, False for evaluation mode.
        seed: seed of dropout and encoders.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    loss: LossFunction = F.cross_entropy
    timesteps: int | None = None
    training: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.model, SpikingNetwork) and not self.timesteps:
            raise ExplainError(f"{self.name} is a spiking network: give its number of steps (--timesteps)")

    @property
    def spiking(self) -> bool:
        return isinstance(self.model, SpikingNetwork)

    def double(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Copies of the network, inputs and targets in float64 on the CPU."""
        model = copy.deepcopy(self.model).cpu().double().train(self.training)
        x, y = (t.detach().cpu().clone() for t in (self.x, self.y))
        return model, x.double() if x.is_floating_point() else x, y.double() if y.is_floating_point() else y


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
    model, x, y = subject.double()
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
                assert subject.timesteps is not None
                scores = unrolled(model, x, subject.timesteps, tracer)
            else:
                scores = model(x)
            loss = subject.loss(scores, y)
        _check_loss(loss, trace)
        loss.backward()
    trace.loss = tracer.index_of(loss)
    first = next(subject.model.parameters(), subject.x)
    return TracedStep(trace, model, float(loss.detach()), first.element_size())


def _check_loss(loss: Tensor, trace: Trace) -> None:
    if loss.numel() != 1:
        raise ExplainError(f"the loss has shape {tuple(loss.shape)}; it must be one number")
    if not loss.requires_grad or not trace.nodes:
        raise ExplainError("nothing has a gradient: the loss depends on no trainable parameter")
    if not torch.isfinite(loss).all():
        raise ExplainError(f"the loss is {float(loss.detach())}; there is no gradient to show")
