"""``EquilibriumPropagation`` (Scellier & Bengio 2017, arXiv:1602.05179): gradients from two equilibria of one dynamics.

The states s_n, one for each activation sigma_n, are those of a network with connections in both directions:

    s_n = sigma_n(A_n(s_(n-1)) + gamma (dA_(n+1)/ds_n)^T (s_(n+1) - o_(n+1))),      n = 1..N

A_n is all that the network computes between two activations (convolution, pooling, ...), and the last one reads out: its loss l
pulls the last state by -beta dl/ds_N (Laborieux et al. 2021, arXiv:2006.03824). This is the equilibrium of the energy

    E = sum over n of gamma^(n-N) (G_n(s_n) - (s_n - o_n) . A_n(s_(n-1))) + beta l,      G_n' = sigma_n^-1

so the loss's gradient at the free equilibrium is (dE/dtheta(beta) - dE/dtheta(-beta)) / (2 beta) for beta -> 0. With o = 0 and
gamma = 1 these are the papers' networks, whose free equilibrium is not the feed-forward network that is used afterwards. By
default o is the forward pass, held: what each layer expects of the next is cancelled, and only deviations come back (as by the
interneurons of Sacramento et al. 2018, arXiv:1810.11393). Then the forward pass is the free equilibrium for every gamma, l is
the loss linearised there, and the gradient is backprop's for gamma -> 0 (Xie & Seung 2003). At a kink, such as a ReLU that
computes exactly 0, two symmetric phases give the mean of the slopes of both sides, and backprop takes that of one.

As written, deviations shrink by gamma from state to state on the way back, and are soon below the rounding of the states. For
beta -> 0 they follow linear equations, so each can be held in a unit of its own: with deviations, feedback to s_n is divided by
u_n, which makes it about beta times as large as s_n, and what s_n sends on is o_n + gamma u_n (s_n - o_n). The products, and so
the gradient for beta -> 0, are the same. Examples do not meet, so each has units of its own.

A network in which deviations would still be lost in rounding is refused. An example's gradient is its deviation times the
product of its units, and rounding adds to it the precision of its state times the same product. So what is compared are these
weighted sizes over the batch, whose sum is the gradient: an example with saturated neurons, whose deviation and gradient are both
next to nothing, does not refuse a batch, and one that carries the gradient does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError, TrainingCollapsed
from spikeprop.learn.segments import SegmentGraph, SegmentPass
from spikeprop.plugins.local_rules.base import ForwardPass, SegmentRule, add_gradients
from spikeprop.plugins.local_rules.states import States, forward_states, states_of
from spikeprop.runtime.checks import one_of, positive

LARGEST_RESIDUAL = 0.01
ROUNDED = 100  # times the precision of a state: what a deviation must be for its first two digits to be right


@dataclass
class Equilibrium:
    """States by name, the pass of the A_n at them, and the largest last change of one relative to what it feeds back."""

    values: dict[str, Tensor]
    run: SegmentPass
    residual: Tensor


@dataclass
class Nudge:
    """What a phase is run with.

    Attributes:
        origin: o, by name; empty for 0.
        pull: dl/ds_N of an example, at a pass.
        units: u_n by state, one number an example (B,), or one for all (1,); 0 for an example that gets no feedback.
    """

    origin: dict[str, Tensor]
    pull: Callable[[SegmentPass], Tensor]
    units: dict[str, Tensor]

    def fed_back(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        return values[name] - self.origin[name] if self.origin else values[name]

    def sent(self, values: Mapping[str, Tensor], gamma: float) -> Mapping[str, Tensor]:
        """What the next A_n read."""
        if not self.origin:
            return values
        return {n: o + _each(gamma * self.units[n], o) * (values[n] - o) for n, o in self.origin.items()}


@dataclass(frozen=True, kw_only=True)
class EquilibriumPropagation(SegmentRule):
    """Contrast of two equilibria.

    Attributes:
        loss: any loss of scores and labels.
        feedback_of: "deviations" of the states from the forward pass, or "states" (the papers).
        beta: of the loss, in the nudged phases. With deviations it is relative: each example's last state is pulled by beta times
            its norm, whatever the size of its error.
        feedback: gamma, in (0, 1]; 1 for the papers' networks, small for a network that is used feed-forward. With deviations it
            is the part that goes round from a state to the next and back.
        iterations: largest number of steps of a phase.
        tolerance: a phase ends when every state changes by less, relative to what it feeds back, but not before what the loss
            does to the last state has reached the first one and been there once more (number of states + 1 steps).
        nudging: "symmetric" for phases at +beta and -beta, with an error of beta^2; "one-sided" for +beta and the free phase.
    """

    knows: ClassVar[str] = "its input and its own activity in three equilibria; by W^T the activity of the layer that reads it"
    chain: ClassVar[bool] = True
    feedback_of: Literal["deviations", "states"] = "deviations"
    beta: float = 0.002
    feedback: float = 0.01
    iterations: int = 50
    tolerance: float = 1e-5
    nudging: Literal["symmetric", "one-sided"] = "symmetric"
    _states: WeakKeyDictionary[nn.Module, States] = field(
        init=False, default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not 0 < self.feedback <= 1:
            raise ValueError(f"feedback is {self.feedback}; it must lie in (0, 1]")
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; use at least 1")
        positive(self, "beta", "tolerance")
        one_of(self, "nudging", "symmetric", "one-sided")
        one_of(self, "feedback_of", "deviations", "states")

    @property
    def reruns(self) -> bool:
        return True

    def check(self, model: nn.Module, graph: SegmentGraph) -> None:
        super().check(model, graph)
        states = states_of(model)
        if self.iterations < (least := len(states.activations)):
            raise SegmentError(
                f"iterations is {self.iterations}, and the loss needs {least} to reach the first of {least} states, whose "
                "gradient would be 0: raise it"
            )
        self._states[model] = states

    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        states = self._states[batch.model]
        if batch.error.dtype in (torch.float16, torch.bfloat16):
            raise SegmentError("EquilibriumPropagation subtracts nearly equal states, which 16 bits do not hold: use float32")
        if not torch.isfinite(batch.error).all():
            raise TrainingCollapsed(
                f"the loss's gradient is not finite in {_rows(batch.error)}, so nothing can be fed back: check these inputs for "
                "NaN and infinity, or lower the learning rate"
            )
        start, told = forward_states(states, batch.x), {}
        if self.feedback_of == "deviations":
            free = Equilibrium(start, SegmentPass(states.graph, batch.x, at=start), batch.error.new_zeros(()))
            nudge = _held(states, free, len(batch.x) * batch.error)
        else:
            *hidden, last = states.activations
            one = batch.error.new_ones(1)
            nudge = Nudge({}, self._pull(states, batch), {**dict.fromkeys(hidden, one / self.feedback), last: one})
            free = self._settle(states, batch.x, start, nudge, 0.0)
            told["gap"] = _apart(free.run.output, batch.run.output)
        self._find_units(states, free, nudge)
        free.run.add_parameter_gradients(states.graph.output, self._error(batch, free.run))
        plus = self._settle(states, batch.x, free.values, nudge, self.beta)
        minus = free if self.nudging == "one-sided" else self._settle(states, batch.x, free.values, nudge, -self.beta)
        width = self.beta * (1 if minus is free else 2) * len(batch.x)
        unit = free.residual.new_full((1,), 1 / width)
        for segment in reversed(states.graph.segments[:-1]):
            unit = unit * nudge.units[segment.name]
            for state, sign in ((plus, -1), (minus, 1)):
                fed_back = nudge.fed_back(state.values, segment.name)
                cotangent = sign * _each(unit, fed_back) * fed_back
                add_gradients(segment.parameters(), state.run.parameter_gradients(segment.name, cotangent))
        return {**told, "residual": torch.stack([state.residual for state in (free, plus, minus)]).max()}

    def _settle(self, states: States, x: Tensor, values: dict[str, Tensor], nudge: Nudge, beta: float) -> Equilibrium:
        """Iterate the states from ``values``, all at once."""
        residual = values[states.graph.segments[0].name].new_zeros(())
        tiny = torch.finfo(residual.dtype).tiny
        for done in range(self.iterations):
            run = SegmentPass(states.graph, x, at=nudge.sent(values, self.feedback))
            new = self._moved(states, run, values, nudge, beta)
            changes = [(new[n] - v).norm() / nudge.fed_back(new, n).norm().clamp_min(tiny) for n, v in values.items()]
            residual, values = torch.stack(changes).max(), new
            if done >= len(values) and float(residual) < self.tolerance:
                break
        if not float(residual) <= LARGEST_RESIDUAL:
            raise TrainingCollapsed(
                f"after {self.iterations} iterations a state still changes by {float(residual):.2g} of what it feeds back, so "
                "there is no equilibrium to compare: lower feedback or the learning rate, add weight decay, or raise iterations"
            )
        return Equilibrium(values, SegmentPass(states.graph, x, at=nudge.sent(values, self.feedback)), residual)

    def _moved(self, states: States, run: SegmentPass, values: dict[str, Tensor], nudge: Nudge, beta: float) -> dict[str, Tensor]:
        new = {}
        for segment, reader in pairwise(states.graph.segments):
            drive = run.computed(segment.name)
            if reader.name != states.graph.output:
                (back,) = run.vjp(reader.name, _over(nudge.fed_back(values, reader.name), nudge.units[segment.name]))
            else:
                back = -beta * nudge.pull(run) if beta else None
            with torch.no_grad():
                new[segment.name] = states.activations[segment.name](drive.clone() if back is None else drive + back)
        return new

    def _find_units(self, states: States, free: Equilibrium, nudge: Nudge) -> None:
        """The units of deviations but the last, from what the loss does to the states to first order in beta.

        Raises:
            SegmentError: states would move by less than their rounding.
        """
        weight, push = torch.ones_like(nudge.units[[*states.activations][-1]]), self.beta * nudge.pull(free.run)
        for segment in reversed(states.graph.segments[:-1]):
            value, (before, *_) = free.values[segment.name], segment.reads
            moved = _slope(states.activations[segment.name], free.run.computed(segment.name), push)
            weight = weight * nudge.units[segment.name]
            weight = weight / weight.max().clamp_min(torch.finfo(weight.dtype).tiny)  # only the examples' ratios count
            _refuse_rounded(segment.name, moved * _each(weight, value), value * _each(weight, value))
            (back,) = free.run.vjp(segment.name, moved)
            if back is None:  # the first one, or what has no gradient
                break
            if nudge.origin:
                nudge.units[before] = _unit(back, self.beta, free.values[before], free.run.computed(before), len(weight))
            push = _over(back, nudge.units[before])

    def _pull(self, states: States, batch: ForwardPass) -> Callable[[SegmentPass], Tensor]:
        def pull(run: SegmentPass) -> Tensor:
            (found,) = run.vjp(states.graph.output, len(batch.x) * self._error(batch, run))
            assert found is not None
            return found

        return pull

    def _error(self, batch: ForwardPass, run: SegmentPass) -> Tensor:
        """dL/d output at the scores of a pass."""
        scores = run.output.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.loss.for_batch(batch.x)(scores, batch.y), scores)[0]


def _held(states: States, free: Equilibrium, error: Tensor) -> Nudge:
    """The nudge of the loss linearised at the forward pass, of equal size for every example whose states are its own.

    Then neither the rounding of a small error nor the kinks of a large one come into the difference of two phases.
    """
    last_name = states.graph.segments[-2].name
    last = free.values[last_name]
    (pull,) = free.run.vjp(states.graph.output, error)
    assert pull is not None
    alone = all(len(value) == len(pull) for value in free.values.values())  # else examples are merged or split on the way
    unit = _unit(pull, 1.0, last, free.run.computed(last_name), len(pull) if alone else 1)
    held = _over(pull, unit)
    rest = dict.fromkeys(free.values, torch.ones_like(unit))  # until they are found
    return Nudge(free.values, lambda run: held, {**rest, last_name: unit})


def _unit(fed_back: Tensor, beta: float, values: Tensor, drive: Tensor, count: int) -> Tensor:
    """By what to divide the feedback to ``count`` examples so that it is beta times as large as their states (count,).

    A state of 0 counts as what drives it, so that a silent example is pulled too, by its own size and not by that of others.
    """
    norms, size, driven = (t.reshape(count, -1).norm(dim=1) for t in (fed_back, values, drive.detach()))
    size = torch.where(size > 0, size, driven)
    unit = norms / (beta * torch.where(size > 0, size, 1.0))
    return torch.where(unit > torch.finfo(unit.dtype).tiny, unit, 0.0)


def _over(value: Tensor, unit: Tensor) -> Tensor:
    """Divided example by example, 0 where the unit is."""
    return _each(torch.where(unit > 0, 1 / unit, 0.0), value) * value


def _each(numbers: Tensor, like: Tensor) -> Tensor:
    """One number an example, in a shape that multiplies."""
    return numbers.view(-1, *[1] * (like.dim() - 1))


def _refuse_rounded(name: str, moved: Tensor, value: Tensor) -> None:
    least = ROUNDED * torch.finfo(value.dtype).eps * float(value.norm())
    if 0 < float(moved.norm()) < least:  # 0 of a layer that is silent, whose gradient is 0
        raise SegmentError(
            f"the loss would move the state {name!r} by {float(moved.norm()):.2g}, which is lost in the rounding of its values "
            f"(norm {float(value.norm()):.2g}) and with it the gradient of all layers up to there: use a larger beta, float64, "
            "feedback_of: deviations, or a larger feedback and fewer states"
        )


def _slope(activation: nn.Module, drive: Tensor, cotangent: Tensor) -> Tensor:
    """sigma'(drive) cotangent."""
    leaf = drive.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(activation(leaf.clone()), leaf, cotangent)[0]


def _rows(error: Tensor) -> str:
    """Examples that are not finite: the first one's number, and how many there are."""
    bad = (~error.reshape(len(error), -1).isfinite().all(1)).nonzero()[:, 0].tolist()
    return f"{len(bad)} of {len(error)} examples (the first is number {bad[0]})"


def _apart(scores: Tensor, expected: Tensor) -> Tensor:
    return (scores - expected).norm() / expected.norm().clamp_min(torch.finfo(scores.dtype).tiny)
