"""Closed forms of choices, Einstein sums, interpolation, embedding and recurrent cells (see ``forms``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprop.plugins.derivatives import CARDS
from spikeprop.plugins.explain.form import Form, Settings, Shares, operand, placed, slots_of


def _chosen(inputs: list[Tensor], s: Settings) -> tuple[Tensor, Tensor, Tensor]:
    one, other = (operand(o, inputs) for o in s["operands"])
    return inputs[s["condition"]] != 0, one, other


def _where_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    condition, *_ = _chosen(inputs, s)
    shares: Shares = [None] * len(inputs)
    for o, taken in zip(s["operands"], (condition, ~condition)):
        if "input" in o:
            own = (up[0] * taken).sum_to_size(inputs[o["input"]].shape)
            shares[o["input"]] = own
    return shares


def _operands(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    return [inputs[slot] for slot in s["slots"]]


def _einsum_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    """Letters of an operand that stand nowhere else were summed alone: every entry along them gets the same."""
    operands, shares = _operands(inputs, s), []
    for k, (term, own) in enumerate(zip(s["terms"], operands)):
        others, terms = [*operands[:k], *operands[k + 1 :]], [*s["terms"][:k], *s["terms"][k + 1 :]]
        known = set(s["out"]).union(*terms)
        kept = "".join(letter for letter in term if letter in known)
        share = torch.einsum(f"{','.join([s['out'], *terms])}->{kept}", up[0], *others)
        shares.append(share.view([n if c in known else 1 for c, n in zip(term, own.shape)]).expand_as(own))
    return placed(shares, inputs, s)


def _maps(s: Settings) -> tuple[Tensor, Tensor]:
    rows, columns = (torch.tensor(s[name], dtype=torch.float64) for name in ("rows", "columns"))
    return rows, columns


def _interpolate_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    rows, columns = _maps(s)
    x = inputs[0].reshape(-1, rows.shape[1], columns.shape[1])
    return [CARDS["interpolate"].evaluate("y", {"A": rows, "B": columns, "x": x}).view(s["shape"])]


def _interpolate_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    rows, columns = _maps(s)
    known = {"A": rows, "B": columns, "y_bar": up[0].reshape(-1, len(rows), len(columns))}
    return [CARDS["interpolate"].evaluate("x_bar", known).view_as(inputs[0])]


def _embedding_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    tokens, table = _operands(inputs, s)
    share = torch.zeros_like(table).index_add_(0, tokens.flatten(), up[0].reshape(-1, table.shape[1]))
    if s["padding"] is not None:
        share[s["padding"]] = 0
    return placed([None, share], inputs, s)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else x @ weight.T + bias


def _evaluated(key: str, names: Sequence[str], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """``known`` with these quantities of a card, in this order."""
    for name in names:
        known[name] = CARDS[key].evaluate(name, known)
    return known


def _gates(inputs: list[Tensor], s: Settings, states: int) -> tuple[Tensor, Tensor]:
    """Affine maps (B, gates * H) of the input and of the last output."""
    named = slots_of(inputs, s)
    x, h, (by_x, by_h, of_x, of_h) = named[0], named[1], named[1 + states :]
    return _affine(x, by_x, of_x), _affine(h, by_h, of_h)  # type: ignore[arg-type]


def _through_gates(by_x: Tensor, by_h: Tensor, inputs: list[Tensor], s: Settings, states: int) -> tuple[Tensor, Tensor, Shares]:
    """Cotangents of input, last output, and weights and biases, from those of the two affine maps."""
    named = slots_of(inputs, s)
    x, h, (weight_x, weight_h, *biases) = named[0], named[1], named[1 + states :]
    sums = [None if bias is None else own.sum(0) for bias, own in zip(biases, (by_x, by_h))]
    return by_x @ weight_x, by_h @ weight_h, [by_x.T @ x, by_h.T @ h, *sums]  # type: ignore[operator,return-value]


def _lstm_known(inputs: list[Tensor], s: Settings) -> dict[str, Tensor]:
    gates = sum(_gates(inputs, s, 2)).chunk(4, 1)  # type: ignore[union-attr]
    known = {f"a_{name}": gate for name, gate in zip("ifgo", gates)} | {"c": inputs[s["slots"][2]]}
    return _evaluated("lstm_cell", (*"ifgo", "m", "c_new", "h_new"), known)


def _lstm_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    known = _lstm_known(inputs, s)
    return [known["h_new"], known["c_new"]]


def _lstm_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    known = _lstm_known(inputs, s) | {"h_new_bar": up[0], "c_new_bar": up[1]}
    names = ("m_bar", *(f"{n}_bar" for n in "ifgo"), *(f"a_{n}_bar" for n in "ifgo"), "c_bar")
    known = _evaluated("lstm_cell", names, known)
    gates = torch.cat([known[f"a_{name}_bar"] for name in "ifgo"], 1)
    x_bar, h_bar, others = _through_gates(gates, gates, inputs, s, 2)
    return placed([x_bar, h_bar, known["c_bar"], *others], inputs, s)


def _gru_known(inputs: list[Tensor], s: Settings) -> dict[str, Tensor]:
    by_x, by_h = (affine.chunk(3, 1) for affine in _gates(inputs, s, 1))
    known = {"a_r": by_x[0] + by_h[0], "a_z": by_x[1] + by_h[1], "a_n": by_x[2], "u": by_h[2], "h": inputs[s["slots"][1]]}
    return _evaluated("gru_cell", ("r", "z", "n", "h_new"), known)


def _gru_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    known = _gru_known(inputs, s) | {"h_new_bar": up[0]}
    names = ("n_bar", "z_bar", "h_bar", "a_n_bar", "u_bar", "r_bar", "a_r_bar", "a_z_bar")
    known = _evaluated("gru_cell", names, known)
    by_x, by_h = (torch.cat([known[f"{n}_bar"] for n in ("a_r", "a_z", last)], 1) for last in ("a_n", "u"))
    x_bar, h_bar, others = _through_gates(by_x, by_h, inputs, s, 1)
    return placed([x_bar, known["h_bar"] + h_bar, *others], inputs, s)


INDEXING_FORMS: dict[str, Form] = {
    "where": Form(lambda inputs, s: [torch.where(*_chosen(inputs, s))], _where_backward, "where"),
    "einsum": Form(
        lambda inputs, s: [torch.einsum(f"{','.join(s['terms'])}->{s['out']}", *_operands(inputs, s))], _einsum_backward, "einsum"
    ),
    "interpolate": Form(_interpolate_forward, _interpolate_backward, "interpolate"),
    "embedding": Form(lambda inputs, s: [_operands(inputs, s)[1][_operands(inputs, s)[0]]], _embedding_backward, "embedding"),
    "lstm_cell": Form(_lstm_forward, _lstm_backward, "lstm_cell"),
    "gru_cell": Form(lambda inputs, s: [_gru_known(inputs, s)["h_new"]], _gru_backward, "gru_cell"),
}
