"""Prices and sensitivities: closed forms, bumps on the same paths, fused steps against plain torch, memory."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad import (
    Autocall,
    Bachelier,
    Basket,
    BlackScholes,
    Dupire,
    European,
    Product,
    PseudoRandom,
    Risk,
    Scripted,
    Sobol,
    UpAndOut,
    bump,
    price,
    risk,
)
from spikeprop.plugins.aad.closed_forms import bachelier, black_scholes, up_and_out_call
from spikeprop.plugins.aad.models import correlation_matrix

SPOTS, TIMES = np.exp(np.linspace(np.log(60), np.log(170), 9)), [0.25, 0.5, 1.0]
SMILE = 0.2 + 0.15 * np.log(SPOTS / 100)[:, None] ** 2 - 0.1 * np.log(SPOTS / 100)[:, None] + 0.03 * np.exp(-np.array(TIMES))
UP_AND_OUT = UpAndOut(strike=95, barrier=125, maturity=1, monitorings=12, width=2.0)
AVERAGE = Scripted(observations=(0.25, 0.5, 1.0), script=lambda s, d: d[-1] * s.mean(1) ** 2)
MATRIX = Scripted(observations=(1,), script=lambda s, d: s)
ROOT = Scripted(observations=(1,), script=lambda s, d: (0 * s[:, 0]).sqrt())
ASIAN = Scripted(observations=(0.25, 0.5, 1.0), script=lambda s, d: d[-1] * torch.relu(s.mean(1) - 98))


def dupire(**changed: Any) -> Dupire:
    given = {"spot": 101.0, "volatilities": SMILE, "grid_spots": SPOTS, "grid_times": TIMES, "rate": 0.02, "dividend": 0.01}
    return Dupire(**{**given, "max_step": 1 / 26, **changed})


def three_assets() -> Bachelier:
    return Bachelier(
        spots=[1.0, 2.0, 0.5],
        volatilities=[0.2, 0.5, 0.1],
        correlations=[[1, 0.5, 0.2], [0.5, 1, -0.1], [0.2, -0.1, 1]],
        rate=0.03,
    )


def within(found: Risk, name: str, expected: Tensor, errors: float = 3.0) -> None:
    """All numbers of a sensitivity (or the price) are within this number of standard errors."""
    estimate = found.estimate if name == "price" else found.sensitivities[name]
    off = ((estimate.value - expected) / estimate.standard_error).abs().max()
    assert off < errors, f"{name}: {float(off):.2f} standard errors"


def test_black_scholes_agrees_with_the_formula() -> None:
    for call in (True, False):
        model = BlackScholes(spot=100, volatility=0.25, rate=0.03, dividend=0.01)
        found = risk(model, European(strike=110, maturity=1.5, call=call), Sobol(paths=2**15))
        leaves = {k: v.clone().requires_grad_() for k, v in model.parameters.items()}
        spot, volatility, rate, dividend = leaves.values()
        exact = black_scholes(spot, 110, 1.5, volatility, rate=rate, dividend=dividend, call=call)
        within(found, "price", exact.detach())
        for name, expected in zip(leaves, torch.autograd.grad(exact, list(leaves.values()))):
            within(found, name, expected)
            assert found.sensitivities[name].standard_error < 0.02 * expected.abs()


def test_a_bachelier_basket_agrees_with_the_formula() -> None:
    model, weights = three_assets(), torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64)
    found = risk(model, Basket(weights=weights.tolist(), strike=0.9, maturity=2), Sobol(paths=2**15, seed=1))
    leaves = {k: v.clone().requires_grad_() for k, v in model.parameters.items()}
    scaled = weights * leaves["volatilities"]
    deviation = (2 * scaled @ correlation_matrix(leaves["correlations"], 3) @ scaled).sqrt()
    exact = (-2 * leaves["rate"]).exp() * bachelier(weights @ leaves["spots"], 0.9, deviation)
    within(found, "price", exact.detach())
    for name, expected in zip(leaves, torch.autograd.grad(exact, list(leaves.values()))):
        within(found, name, expected, 4.0)  # ten numbers in one comparison
    assert [row[0] for row in found.table()][6:9] == ["correlation 1, 0", "correlation 2, 0", "correlation 2, 1"]


def test_barrier_price_agrees_with_the_formula_for_discrete_dates() -> None:
    product = UpAndOut(strike=100, barrier=130, maturity=1, monitorings=100, width=0.1)
    found = risk(BlackScholes(spot=100, volatility=0.2, rate=0.02), product, Sobol(paths=2**14))
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (100.0, 0.2)]
    exact = up_and_out_call(leaves[0], 100, 130, 1, leaves[1], rate=0.02, monitorings=100)
    assert found.value == pytest.approx(
        exact.item(), abs=3 * found.standard_error + 0.003
    )  # remaining error of the barrier shift
    for name, expected in zip(("spot", "volatility"), torch.autograd.grad(exact, leaves)):
        within(found, name, expected, 3.5)


def test_smoothing_that_no_path_sees_is_refused() -> None:
    """The derivative of a jump is zero: only the vega of surviving paths would remain, which has the wrong sign."""
    model, paths = BlackScholes(spot=100, volatility=0.3), PseudoRandom(paths=20000)
    wide, narrow = (UpAndOut(strike=100, barrier=130, maturity=1, monitorings=12, width=width) for width in (5.0, 1e-9))
    found = risk(model, wide, paths).sensitivities["volatility"]
    assert float(found.value) < -5 * float(found.standard_error)
    with pytest.raises(MarketError, match=r"UpAndOut jumps by .* on which fewer than .* of 20000 paths lie"):
        risk(model, narrow, paths)


AUTOCALL = Autocall(maturity=1, calls=4, trigger=1.02, protection=0.8, coupon=0.03, references=[100.0], width=0.03)
WORST_OF = Autocall(maturity=1, calls=2, trigger=1.0, protection=0.7, coupon=0.05, references=[1.0, 2.0, 0.5], width=0.05)
CASES = {
    "barrier, local volatility": (dupire, UP_AND_OUT),
    "Asian, local volatility": (dupire, ASIAN),
    "autocall, local volatility": (dupire, AUTOCALL),
    "autocall, Black-Scholes": (lambda: BlackScholes(spot=100, volatility=0.3, rate=0.02, dividend=0.01), AUTOCALL),
    "worst of three": (three_assets, WORST_OF),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adjoints_equal_bumps_on_the_same_paths(case: str) -> None:
    make, product = CASES[case]
    model, paths = make(), PseudoRandom(paths=300, seed=2)
    found = risk(model, product, paths)
    assert found.value == pytest.approx(price(model, product, paths).value, rel=1e-13)
    for name, estimate in found.sensitivities.items():
        size = float(estimate.value.abs().max())
        for index in range(0, estimate.value.numel(), 4):
            expected = bump(model, product, paths, name, index, 1e-6 * max(1.0, float(model.parameters[name].abs().max())))
            assert float(estimate.value.view(-1)[index]) == pytest.approx(expected, abs=1e-6 * size + 1e-7), (name, index)


@pytest.mark.parametrize("spot", [101.0, 58.0, 175.0, float(SPOTS[4])], ids=["inside", "below", "above", "on a knot"])
@pytest.mark.parametrize("product", [UP_AND_OUT, AVERAGE], ids=["barrier", "average"])
def test_fused_steps_equal_plain_steps(spot: float, product: Product) -> None:
    if product is UP_AND_OUT:
        product = UpAndOut(strike=spot, barrier=1.25 * spot, maturity=1, monitorings=12, width=2.0)
    both = [risk(dupire(spot=spot, engine=engine), product, PseudoRandom(paths=500)) for engine in ("fused", "torch")]
    assert both[0].value == pytest.approx(both[1].value, rel=1e-12)
    for name, one in both[0].sensitivities.items():
        other = both[1].sensitivities[name]
        torch.testing.assert_close(one.value, other.value, rtol=1e-12, atol=1e-12 * max(1.0, float(other.value.abs().max())))
        assert float(one.value.abs().max()) > 0


def test_a_spot_on_a_knot_has_the_delta_of_a_central_bump() -> None:
    model, paths = dupire(spot=float(SPOTS[4])), PseudoRandom(paths=300)
    found = risk(model, ASIAN, paths).sensitivities["spot"]
    assert float(found.value) == pytest.approx(bump(model, ASIAN, paths, "spot", 0, 1e-4), rel=1e-6)


def test_flat_local_volatility_is_black_scholes_path_by_path() -> None:
    flat = dupire(volatilities=np.full(SMILE.shape, 0.25), max_step=1 / 12)
    plain = BlackScholes(spot=101, volatility=0.25, rate=0.02, dividend=0.01)
    local, whole = (risk(model, UP_AND_OUT, PseudoRandom(paths=4000)) for model in (flat, plain))
    assert local.value == pytest.approx(whole.value, rel=1e-12)
    assert float(local.sensitivities["volatilities"].value.sum()) == pytest.approx(float(whole.sensitivities["volatility"].value))
    for name in ("spot", "rate", "dividend"):
        assert float(local.sensitivities[name].value) == pytest.approx(float(whole.sensitivities[name].value))


@pytest.mark.parametrize("source", [PseudoRandom, Sobol])
def test_standard_errors_equal_the_deviation_over_seeds(source: Callable[..., Any]) -> None:
    model, product = BlackScholes(spot=100, volatility=0.2), European(strike=100, maturity=1)
    runs = [risk(model, product, source(paths=2048, seed=seed)) for seed in range(60)]
    for get in (lambda r: r.estimate, lambda r: r.sensitivities["spot"], lambda r: r.sensitivities["volatility"]):
        spread = torch.stack([get(run).value for run in runs]).std()
        told = torch.stack([get(run).standard_error for run in runs]).square().mean().sqrt()
        assert 0.7 < float(spread / told) < 1.4


def test_batches_and_threads_change_only_rounding() -> None:
    paths = Sobol(paths=3000)
    one = risk(dupire(), UP_AND_OUT, paths)
    for batch, threads in ((100, 1), (512, 2), (70, 3)):
        other = risk(dupire(), UP_AND_OUT, paths, batch=batch, threads=threads)
        for name, estimate in one.sensitivities.items():
            torch.testing.assert_close(other.sensitivities[name].value, estimate.value, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(other.sensitivities[name].standard_error, estimate.standard_error, rtol=1e-8, atol=1e-10)


MEMORY = """
from pathlib import Path
from tests.plugins.test_aad import UP_AND_OUT, dupire
from spikeprop.plugins.aad import PseudoRandom, risk

