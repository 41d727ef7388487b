"""``relax``: the dynamics of Activation Relaxation on a graph of segments (Millidge et al. 2020, equation 5 and algorithm 1).

Each segment's output h_s has a variable x_s; that of the network's output is fixed to dL/dh. A sweep updates every other s,

    x_s <- x_s - eta (x_s - sum over readers r of (dh_r/dh_s)^T x_r)

with backprop's adjoint dL/dh_s as fixed point: either all from the old values (Jacobi), or from the output down with the new
values (Gauss-Seidel). Starting from x = 0, a path of k hops to the output has contributed the fraction P(Bin(T, eta) >= k) of
its final value after T sweeps (Jacobi), or P(Bin(T + k - 1, eta) >= k) (Gauss-Seidel), because each hop must succeed once.
About T = (k + 3 sqrt k)/eta sweeps are therefore enough for a depth of k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spikeprop.learn.segments import INPUT, SegmentGraph

Sweep = Literal["jacobi", "gauss-seidel"]
Vjp = Callable[[str, Tensor], list[Tensor | None]]


@dataclass(frozen=True)
class Relaxed:
    """Result of the relaxation.

    Attributes:
        x: final value of each segment's variable.
        residual: norm of the last sweep's (x - target) over that of the targets; 0 at the fixed point.
        iterations: number of sweeps.
    """

    x: dict[str, Tensor]
    residual: Tensor
    iterations: int


def enough_sweeps(hops: int, step_size: float, sweep: Sweep) -> int:
    """Sweeps after which a path of ``hops`` hops has contributed all but about a thousandth of its final value."""
    if step_size == 1.0:
        return max(1, hops if sweep == "jacobi" else 1)
    sweeps = math.ceil((hops + 3 * math.sqrt(hops)) / step_size)
    return max(1, sweeps - (hops - 1 if sweep == "gauss-seidel" else 0))


def relax(
    graph: SegmentGraph,
    vjp: Vjp,
    start: Mapping[str, Tensor],
    clamped: Tensor,
    *,
    step_size: float,
    sweeps: int,
    sweep: Sweep = "jacobi",
    tolerance: float | None = None,
    moved: Callable[[Mapping[str, Tensor]], Vjp] | None = None,
) -> Relaxed:
    """Relax the activations of all segments but the last.

    Args:
        graph: segments of the network.
        vjp: (segment, cotangent of its output) to the cotangents of its inputs.
        start: initial value of each segment's variable.
        clamped: dL/d output, constant.
        step_size: eta, in (0, 1].
        sweeps: maximum number, at least 1.
        sweep: "jacobi" or "gauss-seidel".
        tolerance: stop as soon as the residual is below it.
        moved: makes the vector-Jacobian products at the present x, once per sweep; None for a frozen forward pass.
    """
    x = {**start, graph.output: clamped}
    step = _jacobi if sweep == "jacobi" else _gauss_seidel
    residual, done = clamped.new_zeros(()), 0
    while done < sweeps:
        before = x
        x, target = step(graph, vjp if moved is None else moved(x), before, step_size)
        done += 1
        if tolerance is not None or done == sweeps:  # expensive: a norm over all variables
            residual = _residual(before, target)
            if tolerance is not None and float(residual) < tolerance:
                break
    return Relaxed(x, residual, done)


def adjoints(graph: SegmentGraph, vjp: Vjp, clamped: Tensor) -> dict[str, Tensor]:
    """The fixed point: backprop's dL/dh_s, last segment first."""
    found = {graph.output: clamped}
    for segment in reversed(graph.segments):
        _accumulate(found, segment.reads, vjp(segment.name, found[segment.name]))
    return found


def _jacobi(graph: SegmentGraph, vjp: Vjp, x: dict[str, Tensor], eta: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    target: dict[str, Tensor] = {}
    for segment in graph.segments:
        if set(segment.reads) != {INPUT}:
            _accumulate(target, segment.reads, vjp(segment.name, x[segment.name]))
    moved = {name: torch.lerp(x[name], goal, eta) for name, goal in target.items()}
    return {**moved, graph.output: x[graph.output]}, target


def _gauss_seidel(graph: SegmentGraph, vjp: Vjp, x: dict[str, Tensor], eta: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    target: dict[str, Tensor] = {}
    new = {graph.output: x[graph.output]}
    for segment in reversed(graph.segments):
        if segment.name != graph.output:
            new[segment.name] = torch.lerp(x[segment.name], target[segment.name], eta)
        if set(segment.reads) != {INPUT}:
            _accumulate(target, segment.reads, vjp(segment.name, new[segment.name]))
    return new, target


def _accumulate(into: dict[str, Tensor], names: tuple[str, ...], values: list[Tensor | None]) -> None:
    for name, value in zip(names, values):
        if value is not None:
            into[name] = into[name] + value if name in into else value


def _residual(x: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    if not target:
        return next(iter(x.values())).new_zeros(())
    off = sum(((x[name] - goal).square().sum() for name, goal in target.items()), start=torch.zeros(()))
    size = sum((goal.square().sum() for goal in target.values()), start=torch.zeros(()))
    return (off / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()
