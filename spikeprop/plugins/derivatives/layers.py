"""Cards of layers: convolution, pooling, batch and layer normalisation, attention, and QR.

The cards show one image, one head, one matrix; the operations of a network do the same for each. The rule of QR is that of
Roberts & Roberts (2020, arXiv:2009.10071) for a matrix at least as tall as wide.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal

_UP = "cotangent that arrives from above"


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


CONVOLUTION = Card(
    key="convolution",
    title="Convolution",
    about="The same weights at every place. Shown with stride 1 and no padding; entries outside of a map count as 0.",
    symbols={
        "x": "maps in, [channel, row, column]",
        "W": "kernels, [out, in, row, column]",
        "b": "biases",
        "y": "maps out",
        "y_bar": _UP,
    },
    forward=(Equation("y[o, i, j]", "Sum(W[o, c, u, v] * x[c, i + u, j + v], c, u, v) + b[o]"),),
    direct=(
        Equation(
            "x_bar[c, i, j]",
            "Sum(y_bar[o, i - u, j - v] * W[o, c, u, v], o, u, v)",
            "x at (i, j) is read by the outputs at (i - u, j - v)",
        ),
        Equation("W_bar[o, c, u, v]", "Sum(y_bar[o, i, j] * x[c, i + u, j + v], i, j)", "a weight serves every place"),
        Equation("b_bar[o]", "Sum(y_bar[o, i, j], i, j)"),
    ),
    chain=(
        Equation(
            "M[o, i, j, c, k, l]",
            "Sum(W[o, c, u, v] * (k == i + u) * (l == j + v), u, v)",
            "the convolution written as one matrix, zeros but for W",
        ),
        Equation(
            "y[o, i, j]", "Sum(M[o, i, j, c, k, l] * x[c, k, l], c, k, l) + b[o]", "an affine map, so the affine card holds"
        ),
        Equation("x_bar[c, k, l]", "Sum(y_bar[o, i, j] * M[o, i, j, c, k, l], o, i, j)"),
        Equation("W_bar[o, c, u, v]", "Sum(y_bar[o, i, j] * x[c, k, l] * (k == i + u) * (l == j + v), i, j, k, l)"),
        Equation("b_bar[o]", "Sum(y_bar[o, i, j], i, j)"),
    ),
    example=lambda g: {"x": normal(g, 2, 4, 3), "W": normal(g, 3, 2, 2, 2), "b": normal(g, 3), "y_bar": normal(g, 3, 3, 2)},
    wanted=("x", "W", "b"),
    operation=lambda v: {"y": F.conv2d(v["x"], v["W"], v["b"])},
    outputs=("y",),
    more_truth=lambda known: {"M": _as_matrix(known)},
)


def _as_matrix(known: Tensors) -> Tensor:
    """The convolution's Jacobian by its input, from autograd."""
    found = torch.autograd.functional.jacobian(lambda x: F.conv2d(x, known["W"]), known["x"])
    assert isinstance(found, Tensor)
    return found


AVERAGE_POOL = Card(
    key="average_pool",
    title="Average pooling",
    about="Each output is the mean of its window, so each entry of a window gets the same share of its cotangent.",
    symbols={"x": "map in", "k": "side of the window, and stride", "y": "map out", "y_bar": _UP},
    forward=(
        Equation("y[i, j]", "Sum(x[a, b] * (a >= k * i) * (a < k * i + k) * (b >= k * j) * (b < k * j + k), a, b) / k ** 2"),
    ),
    direct=(
        Equation(
            "x_bar[a, b]",
            "Sum(y_bar[i, j] * (a >= k * i) * (a < k * i + k) * (b >= k * j) * (b < k * j + k), i, j) / k ** 2",
            "the one window that holds (a, b)",
        ),
    ),
    chain=(
        Equation(
            "M[i, j, a, b]",
            "(a >= k * i) * (a < k * i + k) * (b >= k * j) * (b < k * j + k) / k ** 2",
            "a linear map: this is its matrix",
        ),
        Equation("x_bar[a, b]", "Sum(y_bar[i, j] * M[i, j, a, b], i, j)"),
    ),
    example=lambda g: {"x": normal(g, 4, 6), "k": _number(2), "y_bar": normal(g, 2, 3)},
    wanted=("x",),
    operation=lambda v: {"y": F.avg_pool2d(v["x"].unsqueeze(0), 2)[0]},
    outputs=("y",),
    more_truth=lambda known: {"M": torch.autograd.functional.jacobian(lambda x: F.avg_pool2d(x.unsqueeze(0), 2)[0], known["x"])},  # type: ignore[dict-item]
)

