"""A traced step as JSON for a page: values, calls, edges, checks, and for spiking networks the course of neurons through time.

A complete page contains every entry of every tensor with all digits, so it can be replayed; larger pages contain a sample of each
tensor with its shape and statistics.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from spikeprop.plugins.derivatives import CARDS
from spikeprop.plugins.explain.forms import FORMS, card_of, slope_of
from spikeprop.plugins.explain.health import MEANINGS, flags_of, unit_axis
from spikeprop.plugins.explain.kinds import kind_of
from spikeprop.plugins.explain.local import MATCHES, Edge, Local, cotangent_of, local_of
from spikeprop.plugins.explain.program import program
from spikeprop.plugins.explain.step import TracedStep, TrainingStep
from spikeprop.plugins.explain.story import story
from spikeprop.plugins.explain.trace import Node, Trace

COMPLETE = 40_000  # maximum of numbers in all tensors for a complete page
SAMPLE = 48  # entries of a tensor in a larger page
DIGITS = 7  # significant digits of sampled entries
BAKED = ("rearrange", "factor")  # kinds whose settings are computed from masks and indices
PIXELS = 64  # rows and columns of the picture of an input
NEURONS = 6  # neurons per layer whose course through time is drawn


def page_data(subject: TrainingStep, step: TracedStep, limit: int = COMPLETE) -> dict[str, Any]:
    """The data of a page, as JSON values.

    Args:
        subject: the training step.
        step: its trace.
        limit: maximum of numbers for a complete page.
    """
    trace = step.trace
    complete = sum(v.tensor.numel() for v in trace.values) <= limit
    settings = {node.index: kind_of(node, trace) for node in trace.nodes}
    kinds = {index: kind for index, (kind, _) in settings.items()}
    for node in trace.nodes:
        if kinds[node.index] == "relu":
            settings[node.index][1]["units"] = unit_axis(node, trace, kinds)
    locals_ = {node.index: local_of(node, trace, *((3, 6) if complete else (1, 4))) for node in trace.nodes}
    writer = _Writer(trace, complete, step.itemsize)
    flags = flags_of(trace, kinds)
    nodes = [writer.node(n, *settings[n.index], locals_[n.index], flags[n.index]) for n in trace.nodes]
    firing = {n["module"]: n["card"] for n in nodes if n["kind"] in ("fire", "grade")}
    for node in nodes:  # the other calls of a neuron have the card of its spikes
        if node["kind"] in ("integrate", "reset"):
            node["card"] = firing.get(node["module"], node["card"])
    cards = {node["card"] for node in nodes if node["card"]} | ({"add"} if writer.fans_out() else set())
    return {
        "format": 1,
        "name": subject.name,
        "spiking": subject.spiking,
        "timesteps": subject.steps,
        "training": subject.training,
        "samples": subject.samples,
        "complete": complete,
        "sampled": None if complete else SAMPLE,
        "loss": step.loss,
        "loss_value": trace.loss,
        "values": [writer.value(i) for i in range(len(trace.values))],
        "nodes": nodes,
        "edges": [writer.edge(e) for local in locals_.values() for e in local.edges],
        "cards": {key: CARDS[key].describe() for key in CARDS if key in cards},
        "meanings": MEANINGS,
        "unknown": sorted({n["name"] for n in nodes if n["kind"] == "opaque"}),
        "followed": {index: {"by": by, "inputs": inputs} for index, (by, inputs) in trace.followed.items()},
        "fixed": _fixed(trace, kinds),
        "neurons": _courses(trace, settings),
        "checks": _checks(locals_, writer.sums),
        "story": story(subject, step, complete),
        "program": program(trace, settings) if complete else {"reason": "the page contains only a sample of each tensor"},
    }


def _fixed(trace: Trace, kinds: dict[int, str]) -> list[str]:
    """What stays as it was after an edit, though the network would compute it again: the reasons why a page is not editable."""
    found = [f"{name} decides with one of these numbers outside of the step" for name in trace.left]
    for node in trace.nodes:
        for index in node.inputs:
            if index in trace.fixed:
                found.append(f"{node.name} reads what {trace.fixed[index]} computed from these numbers without a gradient")
            elif index in trace.followed and kinds[node.index] in BAKED and not trace.values[index].tensor.is_floating_point():
                found.append(f"{node.name} selects by what {trace.followed[index][0]} computed from these numbers")
    return list(dict.fromkeys(found))


class _Writer:
    """Turns parts of a trace into JSON values."""

    def __init__(self, trace: Trace, complete: bool, itemsize: int):
        self.trace, self.complete, self.itemsize = trace, complete, itemsize
        self.consumers = trace.consumers()
        self.sums: dict[int, bool] = {}
        self.added: dict[int, Tensor] = {}

    def fans_out(self) -> bool:
        return any(len(uses) > 1 for uses in self.consumers.values())

    def value(self, index: int) -> dict[str, Any]:
        value = self.trace.values[index]
        found: dict[str, Any] = {
            "id": index,
            "name": value.name,
            "role": value.role,
            "shape": list(value.tensor.shape),
            "integer": not value.tensor.is_floating_point(),
            "data": self.numbers(value.tensor),
        }
        if value.role == "input" and value.tensor.dim() == 4 and value.tensor.shape[1] in (1, 3) and value.tensor.numel():
            found["picture"] = _picture(value.tensor[:1].detach())
        if value.needs_grad:
            found["cotangent"] = self.numbers(cotangent_of(self.trace, index))
            found["uses"] = len(self.consumers.get(index, []))
            found["sum_matches"] = self.sums.setdefault(index, self._sum_matches(index))
        return found

    def _sum_matches(self, index: int) -> bool:
        """Whether the edges at a value add up to the cotangent of autograd."""
        exact = cotangent_of(self.trace, index)
        total = self.added.get(index, torch.ones_like(exact) if index == self.trace.loss else torch.zeros_like(exact))
        return bool((total - exact).abs().max() <= MATCHES * (1e-3 + float(exact.abs().max()))) if exact.numel() else True

    def node(self, node: Node, kind: str, settings: dict[str, Any], local: Local, flags: list[str]) -> dict[str, Any]:
        for edge in local.edges:
            value = node.inputs[edge.slot]
            self.added[value] = self.added[value] + edge.downstream if value in self.added else edge.downstream
        kept = (
            settings if self.complete else {k: v for k, v in settings.items() if k not in ("index", "factor", "rows", "columns")}
        )
        return {
            "id": node.index,
            "name": node.name.strip("_"),
            "kind": kind,
            "settings": kept,
            "card": "alif" if kind == "fire" and node.kind_of_module == "ALIF" else card_of(kind, settings),
            "module": node.module,
            "module_kind": node.kind_of_module,
            "step": node.step,
            "source": node.source,
            "inputs": node.inputs,
            "outputs": node.outputs,
            "saved": node.saved * self.itemsize // 8,
            "flags": flags,
            "difference": None if local.difference is None else asdict(local.difference),
        }

    def edge(self, edge: Edge) -> dict[str, Any]:
        node = self.trace.nodes[edge.node]
        value = node.inputs[edge.slot]
        only = len(self.consumers.get(value, [])) == 1  # then the downstream is the complete cotangent of the value
        return {
            "node": edge.node,
            "slot": edge.slot,
            "value": value,
            "downstream": None if only else self.numbers(edge.downstream),
            "sums": [asdict(s) for s in edge.sums],
        }

    def numbers(self, tensor: Tensor) -> dict[str, Any]:
        """All entries, or a sample with statistics."""
        flat = tensor.detach().flatten()
        if self.complete or len(flat) <= SAMPLE:
            return {"all": [self.number(x) for x in flat.tolist()]}
        places = torch.linspace(0, len(flat) - 1, SAMPLE).long().unique()
        number = flat.double()
        return {
            "places": places.tolist(),
            "some": [self.number(x) for x in flat[places].tolist()],
            "least": self.number(float(number.min())),
            "most": self.number(float(number.max())),
            "mean": self.number(float(number.mean())),
            "rms": self.number(float(number.square().mean().sqrt())),
            "zeros": self.number(float((number == 0).double().mean())),
        }

    def number(self, x: float | int) -> float | int:
        if isinstance(x, int) or x.is_integer():
            return int(x) if abs(x) < 2**53 else x
        return x if self.complete else float(f"{x:.{DIGITS}g}")


def _picture(image: Tensor) -> dict[str, Any]:
    """An image (1, C, H, W) of at most 64 rows and columns, from 0 to 255."""
    height, width = (min(PIXELS, side) for side in image.shape[2:])
    small = torch.nn.functional.adaptive_avg_pool2d(image.double(), (height, width))[0]
    least, most = float(small.min()), float(small.max())
    pixels = (small - least) * (255 / (most - least or 1.0))
    return {"shape": list(small.shape), "pixels": pixels.round().int().flatten().tolist()}


def _courses(trace: Trace, settings: dict[int, tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each spiking layer: potential, spikes and surrogate of a few neurons at every step, for the first sample."""
    layers: dict[str, list[Node]] = {}
    for node in trace.nodes:
        if settings[node.index][0] == "fire":
            layers.setdefault(node.module, []).append(node)
    return [_course(module, nodes, trace, settings) for module, nodes in layers.items()]


