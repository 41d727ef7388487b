"""Cards of scaled dot-product attention, one head, with and without dropout of its weights."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal

_SYMBOLS = {
    "Q": "queries",
    "K": "keys",
    "V": "values",
    "S": "scores",
    "P": "weights of the values",
    "O": "output",
    "O_bar": "cotangent of the output",
    "d": "length of a key",
}


def _example(g: Generator) -> Tensors:
    known = {"Q": normal(g, 3, 4), "K": normal(g, 5, 4), "V": normal(g, 5, 2), "O_bar": normal(g, 3, 2)}
    return known | {"d": torch.tensor(4.0, dtype=torch.float64)}


def _weights(v: Tensors) -> tuple[Tensor, Tensor]:
    s = v["Q"] @ v["K"].mT / v["d"].sqrt()
    return s, torch.softmax(s, -1)


def _attend(v: Tensors) -> Tensors:
    s, p = _weights(v)
    return {"S": s, "P": p, "O": p @ v["V"]}


ATTENTION = Card(
    key="attention",
    title="Attention",
    about="A softmax of scaled dot products gives the weights for averaging the values. One head; d is the length of a key.",
    symbols=_SYMBOLS,
    forward=(Equation("S", "Q @ T(K) / sqrt(d)"), Equation("P", "softmax(S)"), Equation("O", "P @ V")),
    direct=(
        Equation("V_bar[j, c]", "Sum(P[i, j] * O_bar[i, c], i)"),
        Equation(
            "S_bar[i, j]",
            "P[i, j] * Sum(O_bar[i, c] * V[j, c] - O_bar[i, c] * O[i, c], c)",
            "value j compared with the mean of all values",
        ),
        Equation("Q_bar[i, c]", "Sum(S_bar[i, j] * K[j, c], j) / sqrt(d)"),
        Equation("K_bar[j, c]", "Sum(S_bar[i, j] * Q[i, c], i) / sqrt(d)"),
    ),
    chain=(
        Equation("V_bar", "T(P) @ O_bar", "matrix product"),
        Equation("P_bar", "O_bar @ T(V)"),
        Equation("S_bar", "P * (P_bar - along(P_bar * P))", "softmax"),
        Equation("Q_bar", "S_bar @ K / sqrt(d)"),
        Equation("K_bar", "T(S_bar) @ Q / sqrt(d)"),
    ),
    example=_example,
    wanted=("Q", "K", "V"),
    operation=_attend,
    outputs=("O",),
)


def _attend_with_dropout(v: Tensors) -> Tensors:
    s, p = _weights(v)
    kept = p * v["D"]
    return {"S": s, "P": p, "A": kept, "O": kept @ v["V"]}


ATTENTION_DROPOUT = Card(
    key="attention_dropout",
    title="Attention with dropout",
    about="Dropout multiplies the weights of the values by D, whose entries are 0 or 1/(1 - p), after the softmax; so the rows "
    "of what remains no longer sum to 1, and a dropped weight passes nothing to its value and still changes through the softmax.",
    symbols={**_SYMBOLS, "D": "0 where a weight is dropped, else 1/(1 - p)", "A": "weights that remain"},
    forward=(
        Equation("S", "Q @ T(K) / sqrt(d)"),
        Equation("P", "softmax(S)"),
        Equation("A", "P * D"),
        Equation("O", "A @ V"),
    ),
    direct=(
        Equation("V_bar[j, c]", "Sum(P[i, j] * D[i, j] * O_bar[i, c], i)"),
        Equation(
            "S_bar[i, j]",
            "P[i, j] * Sum(O_bar[i, c] * (D[i, j] * V[j, c] - O[i, c]), c)",
            "what is left of value j compared with the output",
        ),
        Equation("Q_bar[i, c]", "Sum(S_bar[i, j] * K[j, c], j) / sqrt(d)"),
        Equation("K_bar[j, c]", "Sum(S_bar[i, j] * Q[i, c], i) / sqrt(d)"),
    ),
    chain=(
        Equation("V_bar", "T(A) @ O_bar", "matrix product"),
        Equation("A_bar", "O_bar @ T(V)"),
        Equation("P_bar", "A_bar * D", "elementwise product"),
        Equation("S_bar", "P * (P_bar - along(P_bar * P))", "softmax"),
        Equation("Q_bar", "S_bar @ K / sqrt(d)"),
        Equation("K_bar", "T(S_bar) @ Q / sqrt(d)"),
    ),
    example=lambda g: _example(g) | {"D": (torch.rand(3, 5, generator=g, dtype=torch.float64) > 0.3) / 0.7},
    wanted=("Q", "K", "V"),
    operation=_attend_with_dropout,
    outputs=("O",),
)

CARDS: tuple[Card, ...] = (ATTENTION, ATTENTION_DROPOUT)
