"""Other learning rules beside backpropagation, on the same network, samples and weights: angle and ratio of norms by layer.

A rule that iterates is also stopped after 1, 2, 3, 5, ... of its iterations, each time from the start with the same random
numbers, which is what a page animates. A rule that cuts the network tells its segments.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.errors import ExplainError
from spikeprop.learn import LearningRule
from spikeprop.plugins.explain.step import TracedStep, TrainingStep

Gradients = dict[str, Tensor]
FRAMES = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377)


def variants(subject: TrainingStep, step: TracedStep, rules: Mapping[str, LearningRule]) -> list[dict[str, Any]]:
    """What a page shows of each rule.

    Raises:
        ExplainError: the subject's loss is not the cross-entropy of labels, which rules are made for.
    """
    if rules and subject.loss not in (
        F.cross_entropy,
        TrainingStep.loss,
    ):  # the second where a library has wrapped the first since
        raise ExplainError("learning rules take class labels: a variant needs the cross-entropy as the subject's loss")
    true = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    return [_variant(name, rule, subject, true) for name, rule in rules.items()]


def _variant(name: str, rule: LearningRule, subject: TrainingStep, true: Gradients) -> dict[str, Any]:
    found, told = _gradients(rule, subject)
    numbers = ", ".join(f"{key} {float(value):.4g}" for key, value in told.items() if key != "scores" and value.numel() == 1)
    shown = {"name": name, "about": f"{rule!r}: {numbers}".replace("'", ""), "layers": _compare(found, true)}
    frames = _frames(rule, subject, true, told)
    if frames:
        shown |= {"counts": "iterations", "frames": frames}
    segments = _segments(rule, subject)
    return shown | ({"segments": segments} if segments else {})


def _gradients(rule: LearningRule, subject: TrainingStep) -> tuple[Gradients, dict[str, Tensor]]:
    """A rule's gradients of a copy of the network, and what it tells."""
    model, x, y = subject.double()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(subject.seed)
        rule.prepare(model, x)
        rule.own.double()
        torch.manual_seed(subject.seed)
        told = rule.step(model, x, y)
    return {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}, told


def _frames(rule: LearningRule, subject: TrainingStep, true: Gradients, told: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The rule stopped earlier and earlier, where it counts iterations."""
    if "iterations" not in {f.name for f in dataclasses.fields(rule)}:
        return []
    last = int(told["iterations"]) if "iterations" in told else int(rule.iterations)  # type: ignore[attr-defined]
    frames = []
    for at in sorted({*(n for n in FRAMES if n < last), last}):
        stopped = dataclasses.replace(rule, iterations=at)  # type: ignore[call-arg]
        frames.append({"at": at, "layers": _compare(_gradients(stopped, subject)[0], true)})
    return frames


def _segments(rule: LearningRule, subject: TrainingStep) -> list[dict[str, str]]:
    """The pieces that a rule cuts the network into, and whose loss each follows."""
    cut: Any = getattr(rule, "graph", None)
    if cut is None:
        return []
    graph = cut(subject.double()[0])
    places: Any = getattr(rule, "places", None)
    if places is None:
        return [{"name": s.name, "follows": f"what {_readers(graph, s.name)} relaxed to"} for s in graph.segments]
    names = [s.name for s in graph.segments]
    losses = [f"the head after {name}" for name in names[:-1]] + ["the network's own loss"]
    return [{"name": name, "follows": losses[place.target]} for name, place in zip(names, places(graph))]


def _readers(graph: Any, name: str) -> str:
    return ", ".join(s.name for s in graph.readers(name)) or "the loss"


def _compare(found: Gradients, true: Gradients) -> list[dict[str, Any]]:
    """Angle in degrees and ratio of norms, by module and over all."""
    layers: dict[str, list[str]] = {}
    for name in true:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return [_compared(layer, names, found, true) for layer, names in [*layers.items(), ("all layers", list(true))]]


def _compared(layer: str, names: list[str], found: Gradients, true: Gradients) -> dict[str, Any]:
    a = torch.cat([found.get(n, torch.zeros_like(true[n])).flatten() for n in names])
    b = torch.cat([true[n].flatten() for n in names])
    norms = float(a.norm()), float(b.norm())
    if min(norms) == 0:
        return {"layer": layer, "angle": None, "ratio": None if norms[1] == 0 else norms[0] / norms[1], "norm": norms[0]}
    cosine = min(1.0, max(-1.0, float(a @ b) / (norms[0] * norms[1])))
    return {"layer": layer, "angle": math.degrees(math.acos(cosine)), "ratio": norms[0] / norms[1], "norm": norms[0]}
