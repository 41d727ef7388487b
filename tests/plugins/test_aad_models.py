"""Stochastic volatility, rates, correlated assets and credit: closed forms, bumps on the same paths, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import ncx2
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad import (
    SABR,
    Bachelier,
    Basket,
    BlackScholes,
    Book,
    Correlated,
    Credit,
    Dupire,
    European,
    Heston,
    HullWhite,
    Model,
    Product,
    PseudoRandom,
    Risk,
    Scripted,
    Sobol,
    UpAndOut,
    bump,
    price,
    risk,
    risks,
)
from spikeprop.plugins.aad.closed_forms import black_scholes, bond_option, heston, sabr_volatility

HESTON = {"variance": 0.05, "mean_variance": 0.04, "reversion": 1.5, "volatility_of_variance": 0.5, "rho": -0.6}
GRID: dict[str, Any] = {"grid_spots": [50.0, 80.0, 100.0, 130.0, 200.0], "grid_times": [0.5, 1.0]}
SKEW = torch.tensor([0.35, 0.28, 0.22, 0.2, 0.19], dtype=torch.float64).unsqueeze(1) + torch.tensor([0.02, 0.0])
CURVE = {"zero_rates": [0.02, 0.025, 0.03], "curve_times": [1.0, 3.0, 10.0]}
ASIAN = Scripted(observations=(0.25, 0.5, 1.0), script=lambda s, d: d[-1] * torch.relu(s.mean(1) - s.new_tensor(98.0)))
SPREAD = Scripted(observations=(0.5, 1.0), script=lambda s, d: d[-1] * torch.relu(s[:, -1, 0] - 0.9 * s[:, 0, 1]))
SWAPTION = Scripted(observations=(1.0, 2.0), script=lambda s, d: d[1] * torch.relu(1 - s[:, 1, 1] - 0.03 * s[:, 1].sum(1)))


def heston_model(**changed: Any) -> Heston:
    return Heston(**{"spot": 100.0, **HESTON, "rate": 0.02, "dividend": 0.01, "max_step": 1 / 26, **changed})


def sabr_model(**changed: Any) -> SABR:
    given = {"forward": 100.0, "alpha": 2.5, "beta": 0.5, "nu": 0.4, "rho": -0.3, "rate": 0.02, "max_step": 1 / 26}
    return SABR(**{**given, **changed})


def pair() -> Correlated:
    local = Dupire(spot=101.0, volatilities=SKEW, rate=0.02, max_step=0.25, **GRID)
    flat = Dupire(spot=95.0, volatilities=0 * SKEW + 0.3, rate=0.02, dividend=0.01, max_step=0.25, **GRID)
    return Correlated({"a": local, "b": flat}, correlations=0.4)


def hull_white(bonds: tuple[float, ...] = (1.0, 5.0, 6.0)) -> HullWhite:
    return HullWhite(**CURVE, reversion=0.1, volatility=0.012, bonds=bonds)


MODELS: dict[str, tuple[Callable[[], Model], Product]] = {
    "Heston": (heston_model, ASIAN),
    "SABR": (sabr_model, ASIAN),
    "two local volatilities": (pair, SPREAD),
    "Hull-White": (hull_white, SWAPTION),
    "credit": (lambda: Credit(heston_model(), hazards=[0.02, 0.03], hazard_times=[0.5, 2.0]), ASIAN),
}


def flat_model(rate: float) -> BlackScholes:
    return BlackScholes(spot=100, volatility=0.2, rate=rate)


def close(found: Any, expected: Any, errors: float = 3.5, bias: float = 0.0) -> None:
    """Within standard errors, and a bias of the time steps relative to what is expected."""
    allowed = errors * found.standard_error + bias * torch.as_tensor(expected).abs()
    off = (torch.as_tensor(found.value) - expected).abs()
    assert bool((off <= allowed).all()), (found.value, expected, found.standard_error)


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_adjoints_equal_bumps_on_the_same_paths(case: str) -> None:
    make, product = MODELS[case]
    model, paths = make(), PseudoRandom(paths=300, seed=2)
    found = risk(model, product, paths)
    for name, estimate in found.sensitivities.items():
        size = float(estimate.value.abs().max())
        for index in range(0, estimate.value.numel(), 3):
            expected = bump(model, product, paths, name, index, 1e-5 * max(0.1, float(model.parameters[name].abs().max())))
            assert float(estimate.value.view(-1)[index]) == pytest.approx(expected, abs=2e-5 * size + 1e-7), (name, index)


@pytest.mark.parametrize("case", ["Heston", "SABR", "two local volatilities"])
def test_second_order_equals_bumped_adjoints_in_the_mean(case: str) -> None:
    """A smooth payoff, whose adjoints can be bumped; by so much that many paths cross the kinks of the local volatility."""
    make, product = MODELS[case]
    smooth = Scripted(observations=product.dates, script=lambda s, d: d[-1] * s.flatten(1).mean(1).square() / 100)
    model, paths = make(), PseudoRandom(paths=40_000, seed=3)
    second, h = risk(model, smooth, paths, second_order=True).second_order, 0.5
    for i, name in enumerate(model.spot_parameters()):
        kept, both = model.parameters[name], []
        for sign in (1, -1):
            model.parameters[name] = kept + sign * h
            both.append(risk(model, smooth, paths).sensitivities)
        model.parameters[name] = kept
        for parameter, up in both[0].items():
            expected = (up.value - both[1][parameter].value) / (2 * h)
            row = second[parameter] if model.assets == 1 else second[parameter].part(i)
            close(row, expected, errors=4.5, bias=1e-3)


def test_gamma_and_vanna_of_black_scholes_have_the_closed_form() -> None:
    model = BlackScholes(spot=100, volatility=0.25, rate=0.03, dividend=0.01)
    found = risk(model, European(strike=110, maturity=1.5), Sobol(paths=2**14), second_order=True)
    leaves = {k: v.clone().requires_grad_() for k, v in model.parameters.items()}
    spot, volatility, rate, dividend = leaves.values()
    exact = black_scholes(spot, 110, 1.5, volatility, rate=rate, dividend=dividend)
    delta = torch.autograd.grad(exact, spot, create_graph=True)[0]
    for name, expected in zip(leaves, torch.autograd.grad(delta, list(leaves.values()))):
        close(found.second_order[name], expected)
        assert float(found.second_order[name].standard_error) < 0.03 * float(expected.abs())
    assert found.gamma == found.second_order["spot"]
    assert set(found.values()["second_order"]) == set(leaves)


def test_cross_gamma_of_an_exchange_option_has_margrabes_form() -> None:
    models = {name: BlackScholes(spot=s, volatility=v) for name, s, v in (("x", 100, 0.3), ("y", 95, 0.2))}
    model = Correlated(models, correlations=0.5)
    exchange = Scripted(observations=(1.0,), script=lambda s, d: torch.relu(s[:, 0, 0] - s[:, 0, 1]))
    found = risk(model, exchange, Sobol(paths=2**14), second_order=True)
    x, y, v, w, c = (torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in (100.0, 95.0, 0.3, 0.2, 0.5))
    deviation = (v.square() + w.square() - 2 * c * v * w).sqrt()
    exact = y * black_scholes(x / y, 1.0, 1.0, deviation)
    close(found.estimate, exact.detach())
    first = torch.autograd.grad(exact, [x, y, v, w, c], create_graph=True)
    names = ("x spot", "y spot", "x volatility", "y volatility", "correlations")
    for name, expected in zip(names, first):
        close(found.sensitivities[name], expected.detach())
    for i in range(2):
        for j, expected in enumerate(torch.autograd.grad(first[i], [x, y], retain_graph=True)):
            close(found.gamma.part((i, j)), expected)


def test_heston_agrees_with_the_integral() -> None:
    """Feller's condition does not hold here: 2 kappa theta = 0.12 < xi^2 = 0.25."""
    model, strikes = heston_model(), (80.0, 100.0, 120.0)
    book = Book(products={f"{k:g}": European(strike=k, maturity=1.0) for k in strikes})
    found = risks(model, book, Sobol(paths=2**15), second_order=True)
    for strike, one in zip(strikes, found.values()):
        leaves = {k: v.clone().requires_grad_() for k, v in model.parameters.items()}
        settings: dict[str, Any] = {k: v for k, v in leaves.items() if k != "spot"}
        exact = heston(leaves["spot"], strike, 1.0, **settings)
        first = torch.autograd.grad(exact, list(leaves.values()), create_graph=True)
        close(one.estimate, exact.detach(), bias=0.004)
        for name, expected in zip(leaves, first):
            close(one.sensitivities[name], expected.detach(), bias=0.05)
        close(one.gamma, torch.autograd.grad(first[0], leaves["spot"])[0], bias=0.02)


