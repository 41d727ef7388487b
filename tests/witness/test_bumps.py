"""Adjoints of every product of ``aad`` against central bumps on the same random numbers, of several sizes, with the error stated.

The adjoint's mean and the bump's mean are of the same paths, so what is between them is no Monte Carlo error, but what the paths
make on which a kink lies within the bump. Those paths show: their quotient changes with the bump's size. The error is twice their
part, for the signs on both sides of a kink may differ.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spikeprop.plugins.aad import PseudoRandom, Risk, Sobol, bump, price, products, risk
from spikeprop.plugins.aad.differential import BasketTask
from spikeprop.plugins.aad.paths import Batch
from spikeprop.plugins.aad.twin import TwinNet
from spikeprop.runtime.seeding import generator
from tests.witness.markets import PAIRS, Bumped

PATHS = 2048
SIZES, FINEST = (1e-3, 1e-4, 1e-5), 1e-6
CASES = [(seed, *pair) for seed in range(12) for pair in PAIRS]
IDS = [f"{seed}-{model.__name__}-{product.__name__}" for seed, model, product in CASES]
MARKS = [pytest.param(*case, id=name, marks=() if case[0] == 0 else pytest.mark.slow) for case, name in zip(CASES, IDS)]


def paths_of(seed: int) -> Any:
    """Pseudo-random and Sobol paths in turn, all in one batch, so that they can be drawn again."""
    return Sobol(paths=PATHS, seed=seed, scramblings=16) if seed % 2 else PseudoRandom(paths=PATHS, seed=seed, groups=16)


def normals(source: Any, dimension: int) -> torch.Tensor:
    """All normals of a source, by its public batches, side by side."""
    batches: list[Batch] = list(source.batches(PATHS))
    return torch.cat([source.normals(batch, dimension) for batch in batches], 1)


@pytest.mark.parametrize(("seed", "make_model", "make_product"), MARKS)
def test_adjoints_are_bumps(seed: int, make_model: Any, make_product: Any, counted: Callable[[dict[str, int]], None]) -> None:
    rng = np.random.default_rng([seed, IDS.index(f"{seed}-{make_model.__name__}-{make_product.__name__}")])
    model, product, source = make_model(rng), make_product(rng), paths_of(seed)
    found = risk(model, product, source)
    bumped = Bumped(model, product, normals(source, model.dimension(product.dates)))
    assert found.value == pytest.approx(float(bumped.payoffs().mean()), rel=1e-11, abs=1e-11)
    compared = compare(found, bumped, rng)
    counted({"products on models": 1, "sensitivities": found.count, "bumps compared": compared})


def compare(found: Risk, bumped: Bumped, rng: np.random.Generator) -> int:
    """Some numbers of every parameter against bumps of every size; how many were compared."""
    compared = 0
    for name, estimate in found.sensitivities.items():
        numbers = estimate.value.numel()
        largest = float(estimate.value.abs().max())
        unit = max(1.0, float(bumped.model.parameters[name].abs().max()))
        for index in {0, numbers // 2, numbers - 1, int(rng.integers(numbers))}:
            value = float(estimate.value.reshape(-1)[index])
            kinked, told = torch.zeros(()), ""
            finest = bumped.quotient(name, index, FINEST * unit)
            for size in SIZES:
                quotient = bumped.quotient(name, index, size * unit)
                kinked = (quotient - finest).abs() > 1e-3 * (finest.abs() + finest.abs().mean()) + 1e-7
                error = float(torch.maximum(quotient.abs(), finest.abs())[kinked].sum()) / PATHS
                off = abs(float(quotient.mean()) - value)
                told = f"{name}[{index}]: adjoint {value:.8g}, bump of {size:g} off by {off:.3g} +- {error:.3g}"
                assert off <= 2 * error + 2e-4 * largest + 1e-8 * unit, told
            assert int(kinked.sum()) <= 0.02 * PATHS, told  # the finest of them leaves few paths out
            compared += len(SIZES)
    return compared


def test_an_adjoint_that_is_off_by_a_hundredth_would_be_found() -> None:
    rng = np.random.default_rng(5)
    model, product, source = PAIRS[0][0](rng), PAIRS[0][1](rng), paths_of(0)
    bumped = Bumped(model, product, normals(source, model.dimension(product.dates)))
    found = risk(model, product, source)
    compare(found, bumped, rng)
    found.sensitivities["volatility"].value.mul_(1.01)
    with pytest.raises(AssertionError, match=r"volatility\[0\]: adjoint"):
        compare(found, bumped, rng)


def test_standard_errors_cover_the_bumps_of_other_paths(counted: Callable[[dict[str, int]], None]) -> None:
    """A bump on many independent paths stands for the truth: it lies within 4 of the adjoint's standard errors and its own."""
    far = 0
    for number, (make_model, make_product) in enumerate(PAIRS):
        rng = np.random.default_rng(number)
        model, product = make_model(rng), make_product(rng)
        found = risk(model, product, PseudoRandom(paths=4096, seed=number))
        bumped = Bumped(model, product, normals(PseudoRandom(paths=PATHS, seed=99), model.dimension(product.dates)))
        for name, estimate in found.sensitivities.items():
            size = 1e-3 * max(1.0, float(model.parameters[name].abs().max()))
            quotient = bumped.quotient(name, 0, size)
            error = (float(quotient.var()) / len(quotient) + float(estimate.standard_error.reshape(-1)[0]) ** 2) ** 0.5
            off = abs(float(quotient.mean()) - float(estimate.value.reshape(-1)[0]))
            far += off > 2.6 * error
            assert off <= 4.5 * error + 1e-9, f"{make_model.__name__}, {make_product.__name__}, {name}: {off:.4g} +- {error:.4g}"
    counted({"products on models, other paths": len(PAIRS)})
    assert far <= 4  # of about a hundred, one is expected


