"""Every edge of the backward graph in numbers: upstream times local equals downstream, with checks.

For a call y = f(x, ...) with cotangent y_bar, the edge to x has the downstream x_bar_i = sum_j y_bar_j dy_j/dx_i. For a few
entries i the column dy_j/dx_i is computed separately, its largest terms are stored, and their sum is compared with x_bar_i. The
finite differences of a call use one fixed direction, in which each entry moves in proportion to its own size, so that a -1e9 of
a mask does not set the step of the others.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from spikeprop.plugins.explain.trace import Node, Trace

WIDTHS = (1e-6, 1e-7)  # steps of finite differences; the second is tried if the first does not agree
AGREES = 1e-5  # tolerance of finite differences, relative
JUMP = 5.0  # a one-sided quotient that grows by more as the step shrinks to a tenth is that of a jump
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
        verdict: "agrees", "differs" (also at a jump), "kink" if the backward pass lies between the one-sided difference
            quotients, which differ, or "surrogate" if the backward pass replaces the derivative.
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
    call = ReplayedCall(node, trace)
    found = Local()
    for slot, down in zip(call.wanted, call.downs()):
        value = torch.zeros_like(call.leaves[slot]) if down is None else down
        sums = [] if down is None else _sums(Columns(call, slot, down), entries, terms)
        found.edges.append(Edge(node.index, slot, value.clone(), sums))
    found.difference = _difference(call, trace, found.edges)
    return found


class ReplayedCall:
    """A call repeated on leaves, so that it can be differentiated."""

    def __init__(self, node: Node, trace: Trace):
        self.node = node
        self.leaves = [_leaf(trace, index) for index in node.inputs]
        self.upstream = [cotangent_of(trace, index) for index in node.outputs]
        self.wanted = [slot for slot, leaf in enumerate(self.leaves) if leaf.requires_grad]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the backend with a differentiable backward pass
            self.outputs = _run(node, self.leaves)

    def downs(self) -> list[Tensor | None]:
        """The cotangent of each wanted input from this call."""
        wanted = [self.leaves[slot] for slot in self.wanted]
        return list(torch.autograd.grad(self.outputs, wanted, self.upstream, retain_graph=True, allow_unused=True))

    @cached_property
    def moving(self) -> list[Tensor]:
        """The upstream as leaves, by which the cotangents are differentiated."""
        return [up.clone().requires_grad_() for up in self.upstream]

    @cached_property
    def differentiable(self) -> dict[int, Tensor | None]:
        """The cotangents by slot, as functions of ``moving``."""
        wanted = [self.leaves[slot] for slot in self.wanted]
        found = torch.autograd.grad(self.outputs, wanted, self.moving, create_graph=True, allow_unused=True)
        return dict(zip(self.wanted, found))


def cotangent_of(trace: Trace, index: int) -> Tensor:
    """dL/d value from autograd; zero if there was none."""
    value = trace.values[index]
    return torch.zeros_like(value.tensor) if value.cotangent is None else value.cotangent


@cache
def _load_tangents() -> None:
    """Load torch's rules for tangents, which it does at their first use, with a warning about its own scripts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _leaf(trace: Trace, index: int) -> Tensor:
    value = trace.values[index]
    return value.tensor.clone().requires_grad_(value.needs_grad)


def _run(node: Node, leaves: list[Tensor]) -> list[Tensor]:
    """The call on copies of the leaves, which it may change in place."""
    found = node.run([leaf * 1 if leaf.requires_grad else leaf.clone() for leaf in leaves])
    return [t for t in found if t.requires_grad] if torch.is_grad_enabled() else found