def test_the_formula_of_heston_tends_to_black_scholes() -> None:
    given: dict[str, Any] = {
        "variance": 0.04,
        "mean_variance": 0.04,
        "reversion": 1.0,
        "volatility_of_variance": 1e-4,
        "rho": 0.0,
    }
    assert float(heston(100, 110, 1.0, **given, rate=0.02)) == pytest.approx(
        float(black_scholes(100, 110, 1, 0.2, rate=0.02)), rel=1e-6
    )


def test_sabr_agrees_with_exact_and_asymptotic_forms() -> None:
    """Without volatility of alpha F is Cox's process, whose call is exact by the non-central chi-square distribution."""
    strike, beta, alpha = 105.0, 0.5, 2.5
    found = risk(sabr_model(nu=0.0, rate=0.0), European(strike=strike, maturity=1.0), Sobol(paths=2**14))
    scale = (1 - beta) ** 2 * alpha**2
    a, c = strike ** (2 * (1 - beta)) / scale, 100.0 ** (2 * (1 - beta)) / scale
    b = 1 / (1 - beta)
    exact = 100.0 * (1 - ncx2.cdf(a, b + 2, c)) - strike * ncx2.cdf(c, b, a)
    close(found.estimate, exact, bias=0.003)
    settings = {"alpha": alpha, "beta": beta, "nu": 0.4, "rho": -0.3}
    leaves = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in {"forward": 100.0, **settings}.items()}
    shape = {k: v for k, v in leaves.items() if k != "forward"}
    volatility = sabr_volatility(leaves["forward"], strike, 1.0, **shape)
    exact = black_scholes(leaves["forward"], strike, 1.0, volatility)
    one = risk(sabr_model(rate=0.0), European(strike=strike, maturity=1.0), Sobol(paths=2**14))
    close(one.estimate, exact.detach(), bias=0.01)
    for name, expected in zip(leaves, torch.autograd.grad(exact, list(leaves.values()))):
        close(one.sensitivities[name], expected, bias=0.05)


