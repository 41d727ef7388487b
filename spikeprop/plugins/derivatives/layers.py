"""Cards of layers: convolution, pooling, batch, layer and group normalisation, and QR.

The cards show one image, one matrix; the operations of a network do the same for each. The rule of QR is from Roberts &
Roberts (2020, arXiv:2009.10071), for a matrix with at least as many rows as columns.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal

_UP = "cotangent of the output"


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


CONVOLUTION = Card(
    key="convolution",
    title="Convolution",
    about="The same weights at every position. Shown with stride 1 and no padding; entries outside of a map are 0.",
    symbols={
        "x": "input maps, [channel, row, column]",
        "W": "kernels, [out, in, row, column]",
        "b": "biases",
        "y": "output maps",
        "y_bar": _UP,
    },
    forward=(Equation("y[o, i, j]", "Sum(W[o, c, u, v] * x[c, i + u, j + v], c, u, v) + b[o]"),),
    direct=(
        Equation(
            "x_bar[c, i, j]",
            "Sum(y_bar[o, i - u, j - v] * W[o, c, u, v], o, u, v)",
            "x at (i, j) is read by the outputs at (i - u, j - v)",
        ),
        Equation("W_bar[o, c, u, v]", "Sum(y_bar[o, i, j] * x[c, i + u, j + v], i, j)", "a weight is used at every position"),
        Equation("b_bar[o]", "Sum(y_bar[o, i, j], i, j)"),
    ),
    chain=(
        Equation(
            "M[o, i, j, c, k, l]",
            "Sum(W[o, c, u, v] * (k == i + u) * (l == j + v), u, v)",
            "the convolution as one matrix, zero except for the entries of W",
        ),
        Equation(
            "y[o, i, j]", "Sum(M[o, i, j, c, k, l] * x[c, k, l], c, k, l) + b[o]", "an affine map, so the affine card applies"
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
    """Jacobian of the convolution by its input, from autograd."""
    found = torch.autograd.functional.jacobian(lambda x: F.conv2d(x, known["W"]), known["x"])
    assert isinstance(found, Tensor)
    return found


AVERAGE_POOL = Card(
    key="average_pool",
    title="Average pooling",
    about="Each output is the mean of its window, so each entry of a window gets the same fraction of its cotangent.",
    symbols={"x": "input map", "k": "side of the window, and stride", "y": "output map", "y_bar": _UP},
    forward=(
        Equation("y[i, j]", "Sum(x[a, b] * (a >= k * i) * (a < k * i + k) * (b >= k * j) * (b < k * j + k), a, b) / k ** 2"),
    ),
    direct=(
        Equation(
            "x_bar[a, b]",
            "Sum(y_bar[i, j] * (a >= k * i) * (a < k * i + k) * (b >= k * j) * (b < k * j + k), i, j) / k ** 2",
            "the only window that contains (a, b)",
        ),
    ),
    chain=(
        Equation(
            "M[i, j, a, b]",
            "(a >= k * i) * (a < k * i + k) * (b >= k * j) * (b < k * j + k) / k ** 2",
            "the matrix of the linear map",
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
    about="The output depends only on the largest entry of a window, so only it gets the cotangent. Windows are rows.",
    symbols={"x": "entries, one row per window", "y": "largest of each row", "y_bar": _UP},
    forward=(Equation("y[n]", "Sum(x[n, i] * (x[n, i] == m[n]), i)"),),
    direct=(Equation("x_bar[n, i]", "y_bar[n] * (x[n, i] == m[n])", "a small change of another entry has no effect"),),
    chain=(
        Equation("S[n, i]", "x[n, i] == m[n]", "near x the maximum is this linear selection"),
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
    """Batch or layer normalisation: the same lines, with means over samples or features."""
    axis, keep = (0, False) if mean == "mean" else (1, True)
    return Card(
        key=key,
        title=title,
        about=about,
        symbols={
            "x": "input, one row per sample",
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
                "shifting or scaling x does not change the output, so both parts of the cotangent are removed",
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
                "the mean shifts every entry; its effect through the variance is zero",
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
    "Means over the N samples of a batch (and positions of a map), in training mode. In evaluation mode mean and "
    "variance are constants, and only the first path remains.",
    "mean",
    "over_rows",
)
LAYER_NORM = _norm("layer_norm", "Layer normalisation", "Means over the N features of each sample.", "mean_along", "over_rows")


def _normalise_groups(v: Tensors) -> Tensors:
    mu = v["x"].mean((1, 2))
    centred = v["x"] - mu[:, None, None]
    var = (centred**2).mean((1, 2))
    x_hat = centred / (var + v["eps"]).sqrt()[:, None, None]
    return {"mu": mu, "var": var, "x_hat": x_hat, "y": v["gamma"][..., None] * x_hat + v["beta"][..., None]}


_BY_CHANNEL = (
    Equation("gamma_bar[g, c]", "Sum(y_bar[g, c, p] * x_hat[g, c, p], p)", "a channel's scale is used at every position"),
    Equation("beta_bar[g, c]", "Sum(y_bar[g, c, p], p)"),
)
GROUP_NORM = Card(
    key="group_norm",
    title="Group normalisation",
    about="Means over the N entries of a group of channels, of one sample. One group is layer normalisation of a map; one "
    "channel a group is instance normalisation.",
    symbols={
        "x": "input, [group, channel of the group, position]",
        "gamma": "scale of each channel",
        "beta": "shift of each channel",
        "eps": "small number",
        "mu": "mean of a group",
        "var": "variance of a group",
        "x_hat": "normalised input",
        "y": "output",
        "y_bar": _UP,
    },
    forward=(
        Equation("mu[g]", "Sum(x[g, c, p], c, p) / N"),
        Equation("var[g]", "Sum((x[g, c, p] - mu[g]) ** 2, c, p) / N"),
        Equation("x_hat[g, c, p]", "(x[g, c, p] - mu[g]) / sqrt(var[g] + eps)"),
        Equation("y[g, c, p]", "gamma[g, c] * x_hat[g, c, p] + beta[g, c]"),
    ),
    direct=(
        Equation(
            "x_bar[g, c, p]",
            "(gamma[g, c] * y_bar[g, c, p] - Sum(gamma[g, k] * y_bar[g, k, l], k, l) / N"
            " - x_hat[g, c, p] * Sum(gamma[g, k] * y_bar[g, k, l] * x_hat[g, k, l], k, l) / N) / sqrt(var[g] + eps)",
            "shifting or scaling a group does not change its output, so both parts of the cotangent are removed",
        ),
        *_BY_CHANNEL,
    ),
    chain=(
        Equation("x_hat_bar[g, c, p]", "y_bar[g, c, p] * gamma[g, c]"),
        Equation(
            "x_bar[g, c, p]",
            "(x_hat_bar[g, c, p] - Sum(x_hat_bar[g, k, l], k, l) / N"
            " - x_hat[g, c, p] * Sum(x_hat_bar[g, k, l] * x_hat[g, k, l], k, l) / N) / sqrt(var[g] + eps)",
            "through the entry itself, the mean, and the variance",
        ),
        *_BY_CHANNEL,
    ),
    example=lambda g: {
        "x": normal(g, 2, 2, 3),
        "gamma": normal(g, 2, 2),
        "beta": normal(g, 2, 2),
        "eps": _number(1e-5),
        "y_bar": normal(g, 2, 2, 3),
    },
    wanted=("x", "gamma", "beta"),
    operation=_normalise_groups,
    outputs=("y",),
    more_truth=lambda known: {"N": _number(known["x"][0].numel())},
)


def _tangents(known: Tensors) -> Tensors:
    """Tangents of Q and R from torch, and the resulting change of the loss."""
    moved = torch.autograd.functional.jvp(lambda a: tuple(torch.linalg.qr(a)), known["A"], known["A_dot"])[1]
    change = (known["Q_bar"] * moved[0]).sum() + (known["R_bar"] * moved[1]).sum()
    inner = known["R"] @ known["R_bar"].mT - known["Q_bar"].mT @ known["Q"]
    return {"Q_dot": moved[0], "R_dot": moved[1], "M": inner, "ell": change, "A_bar": known["A_bar"]}


def _qr_example(g: Generator) -> Tensors:
    return {"A": normal(g, 4, 3), "A_dot": normal(g, 4, 3), "Q_bar": normal(g, 4, 3), "R_bar": normal(g, 3, 3).triu()}


QR = Card(
    key="qr",
    title="QR decomposition",
    about="A, with at least as many rows as columns and full rank, is orthonormal columns Q times an upper triangle R. A dot is "
    "the tangent of a quantity when A changes; copyltu mirrors the lower triangle to the upper triangle.",
    symbols={
        "A": "matrix",
        "Q": "orthonormal columns",
        "R": "upper triangle",
        "Q_bar": _UP,
        "R_bar": _UP,
        "ell": "change of the loss",
        "M": "abbreviation",
    },
    forward=(Equation("A", "Q @ R"),),
    direct=(
        Equation("A_dot", "Q_dot @ R + Q @ R_dot", "differentiate both factors"),
        Equation("ell", "total(Q_bar * Q_dot) + total(R_bar * R_dot)", "the resulting change of the loss"),
        Equation("M", "R @ T(R_bar) - T(Q_bar) @ Q", "collect the factors of the rotation of Q, which is skew"),
        Equation("ell", "total(((Q_bar + Q @ copyltu(M)) @ T(inverse(R))) * A_dot)"),
        Equation("A_bar", "(Q_bar + Q @ copyltu(M)) @ T(inverse(R))", "it holds for every A_dot"),
    ),
    chain=(
        Equation("M", "R @ T(R_bar) - T(Q_bar) @ Q"),
        Equation("A_bar", "(Q_bar + Q @ copyltu(M)) @ T(inverse(R))", "code uses a triangular solve instead of the inverse"),
    ),
    example=_qr_example,
    wanted=("A",),
    operation=lambda v: dict(zip(("Q", "R"), torch.linalg.qr(v["A"]))),
    outputs=("Q", "R"),
    source="Roberts & Roberts 2020, arXiv:2009.10071",
    more_truth=_tangents,
)

CARDS: tuple[Card, ...] = (CONVOLUTION, AVERAGE_POOL, MAX_POOL, BATCH_NORM, LAYER_NORM, GROUP_NORM, QR)
