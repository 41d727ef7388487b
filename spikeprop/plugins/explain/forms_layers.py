"""Closed forms of convolution, pooling, normalisation and attention for complete batches (see ``forms``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.plugins.derivatives import CARDS
from spikeprop.plugins.explain.form import Form, Settings, Shares, placed, slots_of


def _conv_settings(s: Settings) -> dict[str, Any]:
    return {key: s[key] for key in ("stride", "padding", "dilation", "groups")}


def _conv_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    x, w, b = slots_of(inputs, s)
    assert x is not None
    assert w is not None
    x_bar = torch.nn.grad.conv2d_input(x.shape, w, up[0], **_conv_settings(s))  # type: ignore[arg-type]
    w_bar = torch.nn.grad.conv2d_weight(x, w.shape, up[0], **_conv_settings(s))  # type: ignore[arg-type]
    return placed([x_bar, w_bar, None if b is None else up[0].sum((0, 2, 3))], inputs, s)


def _windows(x: Tensor, s: Settings) -> Tensor:
    """Windows (B, C, entries of a window, windows); the padding is ``fill``: -inf for maxima, 0 for averages."""
    (ph, pw), fill = s["padding"], s.get("fill", 0.0)
    padded = F.pad(x, (pw, pw, ph, ph), value=fill)
    return F.unfold(padded.flatten(0, 1).unsqueeze(1), s["kernel"], stride=s["stride"]).unflatten(0, x.shape[:2])


def _folded(windows: Tensor, x: Tensor, s: Settings) -> Tensor:
    (ph, pw), (h, w) = s["padding"], x.shape[-2:]
    folded = F.fold(windows.flatten(0, 1), (h + 2 * ph, w + 2 * pw), s["kernel"], stride=s["stride"])
    return folded.view(*x.shape[:2], h + 2 * ph, w + 2 * pw)[..., ph : ph + h, pw : pw + w]


def _average_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    kh, kw = s["kernel"]
    share = up[0].flatten(2).unsqueeze(2).expand(-1, -1, kh * kw, -1) / (kh * kw)
    return [_folded(share, inputs[0], s)]


def _largest_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    windows = _windows(inputs[0], {**s, "fill": -torch.inf})
    chosen = torch.zeros_like(windows).scatter_(
        2, windows.argmax(2, keepdim=True), 1.0
    )  # the first of equal entries, as in torch
    return [_folded(chosen * up[0].flatten(2).unsqueeze(2), inputs[0], s)]


def _norm_parts(inputs: list[Tensor], s: Settings, rows: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    x, gamma, beta = slots_of(inputs, s)[:3]
    assert x is not None
    flat = rows(x)
    one = torch.ones((), dtype=x.dtype)
    known = {"x": flat, "gamma": one if gamma is None else gamma.flatten(), "beta": 0 * one if beta is None else beta.flatten()}
    return {**known, "eps": torch.tensor(s["eps"], dtype=torch.float64), "N": torch.tensor(float(len(flat)), dtype=torch.float64)}


def _norm(key: str, rows: Callable[[Tensor, Settings], Tensor], back: Callable[[Tensor, Tensor, Settings], Tensor]) -> Form:
    """Batch and layer normalisation: ``rows`` gives the samples of the card, ``back`` is its inverse."""
    card = CARDS[key]

    def known_of(inputs: list[Tensor], s: Settings) -> dict[str, Tensor]:
        known = _norm_parts(inputs, s, lambda t: rows(t, s))
        if s.get("training", True):
            known |= {"mu": card.evaluate("mu", known)}
            known |= {"var": card.evaluate("var", known)}
        else:
            known |= {"mu": inputs[s["slots"][3]], "var": inputs[s["slots"][4]]}
        return {**known, "x_hat": card.evaluate("x_hat", known)}

    def forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
        return [back(card.evaluate("y", known_of(inputs, s)), inputs[s["slots"][0]], s)]

    def backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
        known = known_of(inputs, s) | {"y_bar": rows(up[0], s)}
        known["x_hat_bar"] = card.evaluate("x_hat_bar", known)
        if s.get("training", True):
            x_bar = card.evaluate("x_bar", known)
        else:  # mean and variance are constants: only the first of the three paths
            x_bar = known["x_hat_bar"] / (known["var"] + known["eps"]).sqrt()
        shares: Shares = [back(x_bar, inputs[s["slots"][0]], s)]
        for name, slot in (("gamma_bar", s["slots"][1]), ("beta_bar", s["slots"][2])):
            shares.append(None if slot is None else card.evaluate(name, known).view_as(inputs[slot]))
        return placed([*shares, None, None][: len(s["slots"])], inputs, s)

    return Form(forward, backward, key)


def _attention_known(inputs: list[Tensor], s: Settings) -> dict[str, Tensor]:
    q, k, v = slots_of(inputs, s)
    assert q is not None
    assert k is not None
    assert v is not None
    known = {"Q": q, "K": k, "V": v, "d": torch.tensor(s["scale"] ** -2, dtype=torch.float64)}
    known["S"] = CARDS["attention"].evaluate("S", known)
    if s["causal"]:  # no token attends to a later one
        later = torch.ones(known["S"].shape[-2:], dtype=torch.bool).triu(1)
        known["S"] = known["S"].masked_fill(later, -torch.inf)
    return known | {"P": CARDS["attention"].evaluate("P", known)}


def _dropped(known: dict[str, Tensor], s: Settings) -> dict[str, Tensor]:
    """With the weights that dropout leaves."""
    known["D"] = torch.tensor(s["factor"], dtype=torch.float64).view_as(known["P"])
    return known | {"A": CARDS["attention_dropout"].evaluate("A", known)}


def _attention_dropout_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    known = _dropped(_attention_known(inputs, s), s) | {"O_bar": up[0]}
    for name in ("V_bar", "A_bar", "P_bar", "S_bar", "Q_bar", "K_bar"):
        known[name] = CARDS["attention_dropout"].evaluate(name, known)
    return placed([known["Q_bar"], known["K_bar"], known["V_bar"]], inputs, s)


def _attention_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    known = _attention_known(inputs, s) | {"O_bar": up[0]}
    for name in ("V_bar", "P_bar", "S_bar", "Q_bar", "K_bar"):
        known[name] = CARDS["attention"].evaluate(name, known)
    return placed([known["Q_bar"], known["K_bar"], known["V_bar"]], inputs, s)


def _group_known(inputs: list[Tensor], s: Settings) -> dict[str, Tensor]:
    """The card's quantities: the groups of all samples, one after another."""
    x, gamma, beta = slots_of(inputs, s)
    assert x is not None
    groups, per = s["groups"], x.shape[1] // s["groups"]
    spread = lambda t, fill: torch.full((x.shape[1],), fill).to(x) if t is None else t  # noqa: E731
    known = {"x": x.reshape(len(x) * groups, per, -1), "eps": torch.tensor(s["eps"], dtype=torch.float64)}
    known |= {n: spread(t, f).view(groups, per).repeat(len(x), 1) for n, t, f in (("gamma", gamma, 1.0), ("beta", beta, 0.0))}
    known["N"] = torch.tensor(float(known["x"][0].numel()), dtype=torch.float64)
    for name, shape in (("mu", known["x"].shape[:1]), ("var", known["x"].shape[:1]), ("x_hat", known["x"].shape)):
        known[name] = CARDS["group_norm"].evaluate(name, known, tuple(shape))
    return known


