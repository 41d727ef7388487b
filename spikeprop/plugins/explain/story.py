"""``story``: one weight, what the loss does when it is nudged, and the paths of local derivatives whose products answer.

The loss is measured by running the network again (``losses_with``). A path leads from the weight to the loss, through one entry
of each value on the way; the gradient is the sum over all paths of the product of the local derivatives, dL/dw = sum of
dy_1/dw dy_2/dy_1 ... dL/dy_n. The paths with the largest products are followed, the others are their difference to the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spikeprop.plugins.explain.local import MATCHES, Columns, ReplayedCall, cotangent_of
from spikeprop.plugins.explain.step import TracedStep, TrainingStep, losses_with
from spikeprop.plugins.explain.trace import Trace, Value

NUDGES = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
WIDTH = 1e-6  # of the measured slope, relative to 1 + |w|
PATHS = 4  # followed at most
LAST = 12  # calls before the loss among which the weight of a longer network is chosen, so that its paths can be read
FEW = 3  # nudges of a large network to each side


@dataclass(frozen=True)
class _PathToLoss:
    """The start of a path: its last value and entry, the steps so far and the product of their local derivatives."""

    value: int
    entry: int
    product: float
    steps: tuple[dict[str, Any], ...] = ()


def story(subject: TrainingStep, step: TracedStep, complete: bool) -> dict[str, Any] | None:
    """The story as JSON values; None if no matrix of weights has a gradient."""
    trace = step.trace
    weights = [
        v for v in trace.values if v.role == "parameter" and v.needs_grad and v.tensor.dim() > 1 and v.cotangent is not None
    ]
    moving = [v for v in weights if cotangent_of(trace, v.index).any()]
    if not moving:
        return None
    late = {i for node in trace.nodes[-LAST:] for i in node.inputs} - {i for node in trace.nodes[:-LAST] for i in node.inputs}
    near = [v for v in moving if v.index in late or (complete and (subject.spiking or len(trace.nodes) <= LAST))]
    chosen = (near or moving[-1:])[0]
    entry = int(cotangent_of(trace, chosen.index).abs().argmax())
    weight, gradient = float(chosen.tensor.flatten()[entry]), float(cotangent_of(trace, chosen.index).flatten()[entry])
    h = WIDTH * (1 + abs(weight))
    nudges = NUDGES if complete else NUDGES[len(NUDGES) // 2 - FEW : len(NUDGES) // 2 + FEW]
    losses = losses_with(subject, chosen.name, entry, [weight + by for by in (-h, h, *nudges)])
    paths, all_ = _paths(trace, chosen, entry)
    total, first = sum(path.product for path in paths), _first_sum(trace, chosen, entry)
    return {
        "value": chosen.index,
        "entry": entry,
        "weight": weight,
        "gradient": gradient,
        "measured": (losses[1] - losses[0]) / (2 * h),
        "nudges": [{"by": by, "loss": loss} for by, loss in zip(nudges, losses[2:])],
        "paths": [{"steps": list(path.steps), "product": path.product} for path in paths],
        "others": None if all_ else gradient - total,
        "matches": _equal(gradient, *first) and (not all_ or _equal(gradient, total, sum(abs(p.product) for p in paths))),
    }


def _equal(gradient: float, total: float, size: float) -> bool:
    return abs(total - gradient) <= MATCHES * (size + abs(gradient)) + 1e-300


def _first_sum(trace: Trace, start: Value, entry: int) -> tuple[float, float]:
    """The first factor of every path times the gradient where it leads, summed, and the sum of their sizes."""
    total, size = 0.0, 0.0
    for node, slot in trace.consumers().get(start.index, []):
        columns = _columns(trace, node, slot)
        column = None if columns is None else columns.get(entry)
        if columns is not None and column is not None:
            total += float((column * columns.upstream).sum())
            size += float((column * columns.upstream).abs().sum())
    return total, size


def _paths(trace: Trace, start: Value, entry: int) -> tuple[list[_PathToLoss], bool]:
    """The paths with the largest products, and whether they are all paths with one that is not zero."""
    uses = trace.consumers()
    columns: dict[tuple[int, int], Columns | None] = {}
    beam, done, all_ = [_PathToLoss(start.index, entry, 1.0)], [], True
    while beam:
        longer: list[_PathToLoss] = []
        for path in beam:
            for node, slot in uses.get(path.value, []):
                if (node, slot) not in columns:
                    columns[node, slot] = _columns(trace, node, slot)
                known = columns[node, slot]
                if known is not None:
                    longer += _extended(trace, path, known, node)
        found = sorted([*longer, *done], key=lambda path: -_reach(trace, path))
        all_ = all_ and len(found) <= PATHS
        kept = found[:PATHS]
        done = [p for p in kept if p.value == trace.loss]
        beam = [p for p in kept if p.value != trace.loss]
    return done, all_


def _reach(trace: Trace, path: _PathToLoss) -> float:
    """The size of the sum of all paths that start like this one."""
    if path.value == trace.loss:
        return abs(path.product)
    return abs(path.product * float(cotangent_of(trace, path.value).flatten()[path.entry]))


def _columns(trace: Trace, node: int, slot: int) -> Columns | None:
    call = ReplayedCall(trace.nodes[node], trace)
    down = dict(zip(call.wanted, call.downs())).get(slot)
    return None if down is None else Columns(call, slot, down)


def _extended(trace: Trace, path: _PathToLoss, columns: Columns, node: int) -> list[_PathToLoss]:
    column = columns.get(path.entry)
    if column is None:
        return []
    found, start = [], 0
    for output in trace.nodes[node].outputs:
        cotangent = cotangent_of(trace, output).flatten()
        if output == trace.loss:
            cotangent = torch.ones(1, dtype=cotangent.dtype)
        local = column[start : start + len(cotangent)]
        start += len(cotangent)
        size = (local * cotangent).abs()
        for entry in size.topk(min(PATHS + 1, len(size))).indices.tolist():
            if size[entry] > 0:
                step = {"node": node, "from": path.entry, "to": entry, "output": output, "local": float(local[entry])}
                found.append(_PathToLoss(output, entry, path.product * float(local[entry]), (*path.steps, step)))
    return found
