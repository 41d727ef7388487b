"""Cards of affine maps, matrix products, elementwise functions, sums, fan-outs, reductions and rearrangements."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from spikeprop.plugins.derivatives.card import Card, Equation, normal

_UP = "cotangent of the output"
AFFINE = Card(
    key="affine",
    title="Affine map (linear layer)",
    about="Each output is a weighted sum of the inputs and a bias. Samples are rows.",
    symbols={"x": "inputs, one row per sample", "W": "weights, one row per output", "b": "biases", "y": "outputs", "y_bar": _UP},
    forward=(Equation("y[n, j]", "Sum(x[n, i] * W[j, i], i) + b[j]"), Equation("y", "x @ T(W) + b")),
    direct=(
        Equation("x_bar[n, i]", "Sum(y_bar[n, j] * W[j, i], j)", "x affects every output j, with the factor W"),
        Equation("W_bar[j, i]", "Sum(y_bar[n, j] * x[n, i], n)", "a weight is used for every sample n"),
        Equation("b_bar[j]", "Sum(y_bar[n, j], n)"),
    ),
    chain=(
        Equation("x_bar", "y_bar @ W", "the same sums as matrix products"),
        Equation("W_bar", "T(y_bar) @ x"),
        Equation("b_bar", "over_rows(y_bar)"),
    ),
    example=lambda g: {"x": normal(g, 3, 4), "W": normal(g, 2, 4), "b": normal(g, 2), "y_bar": normal(g, 3, 2)},
    wanted=("x", "W", "b"),
    operation=lambda v: {"y": F.linear(v["x"], v["W"], v["b"])},
    outputs=("y",),
)


def _elementwise(key: str, title: str, about: str, steps: tuple[tuple[Equation, ...], ...], f: object) -> Card:
    """A card of y = f(x)."""
    forward, direct, chain = steps
    return Card(
        key=key,
        title=title,
        about=about,
        symbols={"x": "input", "y": "output", "y_bar": _UP},
        forward=forward,
        direct=direct,
        chain=chain,
        example=lambda g: {"x": normal(g, 3, 4), "y_bar": normal(g, 3, 4)},
        wanted=("x",),
        operation=lambda v: {"y": f(v["x"])},  # type: ignore[operator]
        outputs=("y",),
    )


SIGMOID = _elementwise(
    "sigmoid",
    "Sigmoid",
    "Its derivative has its maximum 1/4 at 0, and vanishes where the output is nearly 0 or 1: saturation.",
    (
        (Equation("y", "1 / (1 + exp(-x))"),),
        (
            Equation("d(y, x)", "exp(-x) / (1 + exp(-x)) ** 2", "the quotient's derivative"),
            Equation("x_bar", "y_bar * exp(-x) / (1 + exp(-x)) ** 2"),
        ),
        (
            Equation("d(y, x)", "y ** 2 * (1 / y - 1)", "with y = 1/u and u = 1 + exp(-x), so u - 1 = 1/y - 1"),
            Equation("x_bar", "y_bar * y * (1 - y)"),
        ),
    ),
    torch.sigmoid,
)
TANH = _elementwise(
    "tanh",
    "Hyperbolic tangent",
    "The derivative is 1 at 0 and vanishes where the output is nearly -1 or 1: saturation.",
    (
        (Equation("y", "(exp(x) - exp(-x)) / (exp(x) + exp(-x))"),),
        (
            Equation("d(y, x)", "4 / (exp(x) + exp(-x)) ** 2", "the quotient's derivative"),
            Equation("x_bar", "y_bar * 4 / (exp(x) + exp(-x)) ** 2"),
        ),
        (
            Equation("y", "2 * sigmoid(2 * x) - 1", "a stretched sigmoid"),
            Equation("d(y, x)", "4 * sigmoid(2 * x) * (1 - sigmoid(2 * x))"),
            Equation("x_bar", "y_bar * (1 - y ** 2)"),
        ),
    ),
    torch.tanh,
)
RELU = _elementwise(
    "relu",
    "Rectifier (ReLU)",
    "Passes positive inputs, and their cotangents. At 0, where there is no derivative, 0 is used.",
    (
        (Equation("y", "x * (x > 0)"),),
        (Equation("d(y, x)", "x > 0", "1 where the input is positive, else 0"), Equation("x_bar", "y_bar * (x > 0)")),
        (
            Equation("y", "(x + abs(x)) / 2"),
            Equation("d(y, x)", "(1 + sign(x)) / 2"),
            Equation("x_bar", "y_bar * (y > 0)", "only the output is needed"),
        ),
    ),
    torch.relu,
)
GELU = _elementwise(
    "gelu",
    "Gaussian error linear unit (GELU)",
    "The input times the cumulative normal distribution at the input.",
    (
        (Equation("y", "x * (1 + erf(x / sqrt2)) / 2"),),
        (
            Equation(
                "x_bar",
                "y_bar * ((1 + erf(x / sqrt2)) / 2 + x * exp(-(x ** 2) / 2) / sqrt2pi)",
                "product rule; the second term contains the density",
            ),
        ),
        (
            Equation("d(y, x)", "(1 + erf(x / sqrt2)) / 2 + x * exp(-(x ** 2) / 2) / sqrt2pi"),
            Equation("x_bar", "y_bar * ((1 + erf(x / sqrt2)) / 2 + x * exp(-(x ** 2) / 2) / sqrt2pi)"),
        ),
    ),
    F.gelu,
)

SILU = _elementwise(
    "silu",
    "Sigmoid linear unit (SiLU, swish)",
    "The input times its sigmoid. Below about -1.28 it falls, so its derivative is slightly negative there.",
    (
        (Equation("y", "x / (1 + exp(-x))"),),
        (
            Equation("d(y, x)", "1 / (1 + exp(-x)) + x * exp(-x) / (1 + exp(-x)) ** 2", "the quotient's derivative"),
            Equation("x_bar", "y_bar * (1 / (1 + exp(-x)) + x * exp(-x) / (1 + exp(-x)) ** 2)"),
        ),
        (
            Equation("d(y, x)", "sigmoid(x) + y * (1 - sigmoid(x))", "product rule, with the sigmoid's derivative"),
            Equation("x_bar", "y_bar * (sigmoid(x) + y * (1 - sigmoid(x)))"),
        ),
    ),
    F.silu,
)

ADD = Card(
    key="add",
    title="Sum, and fan-out",
    about="A sum passes its cotangent to every summand. Conversely, a value that is used twice gets the sum of both cotangents.",
    symbols={
        "a": "summand",
        "b": "summand",
        "c": "factor of the second use",
        "y": "sum",
        "z": "second use of a",
        "y_bar": _UP,
        "z_bar": _UP,
    },
    forward=(Equation("y", "a + b"), Equation("z", "c * a", "a is used a second time")),
    direct=(
        Equation("b_bar[n, i]", "y_bar[n, i]"),
        Equation(
            "a_bar[n, i]", "y_bar[n, i] + c[n, i] * z_bar[n, i]", "L depends on a along two paths; the differential is their sum"
        ),
    ),
    chain=(Equation("b_bar", "y_bar"), Equation("a_bar", "y_bar + c * z_bar", "the sum at a fan-out")),
    example=lambda g: {name: normal(g, 2, 3) for name in ("a", "b", "c", "y_bar", "z_bar")},
    wanted=("a", "b"),
    operation=lambda v: {"y": v["a"] + v["b"], "z": v["a"] * v["c"]},
    outputs=("y", "z"),
)

PRODUCT = Card(
    key="product",
    title="Elementwise product",
    about="Each factor gets the cotangent times the other factor. Dropout is a factor of 0 or 1/(1 - p).",
    symbols={"a": "factor", "b": "factor", "y": "product", "y_bar": _UP},
    forward=(Equation("y", "a * b"),),
    direct=(Equation("a_bar[n, i]", "y_bar[n, i] * b[n, i]"), Equation("b_bar[n, i]", "y_bar[n, i] * a[n, i]")),
    chain=(Equation("d(y, a)", "b"), Equation("a_bar", "y_bar * b"), Equation("d(y, b)", "a"), Equation("b_bar", "y_bar * a")),
    example=lambda g: {name: normal(g, 2, 3) for name in ("a", "b", "y_bar")},
    wanted=("a", "b"),
    operation=lambda v: {"y": v["a"] * v["b"]},
    outputs=("y",),
)

MATMUL = Card(
    key="matmul",
    title="Matrix product",
    about="Like the affine map, but both factors are variable.",
    symbols={"A": "left factor", "B": "right factor", "Y": "product", "Y_bar": _UP},
    forward=(Equation("Y[i, k]", "Sum(A[i, j] * B[j, k], j)"), Equation("Y", "A @ B")),
    direct=(Equation("A_bar[i, j]", "Sum(Y_bar[i, k] * B[j, k], k)"), Equation("B_bar[j, k]", "Sum(A[i, j] * Y_bar[i, k], i)")),
    chain=(Equation("A_bar", "Y_bar @ T(B)"), Equation("B_bar", "T(A) @ Y_bar")),
    example=lambda g: {"A": normal(g, 3, 4), "B": normal(g, 4, 2), "Y_bar": normal(g, 3, 2)},
    wanted=("A", "B"),
    operation=lambda v: {"Y": v["A"] @ v["B"]},
    outputs=("Y",),
)

REARRANGE = Card(
    key="rearrange",
    title="Rearrangement",
    about="Reshaping, slicing, joining and repeating move entries without computation. S is 1 where output k is input i.",
    symbols={"x": "entries of the input", "S": "1 where output k is input i", "y": "entries of the output", "y_bar": _UP},
    forward=(Equation("y[k]", "Sum(S[k, i] * x[i], i)"),),
    direct=(
        Equation(
            "x_bar[i]", "Sum(S[k, i] * y_bar[k], k)", "an entry that is used several times gets the sum, an unused entry gets 0"
        ),
    ),
    chain=(Equation("x_bar", "T(S) @ y_bar"),),
    example=lambda g: {"x": normal(g, 4), "S": torch.eye(4, dtype=torch.float64)[[2, 0, 2, 1, 0]], "y_bar": normal(g, 5)},
    wanted=("x",),
    operation=lambda v: {"y": v["x"][[2, 0, 2, 1, 0]]},
    outputs=("y",),
)

REDUCE = Card(
    key="reduce",
    title="Sum and mean of entries",
    about="Every summed entry gets the cotangent of the sum; for a mean, divided by the number of entries.",
    symbols={"x": "entries", "N": "number of entries", "y": "mean", "y_bar": _UP},
    forward=(Equation("y", "total(x) / N"),),
    direct=(Equation("x_bar[i]", "y_bar / N", "the same for every i"),),
    chain=(Equation("d(y, x)", "1 / N"), Equation("x_bar", "y_bar / N")),
    example=lambda g: {"x": normal(g, 5), "N": torch.tensor(5.0, dtype=torch.float64), "y_bar": normal(g)},
    wanted=("x",),
    operation=lambda v: {"y": v["x"].mean()},
    outputs=("y",),
)


SOFTMAX = Card(
    key="softmax",
    title="Softmax",
    about="Every output depends on every input of its row, through the common denominator.",
    symbols={"z": "scores", "p": "probabilities", "p_bar": _UP},
    forward=(Equation("p", "exp(z) / along(exp(z))"),),
    direct=(
        Equation(
            "z_bar[n, i]",
            "p[n, i] * p_bar[n, i] - Sum(p[n, i] * p[n, k] * p_bar[n, k], k)",
            "d p_k / d z_i is p_k ([k = i] - p_i)",
        ),
    ),
    chain=(Equation("z_bar", "p * (p_bar - along(p_bar * p))"),),
    example=lambda g: {"z": normal(g, 3, 4), "p_bar": normal(g, 3, 4)},
    wanted=("z",),
    operation=lambda v: {"p": torch.softmax(v["z"], -1)},
    outputs=("p",),
)


def _constants(card: Card) -> Card:
    """The same card, with the two constants in GELU's lines."""
    from dataclasses import replace

    numbers = {"sqrt2": 2.0**0.5, "sqrt2pi": (2 * torch.pi) ** 0.5}
    known = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return replace(
        card, symbols={**card.symbols, "sqrt2": "square root of 2", "sqrt2pi": "square root of 2 pi"}, more_truth=lambda _: known
    )


GELU = _constants(GELU)
CARDS: tuple[Card, ...] = (
    AFFINE,
    SIGMOID,
    TANH,
    RELU,
    GELU,
    SILU,
    ADD,
    PRODUCT,
    MATMUL,
    REARRANGE,
    REDUCE,
    SOFTMAX,
)
