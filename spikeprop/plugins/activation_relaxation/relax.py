"""``relax``: the dynamics of Activation Relaxation on a graph of segments (Millidge et al. 2020, equation 5 and algorithm 1).

Each segment's output h_s has a variable x_s; that of an output of the network is fixed to dL/dh. An update of another one is

    x_s <- x_s - eta (x_s - sum over readers r of (dh_r/dh_s)^T x_r)

with backprop's adjoint dL/dh_s as fixed point. The order of the updates is free: "jacobi" updates all from the old values;
"gauss-seidel" updates each once, from the output down, with the new values; "settling" updates each n times before those below
it, whose n updates towards a constant target are one, x <- x + (1 - (1 - eta)^n) (target - x). From x = 0, a path of k hops to
the output has after T sweeps contributed the fraction P(Bin(T, eta) >= k) of its final value (Jacobi), P(Bin(T + k - 1, eta) >=
k) (Gauss-Seidel), or (1 - (1 - eta)^n)^k (settling), because each hop must succeed once; what is missing is what remains of
other initial values.

With a frozen forward pass the vector-Jacobian products are linear, so that of a segment whose variable has settled, up to a
factor, since its last one is not computed again: from zero, a chain needs one product a segment for any number of sweeps.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from spikeprop.learn.segments import INPUT, SegmentGraph

Sweep = Literal["settling", "gauss-seidel", "jacobi"]
Vjp = Callable[[str, Tensor], list[Tensor | None]]
MISSING = 1e-3  # fraction of a path's contribution that may be missing after enough sweeps
MOST_SWEEPS = 10**9


@dataclass(frozen=True)
class Relaxed:
    """Result of the relaxation.

    Attributes:
        x: final value of each segment's variable.
        residual: norm of x - target over that of the targets, 0 at the fixed point; with Jacobi before the last sweep.
        iterations: number of sweeps; of a settling, updates of each segment.
        products: vector-Jacobian products that were computed.
    """

    x: dict[str, Tensor]
    residual: Tensor
    iterations: int
    products: int


@dataclass
class Products:
    """Vector-Jacobian products of a frozen pass, of which those of settled segments are not computed again.

    Attributes:
        vjp: (segment, cotangent of its output) to the cotangents of its inputs.
        settled: relative change of a segment's variable, beside a common factor, up to which its last product is scaled.
        computed: number of products so far.
    """

    vjp: Vjp
    settled: float
    computed: int = 0
    _last: dict[str, tuple[Tensor, Tensor, list[Tensor | None]]] = field(default_factory=dict)

    def __call__(self, name: str, x: Tensor) -> list[Tensor | None]:
        size = x.norm()
        if not size:
            return []  # linear: zero
        if name in self._last:
            before, norm, found = self._last[name]
            factor = torch.dot(x.flatten(), before.flatten()) / norm.square()
            if (x - factor * before).norm() <= self.settled * size:
                return [None if value is None else factor * value for value in found]
        self.computed += 1
        found = self.vjp(name, x)
        self._last[name] = (x, size, found)
        return found


@functools.cache
def enough_sweeps(hops: int, step_size: float, sweep: Sweep, missing: float = MISSING) -> int:
    """Sweeps (of a settling: updates of each segment) after which paths of up to ``hops`` hops lack at most ``missing``."""
    if hops == 0:
        return 1
    if step_size == 1.0:
        return hops if sweep == "jacobi" else 1
    if sweep == "settling":
        return max(1, math.ceil(math.log(missing / hops) / math.log1p(-step_size)))
    sweeps = range(hops, MOST_SWEEPS)
    index = bisect_left(sweeps, True, key=lambda n: _log_short(n, hops, step_size) <= math.log(missing))
    if index == len(sweeps):
        raise ValueError(f"step_size is {step_size}, which needs more than {MOST_SWEEPS:,} sweeps for {hops} segments: raise it")
    return sweeps[index] - (hops - 1 if sweep == "gauss-seidel" else 0)


def _log_short(tries: int, hops: int, eta: float) -> float:
    """log P(Bin(tries, eta) < hops)."""
    n, k = torch.tensor(float(tries), dtype=torch.float64), torch.arange(hops, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float(torch.logsumexp(ways + k * math.log(eta) + (n - k) * math.log1p(-eta), 0))


def relax(
    graph: SegmentGraph,
    vjp: Vjp,
    start: Mapping[str, Tensor],
    clamped: Mapping[str, Tensor],
    *,
    step_size: float,
    sweeps: int,
    sweep: Sweep = "settling",
    tolerance: float | None = None,
    settled: float = MISSING,
    moved: Callable[[Mapping[str, Tensor]], Vjp] | None = None,
) -> Relaxed:
    """Relax the activations of all segments but the outputs.

    Args:
        graph: segments of the network.
        vjp: (segment, cotangent of its output) to the cotangents of its inputs.
        start: initial value of each segment's variable.
        clamped: dL/dh of each output of the network, constant.
        step_size: eta, in (0, 1].
        sweeps: maximum number, at least 1; of a settling, the updates of each segment.
        sweep: order of the updates.
        tolerance: stop as soon as the residual is below it; not of a settling, which is one sweep.
        settled: as of ``Products``.
        moved: makes the vector-Jacobian products at the present x, once per sweep; None for a frozen forward pass.
    """
    x = {name: start[name] if graph.readers(name) else clamped[name] for name in graph.by_name}
    products, computed, done = Products(vjp, settled), 0, 0
    if sweep == "settling":
        step_size, done = 1 - (1 - step_size) ** sweeps, sweeps - 1
    residual = x[graph.output].new_zeros(())
    while done < sweeps:
        if moved is not None:
            computed, products = computed + products.computed, Products(moved(x), settled)
        before = x
        x, target = (_jacobi if sweep == "jacobi" else _gauss_seidel)(graph, products, before, clamped, step_size)
        done += 1
        if tolerance is not None or done == sweeps:  # expensive: a norm over all variables
            residual = _residual(graph, before if sweep == "jacobi" else x, target)
            if tolerance is not None and float(residual) < tolerance:
                break
    return Relaxed(x, residual, done, computed + products.computed)


def adjoints(graph: SegmentGraph, vjp: Vjp, clamped: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fixed point: backprop's dL/dh_s, last segment first."""
    found = dict(clamped)
    for segment in reversed(graph.segments):
        _accumulate(found, segment.reads, vjp(segment.name, found[segment.name]))
    return found


