"""Every edge of the backward graph in numbers: upstream times local equals downstream, with checks.

For a call y = f(x, ...) with cotangent y_bar, the edge to x has the downstream x_bar_i = sum_j y_bar_j dy_j/dx_i. For a few
entries i the column dy_j/dx_i is computed separately, its largest terms are stored, and their sum is compared with x_bar_i. The
finite differences of a call use one fixed direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from spikeprop.plugins.explain.trace import Node, Trace

WIDTHS = (1e-6, 1e-7)  # steps of finite differences, relative to 1 + the largest entry
AGREES = 1e-5  # tolerance of finite differences, relative
UNITS = 512  # maximum number of outputs for computing a Jacobian row by row
MATCHES = 1e-9  # tolerance of a sum of terms, or of the edges of a fan-out, relative


@dataclass(frozen=True)
class Term:
    """One product of a sum: output entry, its upstream, and its derivative by the input entry."""

    output: int
    entry: int
    upstream: float
    local: float


@dataclass(frozen=True)
class Sum:
    """x_bar_i as a sum: its largest terms, the sum of the others, and whether all add up to the downstream."""

    entry: int
    terms: list[Term]
    others: int
    rest: float
    downstream: float
    matches: bool


@dataclass(frozen=True)
class Edge:
    """From a call back to one of its inputs."""

    node: int
    slot: int
    downstream: Tensor
    sums: list[Sum]


@dataclass(frozen=True)
class Difference:
    """The derivative of a call along a direction, by its backward pass and by finite differences.

    Attributes:
        verdict: "agrees", "differs", "kink" if the one-sided derivatives differ, or "surrogate" if the backward pass replaces
            the derivative.
    """

    backward: float
    finite: float
    verdict: str


@dataclass
class Local:
    """Edges and finite differences of a call."""

    edges: list[Edge] = field(default_factory=list)
    difference: Difference | None = None


def local_of(node: Node, trace: Trace, entries: int = 3, terms: int = 6) -> Local:
    """Edges of a call, with the sums of ``entries`` entries of each and up to ``terms`` terms per sum."""
    leaves = [_leaf(trace, index) for index in node.inputs]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the backend with a differentiable backward pass
        outputs = _run(node, leaves)
    upstream = [cotangent_of(trace, index) for index in node.outputs]
    wanted = [slot for slot, leaf in enumerate(leaves) if leaf.requires_grad]
    moving = [up.clone().requires_grad_() for up in upstream]
    downs = torch.autograd.grad(outputs, [leaves[s] for s in wanted], moving, create_graph=True, allow_unused=True)
    found = Local()
    for slot, down in zip(wanted, downs):
        value = torch.zeros_like(leaves[slot]) if down is None else down.detach()
        sums = [] if down is None else _sums(_Columns(outputs, leaves[slot], moving, down), entries, terms)
        found.edges.append(Edge(node.index, slot, value.clone(), sums))
    found.difference = _difference(node, trace, upstream, found.edges)
    return found


def cotangent_of(trace: Trace, index: int) -> Tensor:
    """dL/d value from autograd; zero if there was none."""
    value = trace.values[index]
    return torch.zeros_like(value.tensor) if value.cotangent is None else value.cotangent


def _leaf(trace: Trace, index: int) -> Tensor:
    value = trace.values[index]
    return value.tensor.clone().requires_grad_(value.needs_grad)


def _run(node: Node, leaves: list[Tensor]) -> list[Tensor]:
    """The call on copies of the leaves, which it may change in place."""
    found = node.run([leaf * 1 if leaf.requires_grad else leaf.clone() for leaf in leaves])
    return [t for t in found if t.requires_grad] if torch.is_grad_enabled() else found


class _Columns:
    """Columns of a call's Jacobian for one input.

    The product y_bar -> x_bar is linear in y_bar, so its derivative by y_bar is the column. If the backward pass cannot be
    differentiated, the product is computed with every unit vector instead, up to a limit of their number.
    """

    def __init__(self, outputs: list[Tensor], leaf: Tensor, moving: list[Tensor], down: Tensor):
        self.outputs, self.leaf, self.moving, self.down = outputs, leaf, moving, down.flatten()
        self.upstream = torch.cat([up.detach().flatten() for up in moving])
        self._all: Tensor | None = None

    def get(self, entry: int) -> Tensor | None:
        """d outputs / d entry, all outputs concatenated; None if it cannot be computed."""
        column = self._by_differentiating(entry)
        if column is None or not self.fits(column, entry):
            column = self._by_units(entry)
        return column

    def fits(self, column: Tensor, entry: int) -> bool:
        """Whether upstream times column equals the downstream."""
        products, goal = column * self.upstream, float(self.down[entry].detach())
        return abs(float(products.sum()) - goal) <= MATCHES * (float(products.abs().sum()) + abs(goal)) + 1e-300

    def _by_differentiating(self, entry: int) -> Tensor | None:
        if not self.down.requires_grad:
            return torch.zeros_like(self.upstream) if self._is_zero() else None
        try:
            found = torch.autograd.grad(self.down[entry], self.moving, retain_graph=True, allow_unused=True)
        except (RuntimeError, NotImplementedError):
            return None
        columns = [torch.zeros_like(up) if c is None else c for up, c in zip(self.moving, found)]
        return torch.cat([c.flatten() for c in columns]).detach()

    def _is_zero(self) -> bool:
        """Whether the downstream is zero for any upstream, as for the sign function."""
        other = [torch.ones_like(up) + direction(up) for up in self.moving]
        (found,) = torch.autograd.grad(self.outputs, [self.leaf], other, retain_graph=True, allow_unused=True)
        return found is None or not bool(found.any())

    def _by_units(self, entry: int) -> Tensor | None:
        if len(self.upstream) > UNITS:
            return None
        if self._all is None:
            rows = []
            for unit in torch.eye(len(self.upstream), dtype=self.upstream.dtype):
                parts = [u.view_as(up) for u, up in zip(unit.split([up.numel() for up in self.moving]), self.moving)]
                (row,) = torch.autograd.grad(self.outputs, [self.leaf], parts, retain_graph=True, allow_unused=True)
                rows.append(torch.zeros_like(self.leaf).flatten() if row is None else row.detach().flatten())
            self._all = torch.stack(rows)
        return self._all[:, entry]


def _sums(columns: _Columns, entries: int, terms: int) -> list[Sum]:
    size = columns.down.detach().abs()
    chosen = size.topk(max(1, min(entries, int((size > 0).sum())))).indices.sort().values
    found = [_sum(columns, int(i), terms) for i in chosen]
    return [s for s in found if s is not None]


def _sum(columns: _Columns, entry: int, count: int) -> Sum | None:
    local, up = columns.get(entry), columns.upstream
    if local is None:
        return None
    products = local * up
    largest = products.abs().topk(min(count, len(products))).indices
    kept = [int(j) for j in largest if local[j] != 0]
    starts = torch.tensor([0, *(u.numel() for u in columns.moving)]).cumsum(0)
    terms = []
    for j in kept:
        output = int((starts <= j).sum()) - 1
        terms.append(Term(output, j - int(starts[output]), float(up[j]), float(local[j])))
    others = int((local != 0).sum()) - len(kept)
    rest = float(products.sum() - products[kept].sum()) if others else 0.0
    return Sum(entry, terms, others, rest, float(columns.down[entry].detach()), columns.fits(local, entry))


def direction(tensor: Tensor) -> Tensor:
    """The direction of finite differences: sin(1), sin(2), ..."""
    return torch.sin(torch.arange(1, tensor.numel() + 1, dtype=torch.float64)).view(tensor.shape)


def _difference(node: Node, trace: Trace, upstream: list[Tensor], edges: list[Edge]) -> Difference | None:
    if not edges:
        return None
    backward = sum(float((edge.downstream * direction(edge.downstream)).sum()) for edge in edges)
    size = sum(float((edge.downstream * direction(edge.downstream)).abs().sum()) for edge in edges)
    if node.name == "fire":
        return Difference(backward, 0.0, "surrogate")
    values = [trace.values[i].tensor for i in node.inputs]
    sides = [_finite(node, values, upstream, edges, width) for width in WIDTHS]
    best = min(((right + left) / 2 for right, left in sides), key=lambda f: abs(f - backward))
    allowed = AGREES * size + 1e-10
    if abs(best - backward) <= allowed:
        return Difference(backward, best, "agrees")
    right, left = sides[-1]
    return Difference(backward, best, "kink" if abs(right - left) > 100 * allowed else "differs")


def _finite(node: Node, values: list[Tensor], upstream: list[Tensor], edges: list[Edge], width: float) -> tuple[float, float]:
    """Difference quotients of sum(upstream * output) along the direction, to the right and to the left."""
    largest = max(_largest(values[edge.slot]) for edge in edges)
    h, totals = width * (1 + largest), []
    for sign in (1, 0, -1):
        moved = list(values)
        for edge in edges:
            moved[edge.slot] = values[edge.slot] + sign * h * direction(values[edge.slot])
        with torch.no_grad():
            outputs = node.run([t.clone() for t in moved])[: len(upstream)]
        products = [torch.where(up == 0, 0.0, up * out) for up, out in zip(upstream, outputs)]  # also 0 times the -inf of a mask
        totals.append(sum(float(product.sum()) for product in products))
    return (totals[0] - totals[1]) / h, (totals[1] - totals[2]) / h


def _largest(tensor: Tensor) -> float:
    """Absolute value of the largest finite entry; masks contain infinite entries, which do not change."""
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