def _group_forward(inputs: list[Tensor], s: Settings) -> list[Tensor]:
    known = _group_known(inputs, s)
    return [CARDS["group_norm"].evaluate("y", known, tuple(known["x"].shape)).view_as(inputs[s["slots"][0]])]


def _group_backward(up: list[Tensor], inputs: list[Tensor], out: list[Tensor], s: Settings) -> Shares:
    x, card = inputs[s["slots"][0]], CARDS["group_norm"]
    known = _group_known(inputs, s)
    known["y_bar"], shape = up[0].reshape(known["x"].shape), tuple(known["x"].shape)
    known["x_hat_bar"] = card.evaluate("x_hat_bar", known, shape)
    by_channel = (card.evaluate(name, known, shape[:2]).view(len(x), -1).sum(0) for name in ("gamma_bar", "beta_bar"))
    shares: Shares = [card.evaluate("x_bar", known, shape).view_as(x)]
    shares += [None if slot is None else share for slot, share in zip(s["slots"][1:], by_channel)]
    return placed(shares, inputs, s)


def _batch_rows(t: Tensor, s: Settings) -> Tensor:
    return t.movedim(1, -1).reshape(-1, t.shape[1])


def _batch_back(rows: Tensor, like: Tensor, s: Settings) -> Tensor:
    return rows.view(like.movedim(1, -1).shape).movedim(-1, 1)


LAYERS: dict[str, Form] = {
    "conv2d": Form(lambda inputs, s: [F.conv2d(*slots_of(inputs, s), **_conv_settings(s))], _conv_backward, "convolution"),  # type: ignore[arg-type]
    "avg_pool2d": Form(
        lambda inputs, s: [F.avg_pool2d(inputs[0], s["kernel"], s["stride"], s["padding"])], _average_backward, "average_pool"
    ),
    "max_pool2d": Form(
        lambda inputs, s: [F.max_pool2d(inputs[0], s["kernel"], s["stride"], s["padding"])], _largest_backward, "max_pool"
    ),
    "batch_norm": _norm("batch_norm", _batch_rows, _batch_back),
    "layer_norm": _norm(
        "layer_norm", lambda t, s: t.flatten(-s["axes"]).flatten(0, -2), lambda rows, like, s: rows.view_as(like)
    ),
    "group_norm": Form(_group_forward, _group_backward, "group_norm"),
    "attention_dropout": Form(
        lambda inputs, s: [CARDS["attention_dropout"].evaluate("O", _dropped(_attention_known(inputs, s), s))],
        _attention_dropout_backward,
        "attention_dropout",
    ),
    "attention": Form(
        lambda inputs, s: [CARDS["attention"].evaluate("O", _attention_known(inputs, s))], _attention_backward, "attention"
    ),
}
