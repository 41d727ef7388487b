"""Kinds of calls that select and combine entries, and of recurrent cells (see ``kinds``)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spikeprop.plugins.explain.arguments import OPAQUE, Arguments, Kind, operand_of, slot_of


def _where(a: Arguments, inputs: list[Tensor]) -> Kind:
    """``torch.where(condition, a, b)`` and ``a.where(condition, b)``."""
    if len(a.args) != 3 or a.kwargs:
        return OPAQUE
    first, second, third = a.args
    as_method = slot_of(first) is not None and inputs[slot_of(first)].dtype != torch.bool  # type: ignore[index]
    condition, one = (second, first) if as_method else (first, second)
    chosen = slot_of(condition)
    if chosen is None or inputs[chosen].dtype != torch.bool:
        return OPAQUE
    return "where", {"condition": chosen, "operands": [operand_of(one), operand_of(third)]}


def _einsum(a: Arguments, inputs: list[Tensor]) -> Kind:
    """Equations without dots, without a letter twice in an operand, and with one size for each letter."""
    equation, *operands = a.args
    if not isinstance(equation, str):
        return OPAQUE
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    slots = [slot_of(operand) for operand in operands]
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation or any(len(set(term)) < len(term) for term in terms) or None in slots:
        return OPAQUE
    sizes = {pair for term, slot in zip(terms, slots) for pair in zip(term, inputs[slot].shape)}  # type: ignore[index]
    if len(sizes) > len(set(left) - {","}):  # an operand of length 1 is repeated
        return OPAQUE
    if not arrow:
        out = "".join(letter for letter in sorted(set(left) - {","}) if left.count(letter) == 1)
    return "einsum", {"terms": terms, "out": out, "slots": slots}


def _interpolate(a: Arguments, inputs: list[Tensor]) -> Kind:
    """One matrix for rows and one for columns, of a map or a line; found by the call itself on unit vectors."""
    x = inputs[0]
    if x.dim() not in (3, 4):
        return OPAQUE
    width, height = x.shape[-1], x.shape[-2] if x.dim() == 4 else 1
    like = (1, height, width) if x.dim() == 4 else (1, width)
    units = torch.eye(width).to(x).view(width, *[1] * (len(like) - 1), width)
    columns = a.run([units.expand(width, *like)])[0][:, 0].reshape(width, -1, a.run([x])[0].shape[-1])[:, 0].T
    rows = torch.ones(1, 1).to(x)
    if x.dim() == 4:
        rows = a.run([torch.eye(height).to(x).view(height, 1, height, 1).expand(height, *like)])[0][:, 0, :, 0].T
    found, (true,) = rows @ x.reshape(-1, height, width) @ columns.T, a.run([x])
    if not torch.allclose(found.view_as(true), true, rtol=1e-10, atol=1e-12):
        return OPAQUE
    return "interpolate", {"rows": rows.tolist(), "columns": columns.tolist(), "shape": list(true.shape)}


def _embedding(a: Arguments, inputs: list[Tensor]) -> Kind:
    if a.get(3, "max_norm") is not None or a.get(5, "scale_grad_by_freq", False) or a.get(6, "sparse", False):
        return OPAQUE
    slots, padding = [a.slot(0, "input"), a.slot(1, "weight")], a.get(2, "padding_idx")
    if slots[1] is None:
        return OPAQUE
    rows = inputs[slots[1]].shape[0]
    return "embedding", {"slots": slots, "padding": None if padding is None else int(padding) % rows}


def _cell(a: Arguments, inputs: list[Tensor]) -> Kind:
    """``torch.lstm_cell`` and ``torch.gru_cell``: input, state, weights and biases of both."""
    state = a.get(1, "hx")
    states = list(state) if isinstance(state, list | tuple) else [state]
    others = [a.slot(k, name) for k, name in enumerate(("w_ih", "w_hh", "b_ih", "b_hh"), 2)]
    slots = [a.slot(0, "input"), *(slot_of(one) for one in states), *others]
    return a.name, {"slots": slots}


INDEXING: dict[str, Callable[[Arguments, list[Tensor]], Kind]] = {
    "where": _where,
    "einsum": _einsum,
    "interpolate": _interpolate,
    "embedding": _embedding,
    "lstm_cell": _cell,
    "gru_cell": _cell,
}
