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
the loss linearised there, and the gradient is backprop's for gamma -> 0 (Xie & Seung 2003).

As written, deviations shrink by gamma from state to state on the way back, and are soon below the rounding of the states. For
beta -> 0 they follow linear equations, so each can be held in a unit of its own: with deviations, feedback to s_n has a strength
b_n, by which it is about beta times as large as s_n, and what s_n sends on is o_n + gamma/b_n (s_n - o_n). The products, and so
the gradient for beta -> 0, are the same. A network in which a deviation would still be lost in rounding is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from spikeprop.errors import SegmentError, TrainingCollapsed
from spikeprop.learn.segments import Segment, SegmentGraph, SegmentPass, segment_graph
from spikeprop.learn.tracing import steps_of
from spikeprop.plugins.local_rules.base import ForwardPass, SegmentRule, add_gradients
from spikeprop.runtime.checks import one_of, positive

MONOTONE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.CELU, nn.SELU,
)  # fmt: skip
LARGEST_RESIDUAL = 0.01
ROUNDED = 100  # times the precision of a state: what a deviation must be for its first two digits to be right


@dataclass
class States:
    """A network as states: the segments compute A_n, the last one reads out, and ``activations`` are the sigma_n by name."""

    graph: SegmentGraph
    activations: dict[str, nn.Module]


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
        scale: by which the pull of each example is divided (B,), and its gradient multiplied; or one number (1,) for all.
        strengths: b_n of the feedback to a state, by its name.
    """

    origin: dict[str, Tensor]
    pull: Callable[[SegmentPass], Tensor]
    scale: Tensor
    strengths: dict[str, float] = field(default_factory=dict)

    def fed_back(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        return values[name] - self.origin[name] if self.origin else values[name]

    def sent(self, values: Mapping[str, Tensor], gamma: float) -> Mapping[str, Tensor]:
        """What the next A_n read."""
        if not self.origin:
            return values
        return {n: o + gamma / self.strengths[n] * (values[n] - o) for n, o in self.origin.items()}


@dataclass(frozen=True, kw_only=True)
class EquilibriumPropagation(SegmentRule):
    """Contrast of two equilibria.

    Attributes:
        loss: any loss of scores and labels.
        feedback_of: "deviations" of the states from the forward pass, or "states" (the papers).
        beta: of the loss, in the nudged phases. With deviations it is relative: each example's last state is pulled by beta times
            the root mean square of their norms, whatever the size of its error.
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
        states = _states(model)
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
        start, told = _forward(states, batch.x), {}
        if self.feedback_of == "deviations":
            free = Equilibrium(start, SegmentPass(states.graph, batch.x, at=start), batch.error.new_zeros(()))
            nudge = _held(states, free, len(batch.x) * batch.error)
        else:
            nudge = Nudge(
                {}, self._pull(states, batch), batch.error.new_ones(1), dict.fromkeys(states.activations, self.feedback)
            )
            free = self._settle(states, batch.x, start, nudge, 0.0)
            told["gap"] = _apart(free.run.output, batch.run.output)
        nudge.strengths = self._strengths(states, free, nudge)
        free.run.add_parameter_gradients(states.graph.output, self._error(batch, free.run))
        plus = self._settle(states, batch.x, free.values, nudge, self.beta)
        minus = free if self.nudging == "one-sided" else self._settle(states, batch.x, free.values, nudge, -self.beta)
        width = self.beta * (1 if minus is free else 2) * len(batch.x)
        unit, (*_, last) = 1 / width, states.activations
        for segment in reversed(states.graph.segments[:-1]):
            unit /= 1.0 if segment.name == last else nudge.strengths[segment.name]
            scale = unit * _each(nudge.scale, plus.values[segment.name])
            for state, sign in ((plus, -1), (minus, 1)):
                cotangent = sign * scale * nudge.fed_back(state.values, segment.name)
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
                (back,) = run.vjp(reader.name, nudge.strengths[segment.name] * nudge.fed_back(values, reader.name))
            else:
                back = -beta * nudge.pull(run) if beta else None
            with torch.no_grad():
                new[segment.name] = states.activations[segment.name](drive.clone() if back is None else drive + back)
        return new

    def _strengths(self, states: States, free: Equilibrium, nudge: Nudge) -> dict[str, float]:
        """b_n of all states but the last, from what the loss does to the states to first order in beta.

        Raises:
            SegmentError: a state would move by less than its rounding.
        """
        found = dict.fromkeys(states.activations, 1.0 if nudge.origin else self.feedback)
        weight = nudge.scale / nudge.scale.max().clamp_min(torch.finfo(nudge.scale.dtype).tiny)
        push = self.beta * nudge.pull(free.run)
        for segment in reversed(states.graph.segments[:-1]):
            value, (before, *_) = free.values[segment.name], segment.reads
            moved = _slope(states.activations[segment.name], free.run.computed(segment.name), push)
            _refuse_rounded(segment.name, moved * _each(weight, value), value * _each(weight, value))
            (back,) = free.run.vjp(segment.name, moved)
            if back is None:  # the first one, or what has no gradient
                break
            if nudge.origin and (size := float(back.norm())):
                found[before] = (self.beta * float(free.values[before].norm()) or 1.0) / size
            push = found[before] * back
        return found

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


