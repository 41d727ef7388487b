"""Closed forms of the kinds: explicit forward and backward, from the lines of the cards where these are for complete tensors.

With them the data of a page are replayed without autograd (``replay``). A form takes the inputs of a call in order and the
settings of its kind; ``backward`` also takes the outputs and their cotangents, and returns the cotangent of each input from
this call, or None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.plugins.derivatives import CARDS
from spikeprop.plugins.explain.form import Form, Settings, Shares, operand, placed, slots_of
from spikeprop.plugins.explain.forms_indexing import INDEXING_FORMS
from spikeprop.plugins.explain.forms_layers import LAYERS
from spikeprop.plugins.explain.forms_losses import LOSSES
from spikeprop.plugins.explain.spiking import passed, payloads
from spikeprop.snn import surrogate as surrogates
from spikeprop.snn.firing import advance_since


def card_of(kind: str, settings: Settings) -> str | None:
    """Key of the card of a kind."""
    if kind == "fire":
        return {"STDB": "stdb", "Triangle": "lif_triangle", "ATan": "lif_atan"}.get(settings["surrogate"], "lif")
    return FORMS[kind].card if kind in FORMS else None


def _entrywise(key: str) -> Form:
    card = CARDS[key]
    numbers = card.more_truth({}) if key == "gelu" else {}
    return Form(
        lambda inputs, s: [card.evaluate("y", {"x": inputs[0], **numbers})],
        lambda up, inputs, out, s: [card.evaluate("x_bar", {"x": inputs[0], "y": out[0], "y_bar": up[0], **numbers})],
        key,
    )


def _operands(inputs: list[Tensor], s: Settings) -> tuple[Tensor, Tensor]:
    first, second = (operand(o, inputs) for o in s["operands"])
    return first, second


def _binary(compute: Callable[[Tensor, Tensor], Tensor], derive: Callable[..., tuple[Tensor, Tensor]], card: str) -> Form:
    def backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
        a, b = _operands(inputs, s)
        shares: Shares = [None] * len(inputs)
        for one, share, value in zip(s["operands"], derive(up[0], a, b), (a, b)):
            if "input" in one:
                own = share.expand_as(up[0]).sum_to_size(value.shape)  # sum over broadcast axes
                before = shares[one["input"]]
                shares[one["input"]] = own if before is None else before + own
        return shares

    return Form(lambda inputs, s: [compute(*_operands(inputs, s))], backward, card)


def _affine_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    x, w, b = slots_of(inputs, s)
    assert x is not None
    assert w is not None
    known = {"x": x.reshape(-1, x.shape[-1]), "W": w, "y_bar": up[0].reshape(-1, w.shape[0])}
    card = CARDS["affine"]
    x_bar = card.evaluate("x_bar", known).view_as(x)
    return placed([x_bar, card.evaluate("W_bar", known), None if b is None else card.evaluate("b_bar", known)], inputs, s)


def _reduce_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    if not s["axes"]:
        return [inputs[0]]
    return [(torch.mean if s["mean"] else torch.sum)(inputs[0], s["axes"], s["keep"])]


def _reduce_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    x, share = inputs[0], up[0]
    count = 1
    for axis in s["axes"]:
        count *= x.shape[axis]
        share = share if s["keep"] else share.unsqueeze(axis)
    return [(share / count if s["mean"] else share).expand_as(x)]


def _rearrange_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    floats = [t for t in inputs if t.is_floating_point()]
    if s.get("same"):
        return [floats[0].reshape(s["shapes"][0])]
    laid = torch.cat([torch.zeros(1, dtype=torch.float64), *(t.flatten() for t in floats)])
    return [laid[torch.tensor(index, dtype=torch.long) + 1].reshape(shape) for index, shape in zip(s["index"], s["shapes"])]


def _rearrange_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    if s.get("same"):
        return [up[0].reshape(inputs[0].shape)]
    floats = [t for t in inputs if t.is_floating_point()]
    laid = torch.zeros(1 + sum(t.numel() for t in floats), dtype=torch.float64)
    for index, cotangent in zip(s["index"], up):
        laid.index_add_(0, torch.tensor(index, dtype=torch.long) + 1, cotangent.flatten())
    parts = iter(laid[1:].split([t.numel() for t in floats]))
    return [next(parts).view_as(t) if t.is_floating_point() else None for t in inputs]


def _factor(inputs: list[Tensor], s: Settings) -> Tensor:
    return torch.tensor(s["factor"], dtype=torch.float64).view_as(inputs[0])


def _matmul_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    known = {"A": inputs[0], "B": inputs[1], "Y_bar": up[0]}
    return [CARDS["matmul"].evaluate(f"{name}_bar", known).sum_to_size(known[name].shape) for name in ("A", "B")]


def _softmax_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    return [CARDS["softmax"].evaluate("z_bar", {"p": out[0], "p_bar": up[0]})]


def _qr_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    known = {"Q": out[0], "R": out[1], "Q_bar": up[0], "R_bar": up[1].triu()}
    known["M"] = CARDS["qr"].evaluate("M", known)
    return [CARDS["qr"].evaluate("A_bar", known)]


def _integrate_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    v, _, leak = inputs
    return [leak * up[0], up[0], (up[0] * v).sum_to_size(leak.shape)]


def slope_of(inputs: list[Tensor], s: Settings) -> Tensor:
    """The surrogate derivative of the spikes by the potential, for (u, theta, since)."""
    u, theta, since = inputs
    surrogate = getattr(surrogates, s["surrogate"])(**{k: v for k, v in s.items() if k != "surrogate"})
    return surrogate(u / theta - 1, advance_since(since, (u > theta).to(u))) / theta


def _fire_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    u, theta, _ = inputs
    by_u = up[0] * slope_of(inputs, s)
    return [by_u, -(by_u * u / theta).sum_to_size(theta.shape), None]


def _reset_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    u, spikes, theta = inputs
    return [u * (1 - spikes) if s["to_zero"] else u - theta * spikes]


def _reset_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    _, spikes, theta = inputs
    if s["to_zero"]:
        return [up[0] * (1 - spikes), None, None]
    return [up[0], None, -(up[0] * spikes).sum_to_size(theta.shape)]


def _grade_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    u, sent, unit = inputs
    return [payloads(u, sent, unit, s["payload"])]


def _grade_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    u, _, unit = inputs
    return [up[0] * passed(u, out[0], unit), None, None]


FORMS: dict[str, Form] = {
    **LAYERS,
    **LOSSES,
    **INDEXING_FORMS,
    **{name: _entrywise(name) for name in ("relu", "tanh", "sigmoid", "gelu", "silu")},
    "affine": Form(lambda inputs, s: [F.linear(*slots_of(inputs, s))], _affine_backward, "affine"),  # type: ignore[arg-type]
    "add": _binary(torch.add, lambda up, a, b: (up, up), "add"),
    "sub": _binary(torch.sub, lambda up, a, b: (up, -up), "add"),
    "rsub": _binary(lambda a, b: b - a, lambda up, a, b: (-up, up), "add"),
    "mul": _binary(torch.mul, lambda up, a, b: (up * b, up * a), "product"),
    "div": _binary(torch.div, lambda up, a, b: (up / b, -up * a / b**2), "product"),
    "factor": Form(
        lambda inputs, s: [inputs[0] * _factor(inputs, s)], lambda up, inputs, out, s: [up[0] * _factor(inputs, s)], "product"
    ),
    "matmul": Form(lambda inputs, s: [inputs[0] @ inputs[1]], _matmul_backward, "matmul"),
    "softmax": Form(lambda inputs, s: [torch.softmax(inputs[0], -1)], _softmax_backward, "softmax"),
    "reduce": Form(_reduce_forward, _reduce_backward, "reduce"),
    "rearrange": Form(_rearrange_forward, _rearrange_backward, "rearrange"),
    "qr": Form(lambda inputs, s: list(torch.linalg.qr(inputs[0])), _qr_backward, "qr"),
    "integrate": Form(lambda inputs, s: [inputs[2] * inputs[0] + inputs[1]], _integrate_backward, "lif"),
    "fire": Form(lambda inputs, s: [(inputs[0] > inputs[1]).to(inputs[0])], _fire_backward, "lif"),
    "reset": Form(_reset_forward, _reset_backward, "lif"),
    "grade": Form(_grade_forward, _grade_backward, "graded_if"),
}
