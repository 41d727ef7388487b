"""Calibration of local volatilities to quotes: flat surfaces, repriced quotes, superbuckets against bumps, refused arbitrage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spikeprop.errors import MarketError
from spikeprop.plugins.aad import European, ImpliedDupire, PseudoRandom, Sobol, UpAndOut, price, risk
from spikeprop.plugins.aad.closed_forms import black_scholes

STRIKES, MATURITIES = [60.0, 80.0, 90.0, 100.0, 110.0, 120.0, 150.0], [0.25, 0.5, 1.0, 1.5]
RATE, DIVIDEND = 0.03, 0.01


def smile(strike: float, maturity: float) -> float:
    y = np.log(strike / 100) - (RATE - DIVIDEND) * maturity
    return 0.2 - 0.08 * y / np.sqrt(1 + maturity) + 0.06 * y**2 / (1 + maturity)


QUOTES = np.array([[smile(k, t) for t in MATURITIES] for k in STRIKES])


def model(quotes: Any = QUOTES, **changed: Any) -> ImpliedDupire:
    grid = {"grid_spots": np.exp(np.linspace(np.log(50), np.log(180), 16)), "grid_times": np.linspace(0.1, 1.5, 15)}
    given = {"spot": 100.0, "strikes": STRIKES, "maturities": MATURITIES, "rate": RATE, "dividend": DIVIDEND, **grid}
    return ImpliedDupire(implied_volatilities=quotes, **{**given, **changed})


def test_a_flat_surface_has_flat_local_volatility() -> None:
    flat = model(np.full(QUOTES.shape, 0.23))
    torch.testing.assert_close(flat.as_local().parameters["volatilities"], torch.full((16, 15), 0.23, dtype=torch.float64))


def test_a_surface_without_smile_has_the_forward_volatility() -> None:
    """sigma^2 = d(implied^2 T)/dT, constant between maturities."""
    by_maturity = np.array([0.2, 0.25, 0.22, 0.24])
    local = model(np.tile(by_maturity, (len(STRIKES), 1))).as_local().parameters["volatilities"]
    total = np.concatenate([[0], by_maturity**2 * MATURITIES])
    forward = np.sqrt(np.diff(total) / np.diff([0, *MATURITIES]))
    expected = forward[np.searchsorted(MATURITIES, np.linspace(0.1, 1.5, 15) - 1e-12)]
    torch.testing.assert_close(local, torch.from_numpy(np.tile(expected, (16, 1))))


@pytest.mark.parametrize(("strike", "maturity"), [(90.0, 0.5), (100.0, 1.0), (120.0, 1.5), (80.0, 1.5)])
def test_quotes_are_repriced(strike: float, maturity: float) -> None:
    found = price(model().as_local(), European(strike=strike, maturity=maturity), Sobol(paths=2**16))
    exact = float(black_scholes(100, strike, maturity, smile(strike, maturity), rate=RATE, dividend=DIVIDEND))
    assert found.value == pytest.approx(
        exact, abs=3 * found.standard_error + 0.02
    )  # grid and steps; a tenth of a point is 0.02 to 0.05


def test_superbuckets_equal_bumps_of_the_implied_surface() -> None:
    product, paths = UpAndOut(strike=95, barrier=125, maturity=1.2, monitorings=12, width=2.0), PseudoRandom(paths=300)
    found = risk(model(), product, paths).sensitivities
    for i, j in ((1, 2), (3, 1), (4, 3), (6, 2)):
        bump = np.zeros(QUOTES.shape)
        bump[i, j] = 1e-7
        values = [price(model(QUOTES + sign * bump), product, paths).value for sign in (1, -1)]
        expected = (values[0] - values[1]) / 2e-7
        size = float(found["implied_volatilities"].value.abs().max())
        assert float(found["implied_volatilities"].value[i, j]) == pytest.approx(expected, abs=1e-6 * size)
    for name, h in (("spot", 1e-6), ("rate", 1e-7), ("dividend", 1e-7)):
        values = [price(model(**{name: float(model().parameters[name]) + sign * h}), product, paths).value for sign in (1, -1)]
        assert float(found[name].value) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


def test_chain_rule_maps_microbuckets_to_superbuckets() -> None:
    product, paths = European(strike=105, maturity=1), PseudoRandom(paths=2000)
    micro = risk(model().as_local(), product, paths).sensitivities["volatilities"].value
    whole = risk(model(), product, paths).sensitivities["implied_volatilities"].value
    torch.testing.assert_close(model().superbuckets(micro), whole, rtol=1e-10, atol=1e-10)


def test_a_european_depends_on_its_own_quote() -> None:
    found = risk(model(), European(strike=100, maturity=1.0), Sobol(paths=2**15)).sensitivities["implied_volatilities"]
    volatility = torch.tensor(smile(100, 1.0), dtype=torch.float64, requires_grad=True)
    (vega,) = torch.autograd.grad(black_scholes(100, 100, 1.0, volatility, rate=RATE, dividend=DIVIDEND), volatility)
    assert found.value.abs().argmax() == STRIKES.index(100.0) * len(MATURITIES) + MATURITIES.index(1.0)
    assert float(found.value.sum()) == pytest.approx(vega.item(), rel=0.05)


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (
            lambda: model(QUOTES * np.array([1, 1, 0.6, 0.6])),
            r"calendar arbitrage: at strike \d+ .* from 0\.\d+ at maturity 0\.5 to 0\.\d+ at 1; it must increase",
        ),
        (
            lambda: model(QUOTES + 0.12 * (np.array(STRIKES) == 100)[:, None]),
            r"butterfly arbitrage: the denominator of Dupire's formula is -.* at strike .* and time .*; it must be above 0",
        ),
        (lambda: model(QUOTES - 0.3), "the implied volatility of strike 60 and maturity 0.25 is -.*above 0"),
        (lambda: model(strikes=STRIKES[::-1]), "strikes must be positive and increase, but 120 follows 150"),
        (lambda: model(QUOTES[:2], strikes=STRIKES[:2]), "strikes has 2 values; give at least 3"),
        (lambda: model(QUOTES.T), r"implied_volatilities is \(4, 7\) for 7 strikes and 4 maturities"),
    ],
)
def test_invalid_quotes_are_refused(work: Any, says: str) -> None:
    with pytest.raises(MarketError, match=says):
        work()