def test_every_product_has_a_case() -> None:
    """A product that someone adds must be bumped here; those that only hold others have these products' payoffs."""
    kinds = {kind for _, kind in inspect.getmembers(products, inspect.isclass) if issubclass(kind, products.Product)}
    made = {type(make(np.random.default_rng(0))) for _, make in PAIRS}
    assert made == kinds - {products.Product, products.Book, products.Single}


def test_the_engines_own_bump_is_this_one() -> None:
    rng = np.random.default_rng(5)
    make_model, make_product = PAIRS[3]
    model, product, source = make_model(rng), make_product(rng), paths_of(0)
    bumped = Bumped(model, product, normals(source, model.dimension(product.dates)))
    assert bump(model, product, source, "spot", 0, 1e-3) == pytest.approx(
        float(bumped.quotient("spot", 0, 1e-3).mean()), rel=1e-9
    )
    assert price(model, product, source).value == pytest.approx(float(bumped.payoffs().mean()), rel=1e-12)


def test_superbuckets_are_bumps_of_the_quotes() -> None:
    """The chain rule from local to implied volatilities, against prices of models that are calibrated anew."""
    rng = np.random.default_rng(3)
    model, product = PAIRS[5][0](rng), PAIRS[5][1](rng)
    source = paths_of(0)
    micro = risk(model.as_local(), product, source).sensitivities["volatilities"].value
    chained = model.superbuckets(micro)
    bumped = Bumped(model, product, normals(source, model.dimension(product.dates)))
    largest = float(chained.abs().max())
    for index in range(0, chained.numel(), 2):
        quotient = float(bumped.quotient("implied_volatilities", index, 1e-5).mean())
        assert quotient == pytest.approx(float(chained.reshape(-1)[index]), abs=1e-3 * largest)


def test_labels_and_twins_of_differential_learning_are_bumps() -> None:
    """Differential labels against bumps of payoffs with the same draws, a twin's derivative against bumps of its value."""
    task = BasketTask(dimension=4, strike=1.1, first=1.0, last=2.0, volatility=0.2, spread=1.5, seed=3)
    examples = task.examples(400, generator(3, 1))
    net = TwinNet(4, draws=generator(0, 0))
    value, slope = net.twin(examples.x)
    truth, delta = task.truth(examples.x)
    h = 1e-5
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = h
        for of, wanted in ((net, slope[:, i]), (lambda x: task.truth(x)[0], delta[:, i])):
            up, down = (of(examples.x + sign * step).detach() for sign in (1, -1))
            torch.testing.assert_close((up - down) / (2 * h), wanted.detach(), rtol=1e-5, atol=1e-8)
    assert value.shape == truth.shape
    # labels: payoffs of the same moves, drawn again; the antithetic mean is piecewise linear, so a bump is exact off its kinks
    draws = generator(3, 1)
    x = task.spots(400, draws)
    move = task.remaining * torch.randn(400, 4, generator=draws, dtype=torch.float64) @ task.factor.T
    torch.testing.assert_close(x, examples.x)

    def payoff(x: torch.Tensor) -> torch.Tensor:
        ends = torch.stack([x + move, x - move])
        return torch.relu(ends @ task.weights - task.strike).mean(0)

    torch.testing.assert_close(payoff(x), examples.y)
    differing = Counter[int]()
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = 1e-7
        quotient = (payoff(x + step) - payoff(x - step)) / 2e-7
        differing[i] = int((~torch.isclose(quotient, examples.dydx[:, i], atol=1e-6)).sum())
    assert sum(differing.values()) <= 2
