"""Cards: every displayed line is evaluated and compared with autograd; the operations pass gradcheck."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeprop.plugins.derivatives import CARDS, Card, Formula, mlp_gradients

SMOOTH = [c for c in CARDS.values() if c.outputs != ("o",)]


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
@pytest.mark.parametrize("seed", [0, 1])
def test_every_line_equals_autograd(card: Card, seed: int) -> None:
    known = card.truth(card.example(torch.Generator().manual_seed(seed)))
    for step, value in card.values(known):
        torch.testing.assert_close(value, known[step.name], rtol=1e-10, atol=1e-10, msg=f"{card.key}: {step.of} = {step.text}")


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_both_derivations_reach_every_cotangent(card: Card) -> None:
    wanted = {f"{name}_bar" for name in card.wanted}
    for steps in (card.direct, card.chain):
        assert wanted <= {s.name for s in steps}
    assert {s.name for s in card.forward} & {*card.outputs, "A"}


@pytest.mark.parametrize("card", SMOOTH, ids=[c.key for c in SMOOTH])
def test_operations_pass_gradcheck(card: Card) -> None:
    inputs = card.example(torch.Generator().manual_seed(2))

    def outputs(*wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = card.operation({**inputs, **dict(zip(card.wanted, wanted))})
        return tuple(found[name] for name in card.outputs)

    torch.autograd.gradcheck(outputs, [inputs[name].requires_grad_() for name in card.wanted])


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_wrong_line_is_detected(card: Card) -> None:
    known = card.truth(card.example(torch.Generator().manual_seed(3)))
    name = f"{card.wanted[0]}_bar"
    assert not torch.allclose(card.evaluate(name, known, tuple(known[name].shape)) * 1.001, known[name])


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_cards_describe_themselves(card: Card) -> None:
    shown = card.describe()
    for part in ("statement", "direct", "chain"):
        lines = shown[part]
        assert isinstance(lines, list)
        assert lines
        for line in lines:
            assert line["latex"].count("{") == line["latex"].count("}")
            assert line["latex"].count(r"\left") == line["latex"].count(r"\right")


@pytest.mark.parametrize(
    ("text", "indices", "latex"),
    [
        ("a - y", (), "a - y"),
        ("(a - b) * c", (), r"\left(a - b\right) \odot c"),
        ("a - (b - c)", (), r"a - \left(b - c\right)"),
        ("-(a + b)", (), r"-\left(a + b\right)"),
        ("T(y_bar) @ x", (), r"\bar{y}^{\top} \, x"),
        ("T(a - y) @ x", (), r"\left(a - y\right)^{\top} \, x"),
        ("(x + 1) ** 2", (), r"\left(x + 1\right)^{2}"),
        ("Sum(W[j, i] * x[i], i)", ("j",), r"\sum_{i} W_{j,i} \, x_{i}"),
    ],
)
def test_formulas_are_typeset_with_the_brackets_that_they_need(text: str, indices: tuple[str, ...], latex: str) -> None:
    assert Formula(text, indices).latex() == latex


def test_indices_outside_of_a_tensor_read_zero() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    assert Formula("x[i - 1] + x[i + 1]", ("i",)).evaluate({"x": x}, (3,)).tolist() == [2.0, 5.0, 2.0]


def test_formulas_name_missing_tensors() -> None:
    with pytest.raises(ValueError, match="uses 'q'"):
        Formula("q + 1").evaluate({"x": torch.ones(1)})
    with pytest.raises(ValueError, match="Lambda"):
        Formula("(lambda: 1)").evaluate({})
    with pytest.raises(ValueError, match="its range is unknown"):
        Formula("Sum(k * x[i], k)", ("i",)).evaluate({"x": torch.ones(2)}, (2,))


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("loss", ["softmax_ce", "sigmoid_bce"])
def test_mlp_gradients_from_cards_equal_autograd(
    activation: Literal["relu", "tanh", "sigmoid"], loss: Literal["softmax_ce", "sigmoid_bce"]
) -> None:
    torch.manual_seed(0)
    function = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[activation]
    outputs = 3 if loss == "softmax_ce" else 1
    model = nn.Sequential(nn.Linear(4, 6), function(), nn.Linear(6, 5), function(), nn.Linear(5, outputs)).double()
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    y = torch.arange(7) % 3 if loss == "softmax_ce" else (torch.arange(7) % 2).double().unsqueeze(1)
    value = F.cross_entropy(model(x), y) if loss == "softmax_ce" else F.binary_cross_entropy_with_logits(model(x), y)
    value.backward()
    linears = [m for m in model if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in linears], [m.bias.detach() for m in linears]
    ours, gradients, x_bar = mlp_gradients(weights, biases, x.detach(), y, activation=activation, loss=loss)
    torch.testing.assert_close(ours, value.detach(), rtol=1e-12, atol=0)
    for linear, (w, b) in zip(linears, gradients):
        torch.testing.assert_close(w, linear.weight.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(b, linear.bias.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x_bar, x.grad, rtol=1e-10, atol=1e-12)


def test_an_mlp_needs_a_bias_for_each_weight() -> None:
    with pytest.raises(ValueError, match="1 weights and 0 biases"):
        mlp_gradients([torch.ones(2, 2)], [], torch.ones(1, 2), torch.zeros(1).long())
