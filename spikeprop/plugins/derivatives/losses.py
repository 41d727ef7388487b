"""Cards of losses, each with the function that produces its predictions.

The first card, an affine map with a sigmoid and the binary cross-entropy, is the network of P. David's "All the backpropagation
derivatives".
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal

_TARGET = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)


def _logistic(v: Tensors) -> Tensors:
    z = F.linear(v["x"], v["W"], v["b"])
    a = torch.sigmoid(z)
    return {"z": z, "a": a, "L": F.binary_cross_entropy(a, v["y"], reduction="sum")}


SIGMOID_BCE = Card(
    key="sigmoid_bce",
    title="Sigmoid and binary cross-entropy",
    about="One layer with one prediction between 0 and 1. Loss and sigmoid together have the simple derivative a - y. "
    "A mean over N samples divides every line by N.",
    symbols={
        "x": "inputs",
        "W": "weights",
        "b": "bias",
        "z": "logit",
        "a": "prediction",
        "y": "target, 0 or 1",
        "L": "loss, summed over samples",
    },
    forward=(
        Equation("z", "x @ T(W) + b"),
        Equation("a", "1 / (1 + exp(-z))"),
        Equation("L", "total(-(y * log(a) + (1 - y) * log(1 - a)))"),
    ),
    direct=(
        Equation("L", "total(log(1 + exp(z)) - y * z)", "insert a into the loss: the logarithms simplify"),
        Equation("z_bar", "exp(z) / (1 + exp(z)) - y", "differentiate by z"),
        Equation("z_bar", "a - y"),
        Equation("W_bar", "T(a - y) @ x", "z is affine in W and b"),
        Equation("b_bar", "over_rows(a - y)"),
    ),
    chain=(
        Equation("a_bar", "-(y / a) + (1 - y) / (1 - a)", "the loss by the prediction"),
        Equation("a_bar", "(a - y) / (a * (1 - a))", "over one denominator"),
        Equation("d(a, z)", "exp(-z) / (1 + exp(-z)) ** 2", "the sigmoid by its logit"),
        Equation("d(a, z)", "a * (1 - a)"),
        Equation("z_bar", "a_bar * a * (1 - a)", "multiply the derivatives"),
        Equation("z_bar", "a - y", "the denominator cancels"),
        Equation("W_bar", "T(z_bar) @ x"),
        Equation("b_bar", "over_rows(z_bar)"),
    ),
    example=lambda g: {"x": normal(g, 3, 4), "W": normal(g, 1, 4), "b": normal(g, 1), "y": _TARGET.clone()},
    wanted=("W", "b"),
    operation=_logistic,
    outputs=("L",),
    source="P. David, All the backpropagation derivatives",
)


def _softmax(v: Tensors) -> Tensors:
    p = torch.softmax(v["z"], -1)
    return {"p": p, "L": -(v["y"] * p.log()).sum()}


SOFTMAX_CE = Card(
    key="softmax_ce",
    title="Softmax and cross-entropy",
    about="Again the derivative is the difference of prediction and target. A mean over N samples divides by N.",
    symbols={"z": "scores", "p": "probabilities", "y": "target: rows that sum to 1", "L": "loss, summed over samples"},
    forward=(Equation("p", "exp(z) / along(exp(z))"), Equation("L", "total(-(y * log(p)))")),
    direct=(
        Equation("L", "total(along(y) * log(along(exp(z)))) - total(y * z)", "insert p into the loss"),
        Equation("z_bar", "exp(z) / along(exp(z)) - y", "differentiate by each score"),
        Equation("z_bar", "p - y"),
    ),
    chain=(
        Equation("p_bar", "-(y / p)", "the loss by the probabilities"),
        Equation("z_bar", "p * (p_bar - along(p_bar * p))", "the rule of the softmax: all scores have the same denominator"),
        Equation("z_bar", "p - y", "p times p_bar is -y, whose sum is -1"),
    ),
    example=lambda g: {"z": normal(g, 3, 4), "y": torch.softmax(normal(g, 3, 4), -1)},
    wanted=("z",),
    operation=_softmax,
    outputs=("L",),
)

SQUARED_ERROR = Card(
    key="squared_error",
    title="Squared error",
    about="The mean of squared differences.",
    symbols={"x": "predictions", "y": "targets", "N": "number of entries", "L": "loss"},
    forward=(Equation("L", "total((x - y) ** 2) / N"),),
    direct=(Equation("x_bar[n, i]", "2 * (x[n, i] - y[n, i]) / N"),),
    chain=(Equation("x_bar", "2 * (x - y) / N", "the derivatives of the square and of the mean"),),
    example=lambda g: {"x": normal(g, 2, 3), "y": normal(g, 2, 3), "N": torch.tensor(6.0, dtype=torch.float64)},
    wanted=("x",),
    operation=lambda v: {"L": F.mse_loss(v["x"], v["y"])},
    outputs=("L",),
)


CARDS: tuple[Card, ...] = (SIGMOID_BCE, SOFTMAX_CE, SQUARED_ERROR)