def test_hull_white_fits_the_curve_and_prices_bond_options() -> None:
    model, when = hull_white(), (1.0, 2.0, 3.0)
    fitted = Scripted(observations=when, script=lambda s, d: d[2] * s[:, 2, 1])
    found = price(model, fitted, Sobol(paths=2**13))
    close(found, model.spots()[1])
    call = Scripted(observations=when, script=lambda s, d: d[2] * torch.relu(s[:, 2, 1] - 0.93))
    one = risk(model, call, Sobol(paths=2**14))
    leaves = {k: v.clone().requires_grad_() for k, v in model.parameters.items()}
    expiring, bond = model.bond(leaves, [3.0, 5.0])
    exact = bond_option(expiring, bond, 0.93, 3.0, 5.0, reversion=leaves["reversion"], volatility=leaves["volatility"])
    close(one.estimate, exact.detach())
    for name, expected in zip(leaves, torch.autograd.grad(exact, list(leaves.values()))):
        close(one.sensitivities[name], expected)
    paid = price(model, Scripted(observations=when, script=lambda s, d: s[:, 0, 0] + s[:, 1, 0]), PseudoRandom(paths=64))
    assert paid.value == pytest.approx(1.0)  # 1 at its maturity, 0 a year later


def test_cva_of_a_forward_has_the_closed_form() -> None:
    """The exposure of a forward at t is a call that expires at t."""
    dates, strike, horizon = (0.5, 1.0, 1.5, 2.0), 100.0, 2.0
    market = BlackScholes(spot=100, volatility=0.2, rate=0.02)
    model = Credit(market, hazards=[0.02, 0.04], hazard_times=[1.0, 2.0], recovery=0.4)
    remaining = torch.tensor([horizon - t for t in dates], dtype=torch.float64)
    owed = strike * torch.exp(-0.02 * remaining)
    cva = Scripted(observations=dates, script=lambda s, losses: (torch.relu(s - owed) * losses).sum(1))
    found = risk(model, cva, Sobol(paths=2**14))
    leaves = {k: v.clone().requires_grad_() for k, v in model.parameters.items() if k not in ("rate", "dividend")}
    spot, volatility, hazards, recovery = leaves.values()
    lived = torch.stack([torch.ones(()), *((-hazards[0] * min(t, 1) - hazards[1] * max(t - 1, 0)).exp() for t in dates)])
    calls = torch.stack([black_scholes(spot, float(k), t, volatility, rate=0.02) for k, t in zip(owed, dates)])
    exact = (1 - recovery) * (calls * -lived.diff()).sum()
    close(found.estimate, exact.detach())
    for name, expected in zip(leaves, torch.autograd.grad(exact, list(leaves.values()))):
        close(found.sensitivities[name], expected)
    assert [row[0] for row in found.table()][-3:] == ["hazard until 1", "hazard until 2", "recovery"]