def _forward(states: States, x: Tensor) -> dict[str, Tensor]:
    """States of the forward pass, without feedback."""
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for segment in states.graph.segments[:-1]:
            values[segment.name] = x = states.activations[segment.name](segment.module(x.clone()))
    return values


def _held(states: States, free: Equilibrium, error: Tensor) -> Nudge:
    """The nudge of the loss linearised at the forward pass, of equal size for every example whose states are its own.

    Then neither the rounding of a small error nor the kinks of a large one come into the difference of two phases.
    """
    last = free.values[states.graph.segments[-2].name]
    (pull,) = free.run.vjp(states.graph.output, error)
    assert pull is not None
    alone = all(len(value) == len(pull) for value in free.values.values())  # else examples are merged or split on the way
    norms = pull.reshape(len(pull) if alone else 1, -1).norm(dim=1)
    size = float(last.norm()) / len(norms) ** 0.5 or 1.0  # the same for all, so that a silent example is pulled too
    held = pull / _each(norms.clamp_min(torch.finfo(pull.dtype).tiny), pull) * size
    return Nudge(free.values, lambda run: held, norms / size)


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


def _apart(scores: Tensor, expected: Tensor) -> Tensor:
    return (scores - expected).norm() / expected.norm().clamp_min(torch.finfo(scores.dtype).tiny)


def _states(model: nn.Module) -> States:
    """Cut a network after each of its activations; one that is no module, or not monotone, becomes a part of the A_n.

    Raises:
        SegmentError: it has none that can be a state.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, MONOTONE)]
    if not names:
        raise SegmentError(
            "EquilibriumPropagation makes a state of each activation, and found none: it needs modules that are monotone and "
            f"have no parameters ({', '.join(kind.__name__ for kind in MONOTONE)}); use PredictiveCoding for others"
        )
    graph = segment_graph(model, names)
    cut, activations = [], {}
    for segment in graph.segments[:-1]:
        module, activations[segment.name] = _split(segment)
        cut.append(Segment(segment.name, module, segment.reads))
    return States(SegmentGraph([*cut, graph.segments[-1]], graph.names), activations)


def _split(segment: Segment) -> tuple[nn.Module, nn.Module]:
    """What a segment computes before the activation that ends it, and that activation; both hold the network's own modules."""
    if not isinstance(segment.module, fx.GraphModule):
        raise SegmentError(
            f"EquilibriumPropagation cannot see what segment {segment.name!r} computes before its activation: it cannot be "
            "traced, or an activation of this network is called twice or is its end; give each place a module of its own, or use "
            "PredictiveCoding"
        )
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    last = steps_of(segment.module)[-1]
    activation = segment.module.get_submodule(str(last.target))
    for node in segment.module.graph.nodes:
        if node is last:
            values[node] = values[last.all_input_nodes[0]]
        else:
            values[node] = graph.node_copy(node, lambda n: values[n])
    return fx.GraphModule(segment.module, graph), activation
