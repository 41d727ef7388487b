"""``ActivationRelaxation``: Millidge, Tschantz, Seth and Buckley 2020, arXiv:2009.05359, and its relaxed forms.

After one forward pass, which is frozen, activations relax to backprop's adjoints (``relax``); then each segment's parameters take
(dh/dtheta)^T x, which needs nothing but that segment. Relaxed forms: backward weights of their own, learnt by the same updates as
the forward ones or left as they came (feedback alignment); the derivative of non-linearities left out of the relaxation or
altogether; the pass not frozen. Ours differs from the authors' code in three points: biases have gradients and count in the
derivative; the loss is a mean over the batch (what relaxes is that of the sum); sweeps are Jacobi's by default, as in their
numerical test, where their training sweeps down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn import CrossEntropy, LearningRule, Loss
from spikeprop.learn.segments import INPUT, SegmentGraph, SegmentPass, segment_graph
from spikeprop.plugins.activation_relaxation.faces import Faces
from spikeprop.plugins.activation_relaxation.relax import Relaxed, adjoints, enough_sweeps, relax

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANGING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True, kw_only=True)
class ActivationRelaxation(LearningRule):
    """Gradients by relaxing activations.

    Attributes:
        loss: any loss of scores and labels.
        step_size: eta of the relaxation, in (0, 1].
        iterations: sweeps (the largest number, with ``tolerance``); null: enough for the network's depth, (k + 3 sqrt k)/eta.
        tolerance: stop once the relative residual is below this; null: do all sweeps.
        sweep: all segments at once, or from the output down.
        start: where activations start: as the forward pass left them (the paper), or at zero.
        backward_weights: "symmetric" (W^T), "learnt" or "fixed" weights of their own for linear layers and convolutions.
        backward_std: of those at first (the authors' 0.05); null: that of each forward weight.
        drop_derivative: of non-linearities, "never", in the "relaxation" (the authors' MLP) or "always" (their CNN).
        frozen: keep the Jacobians of the forward pass; otherwise take them at the present activations, whose network must
            have neither batch-norm nor dropout.
        cuts: None for a segment for each layer; or as in ``segment_graph``.
        measure_angle: tell the angle in degrees between the gradient and backprop's, by segment and over all.
    """

    loss: Loss = field(default_factory=CrossEntropy)
    step_size: float = 0.1
    iterations: int | None = None
    tolerance: float | None = None
    sweep: Literal["jacobi", "gauss-seidel"] = "jacobi"
    start: Literal["activation", "zero"] = "activation"
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
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size is {self.step_size}; it lies in (0, 1]")
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; use at least 1, or null for as many as the depth needs")
        for name in ("tolerance", "backward_std"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it is positive, or null")

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        """Cut the network, and draw its backward weights where it has such."""
        self.graph(model)
        if self.backward_weights == "symmetric":
            return
        for name, weight in _products(model).items():
            std = float(weight.detach().std()) if self.backward_std is None else self.backward_std
            held = nn.ParameterList([nn.Parameter(torch.randn_like(weight) * std, self.backward_weights == "learnt")])
            self.own[name.replace(".", "/")] = held

    def graph(self, model: nn.Module) -> SegmentGraph:
        """The network's segments."""
        if model not in self._graphs:
            if not self.frozen:
                _refuse_changing(model)
            self._graphs[model] = segment_graph(model, self.cuts)
        return self._graphs[model]

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        graph, faces = self.graph(model), self._faces(model)
        run = SegmentPass(graph, x, faces if self._needs_faces() else None)
        scores = run.output.detach().requires_grad_()
        loss = self.loss(scores, y)
        (clamped,) = torch.autograd.grad(loss, scores)
        relaxed = self._relax(graph, run, faces, len(x) * clamped)  # a sum over the batch, so that x is of the activations' size
        faces.skip_activations, faces.weights = self.drop_derivative == "always", True
        for segment in graph.segments:
            run.add_parameter_gradients(segment.name, relaxed.x[segment.name] / len(x))
        if self.backward_weights == "learnt":
            self._learn_backward_weights(model)
        told = {"residual": relaxed.residual, "iterations": torch.tensor(float(relaxed.iterations))}
        if self.measure_angle:
            told |= self._angles(graph, run, faces, clamped)
        return {"loss": loss.detach(), "scores": run.output, **told}

    def _relax(self, graph: SegmentGraph, run: SegmentPass, faces: Faces, clamped: Tensor) -> Relaxed:
        faces.exact, faces.skip_activations, faces.weights = False, self.drop_derivative != "never", False
        start = {s.name: run.values[s.name] for s in graph.segments}
        if self.start == "zero":
            start = {name: torch.zeros_like(value) for name, value in start.items()}
        sweeps = self.iterations or enough_sweeps(max(graph.hops().values()), self.step_size, self.sweep)

        def moved(x: Mapping[str, Tensor]) -> Callable[[str, Tensor], list[Tensor | None]]:
            return SegmentPass(graph, run.values[INPUT], faces if self._needs_faces() else None, at=x).vjp

        return relax(
            graph,
            run.vjp,
            start,
            clamped,
            step_size=self.step_size,
            sweeps=sweeps,
            sweep=self.sweep,
            tolerance=self.tolerance,
            moved=None if self.frozen else moved,
        )

    def _needs_faces(self) -> bool:
        return self.backward_weights != "symmetric" or self.drop_derivative != "never"

    def _faces(self, model: nn.Module) -> Faces:
        if self.backward_weights == "symmetric":
            return Faces({})
        if not self.own:
            raise ValueError("the backward weights have not been made: call rule.prepare(model, x) before training")
        held = {id(w): self.own[name.replace(".", "/")][0] for name, w in _products(model).items()}  # type: ignore[index]
        return Faces(held, activations=self.drop_derivative != "never")

    def _learn_backward_weights(self, model: nn.Module) -> None:
        """The same update as the forward weight's: dB = dW^T, kept in the shape of W."""
        for name, weight in _products(model).items():
            (held,) = self.own[name.replace(".", "/")].parameters()
            held.grad = None if weight.grad is None else weight.grad.clone()

    def _angles(self, graph: SegmentGraph, run: SegmentPass, faces: Faces, clamped: Tensor) -> dict[str, Tensor]:
        """Degrees between ``.grad`` as it stands and backprop's gradient of the same pass."""
        faces.exact, faces.skip_activations = True, False
        ours = {s.name: [None if p.grad is None else p.grad for p in s.parameters()] for s in graph.segments}
        true = adjoints(graph, run.vjp, clamped)
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for segment in graph.segments:
            exact = run.parameter_gradients(segment.name, true[segment.name])
            both = [(a, b) for a, b in zip(ours[segment.name], exact) if a is not None and b is not None]
            if both:
                pairs[segment.name] = (torch.cat([a.flatten() for a, _ in both]), torch.cat([b.flatten() for _, b in both]))
        told = {f"angle.{name}": _degrees(a, b) for name, (a, b) in pairs.items()}
        whole = _degrees(torch.cat([a for a, _ in pairs.values()]), torch.cat([b for _, b in pairs.values()]))
        return {"angle": whole, **told}


def _products(model: nn.Module) -> dict[str, Tensor]:
    """Weights by the name of their module."""
    return {name: m.weight for name, m in model.named_modules() if isinstance(m, PRODUCTS)}


def _refuse_changing(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, CHANGING) and getattr(module, "p", 1) != 0:
            raise SegmentError(
                f"{name} is {type(module).__name__}, which answers differently each time it runs, and a pass that is not frozen "
                "runs it once a sweep: use frozen: true, or a network without it"
            )


def _degrees(a: Tensor, b: Tensor) -> Tensor:
    cosine = (a @ b) / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)
    return cosine.clamp(-1, 1).arccos() * (180 / math.pi)