MAX_POOL = Card(
    key="max_pool",
    title="Maximum pooling",
    about="Only the largest entry of a window matters, so it alone gets the cotangent. Shown with windows as rows.",
    symbols={"x": "entries, a row a window", "y": "largest of each row", "y_bar": _UP},
    forward=(Equation("y[n]", "Sum(x[n, i] * (x[n, i] == m[n]), i)"),),
    direct=(Equation("x_bar[n, i]", "y_bar[n] * (x[n, i] == m[n])", "moving another entry a little moves nothing"),),
    chain=(
        Equation("S[n, i]", "x[n, i] == m[n]", "near x the maximum is this linear choice"),
        Equation("x_bar[n, i]", "y_bar[n] * S[n, i]"),
    ),
    example=lambda g: {"x": normal(g, 3, 4), "y_bar": normal(g, 3)},
    wanted=("x",),
    operation=lambda v: {"y": v["x"].max(1).values},
    outputs=("y",),
    more_truth=lambda known: {"m": known["x"].max(1).values, "S": F.one_hot(known["x"].argmax(1), 4).double()},
)


def _normalise(v: Tensors, axis: int, keep: bool) -> Tensors:
    mu = v["x"].mean(axis, keepdim=keep)
    centred = v["x"] - mu
    var = (centred**2).mean(axis, keepdim=keep)
    x_hat = centred / (var + v["eps"]).sqrt()
    return {"mu": mu, "var": var, "x_hat": x_hat, "y": v["gamma"] * x_hat + v["beta"]}


def _norm(key: str, title: str, about: str, mean: str, g_sum: str) -> Card:
    """Batch or layer normalisation: the same lines, with means over samples or over features."""
    axis, keep = (0, False) if mean == "mean" else (1, True)
    return Card(
        key=key,
        title=title,
        about=about,
        symbols={
            "x": "input, a row a sample",
            "gamma": "scale",
            "beta": "shift",
            "eps": "small number",
            "mu": "mean",
            "var": "variance",
            "x_hat": "normalised input",
            "y": "output",
            "y_bar": _UP,
        },
        forward=(
            Equation("mu", f"{mean}(x)"),
            Equation("var", f"{mean}((x - mu) ** 2)"),
            Equation("x_hat", "(x - mu) / sqrt(var + eps)"),
            Equation("y", "gamma * x_hat + beta"),
        ),
        direct=(
            Equation(
                "x_bar",
                f"(gamma * y_bar - {mean}(gamma * y_bar) - x_hat * {mean}(gamma * y_bar * x_hat)) / sqrt(var + eps)",
                "the output does not change if x shifts or stretches: both parts of the cotangent are taken out",
            ),
            Equation("gamma_bar", f"{g_sum}(y_bar * x_hat)"),
            Equation("beta_bar", f"{g_sum}(y_bar)"),
        ),
        chain=(
            Equation("x_hat_bar", "y_bar * gamma"),
            Equation(
                "var_bar",
                f"-({mean}(x_hat_bar * (x - mu)) * N) / (2 * (var + eps) * sqrt(var + eps))",
                "the variance divides every entry",
            ),
            Equation(
                "mu_bar",
                f"-({mean}(x_hat_bar) * N) / sqrt(var + eps)",
                "so does the mean shift it; through the variance it does nothing",
            ),
            Equation(
                "x_bar", "x_hat_bar / sqrt(var + eps) + var_bar * 2 * (x - mu) / N + mu_bar / N", "three paths from x, summed"
            ),
            Equation("x_bar", f"(x_hat_bar - {mean}(x_hat_bar) - x_hat * {mean}(x_hat_bar * x_hat)) / sqrt(var + eps)"),
            Equation("gamma_bar", f"{g_sum}(y_bar * x_hat)"),
            Equation("beta_bar", f"{g_sum}(y_bar)"),
        ),
        example=lambda g: {
            "x": normal(g, 5, 3),
            "gamma": normal(g, 3),
            "beta": normal(g, 3),
            "eps": _number(1e-5),
            "y_bar": normal(g, 5, 3),
        },
        wanted=("x", "gamma", "beta"),
        operation=lambda v: _normalise(v, axis, keep),
        outputs=("y",),
        more_truth=lambda known: {"N": _number(known["x"].shape[axis])},
    )


BATCH_NORM = _norm(
    "batch_norm",
    "Batch normalisation",
    "Means over the samples of a batch (and the places of a map), N in all, in training mode. In evaluation mode mean "
    "and variance are constants, and only the first path is left.",
    "mean",
    "over_rows",
)
LAYER_NORM = _norm(
    "layer_norm", "Layer normalisation", "Means over the features of each sample; N is how many.", "mean_along", "over_rows"
)


def _attend(v: Tensors) -> Tensors:
    s = v["Q"] @ v["K"].mT / v["d"].sqrt()
    p = torch.softmax(s, -1)
    return {"S": s, "P": p, "O": p @ v["V"]}


