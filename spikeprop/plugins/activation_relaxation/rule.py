"""``ActivationRelaxation``: learning rule of Millidge, Tschantz, Seth and Buckley 2020, arXiv:2009.05359, with its relaxed forms.

After one forward pass, which is kept fixed, activations relax to backprop's adjoints (``relax``); then each segment's
parameters get (dh/dtheta)^T x, which uses only that segment. Relaxed forms: separate backward weights, learnt by the same
updates as the forward weights or fixed (feedback alignment); no derivative of non-linearities in the relaxation, or nowhere;
Jacobians recomputed during the relaxation. Differences from the authors' code: biases have gradients and count in the
derivative; the loss is a mean over the batch (the relaxation uses the sum); activations start at zero, so that the end of the
relaxation does not depend on the scale of the activations, and each segment settles before those below it. Theirs start at the
activations of the forward pass, and their training updates each segment once per sweep, from the output down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn import CrossEntropy, LearningRule, Loss
from spikeprop.learn.segments import INPUT, SegmentGraph, SegmentPass, segment_graph
from spikeprop.plugins.activation_relaxation.overrides import BackwardOverrides, products, refuse_other_weights
from spikeprop.plugins.activation_relaxation.relax import MISSING, Relaxed, Sweep, adjoints, enough_sweeps, relax
from spikeprop.plugins.angles import degrees
from spikeprop.runtime.checks import one_of, positive_or_null

CHANGING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)


@dataclass(frozen=True, kw_only=True)
class ActivationRelaxation(LearningRule):
    """Gradients computed by relaxing activations.

    Attributes:
        loss: any loss of scores and labels.
        losses: for a network with several outputs, a loss of each; their sum is minimised. The labels are the same for all, or
            a tuple with those of each. The first output's scores are the rule's.
        step_size: eta of the relaxation, in (0, 1].
        iterations: number of sweeps, or updates of each segment that settles (the maximum, with ``tolerance``); null: as many as
            bring all but a thousandth of the gradient through the depth of the network.
        tolerance: stop as soon as the relative residual is below it; null: do all sweeps.
        sweep: "settling" updates each segment, from the output down, until it has settled, then the next: one vector-Jacobian
            product a segment. "gauss-seidel" updates each segment once per sweep, from the output down with the new values (the
            authors' training); "jacobi" all at once from the old values (the dynamics as the paper writes it).
        start: initial values: "zero", or "activation", those of the forward pass (the paper), from which more sweeps are needed,
            the smaller the loss; how many is estimated from the sizes of activations and dL/dh.
        settled: relative change of a segment's variable, beside a common factor, up to which its last product is used again; 0
            for products in every sweep.
        backward_weights: "symmetric" (W^T), or separate "learnt" or "fixed" weights for linear layers and convolutions.
        backward_std: initial standard deviation of separate weights (the authors' 0.05); null: that of each forward weight.
        drop_derivative: omit the derivative of non-linearities "never", in the "relaxation" (the authors' MLP) or "always"
            (their CNN).
        frozen: use the Jacobians of the forward pass; otherwise recompute them at the present activations in every sweep, which
            requires ``start: activation``, another ``sweep`` than "settling", and a network without batch-norm and dropout.
        cuts: null for one segment per layer; otherwise as in ``segment_graph``.
        measure_angle: report the angle in degrees between the gradient and backprop's, by segment and overall.
    """

    loss: Loss = field(default_factory=CrossEntropy)
    losses: list[Loss] = field(default_factory=list)
    step_size: float = 0.1
    iterations: int | None = None
    tolerance: float | None = None
    sweep: Sweep = "settling"
    start: Literal["zero", "activation"] = "zero"
    settled: float = MISSING
    backward_weights: Literal["symmetric", "learnt", "fixed"] = "symmetric"
    backward_std: float | None = 0.05
    drop_derivative: Literal["never", "relaxation", "always"] = "never"
    frozen: bool = True
    cuts: list[str] | int | None = None
    measure_angle: bool = False
    _graphs: WeakKeyDictionary[nn.Module, SegmentGraph] = field(
        init=False, default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        one_of(self, "sweep", *get_args(Sweep))
        one_of(self, "start", "zero", "activation")
        one_of(self, "backward_weights", "symmetric", "learnt", "fixed")
        one_of(self, "drop_derivative", "never", "relaxation", "always")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size is {self.step_size}; it must lie in (0, 1]")
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; use at least 1, or null for as many as the depth needs")
        positive_or_null(self, "tolerance", "backward_std")
        if not 0 <= self.settled < 1:
            raise ValueError(f"settled is {self.settled}; it must lie in [0, 1)")
        if not self.frozen and (self.start == "zero" or self.sweep == "settling"):
            raise ValueError(
                f"frozen: false takes derivatives at the activations as they relax, but start is {self.start} and sweep is "
                f"{self.sweep}: use start: activation, and sweep: gauss-seidel or jacobi"
            )

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        """Cut the network, and draw separate backward weights if the rule has any."""
        self.graph(model)
        if self.backward_weights == "symmetric":
            return
        for name, weight in products(model).items():
            std = float(weight.detach().std()) if self.backward_std is None else self.backward_std
            held = nn.ParameterList([nn.Parameter(torch.randn_like(weight) * std, self.backward_weights == "learnt")])
            self.own[name.replace(".", "/")] = held

    def graph(self, model: nn.Module) -> SegmentGraph:
        """The network's segments."""
        if model not in self._graphs:
            if not self.frozen:
                _refuse_changing(model)
            graph = segment_graph(model, self.cuts, several_outputs=True)
            if self.backward_weights != "symmetric":
                refuse_other_weights("ActivationRelaxation", model, graph)
            self._graphs[model] = graph
        return self._graphs[model]

    def step(self, model: nn.Module, x: Tensor, y: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        graph, overrides = self.graph(model), self._overrides(model)
        run = SegmentPass(graph, x, overrides if self._needs_overrides() else None)
        loss, clamped = self._loss(graph, run, x, y)
        # a sum over the batch, so that x has the scale of the activations
        relaxed = self._relax(graph, run, overrides, {name: len(x) * value for name, value in clamped.items()})
        overrides.skip_activations, overrides.weights = self.drop_derivative == "always", True
        for segment in graph.segments:
            run.add_parameter_gradients(segment.name, relaxed.x[segment.name] / len(x))
        if self.backward_weights == "learnt":
            self._learn_backward_weights(model)
        passes = relaxed.products / max(1, sum(set(s.reads) != {INPUT} for s in graph.segments))
        told = {"iterations": float(relaxed.iterations), "backward_passes": passes}
        metrics = {"residual": relaxed.residual, **{name: loss.new_tensor(value) for name, value in told.items()}}
        if self.measure_angle:
            metrics |= self._angles(graph, run, overrides, clamped)
        return {"loss": loss, "scores": run.output, **metrics}

    def _loss(
        self, graph: SegmentGraph, run: SegmentPass, x: Tensor, y: Tensor | tuple[Tensor, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its derivative by each output of the network."""
        losses = self.losses or [self.loss]
        labels = y if isinstance(y, tuple | list) else (y,) * len(losses)
        if not len(losses) == len(labels) == len(graph.outputs):
            raise SegmentError(
                f"the network has {len(graph.outputs)} outputs ({', '.join(graph.outputs)}), and there are {len(losses)} losses "
                f"and {len(labels)} labels: give losses, one for each output"
            )
        scores = [output.detach().requires_grad_() for output in run.outputs]
        with torch.enable_grad():
            loss = torch.stack([f.for_batch(x)(a, b) for f, a, b in zip(losses, scores, labels)]).sum()
        clamped: dict[str, Tensor] = {}
        for name, value in zip(graph.outputs, torch.autograd.grad(loss, scores)):  # a network may return a value twice
            clamped[name] = clamped[name] + value if name in clamped else value
        return loss.detach(), clamped

    def _relax(
        self, graph: SegmentGraph, run: SegmentPass, overrides: BackwardOverrides, clamped: Mapping[str, Tensor]
    ) -> Relaxed:
        overrides.exact, overrides.skip_activations, overrides.weights = False, self.drop_derivative != "never", False
        start = {s.name: run.values[s.name] for s in graph.segments}
        if self.start == "zero":
            start = {name: torch.zeros_like(value) for name, value in start.items()}

        def moved(x: Mapping[str, Tensor]) -> Callable[[str, Tensor], list[Tensor | None]]:
            return SegmentPass(graph, run.values[INPUT], overrides if self._needs_overrides() else None, at=x).vjp

        return relax(
            graph,
            run.vjp,
            start,
            clamped,
            step_size=self.step_size,
            sweeps=self._sweeps(graph, start, clamped),
            sweep=self.sweep,
            tolerance=self.tolerance,
            settled=self.settled,
            moved=None if self.frozen else moved,
        )

    def _sweeps(self, graph: SegmentGraph, start: Mapping[str, Tensor], clamped: Mapping[str, Tensor]) -> int:
        """Sweeps after which the start no longer matters, and the gradient has come through the depth."""
        settles = self.sweep == "settling"
        if self.iterations is not None and not (settles and self.tolerance):
            return self.iterations
        missing = self.tolerance if settles and self.tolerance else MISSING
        if self.start == "activation":
            tiny = torch.finfo(clamped[graph.output].dtype).tiny
            ratio = max(float(v.norm()) for v in start.values()) / max(tiny, *(float(v.norm()) for v in clamped.values()))
            missing /= 10.0 ** math.ceil(math.log10(max(ratio, 1.0))) if math.isfinite(ratio) else 1.0
        enough = enough_sweeps(max(graph.hops().values()), self.step_size, self.sweep, missing)
        return min(enough, self.iterations or enough)

    def _needs_overrides(self) -> bool:
        return self.backward_weights != "symmetric" or self.drop_derivative != "never"

    def _overrides(self, model: nn.Module) -> BackwardOverrides:
        if self.backward_weights == "symmetric":
            return BackwardOverrides({})
        if not self.own and products(model):
            raise ValueError("the backward weights do not exist yet: call rule.prepare(model, x) before training")
        held = {id(w): self.own[name.replace(".", "/")][0] for name, w in products(model).items()}  # type: ignore[index]
        return BackwardOverrides(held, activations=self.drop_derivative != "never")

    def _learn_backward_weights(self, model: nn.Module) -> None:
        """The same update as for the forward weight: dB = dW^T, stored in the shape of W."""
        for name, weight in products(model).items():
            (held,) = self.own[name.replace(".", "/")].parameters()
            held.grad = None if weight.grad is None else weight.grad.clone()

    def _angles(
        self, graph: SegmentGraph, run: SegmentPass, overrides: BackwardOverrides, clamped: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Degrees between ``.grad`` and backprop's gradient of the same forward pass."""
        overrides.exact, overrides.skip_activations = True, False
        ours = {s.name: [None if p.grad is None else p.grad for p in s.parameters()] for s in graph.segments}
        true = adjoints(graph, run.vjp, clamped)
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for segment in graph.segments:
            exact = run.parameter_gradients(segment.name, true[segment.name])
            both = [(a, b) for a, b in zip(ours[segment.name], exact) if a is not None and b is not None]
            if both:
                pairs[segment.name] = (torch.cat([a.flatten() for a, _ in both]), torch.cat([b.flatten() for _, b in both]))
        angles = {f"angle.{name}": degrees(a, b) for name, (a, b) in pairs.items()}
        overall = degrees(torch.cat([a for a, _ in pairs.values()]), torch.cat([b for _, b in pairs.values()]))
        return {"angle": overall, **angles}


def _refuse_changing(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, CHANGING) and getattr(module, "p", 1) != 0:
            raise SegmentError(
                f"{name} is {type(module).__name__}, whose output changes each time it runs, and with frozen: false it runs once "
                "per sweep: use frozen: true, or a network without it"
            )
