"""Closed forms of losses, which are means over the batch (see ``forms``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.plugins.derivatives import CARDS
from spikeprop.plugins.explain.form import Form, Settings, Shares, placed


def _cross_entropy_known(inputs: list[Tensor], s: Settings) -> dict[str, Tensor]:
    z, y = inputs[s["slots"][0]], inputs[s["slots"][1]]
    known = {
        "z": z - z.max(1, keepdim=True).values,
        "y": F.one_hot(y.long(), z.shape[1]).double(),
    }  # a shift changes no probability
    return known | {"p": CARDS["softmax_ce"].evaluate("p", known)}


def _cross_entropy_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    known = _cross_entropy_known(inputs, s)
    return placed([up[0] * CARDS["softmax_ce"].evaluate("z_bar", known) / len(known["z"]), None], inputs, s)


def _bce_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    z, y = inputs[s["slots"][0]], inputs[s["slots"][1]]
    return [(z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))).mean()]


def _bce_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    z, y = inputs[s["slots"][0]], inputs[s["slots"][1]]
    z_bar = CARDS["sigmoid_bce"].evaluate("z_bar", {"a": torch.sigmoid(z), "y": y})
    return placed([up[0] * z_bar / z.numel(), None], inputs, s)


def _square_known(inputs: list[Tensor], s: Settings) -> dict[str, Tensor]:
    x, y = inputs[s["slots"][0]], inputs[s["slots"][1]]
    return {"x": x, "y": y, "N": torch.tensor(float(x.numel()), dtype=torch.float64)}


def _square_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    x_bar = up[0] * CARDS["squared_error"].evaluate("x_bar", _square_known(inputs, s))
    return placed([x_bar, -x_bar], inputs, s)


LOSSES: dict[str, Form] = {
    "cross_entropy": Form(
        lambda inputs, s: [F.cross_entropy(inputs[s["slots"][0]], inputs[s["slots"][1]].long())],
        _cross_entropy_backward,
        "softmax_ce",
    ),
    "bce_with_logits": Form(_bce_forward, _bce_backward, "sigmoid_bce"),
    "squared_error": Form(
        lambda inputs, s: [CARDS["squared_error"].evaluate("L", _square_known(inputs, s))], _square_backward, "squared_error"
    ),
}