ATTENTION = Card(
    key="attention",
    title="Attention",
    about="Scaled dot products choose, by a softmax, which values to average. One head; d is the length of a key.",
    symbols={
        "Q": "queries",
        "K": "keys",
        "V": "values",
        "S": "scores",
        "P": "weights of the values",
        "O": "output",
        "O_bar": _UP,
        "d": "length of a key",
    },
    forward=(Equation("S", "Q @ T(K) / sqrt(d)"), Equation("P", "softmax(S)"), Equation("O", "P @ V")),
    direct=(
        Equation("V_bar[j, c]", "Sum(P[i, j] * O_bar[i, c], i)"),
        Equation(
            "S_bar[i, j]",
            "P[i, j] * Sum(O_bar[i, c] * V[j, c] - O_bar[i, c] * O[i, c], c)",
            "value j against the mean of all values",
        ),
        Equation("Q_bar[i, c]", "Sum(S_bar[i, j] * K[j, c], j) / sqrt(d)"),
        Equation("K_bar[j, c]", "Sum(S_bar[i, j] * Q[i, c], i) / sqrt(d)"),
    ),
    chain=(
        Equation("V_bar", "T(P) @ O_bar", "product of matrices"),
        Equation("P_bar", "O_bar @ T(V)"),
        Equation("S_bar", "P * (P_bar - along(P_bar * P))", "softmax"),
        Equation("Q_bar", "S_bar @ K / sqrt(d)"),
        Equation("K_bar", "T(S_bar) @ Q / sqrt(d)"),
    ),
    example=lambda g: {
        "Q": normal(g, 3, 4),
        "K": normal(g, 5, 4),
        "V": normal(g, 5, 2),
        "O_bar": normal(g, 3, 2),
        "d": _number(4),
    },
    wanted=("Q", "K", "V"),
    operation=_attend,
    outputs=("O",),
)


def _tangents(known: Tensors) -> Tensors:
    """How Q and R move with A, from torch, and what the cotangents make of it."""
    moved = torch.autograd.functional.jvp(lambda a: tuple(torch.linalg.qr(a)), known["A"], known["A_dot"])[1]
    change = (known["Q_bar"] * moved[0]).sum() + (known["R_bar"] * moved[1]).sum()
    inner = known["R"] @ known["R_bar"].mT - known["Q_bar"].mT @ known["Q"]
    return {"Q_dot": moved[0], "R_dot": moved[1], "M": inner, "ell": change, "A_bar": known["A_bar"]}


def _qr_example(g: Generator) -> Tensors:
    return {"A": normal(g, 4, 3), "A_dot": normal(g, 4, 3), "Q_bar": normal(g, 4, 3), "R_bar": normal(g, 3, 3).triu()}


QR = Card(
    key="qr",
    title="QR decomposition",
    about="A, at least as tall as wide and of full rank, becomes orthonormal columns Q times an upper triangle R. A dot marks "
    "how a quantity moves when A moves; copyltu mirrors the lower triangle to the upper one.",
    symbols={
        "A": "matrix",
        "Q": "orthonormal columns",
        "R": "upper triangle",
        "Q_bar": _UP,
        "R_bar": _UP,
        "ell": "how the loss moves",
        "M": "shorthand",
    },
    forward=(Equation("A", "Q @ R"),),
    direct=(
        Equation("A_dot", "Q_dot @ R + Q @ R_dot", "move both factors"),
        Equation("ell", "total(Q_bar * Q_dot) + total(R_bar * R_dot)", "what the loss does then"),
        Equation("M", "R @ T(R_bar) - T(Q_bar) @ Q", "collect what multiplies the rotation of Q, which is skew"),
        Equation("ell", "total(((Q_bar + Q @ copyltu(M)) @ T(inverse(R))) * A_dot)"),
        Equation("A_bar", "(Q_bar + Q @ copyltu(M)) @ T(inverse(R))", "it holds for every motion of A"),
    ),
    chain=(
        Equation("M", "R @ T(R_bar) - T(Q_bar) @ Q"),
        Equation("A_bar", "(Q_bar + Q @ copyltu(M)) @ T(inverse(R))", "in code a triangular solve stands for the inverse"),
    ),
    example=_qr_example,
    wanted=("A",),
    operation=lambda v: dict(zip(("Q", "R"), torch.linalg.qr(v["A"]))),
    outputs=("Q", "R"),
    source="Roberts & Roberts 2020, arXiv:2009.10071",
    more_truth=_tangents,
)

CARDS: tuple[Card, ...] = (CONVOLUTION, AVERAGE_POOL, MAX_POOL, BATCH_NORM, LAYER_NORM, ATTENTION, QR)
