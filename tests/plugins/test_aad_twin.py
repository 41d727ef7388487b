"""Differential machine learning: twin gradients by gradcheck, labels against formulas, gains, collapse and restart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from spikeprop.errors import MarketError, TrainingCollapsed
from spikeprop.plugins.aad import twin
from spikeprop.plugins.aad.differential import BasketTask
from spikeprop.plugins.aad.twin import Examples, TwinNet, TwinTraining, fit_surrogate
from spikeprop.runtime.seeding import generator

QUICK = TwinTraining(epochs=30, batches=4, least_batch=64)


def task(dimension: int = 3) -> BasketTask:
    return BasketTask(dimension=dimension, strike=1.1, first=1.0, last=2.0, volatility=0.2, spread=1.5, seed=5)


def net() -> TwinNet:
    return TwinNet(3, width=6, depth=3, draws=generator(0, 1))


def test_the_twin_gives_the_derivatives_of_the_network() -> None:
    model, x = net(), torch.randn(5, 3, dtype=torch.float64, generator=generator(1)).requires_grad_()
    y, slope = model.twin(x)
    assert torch.equal(y, model(x))
    torch.testing.assert_close(slope, torch.autograd.grad(model(x).sum(), x)[0], rtol=1e-12, atol=1e-14)


def test_gradients_of_the_twin_by_weights_pass_gradcheck() -> None:
    model, x = net(), torch.randn(4, 3, dtype=torch.float64, generator=generator(2))
    names = [name for name, _ in model.named_parameters()]

    def outputs(*values: torch.Tensor) -> Any:
        return torch.func.functional_call(model, dict(zip(names, values)), (x,)), *_twin(model, dict(zip(names, values)), x)

    assert gradcheck(outputs, [p.detach().clone().requires_grad_() for p in model.parameters()])


def _twin(model: TwinNet, values: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner.twin(x)

    return torch.func.functional_call(Both(), {f"inner.{name}": value for name, value in values.items()}, (x,))


def test_labels_are_unbiased_and_their_derivatives_those_of_the_payoff() -> None:
    here = task()
    examples = here.examples(60000, generator(3))
    value, delta = here.truth(examples.x)
    for noise in ((examples.y - value)[:, None], examples.dydx - delta):
        assert (noise.mean(0).abs() < 4 * noise.std(0) / 60000**0.5).all()
        assert noise.std() > 0.01
    moved = here.spots_in_a_box(0.5, 1.5, 4000, generator(4))
    assert (moved @ here.weights).min() < 0.6
    assert (moved @ here.weights).max() > 1.4


def test_differentials_reduce_the_error() -> None:
    here = task()
    examples, x = here.examples(1024, generator(6)), here.spots(2000, generator(7))
    errors = []
    for differential in (False, True):
        y, slope = fit_surrogate(examples, differential=differential, seed=0, training=QUICK)(x)
        value, delta = here.truth(x)
        errors.append([(y - value).square().mean().sqrt(), (slope - delta).square().mean().sqrt()])
    assert errors[0][0] > 2 * errors[1][0]
    assert errors[0][1] > 3 * errors[1][1]
    assert errors[1][0] < 0.01  # of prices whose standard deviation is 0.2


def test_a_surrogate_is_the_same_for_the_same_seed() -> None:
    examples = task().examples(256, generator(8))
    few = TwinTraining(epochs=5)
    first, second, other = (fit_surrogate(examples, differential=True, seed=s, training=few)(examples.x)[0] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_collapsed_network_is_detected_and_retrained_at_half_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    original, rates = twin._train, []

    def collapses_once(net: TwinNet, scale: Any, weight: float, training: TwinTraining, slowed: float, *rest: Any) -> None:
        rates.append(slowed)
        original(net, scale, weight, training, slowed, *rest)
        if len(rates) == 1:
            for layer in net.weights:
                layer.data.zero_()

    monkeypatch.setattr(twin, "_train", collapses_once)
    found = fit_surrogate(task().examples(512, generator(9)), differential=True, seed=0, training=QUICK)
    assert found.restarts == 1
    assert rates == [1.0, 0.5]
    assert found.unexplained < 0.6


@pytest.mark.parametrize("rate", [100.0, 1e200])
def test_training_that_always_collapses_raises(rate: float) -> None:
    """Saturated softplus layers or overflowing weights, from real trainings with far too large rates."""
    hopeless = TwinTraining(epochs=6, batches=4, least_batch=64, rates=(rate,) * 5, attempts=2)
    with pytest.raises(TrainingCollapsed, match=r"in each of 2 attempts, .* more than 0\.98 of that of the best constant"):
        fit_surrogate(task().examples(512, generator(10)), differential=True, seed=0, training=hopeless)


def test_bad_examples_and_settings_are_refused() -> None:
    x, y = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    with pytest.raises(MarketError, match=r"not \(8, 2\), \(8,\), \(8,\)"):
        Examples(x, y, y)
    with pytest.raises(MarketError, match="dydx of the examples contains a number that is not finite"):
        Examples(x, y, x / 0)
    with pytest.raises(MarketError, match="the standard deviation of y is 0"):
        fit_surrogate(Examples(x, torch.ones_like(y), x), differential=False, seed=0)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"rates": (0.1,)}, "give the same number"),
        ({"balance": 0}, "balance is 0; it must be above 0"),
        ({"collapsed": 1.5}, "collapsed is 1.5"),
    )
    for settings, says in wrong:
        with pytest.raises(MarketError, match=says):
            TwinTraining(**settings)