Values = dict[str, Tensor]


def _jacobi(graph: SegmentGraph, vjp: Vjp, x: Values, clamped: Mapping[str, Tensor], eta: float) -> tuple[Values, Values]:
    target = dict(clamped)
    for segment in graph.segments:
        if set(segment.reads) != {INPUT}:
            _accumulate(target, segment.reads, vjp(segment.name, x[segment.name]))
    return {name: _updated(graph, name, value, target, eta) for name, value in x.items()}, target


def _gauss_seidel(graph: SegmentGraph, vjp: Vjp, x: Values, clamped: Mapping[str, Tensor], eta: float) -> tuple[Values, Values]:
    target, new = dict(clamped), {}
    for segment in reversed(graph.segments):
        new[segment.name] = _updated(graph, segment.name, x[segment.name], target, eta)
        if set(segment.reads) != {INPUT}:
            _accumulate(target, segment.reads, vjp(segment.name, new[segment.name]))
    return new, target


def _updated(graph: SegmentGraph, name: str, x: Tensor, target: Values, eta: float) -> Tensor:
    if not graph.readers(name):  # an output is clamped
        return x
    return torch.lerp(x, target[name], eta) if name in target else x * (1 - eta)


def _accumulate(into: Values, names: tuple[str, ...], values: list[Tensor | None]) -> None:
    for name, value in zip(names, values):
        if value is not None:
            into[name] = into[name] + value if name in into else value


def _residual(graph: SegmentGraph, x: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    off, size = torch.zeros(()), torch.zeros(())
    for name in filter(graph.readers, graph.by_name):
        goal = target.get(name)
        off = off + (x[name] if goal is None else x[name] - goal).square().sum()
        size = size if goal is None else size + goal.square().sum()
    return (off / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()
