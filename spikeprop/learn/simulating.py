"""``SimulatingRule``: what all rules share that run a spiking network over time: the steps, the objective, and its gradient.

The objective L is a scalar of the network's values o_1 .. o_T (the last layer's at each step). A rule that goes forward in time
needs g_t = dL/do_t at step t. A ``LocalLoss`` (``each_step``) has it then, so one pass does. Any other, such as the cross-entropy
of the sum, is known after the last step alone: the simulation runs twice with the same random numbers, once for the values, and
once for the gradient, and memory still holds no more of the past than the values.

Suffix legend: T steps, t of a window, B batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from spikeprop.learn.loss import CrossEntropy, Loss, Objective
from spikeprop.learn.rule import LearningRule
from spikeprop.learn.temporal import EachStep, LocalLoss, ReadOut, TemporalLoss
from spikeprop.snn import LayerDynamics, SpikingNetwork
from spikeprop.snn.normalisation import needs_all_steps
from spikeprop.snn.simulation import last_layer
from spikeprop.snn.timed_input import TimedInput, no_stills, time_first


@dataclass(frozen=True, kw_only=True)
class SimulatingRule(LearningRule):
    """A rule that simulates.

    Attributes:
        timesteps: steps of a simulation of still samples; sequences have their own number.
        loss: of the output, which ``network.read`` makes of the values; or a ``TemporalLoss`` of the values.
        each_step: the loss is that of the value at each step, in the mean over the steps (TET; see ``EachStep`` for more of it).
    """

    timesteps: int | None = None
    loss: Objective = field(default_factory=CrossEntropy)
    each_step: bool = False

    def __post_init__(self) -> None:
        if self.timesteps is not None and self.timesteps < 1:
            raise ValueError(f"timesteps is {self.timesteps}; a simulation needs at least 1 step")
        if not isinstance(self.loss, Loss | TemporalLoss):
            raise ValueError(f"loss is a {type(self.loss).__name__}; it is a Loss or a TemporalLoss")
        if self.each_step and not isinstance(self.loss, Loss):
            raise ValueError(f"{type(self.loss).__name__} is a loss over all steps already: leave each_step out")

    def network_in(self, model: nn.Module) -> SpikingNetwork:
        """The spiking network, alone or in what sends its gradients between processes.

        Raises:
            ValueError: there is none.
        """
        for module in model.modules():
            if isinstance(module, SpikingNetwork):
                return module
        rule, kind = type(self).__name__, type(model).__name__
        if any(isinstance(module, LayerDynamics) for module in model.modules()):
            raise ValueError(
                f"{rule} trains a SpikingNetwork, and this is a {kind} with neurons in it: make a network of it first, network = "
                "spikeprop.spiking(module, input_shape), and train that"
            )
        raise ValueError(f"{rule} trains a SpikingNetwork, and this is a {kind}: convert it, or use Backprop")

    def objective(self, network: SpikingNetwork) -> TemporalLoss:
        """The loss as a function of the values at all steps."""
        if isinstance(self.loss, TemporalLoss):
            return self.loss
        assert isinstance(self.loss, Loss)
        return EachStep(loss=self.loss) if self.each_step else ReadOut(loss=self.loss, how=network.read)

    def for_batch(self, network: SpikingNetwork, x: Any) -> Self:
        """The rule with its loss for this batch, examples first: the first line of ``step``."""
        loss = self.loss.for_batch(x, self._unit(network, x))
        return self if loss is self.loss else self.with_loss(loss)

    def _unit(self, network: SpikingNetwork, x: Any) -> Tensor:
        """Factor that brings what the loss reads to the units of the ANN that the network was converted from."""
        scale = last_layer(network).scale
        summed = network.read == "sum" and isinstance(self.loss, Loss) and not self.each_step
        return scale / network.readout.counted_steps(self.timesteps or x.shape[1]) if summed and isinstance(x, Tensor) else scale

    def in_time(self, network: SpikingNetwork, x: object) -> tuple[Tensor, Tensor | None]:
        """A batch, examples first, as ``time_first`` gives it.

        Raises:
            ValueError: still samples without ``timesteps``, or for an encoder that reads none.
        """
        values, lengths = time_first(network, x)
        still = values.dim() == len(network.input_shape) + 1
        if still and not network.encoder.stills:
            raise ValueError(no_stills(network.encoder, values.shape))
        if still and self.timesteps is None:
            raise ValueError(
                f"a batch {tuple(values.shape)} of still samples needs a number of steps: {type(self).__name__}(timesteps=...)"
            )
        return values, lengths

    def given(self, network: SpikingNetwork, x: object) -> TimedInput:
        """A batch, examples first, as the simulation's input.

        Raises:
            ValueError: it does not fit the network, or still samples without ``timesteps``.
        """
        if network.output_form is not None:
            raise ValueError(
                "this network returns several outputs in a structure of its own, and a loss of values over time reads one: use "
                "BPTT with a loss of the output"
            )
        values, lengths = self.in_time(network, x)
        given = TimedInput.of(values, self.timesteps, lengths, network.input_shape)
        given.check_values(network.encoder)
        return given


class Signals:
    """The objective's gradient by the values of each window of steps, while a simulation goes forward.

    Args:
        loss: the objective.
        y: labels.
        given: the simulation's input.
        ahead_TBK: the values of a run before; None while there is none.

    Attributes:
        values: of all windows so far, without a graph.
        loss: sum of the windows' parts; complete after the last one.
    """

    def __init__(self, loss: TemporalLoss, y: Tensor, given: TimedInput, ahead_TBK: Tensor | None):
        self._objective, self._y, self._given, self._first = loss, y, given, 0
        self.values: list[Tensor] = []
        self.loss: Tensor = given.x_TB.new_zeros(())
        self._gradients_TBK: Tensor | None = None
        if ahead_TBK is not None:
            with torch.enable_grad():
                leaf_TBK = ahead_TBK.detach().requires_grad_()
                self.loss = loss(leaf_TBK, y, given.lengths)
            (self._gradients_TBK,) = torch.autograd.grad(self.loss, leaf_TBK)
            self.loss = self.loss.detach()

    def __call__(self, values_tBK: Tensor) -> Tensor:
        """Gradient (t, B, K, ...) for the next window's values."""
        first, self._first = self._first, self._first + len(values_tBK)
        self.values.append(values_tBK.detach())
        if self._gradients_TBK is not None:
            return self._gradients_TBK[first : self._first]
        assert isinstance(self._objective, LocalLoss)
        with torch.enable_grad():
            leaf_tBK = values_tBK.detach().requires_grad_()
            part = self._objective.part(leaf_tBK, self._y, self._given.lengths, first, self._given.timesteps)
        if not part.requires_grad:  # every sequence has ended before this window
            return torch.zeros_like(leaf_tBK)
        self.loss = self.loss + part.detach()
        return torch.autograd.grad(part, leaf_tBK)[0]