def test_correlated_models_are_each_their_own() -> None:
    """A payoff of one asset has the price and risk of its model; the others have no sensitivity."""
    model = pair()
    alone = model.models["b"]
    both = risk(
        model, Scripted(observations=(0.5, 1.0), script=lambda s, d: d[-1] * torch.relu(s[:, 1, 1] - 95)), Sobol(paths=4096)
    )
    one = risk(alone, European(strike=95, maturity=1.0), Sobol(paths=4096))
    gap = 4 * math.hypot(both.standard_error, one.standard_error)
    assert both.value == pytest.approx(one.value, abs=gap)
    assert not both.sensitivities["a spot"].value.any()
    assert model.labels("b volatilities")[0] == "b volatility at spot 50, time 0.5"


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: heston_model(rho=1.0), "rho is 1; it must lie between -1 and 1"),
        (lambda: heston_model(volatility_of_variance=0.0), "volatility_of_variance is 0; it must be above 0"),
        (lambda: sabr_model(beta=1.2), "beta is 1.2; it must lie from 0 to 1"),
        (lambda: hull_white(bonds=(2.0, 1.0)), "bonds must increase, but 1 follows 2"),
        (
            lambda: HullWhite(zero_rates=[0.1], curve_times=[1, 2], reversion=0.1, volatility=0.1, bonds=[1]),
            r"zero_rates is \(1,\) for 2",
        ),
        (lambda: Credit(heston_model(), hazards=[0.1], hazard_times=[1.0], recovery=1.5), "recovery is 1.5"),
        (lambda: Credit(heston_model(), hazards=[0.1], hazard_times=[1.0, 2.0]), "hazards has 1 numbers for 2"),
        (lambda: Correlated({"a": heston_model(), "b": heston_model()}, correlations=0), "a is Heston, whose paths need more"),
        (lambda: Correlated({"a": flat_model(0.0), "b": flat_model(1.0)}, correlations=0), "the rates of the models are"),
        (
            lambda: price(
                Correlated({"a": flat_model(rate=0.02), "b": pair().models["a"]}, correlations=0),
                Basket(weights=[1, 1], strike=1, maturity=1),
                PseudoRandom(paths=64),
            ),
            "numbers are correlated step by step; give all the same max_step",
        ),
        (lambda: Correlated({}, correlations=0), "models is empty"),
        (lambda: Bachelier(spots=[math.nan], volatilities=[1.0]), r"spots\[0\] is nan; it must be a finite number"),
        (lambda: Basket(weights=[1.0, math.inf], strike=1.0, maturity=1.0), r"weights\[1\] is inf; it must be a finite number"),
        (
            lambda: price(
                Credit(heston_model(), hazards=[0.1], hazard_times=[1.0]),
                UpAndOut(strike=100, barrier=150, maturity=1.0, monitorings=4, width=1.0),
                PseudoRandom(paths=64),
            ),
            "UpAndOut needs discount factors, and those of Credit are of losses",
        ),
        (lambda: risk(hull_white(), SWAPTION, PseudoRandom(paths=64), second_order=True), "HullWhite has no scores"),
        (lambda: risk(heston_model(), ASIAN, PseudoRandom(paths=64)).gamma, "this risk has no second order; use risk"),
        (lambda: risk(heston_model(), Book(products={"asian": ASIAN}), PseudoRandom(paths=64)), "Book has 1 payoffs; risks"),
        (lambda: risks(heston_model(), ASIAN, PseudoRandom(paths=64)), "Scripted has one payoff without a name; use risk"),
        (lambda: Scripted(observations=(1,), script=max, names=["a", "a"]), "give a list of different names"),
        (lambda: Book(products={}), "products of the book is empty"),
        (lambda: Book(products={"b": Book(products={"asian": ASIAN})}), "product b of the book has 1 payoffs"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(work: Callable[[], Any], says: str) -> None:
    with pytest.raises(MarketError, match=says):
        work()


class _WrongScores(BlackScholes):
    def scores(self, prepared: Any, normals: Tensor, times: Any) -> Tensor:
        return 1.5 * super().scores(prepared, normals, times)


def test_scores_that_do_not_give_the_delta_are_refused() -> None:
    with pytest.raises(MarketError, match=r"the scores of _WrongScores are wrong, .* they give the delta"):
        risk(_WrongScores(spot=100, volatility=0.2), European(strike=100, maturity=1), Sobol(paths=4096), second_order=True)


def test_each_payoff_of_a_book_has_its_own_risk_and_is_tested() -> None:
    model, paths = heston_model(), PseudoRandom(paths=512)
    products: dict[str, Product] = {
        "call": European(strike=100, maturity=0.5),
        "put": European(strike=90, maturity=1.0, call=False),
        "asian": ASIAN,
    }
    found = risks(model, Book(products=products), paths)
    alone: Risk = risk(model, European(strike=90, maturity=1.0, call=False), paths)
    assert list(found) == list(products)
    assert found["put"].value == pytest.approx(alone.value, rel=0.2)  # other steps, other numbers
    assert str(found["call"].audits["spot"]).startswith("spot: adjoint 0.")
    book = Book(products={"a": European(strike=90, maturity=0.5), "b": European(strike=90, maturity=1.0, call=False)})
    weighed = Scripted(observations=book.dates, script=lambda s, d: 2 * book.payoff(s, d)[:, 0] - 3 * book.payoff(s, d)[:, 1])
    both, total = risks(model, book, paths), risk(model, weighed, paths)
    for name, one in total.sensitivities.items():
        parts = [both[key].sensitivities[name].value for key in ("a", "b")]
        torch.testing.assert_close(2 * parts[0] - 3 * parts[1], one.value)
    for script, says in (
        (lambda s: (s > 100).double(), r"payoff of Scripted \(second\) jumps"),
        (lambda s: 1e-9 * (s - s.mean()), "mixes paths"),
    ):
        two = Scripted(observations=(1.0,), names=["first", "second"], script=lambda s, d, f=script: torch.cat([s, f(s)], 1))
        with pytest.raises(MarketError, match=says):
            risks(model, two, paths)


def test_hull_white_with_a_reversion_near_zero_is_the_limit() -> None:
    """Ho & Lee's model; the closed form (1 - exp(-a t)) / a and its derivative cancel there."""
    call = Scripted(observations=[1.0, 1.0 + 1e-15], script=lambda s, d: d[-1] * (s[:, -1, 0] - 0.85).relu())
    found = [
        risk(HullWhite(**CURVE, reversion=a, volatility=0.012, bonds=[5.0]), call, Sobol(paths=1024)) for a in (1e-4, 1e-7, 1e-12)
    ]
    for one in found[1:]:
        assert one.value == pytest.approx(found[0].value, rel=1e-3)
        for name, estimate in one.sensitivities.items():
            assert torch.allclose(estimate.value, found[0].sensitivities[name].value, rtol=1e-3), name


def test_one_bond_and_one_asset_of_bachelier_are_priced_by_products_of_one_asset() -> None:
    model = HullWhite(**CURVE, reversion=0.1, volatility=0.012, bonds=[5.0])
    script = Scripted(observations=[1.0], script=lambda s, d: d[-1] * (s[:, -1, 0] - 0.85).relu())
    paths = Sobol(paths=1024)
    assert price(model, European(strike=0.85, maturity=1.0), paths).value == pytest.approx(price(model, script, paths).value)
    out = UpAndOut(strike=100, barrier=1e6, maturity=1.0, monitorings=4, width=1.0)
    vanilla = Scripted(observations=out.dates, script=lambda s, d: d[-1] * (s[:, -1, 0] - 100).relu())
    one = Bachelier(spots=[100.0], volatilities=[20.0])
    assert price(one, out, paths).value == pytest.approx(price(one, vanilla, paths).value)


def test_heston_with_a_reversion_near_zero_has_the_variance_of_a_martingale() -> None:
    model = Heston(spot=100, variance=0.04, mean_variance=0.05, reversion=1e-17, volatility_of_variance=0.3, rho=0.0)
    steps = model.prepare(model.parameters, (1 / 52,))["steps"]
    assert steps[0, 3] == pytest.approx(0.09 / 52)
    assert steps[0, 0] == pytest.approx(0, abs=1e-15)
