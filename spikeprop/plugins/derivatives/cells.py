"""Cards of recurrent cells: LSTM and GRU, from the pre-activations of their gates.

The pre-activations are affine maps of the input and of the state of the step before, so the affine card continues each cotangent
to inputs, state and weights. Sources: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014, in
torch's form, in which the reset gate acts after the recurrent weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal

SHAPE = (2, 3)


def _gate(name: str, kind: str, upstream: str) -> tuple[Equation, Equation]:
    """(in one line, by the chain rule) of a pre-activation; the gate's own cotangent is ``upstream``."""
    slope = f"{name} * (1 - {name})" if kind == "sigmoid" else f"(1 - {name} ** 2)"
    return Equation(f"a_{name}_bar", f"{upstream} * {slope}"), Equation(f"a_{name}_bar", f"{name}_bar * {slope}", kind)


def _lstm(v: Tensors) -> Tensors:
    gates = {name: torch.sigmoid(v[f"a_{name}"]) for name in "ifo"} | {"g": torch.tanh(v["a_g"])}
    cell = gates["f"] * v["c"] + gates["i"] * gates["g"]
    return {**gates, "m": cell, "c_new": cell * 1, "h_new": gates["o"] * torch.tanh(cell)}


_CELL = "(c_new_bar + h_new_bar * o * (1 - tanh(m) ** 2))"
_LSTM_GATES = {
    "i": _gate("i", "sigmoid", f"{_CELL} * g"),
    "f": _gate("f", "sigmoid", f"{_CELL} * c"),
    "g": _gate("g", "tanh", f"{_CELL} * i"),
    "o": _gate("o", "sigmoid", "h_new_bar * tanh(m)"),
}
LSTM = Card(
    key="lstm_cell",
    title="LSTM cell",
    about="The cell is kept by the factor f, so its cotangent is passed on by f alone, without any weights: gradients last as "
    "long as the forget gate stays near 1.",
    symbols={
        "a_i": "pre-activation of the input gate, an affine map of the input and the last h; likewise f, g, o",
        "i": "input gate",
        "f": "forget gate",
        "g": "candidate",
        "o": "output gate",
        "c": "cell of the step before",
        "m": "new cell, before it is used twice",
        "c_new": "cell for the next step",
        "h_new": "output",
        "c_new_bar": "cotangent from the next step's cell",
        "h_new_bar": "cotangent of the output",
    },
    forward=(
        Equation("i", "sigmoid(a_i)"),
        Equation("f", "sigmoid(a_f)"),
        Equation("g", "tanh(a_g)"),
        Equation("o", "sigmoid(a_o)"),
        Equation("m", "f * c + i * g"),
        Equation("c_new", "m"),
        Equation("h_new", "o * tanh(m)"),
    ),
    direct=(
        *(direct for direct, _ in _LSTM_GATES.values()),
        Equation("c_bar", f"{_CELL} * f", "the cell acts on the output and on the next cell"),
    ),
    chain=(
        Equation("m_bar", "c_new_bar + h_new_bar * o * (1 - tanh(m) ** 2)", "a fan-out: the next cell, and the output"),
        Equation("i_bar", "m_bar * g", "product"),
        Equation("f_bar", "m_bar * c"),
        Equation("g_bar", "m_bar * i"),
        Equation("o_bar", "h_new_bar * tanh(m)"),
        *(chain for _, chain in _LSTM_GATES.values()),
        Equation("c_bar", "m_bar * f"),
    ),
    example=lambda g: {n: normal(g, *SHAPE) for n in ("a_i", "a_f", "a_g", "a_o", "c", "c_new_bar", "h_new_bar")},
    wanted=("a_i", "a_f", "a_g", "a_o", "c"),
    operation=_lstm,
    outputs=("c_new", "h_new"),
    source="Hochreiter & Schmidhuber 1997; Gers et al. 2000",
)


def _gru(v: Tensors) -> Tensors:
    r, z = torch.sigmoid(v["a_r"]), torch.sigmoid(v["a_z"])
    candidate: Tensor = torch.tanh(v["a_n"] + r * v["u"])
    return {"r": r, "z": z, "n": candidate, "h_new": (1 - z) * candidate + z * v["h"]}


_CANDIDATE = "h_new_bar * (1 - z) * (1 - n ** 2)"
GRU = Card(
    key="gru_cell",
    title="GRU cell",
    about="The output is a mean of the candidate and the last output, with the weight z: one gate both keeps and forgets. "
    "The reset gate scales what the candidate sees of the last output.",
    symbols={
        "a_r": "pre-activation of the reset gate, an affine map of the input and of h; likewise z",
        "a_n": "affine map of the input, for the candidate",
        "u": "affine map of h, for the candidate",
        "r": "reset gate",
        "z": "update gate",
        "n": "candidate",
        "h": "output of the step before",
        "h_new": "output",
        "h_new_bar": "cotangent of the output",
    },
    forward=(
        Equation("r", "sigmoid(a_r)"),
        Equation("z", "sigmoid(a_z)"),
        Equation("n", "tanh(a_n + r * u)"),
        Equation("h_new", "(1 - z) * n + z * h"),
    ),
    direct=(
        Equation("a_r_bar", f"{_CANDIDATE} * u * r * (1 - r)"),
        Equation("a_z_bar", "h_new_bar * (h - n) * z * (1 - z)", "the difference of the two that z weighs"),
        Equation("a_n_bar", _CANDIDATE),
        Equation("u_bar", f"{_CANDIDATE} * r"),
        Equation("h_bar", "h_new_bar * z", "without the paths through the pre-activations and u"),
    ),
    chain=(
        Equation("n_bar", "h_new_bar * (1 - z)", "product"),
        Equation("z_bar", "h_new_bar * (h - n)"),
        Equation("h_bar", "h_new_bar * z"),
        Equation("a_n_bar", "n_bar * (1 - n ** 2)", "tanh"),
        Equation("u_bar", "a_n_bar * r"),
        Equation("r_bar", "a_n_bar * u"),
        Equation("a_r_bar", "r_bar * r * (1 - r)", "sigmoid"),
        Equation("a_z_bar", "z_bar * z * (1 - z)", "sigmoid"),
    ),
    example=lambda g: {name: normal(g, *SHAPE) for name in ("a_r", "a_z", "a_n", "u", "h", "h_new_bar")},
    wanted=("a_r", "a_z", "a_n", "u", "h"),
    operation=_gru,
    outputs=("h_new",),
    source="Cho et al. 2014, arXiv:1406.1078",
)

CARDS: tuple[Card, ...] = (LSTM, GRU)
