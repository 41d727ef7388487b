"""``trace_step``: the loss of a network on a few samples, forward and backward, in double precision, as a ``Trace``.

The network is copied, so the caller's network is not changed. The copy computes in float64, so that finite differences are
meaningful and the numbers of the page can be reproduced with many digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.errors import ExplainError
from spikeprop.plugins.explain.arguments import fill, take
from spikeprop.plugins.explain.spiking import unrolled
from spikeprop.plugins.explain.trace import Trace, Tracer
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.timed_input import TimedInput, time_first

LossFunction = Callable[[Any, Tensor], Tensor]
SCORES = ("logits", "out")  # names of the scores among several outputs, as in torchvision and transformers


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The training step to explain.

    Attributes:
        name: displayed name.
        model: any torch module, or a SpikingNetwork; of a compiled module, the module below is shown.
        x: inputs (B, ...); a tuple or a dict of several, by position or name; of a spiking network also sequences,
            (B, T, ...) or ``Sequences``.
        y: targets, as the loss takes them.
        loss: function of outputs and targets with a scalar result. A loss of torch takes one tensor: of outputs in a dict or
            tuple, the one named logits or out, or the only one.
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
        object.__setattr__(self, "model", getattr(self.model, "_orig_mod", self.model))
        object.__setattr__(self, "x", _as_tuple(self.x))
        if self.spiking and isinstance(self.x, tuple | dict):
            raise ExplainError(f"{self.name} is a spiking network, which has one input; x is a {type(self.x).__name__}")
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

    @property
    def samples(self) -> int:
        """The batch size."""
        return len(next(iter(self.inputs(self.x).values())))

    @staticmethod
    def inputs(x: Any) -> dict[str, Any]:
        """The inputs by displayed name."""
        if isinstance(x, dict):
            return {f"input {name}": value for name, value in x.items()}
        return {f"input {i}": value for i, value in enumerate(x)} if isinstance(x, tuple) else {"input": x}

    def double(self) -> tuple[nn.Module, Any, Tensor]:
        """Copies of the network, inputs and targets in float64 on the CPU."""
        model = _uncompiled(copy.deepcopy(self.model).cpu().double().train(self.training))
        if isinstance(self.x, Sequences):
            return model, Sequences(_doubled(self.x.values), self.x.lengths.cpu()), _doubled(self.y)
        return model, _doubled(self.x), _doubled(self.y)


def _as_tuple(x: Any) -> Any:
    return tuple(x) if isinstance(x, list) else x


def _doubled(tree: Any) -> Any:
    """A copy in float64 on the CPU of a tensor, or of the tensors in a tuple or a dict."""
    found: list[Tensor] = []
    template = take(tree, found)
    return fill(template, [t.detach().cpu().clone().double() if t.is_floating_point() else t.cpu().clone() for t in found])


def _uncompiled(model: nn.Module) -> nn.Module:
    """The network with its own modules in place of compiled ones, whose calls cannot be seen."""
    for module in list(model.modules()):
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
        for name, child in list(module.named_children()):
            if hasattr(child, "_orig_mod"):
                setattr(module, name, child._orig_mod)
    return model


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
    inputs = subject.inputs(x)
    if isinstance(model, SpikingNetwork):
        _check_input(model, batch, subject.steps)
    model.zero_grad(set_to_none=True)
    tracer = Tracer(model)
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise ExplainError(f"{name} of {subject.name} is a {type(value).__name__}; inputs are tensors")
        if value.is_floating_point():
            value.requires_grad_()
        if not (isinstance(model, SpikingNetwork) and model.encoder.spikes):  # random spikes are constants
            tracer.add_input(value, name)
    tracer.add_input(y, "target")
    with torch.enable_grad(), tracer.recording() as trace:
        loss = _loss_of(subject, model, batch, y, tracer)
    _check_loss(loss, trace)
    loss.backward()
    trace.loss = tracer.index_of(loss)
    first = next(subject.model.parameters(), next(iter(inputs.values())))
    return TracedStep(trace, model, float(loss.detach()), first.element_size())


def _loss_of(subject: TrainingStep, model: nn.Module, batch: Any, y: Tensor, tracer: Tracer) -> Tensor:
    x, lengths = (batch.values, batch.lengths) if isinstance(batch, Sequences) else (batch, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        if isinstance(model, SpikingNetwork):
            assert subject.steps is not None
            scores = unrolled(model, x, subject.steps, lengths, tracer)
        else:
            scores = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
        return subject.loss(_read(scores, subject), y)


def losses_with(subject: TrainingStep, parameter: str, entry: int, numbers: Sequence[float]) -> list[float]:
    """The loss of the network itself, run again with each of the numbers in place of one entry of a parameter."""
    model, batch, y = subject.double()
    tracer, found = Tracer(model), []  # records nothing, since it is not entered
    with torch.no_grad():
        weight = model.get_parameter(parameter)
        place = torch.unravel_index(torch.tensor(entry), weight.shape)
        for number in numbers:
            weight[place] = number
            found.append(float(_loss_of(subject, model, batch, y, tracer)))
    return found


def _read(output: Any, subject: TrainingStep) -> Any:
    """What the loss takes: the output, or its one tensor of scores if the loss is torch's."""
    of_torch = str(getattr(subject.loss, "__module__", None) or type(subject.loss).__module__).startswith("torch")
    if isinstance(output, Tensor) or not of_torch:
        return output
    named = output._asdict() if hasattr(output, "_asdict") else output
    parts = dict(named) if isinstance(named, Mapping) else dict(enumerate(named)) if isinstance(named, list | tuple) else {}
    tensors = {key: value for key, value in parts.items() if isinstance(value, Tensor) and value.is_floating_point()}
    chosen = [key for key in SCORES if key in tensors] or list(tensors)
    if len(chosen) != 1:
        raise ExplainError(
            f"{subject.name} returns a {type(output).__name__} with the tensors {list(tensors)}, and the loss takes one: give a "
            "loss that reads the output, such as lambda output, y: F.cross_entropy(output[0], y)"
        )
    return tensors[chosen[0]]


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