class Columns:
    """Columns of a call's Jacobian for one input.

    A column is the call's tangent for a unit vector (forward differentiation). If the call has none, or one that does not fit
    its backward pass, as of a surrogate: the product y_bar -> x_bar is linear in y_bar, so its derivative by y_bar is the column.
    If the backward pass cannot be differentiated, the product is computed with every unit vector, up to a limit of their number.
    """

    def __init__(self, call: ReplayedCall, slot: int, down: Tensor):
        self.call, self.slot, self.leaf, self.down = call, slot, call.leaves[slot], down.flatten()
        self.upstream = torch.cat([up.flatten() for up in call.upstream])
        self._all: Tensor | None = None

    def get(self, entry: int) -> Tensor | None:
        """d outputs / d entry, all outputs concatenated; None if it cannot be computed."""
        for column in (self._forward, self._by_differentiating):
            found = column(entry)
            if found is not None and self.fits(found, entry):
                return found
        return self._by_units(entry)

    def fits(self, column: Tensor, entry: int) -> bool:
        """Whether upstream times column equals the downstream."""
        products, goal = column * self.upstream, float(self.down[entry])
        return abs(float(products.sum()) - goal) <= MATCHES * (float(products.abs().sum()) + abs(goal)) + 1e-300

    def _forward(self, entry: int) -> Tensor | None:
        unit = torch.zeros(self.leaf.numel(), dtype=self.leaf.dtype)
        unit[entry] = 1.0
        _load_tangents()
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
                values = [leaf.detach().clone() for leaf in self.call.leaves]
                values[self.slot] = forward_ad.make_dual(values[self.slot], unit.view(self.leaf.shape))
                found = self.call.node.run(values)[: len(self.call.upstream)]
                tangents = [forward_ad.unpack_dual(out).tangent for out in found]
        except RuntimeError:
            return None
        parts = zip(self.call.upstream, tangents)
        return torch.cat([torch.zeros_like(up).flatten() if t is None else t.flatten() for up, t in parts])

    def _by_differentiating(self, entry: int) -> Tensor | None:
        down, moving = self.call.differentiable[self.slot], self.call.moving
        if down is None or not down.requires_grad:
            return torch.zeros_like(self.upstream) if self._is_zero() else None
        try:
            found = torch.autograd.grad(down.flatten()[entry], moving, retain_graph=True, allow_unused=True)
        except RuntimeError:
            return None
        columns = [torch.zeros_like(up) if c is None else c for up, c in zip(moving, found)]
        return torch.cat([c.flatten() for c in columns]).detach()

    def _is_zero(self) -> bool:
        """Whether the downstream is zero for any upstream, as for the sign function."""
        other = [torch.ones_like(up) + direction(up) for up in self.call.upstream]
        (found,) = torch.autograd.grad(self.call.outputs, [self.leaf], other, retain_graph=True, allow_unused=True)
        return found is None or not bool(found.any())

    def _by_units(self, entry: int) -> Tensor | None:
        if len(self.upstream) > UNITS:
            return None
        if self._all is None:
            rows, sizes = [], [up.numel() for up in self.call.upstream]
            for unit in torch.eye(len(self.upstream), dtype=self.upstream.dtype):
                parts = [u.view_as(up) for u, up in zip(unit.split(sizes), self.call.upstream)]
                (row,) = torch.autograd.grad(self.call.outputs, [self.leaf], parts, retain_graph=True, allow_unused=True)
                rows.append(torch.zeros_like(self.leaf).flatten() if row is None else row.detach().flatten())
            self._all = torch.stack(rows)
        assert self._all is not None
        return self._all[:, entry]


def _sums(columns: Columns, entries: int, terms: int) -> list[Sum]:
    size = columns.down.abs()
    if not len(size):  # a write that selects nothing
        return []
    chosen = size.topk(max(1, min(entries, int((size > 0).sum())))).indices.sort().values
    found = [_sum(columns, int(i), terms) for i in chosen]
    return [s for s in found if s is not None]