Run = Callable[[Signals | None], Iterator[Tensor]]


def forward_in_time(rule: SimulatingRule, network: SpikingNetwork, given: TimedInput, y: Tensor, run: Run) -> dict[str, Tensor]:
    """Loss and scores of a simulation that goes forward in time and leaves gradients.

    Args:
        rule, network, given, y: what is learnt.
        run: one simulation: yields the values (t, B, K) of each window, and asks ``Signals`` for each window's gradient.
    """
    objective = rule.objective(network)
    ahead_TBK = None
    if not isinstance(objective, LocalLoss):
        with torch.no_grad(), same_draws_again(given.x_TB):
            ahead_TBK = torch.cat([values_tBK.detach() for values_tBK in run(None)])
    signals = Signals(objective, y, given, ahead_TBK)
    for _ in run(signals):
        pass
    return {"loss": signals.loss, "scores": objective.scores(torch.cat(signals.values), given.lengths, network.read)}


@contextmanager
def same_draws_again(like: Tensor) -> Iterator[None]:
    """After this context torch's generators are what they were, so the next simulation draws the same numbers."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        yield


def refuse_coupled_steps(network: SpikingNetwork, what: str) -> None:
    """Refuse what a simulation step by step cannot have.

    Raises:
        ValueError: names what: batch-norm over time, differential coding, or a calibrated readout.
    """
    if not network.readout.trivial:
        raise ValueError(f"the network's calibrator delays its readout, or runs it beforehand; {what} needs all steps alike")
    why = needs_all_steps(network)
    if why is not None:
        raise ValueError(
            f"{why}, and {what} sees some of them at a time: train spikeprop.folded(network), or BPTT without truncate"
        )
    for name, layer in network.named_layers():
        if layer.dynamics.differential:
            raise ValueError(f"layer {name!r} has differential coding, whose readers need the mean of all steps; use BPTT")


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to ``.grad``, as a backward pass does."""
    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
