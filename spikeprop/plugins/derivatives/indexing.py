"""Cards of operations that select and combine entries: a choice by a condition, Einstein sums, interpolation, embedding."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal

_UP = "cotangent of the output"


def _half(g: Generator, *shape: int) -> Tensor:
    """Zeros and ones, float64."""
    return torch.randint(2, shape, generator=g).double()


WHERE = Card(
    key="where",
    title="Choice by a condition",
    about="Each output is one of two inputs, and only that one gets its cotangent. The condition itself gets none: it jumps.",
    symbols={"c": "condition, 0 or 1", "a": "taken where c is 1", "b": "taken where c is 0", "y": "output", "y_bar": _UP},
    forward=(Equation("y", "c * a + (1 - c) * b"),),
    direct=(
        Equation("a_bar[n, i]", "y_bar[n, i] * (c[n, i] == 1)", "the other input has no effect here"),
        Equation("b_bar[n, i]", "y_bar[n, i] * (c[n, i] == 0)"),
    ),
    chain=(
        Equation("d(y, a)", "c"),
        Equation("a_bar", "y_bar * c"),
        Equation("d(y, b)", "1 - c"),
        Equation("b_bar", "y_bar * (1 - c)"),
    ),
    example=lambda g: {name: normal(g, 3, 4) for name in ("a", "b", "y_bar")} | {"c": _half(g, 3, 4)},
    wanted=("a", "b"),
    operation=lambda v: {"y": torch.where(v["c"].bool(), v["a"], v["b"])},
    outputs=("y",),
)


def _contract(v: Tensors) -> Tensors:
    products = v["A"][..., None] * v["B"][None, :, None, :]
    return {"P": products, "Y": products.sum(1)}


EINSUM = Card(
    key="einsum",
    title="Einstein sum",
    about="Products of entries, summed over the indices that the output lacks; here 'ijk,jl->ikl'. The cotangent of an "
    "operand is an Einstein sum too: its letters take the output's place, and the output's cotangent its own.",
    symbols={"A": "first operand", "B": "second operand", "P": "all products", "Y": "output", "Y_bar": _UP},
    forward=(Equation("Y[i, k, l]", "Sum(A[i, j, k] * B[j, l], j)"),),
    direct=(
        Equation("A_bar[i, j, k]", "Sum(Y_bar[i, k, l] * B[j, l], l)", "'ikl,jl->ijk'"),
        Equation("B_bar[j, l]", "Sum(A[i, j, k] * Y_bar[i, k, l], i, k)", "'ijk,ikl->jl'"),
    ),
    chain=(
        Equation("P[i, j, k, l]", "A[i, j, k] * B[j, l]", "an elementwise product of broadcast operands"),
        Equation("P_bar[i, j, k, l]", "Y_bar[i, k, l]", "every summed entry gets the cotangent of the sum"),
        Equation("A_bar[i, j, k]", "Sum(P_bar[i, j, k, l] * B[j, l], l)", "the sum over what was broadcast"),
        Equation("B_bar[j, l]", "Sum(P_bar[i, j, k, l] * A[i, j, k], i, k)"),
    ),
    example=lambda g: {"A": normal(g, 2, 3, 4), "B": normal(g, 3, 2), "Y_bar": normal(g, 2, 4, 2)},
    wanted=("A", "B"),
    operation=_contract,
    outputs=("Y",),
)


def _positions(inputs: int, outputs: int) -> Tensor:
    """Where the centres of the outputs lie between those of the inputs, no further than the outer ones."""
    centres = (torch.arange(outputs, dtype=torch.float64) + 0.5) * inputs / outputs - 0.5
    return centres.clamp(0, inputs - 1)


def _hats(positions: Tensor, inputs: int) -> Tensor:
    return (1 - (positions[:, None] - torch.arange(inputs)).abs()).clamp(min=0)


def _bilinear(known: Tensors) -> Tensors:
    (h, w), (oh, ow) = known["x"].shape, known["y"].shape
    p, q = _positions(h, oh), _positions(w, ow)
    return {"p": p, "q": q, "A": _hats(p, h), "B": _hats(q, w)}


INTERPOLATE = Card(
    key="interpolate",
    title="Interpolation",
    about="Resizing a map is linear in its entries, and separate in rows and columns: a matrix for each. Shown bilinear; "
    "for the nearest neighbour each row of A and B has a single 1. The cotangent goes back with the same weights.",
    symbols={
        "x": "input map",
        "p": "place of each output row between the input's rows",
        "q": "place of each output column",
        "A": "weights of the rows",
        "B": "weights of the columns",
        "y": "output map",
        "y_bar": _UP,
    },
    forward=(
        Equation("A[i, a]", "(1 - abs(p[i] - a)) * (abs(p[i] - a) < 1)", "the two nearest rows share an output row"),
        Equation("B[j, b]", "(1 - abs(q[j] - b)) * (abs(q[j] - b) < 1)"),
        Equation("y[i, j]", "Sum(A[i, a] * B[j, b] * x[a, b], a, b)"),
        Equation("y", "A @ x @ T(B)"),
    ),
    direct=(Equation("x_bar[a, b]", "Sum(A[i, a] * B[j, b] * y_bar[i, j], i, j)", "all outputs that read (a, b)"),),
    chain=(Equation("x_bar", "T(A) @ y_bar @ B", "two matrix products, transposed"),),
    example=lambda g: {"x": normal(g, 3, 4), "y_bar": normal(g, 5, 7)},
    wanted=("x",),
    operation=lambda v: {"y": F.interpolate(v["x"][None, None], (5, 7), mode="bilinear")[0, 0]},
    outputs=("y",),
    more_truth=_bilinear,
)


def _one_hot(known: Tensors) -> Tensors:
    return {"S": F.one_hot(known["k"].long(), len(known["W"])).double()}


EMBEDDING = Card(
    key="embedding",
    title="Embedding",
    about="A token reads its row of a table, so a row gets the sum of the cotangents of all places where its token "
    "stands, and rows of tokens that do not occur get 0. The token itself is an integer and gets none; neither does "
    "the row of a padding token.",
    symbols={
        "k": "tokens, integers",
        "W": "table, one row per token",
        "S": "1 where place n holds token v",
        "y": "output, one row per place",
        "y_bar": _UP,
    },
    forward=(Equation("y[n, i]", "W[k[n], i]"), Equation("y", "S @ W")),
    direct=(Equation("W_bar[v, i]", "Sum((k[n] == v) * y_bar[n, i], n)", "all places that read row v"),),
    chain=(Equation("S[n, v]", "k[n] == v", "a selection, as a matrix"), Equation("W_bar", "T(S) @ y_bar", "matrix product")),
    example=lambda g: {"k": torch.tensor([2, 0, 2, 4, 0]), "W": normal(g, 6, 3), "y_bar": normal(g, 5, 3)},
    wanted=("W",),
    operation=lambda v: {"y": F.embedding(v["k"], v["W"])},
    outputs=("y",),
    more_truth=_one_hot,
)

CARDS: tuple[Card, ...] = (WHERE, EINSUM, INTERPOLATE, EMBEDDING)