def _sum(columns: Columns, entry: int, count: int) -> Sum | None:
    local, up = columns.get(entry), columns.upstream
    if local is None:
        return None
    products = local * up
    largest = products.abs().topk(min(count, len(products))).indices
    kept = [int(j) for j in largest if local[j] != 0]
    starts = torch.tensor([0, *(u.numel() for u in columns.call.upstream)]).cumsum(0)
    terms = []
    for j in kept:
        output = int((starts <= j).sum()) - 1
        terms.append(Term(output, j - int(starts[output]), float(up[j]), float(local[j])))
    others = int((local != 0).sum()) - len(kept)
    rest = float(products.sum() - products[kept].sum()) if others else 0.0
    return Sum(entry, terms, others, rest, float(columns.down[entry]), columns.fits(local, entry))


def direction(tensor: Tensor) -> Tensor:
    """A fixed direction: sin(1), sin(2), ..."""
    return _waves(tensor.numel()).view(tensor.shape)


@lru_cache(maxsize=8)
def _waves(count: int) -> Tensor:
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64))


def _moves(value: Tensor) -> Tensor:
    """How each entry moves in the finite differences; infinite entries of masks stay."""
    return torch.where(value.isfinite(), direction(value) * (1 + value.abs()), 0.0)


def _difference(call: ReplayedCall, trace: Trace, edges: list[Edge]) -> Difference | None:
    if not edges:
        return None
    moves = {edge.slot: _moves(call.leaves[edge.slot].detach()) for edge in edges}
    backward = sum(float((edge.downstream * moves[edge.slot]).sum()) for edge in edges)
    if call.node.name in ("fire", "grade"):
        return Difference(backward, 0.0, "surrogate")
    allowed = AGREES * sum(float((edge.downstream * moves[edge.slot]).abs().sum()) for edge in edges) + 1e-10
    central, sides, sizes = 0.0, [], list[float]()
    for width in WIDTHS:
        sides = _sides(call, trace, moves, width)
        central = sum(float((right + left).sum()) for right, left in sides) / 2
        if abs(central - backward) <= allowed:
            return Difference(backward, central, "agrees")
        sizes.append(sum(float(side.abs().sum()) for pair in sides for side in pair))
    jumps = sizes[1] > JUMP * sizes[0] + allowed  # its quotients have no limit, and everything lies between them
    kink = not jumps and _is_between(call, moves, backward, sides, allowed)
    return Difference(backward, central, "kink" if kink else "differs")


def _sides(call: ReplayedCall, trace: Trace, moves: dict[int, Tensor], h: float) -> list[tuple[Tensor, Tensor]]:
    """Upstream times the difference quotient to the right and to the left, for every output entry."""
    found = []
    for sign in (1, -1):
        moved = [leaf.detach().clone() for leaf in call.leaves]
        for slot, move in moves.items():
            moved[slot] += sign * h * move
        with torch.no_grad():
            found.append(call.node.run(moved))
    here = [trace.values[index].tensor for index in call.node.outputs]
    quotients = [((above - at) / h, (at - below) / h) for at, above, below in zip(here, *found)]
    return [  # an upstream of 0 also hides the -inf of a mask
        (torch.where(up == 0, 0.0, up * right), torch.where(up == 0, 0.0, up * left))
        for up, (right, left) in zip(call.upstream, quotients)
    ]


def _is_between(
    call: ReplayedCall, moves: dict[int, Tensor], backward: float, sides: list[tuple[Tensor, Tensor]], allowed: float
) -> bool:
    """Whether the backward pass lies between the sides, at every output if it can be differentiated, otherwise in sum."""
    least, most = ([choose(right, left) for right, left in sides] for choose in (torch.minimum, torch.maximum))
    try:
        parts = [(down * moves[slot]).sum() for slot, down in call.differentiable.items() if down is not None]
        along = torch.autograd.grad(sum(parts), call.moving, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]
    except RuntimeError:
        return sum(float(x.sum()) for x in least) - allowed <= backward <= sum(float(x.sum()) for x in most) + allowed
    outside = 0.0
    for a, b, up, local in zip(least, most, call.upstream, along):
        change = torch.zeros_like(up) if local is None else up * local.detach()
        outside += float(((a - change).clamp(min=0) + (change - b).clamp(min=0)).sum())
    return outside <= allowed