def peak(paths):
    Path("/proc/self/clear_refs").write_text("5")
    risk(dupire(), UP_AND_OUT, PseudoRandom(paths=paths))
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM:"))

first = peak(20000)
print((peak(150000) - first) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from Linux's /proc")
def test_memory_does_not_grow_with_paths() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8  # MiB; 130,000 more paths are 12 MiB in prices of one date alone


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: BlackScholes(spot=-1, volatility=0.2), "spot is -1; it must be above 0"),
        (lambda: BlackScholes(spot=100, volatility=-0.2), "volatility is -0.2; it must be at least 0"),
        (lambda: dupire(volatilities=SMILE - 0.22), r"the volatility at spot \d+.* and time .* is -0.*at least 0"),
        (lambda: dupire(volatilities=SMILE[:4]), r"volatilities is \(4, 3\) on a grid of 9 spots x 3 times"),
        (lambda: dupire(grid_spots=SPOTS[::-1]), "grid_spots must increase, but 149.* follows 170"),
        (lambda: dupire(grid_times=[0.25, 0.25, 1]), "grid_times must increase, but 0.25 follows 0.25"),
        (lambda: dupire(max_step=4.0), r"max_step is 4 years: .* above 0\.5; use at most"),
        (lambda: dupire(engine="gpu"), "engine is 'gpu'"),
        (lambda: Bachelier(spots=[1, 1], volatilities=[1, -1]), r"volatilities\[1\] is -1"),
        (lambda: Bachelier(spots=[1] * 3, volatilities=[1] * 3, correlations=-0.9), "eigenvalue -0.8; all of them must be pos"),
        (lambda: risk(dupire(spot=124), UP_AND_OUT, PseudoRandom(paths=9)), "barrier is 125 with width 2, and the spot is 124"),
        (lambda: price(three_assets(), UP_AND_OUT, PseudoRandom(paths=9)), "UpAndOut needs one asset; the model has 3"),
        (lambda: price(dupire(), Basket(weights=[1, 2], strike=1, maturity=1), PseudoRandom(paths=9)), "2 numbers for 1 assets"),
        (lambda: price(dupire(), Scripted(observations=(1, 1), script=max), PseudoRandom(paths=9)), "but 1 follows 1"),
        (lambda: price(dupire(), MATRIX, PseudoRandom(paths=9)), r"returned \(256, 1\) for 256 paths; it must return \(256,\)"),
        (lambda: risk(dupire(), UP_AND_OUT, PseudoRandom(paths=9), batch=0), "batch is 0; it must be at least 1"),
        (lambda: UpAndOut(strike=1, barrier=2, maturity=1, monitorings=4, width=0), "width is 0; it must be above 0"),
        (
            lambda: risk(dupire(), ROOT, PseudoRandom(paths=9)),
            "a derivative of Scripted is not finite",
        ),
    ],
)  # fmt: skip
def test_invalid_models_and_products_are_refused(work: Callable[[], Any], says: str) -> None:
    with pytest.raises(MarketError, match=says):
        work()


def test_payoff_without_derivative_is_refused_or_has_zero_risk(tmp_path: Path) -> None:
    found = risk(
        dupire(), Scripted(observations=(1,), script=lambda s, d: torch.ones(len(s), dtype=s.dtype)), PseudoRandom(paths=64)
    )
    assert found.value == 1
    assert not any(estimate.value.any() for estimate in found.sensitivities.values())


def test_tables_and_pictures_are_written(tmp_path: Path) -> None:
    found = risk(dupire(), UP_AND_OUT, PseudoRandom(paths=256))
    rows = found.table()
    assert len(rows) == found.count == 9 * 3 + 3
    assert rows[1][0] == "volatility at spot 60, time 0.25"
    assert math.isclose(rows[1 + 3 * 4 + 2][1], float(found.sensitivities["volatilities"].value[4, 2]))
    assert [abs(row[1]) for row in found.table(5)] == sorted((abs(row[1]) for row in rows), reverse=True)[:5]
    found.draw(tmp_path / "surface.png")
    assert (tmp_path / "surface.png").stat().st_size > 10000
    with pytest.raises(MarketError, match="spot of Dupire is not a grid"):
        found.draw(tmp_path / "none.png", "spot")
