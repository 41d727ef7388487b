"""Learning rules compared with backpropagation on the same network, samples and weights: angle and ratio of norms by layer.

An iterative rule is also stopped after 1, 2, 3, 5, ... iterations, each time from the start with the same random numbers; a
page shows this as an animation. For a rule that cuts the network, its segments are listed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.errors import ExplainError
from spikeprop.learn import LearningRule
from spikeprop.plugins.angles import degrees
from spikeprop.plugins.explain.step import TracedStep, TrainingStep

Gradients = dict[str, Tensor]
FRAMES = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377)


def variants(subject: TrainingStep, step: TracedStep, rules: Mapping[str, LearningRule]) -> list[dict[str, Any]]:
    """The data of each rule for a page.

    Raises:
        ExplainError: the loss is not the cross-entropy of labels, which learning rules require.
    """
    if rules and subject.loss not in (
        F.cross_entropy,
        TrainingStep.loss,
    ):  # the second if a library has wrapped the first
        raise ExplainError("learning rules need class labels: the loss must be the cross-entropy")
    if rules and isinstance(subject.x, tuple | dict):
        raise ExplainError("learning rules take one input tensor; this network has several")
    exact = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    return [_variant(name, rule, subject, exact) for name, rule in rules.items()]


def _variant(name: str, rule: LearningRule, subject: TrainingStep, exact: Gradients) -> dict[str, Any]:
    found, metrics = _gradients(rule, subject)
    numbers = ", ".join(f"{key} {float(value):.4g}" for key, value in metrics.items() if key != "scores" and value.numel() == 1)
    shown = {"name": name, "about": f"{rule!r}: {numbers}".replace("'", ""), "layers": _compare(found, exact)}
    frames = _frames(rule, subject, exact, metrics)
    if frames:
        shown |= {"counts": "iterations", "frames": frames}
    segments = _segments(rule, subject)
    return shown | ({"segments": segments} if segments else {})


def _gradients(rule: LearningRule, subject: TrainingStep) -> tuple[Gradients, dict[str, Tensor]]:
    """Gradients of a rule on a copy of the network, and its metrics."""
    model, x, y = subject.double()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(subject.seed)
        rule.prepare(model, x)
        rule.own.double()
        torch.manual_seed(subject.seed)
        metrics = rule.step(model, x, y)
    return {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}, metrics


def _frames(rule: LearningRule, subject: TrainingStep, exact: Gradients, metrics: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The rule stopped after fewer iterations, if it is iterative."""
    if "iterations" not in {f.name for f in dataclasses.fields(rule)}:
        return []
    last = int(metrics["iterations"]) if "iterations" in metrics else int(rule.iterations)  # type: ignore[attr-defined]
    frames = []
    for at in sorted({*(n for n in FRAMES if n < last), last}):
        stopped = dataclasses.replace(rule, iterations=at)  # type: ignore[call-arg]
        frames.append({"at": at, "layers": _compare(_gradients(stopped, subject)[0], exact)})
    return frames


def _segments(rule: LearningRule, subject: TrainingStep) -> list[dict[str, str]]:
    """The segments of the network, and the loss that each follows, for a rule that cuts the network."""
    cut: Any = getattr(rule, "graph", None)
    if cut is None:
        return []
    graph = cut(subject.double()[0])
    places: Any = getattr(rule, "places", None)
    if places is None:
        return [{"name": s.name, "follows": f"the relaxed values of {_readers(graph, s.name)}"} for s in graph.segments]
    names = [s.name for s in graph.segments]
    losses = [f"the head after {name}" for name in names[:-1]] + ["the network's own loss"]
    return [{"name": name, "follows": _followed(place, losses)} for name, place in zip(names, places(graph))]


def _followed(place: Any, losses: list[str]) -> str:
    followed = " and ".join(losses[j] for j in place.weights)
    return followed if len(place.weights) == 1 else f"the {place.combine} of {followed}"


def _readers(graph: Any, name: str) -> str:
    return ", ".join(s.name for s in graph.readers(name)) or "the loss"


def _compare(found: Gradients, exact: Gradients) -> list[dict[str, Any]]:
    """Angle in degrees and ratio of norms, by module and overall."""
    layers: dict[str, list[str]] = {}
    for name in exact:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return [_compared(layer, names, found, exact) for layer, names in [*layers.items(), ("all layers", list(exact))]]


def _compared(layer: str, names: list[str], found: Gradients, exact: Gradients) -> dict[str, Any]:
    a = torch.cat([found.get(n, torch.zeros_like(exact[n])).flatten() for n in names])
    b = torch.cat([exact[n].flatten() for n in names])
    norms = float(a.norm()), float(b.norm())
    if min(norms) == 0:
        return {"layer": layer, "angle": None, "ratio": None if norms[1] == 0 else norms[0] / norms[1], "norm": norms[0]}
    return {"layer": layer, "angle": float(degrees(a, b)), "ratio": norms[0] / norms[1], "norm": norms[0]}