def _course(module: str, nodes: list[Node], trace: Trace, settings: dict[int, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    inputs = [[trace.values[i].tensor for i in node.inputs] for node in nodes]
    u = torch.stack([i[0][0].flatten() for i in inputs])
    spikes = torch.stack([trace.values[node.outputs[0]].tensor[0].flatten() for node in nodes])
    slopes = torch.stack([slope_of(i, settings[n.index][1]).expand_as(i[0])[0].flatten() for i, n in zip(inputs, nodes)])
    theta = inputs[0][1].expand_as(inputs[0][0])[0].flatten()
    count = min(NEURONS, u.shape[1])
    chosen = (spikes.sum(0) + u.amax(0).sigmoid() / 2).topk(count).indices.sort().values  # the most active ones
    rounded = lambda t: [[float(f"{x:.6g}") for x in row] for row in t[:, chosen].T.tolist()]  # noqa: E731
    return {
        "module": module,
        "nodes": [node.index for node in nodes],
        "steps": [node.step for node in nodes],
        "neurons": chosen.tolist(),
        "of": u.shape[1],
        "surrogate": settings[nodes[0].index][1]["surrogate"],
        "theta": [float(f"{x:.6g}") for x in theta[chosen].tolist()],
        "u": rounded(u),
        "spikes": rounded(spikes),
        "slopes": rounded(slopes),
        "after": rounded(_after(nodes, trace, u)),
        "cotangents": rounded(torch.stack([cotangent_of(trace, node.inputs[0])[0].flatten() for node in nodes])),
        "rate": float(f"{float(spikes.mean()):.6g}"),
    }


def _after(nodes: list[Node], trace: Trace, u: Tensor) -> Tensor:
    """Potentials after the reset of each step, where the trace has one."""
    found = u.clone()
    for k, node in enumerate(nodes):
        for reset in trace.nodes[node.index :]:
            if reset.name == "reset" and reset.inputs[0] == node.inputs[0]:
                found[k] = trace.values[reset.outputs[0]].tensor[0].flatten()
                break
    return found


def _checks(locals_: dict[int, Local], sums: dict[int, bool]) -> dict[str, Any]:
    """Number of edges with numbers, and of checks that hold."""
    edges = [e for local in locals_.values() for e in local.edges if e.downstream.numel()]
    verdicts = [local.difference.verdict for local in locals_.values() if local.difference is not None]
    return {
        "edges": len(edges),
        "edges_with_numbers": sum(1 for e in edges if e.sums),
        "edges_that_match": sum(1 for e in edges if e.sums and all(s.matches for s in e.sums)),
        "values": len(sums),
        "values_whose_edges_add_up": sum(sums.values()),
        "differences": {v: verdicts.count(v) for v in ("agrees", "differs", "kink", "surrogate")},
        "known_kinds": sorted(FORMS),
    }
