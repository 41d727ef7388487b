"""What the risk plugin refuses because the result would be wrong without a word, what it must not refuse, and its intervals."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins import aad
from spikeprop.plugins.aad import (
    Autocall,
    Bachelier,
    Basket,
    Bermudan,
    BlackScholes,
    Book,
    European,
    Product,
    PseudoRandom,
    Risk,
    Scripted,
    Sobol,
    UpAndOut,
    above,
    bump,
    price,
    prices,
    risk,
    simulated,
)
from spikeprop.plugins.aad.barrier import BarrierRisk
from spikeprop.plugins.aad.closed_forms import bachelier, black_scholes, bond_option
from spikeprop.plugins.aad.differential import BasketTask, DifferentialLearning
from spikeprop.plugins.aad.models import Parameters, Prepared, at_least
from spikeprop.plugins.aad.paths import Batch
from spikeprop.plugins.aad.twin import Examples, TwinNet, TwinTraining, fit_surrogate

MODEL = BlackScholes(spot=100, volatility=0.2, rate=0.02)
DATES = (0.5, 1.0)
Payoff = Callable[[Tensor, Tensor], Tensor]


def found(script: Payoff, paths: int = 4096, model: BlackScholes = MODEL) -> Risk:
    return risk(model, Scripted(observations=DATES, script=script), PseudoRandom(paths=paths))


@torch.no_grad()
def _outside(s: Tensor) -> Tensor:
    return torch.relu(s[:, -1] - 100)


def _first_in_the_money(s: Tensor, d: Tensor) -> Tensor:
    """An exercise by a comparison: the path's value jumps where the exercise does."""
    now = torch.relu(105 - s[:, 0])
    return torch.where(now > 6, now * d[0], d[1] * torch.relu(105 - s[:, 1]))


JUMPS: dict[str, Payoff] = {
    "digital": lambda s, d: d[-1] * (s[:, -1] > 100).double(),
    "hard knock-out": lambda s, d: d[-1] * torch.relu(s[:, -1] - 100) * (s.amax(1) < 120),
    "fractional part": lambda s, d: d[-1] * torch.frac(s[:, -1] / 25),
    "remainder": lambda s, d: d[-1] * torch.remainder(s[:, -1], 30.0),
    "days in a range": lambda s, d: d[-1] * ((s > 95) & (s < 110)).double().mean(1),
    "rounded straight through": lambda s, d: d[-1] * (s[:, -1] + (torch.round(s[:, -1]) - s[:, -1]).detach()),
    "exercise by a comparison": _first_in_the_money,
    "chosen by rank": lambda s, d: d[-1] * torch.tensor([0.0, 5.0], dtype=s.dtype)[s.argmax(1)],
    "small rebate": lambda s, d: d[-1] * (torch.relu(s[:, -1] - 100) + 0.05 * (s[:, 0] > 101)),
    "rare digital": lambda s, d: d[-1] * (s[:, -1] > 150).double(),
}
CUT: dict[str, Payoff] = {
    "without gradients": lambda s, d: d[-1] * _outside(s),
    "detached strike": lambda s, d: d[-1] * torch.relu(s[:, -1] - 0.9 * s.mean(1).detach()),
    "detached on one branch": lambda s, d: d[-1] * torch.where(s[:, -1] > 120, s[:, -1].detach(), s[:, -1]),
    "from NumPy": lambda s, d: d[-1] * torch.from_numpy(np.log(s.detach().numpy()[:, -1])),
}


@pytest.mark.parametrize("name", JUMPS)
def test_jump_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(MarketError, match=r"payoff of Scripted jumps by .*near .*above\(prices, level, width\)"):
        found(JUMPS[name])


@pytest.mark.parametrize("name", CUT)
def test_derivative_that_is_cut_off_is_refused(name: str) -> None:
    with pytest.raises(MarketError, match=r"the derivative of the payoff of Scripted by the prices is (zero|wrong) on .*detach"):
        found(CUT[name])


@pytest.mark.parametrize(
    "script",
    [
        lambda s, d: d[-1] * torch.heaviside(s[:, -1] - 100, torch.zeros((), dtype=s.dtype)),
        lambda s, d: d[-1] * torch.from_numpy(np.maximum(s[:, -1].numpy() - 100, 0)),
        lambda s, d: d[-1] * torch.relu(s.sub_(100)[:, -1]),
    ],
)
def test_what_torch_cannot_differentiate_is_an_error_of_ours(script: Payoff) -> None:
    with pytest.raises(MarketError, match=r"PyTorch cannot differentiate the payoff of Scripted \("):
        found(script)


def test_smoothed_digital_has_the_delta_of_the_closed_form() -> None:
    digital = found(lambda s, d: d[-1] * above(s[:, -1], 100, 2.0), paths=40_000).sensitivities["spot"]
    d2 = (0.02 - 0.2**2 / 2) / 0.2
    exact = math.exp(-0.02) * math.exp(-(d2**2) / 2) / math.sqrt(2 * math.pi) / (100 * 0.2)
    assert float(digital.value) == pytest.approx(exact, abs=4 * float(digital.standard_error) + 2e-4)


CONTINUOUS: dict[str, Payoff] = {
    "square root": lambda s, d: d[-1] * torch.relu(s[:, -1] - 99.9).sqrt(),
    "lookback by index": lambda s, d: d[-1] * s.gather(1, s.argmax(1, keepdim=True))[:, 0],
    "sorted dates": lambda s, d: d[-1] * s.sort(1).values[:, 0],
    "where that is continuous": lambda s, d: d[-1] * torch.where(s[:, -1] > 100, s[:, -1] - 100, 0.5 * (100 - s[:, -1])),
    "single precision": lambda s, d: d[-1].float() * torch.relu(s[:, -1].float() - 100),
    "narrow call spread": lambda s, d: d[-1] * above(s[:, -1], 105, 0.1),
    "sigmoid": lambda s, d: d[-1] * torch.sigmoid((s[:, -1] - 100) / 0.2),
    "power": lambda s, d: d[-1] * (s[:, -1] / 100) ** 8,
    "constant": lambda s, d: d[-1].expand(len(s)),
    "large notional": lambda s, d: 1e6 * d[-1] * (1 + torch.relu(s[:, -1] / 100 - 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_payoff_is_not_refused(name: str) -> None:
    result = found(CONTINUOUS[name], paths=20_000)
    for one in result.audits.values():
        assert not one.reason
        assert one.adjoint == pytest.approx(one.bump, abs=one.error, rel=0.01)
    assert list(result.audits) == list(MODEL.parameters)


def test_discount_that_is_cut_off_is_refused_by_name() -> None:
    with pytest.raises(MarketError, match=r"the sensitivity to rate is wrong: .* a bump on the same paths gives"):
        found(lambda s, d: d[-1].item() * torch.relu(s[:, -1] - 100))


class _Cut(BlackScholes):
    """A model whose volatility, and whose spot in part, are no functions on the tape."""

    def __init__(self, cut: str):
        super().__init__(spot=100, volatility=0.2, rate=0.02)
        self.cut = cut

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        return super().prepare({k: v.detach() if k == self.cut else v for k, v in parameters.items()}, times)


@pytest.mark.parametrize("name", ["volatility", "spot", "dividend"])
def test_parameter_that_the_model_cuts_off_is_refused_by_name(name: str) -> None:
    with pytest.raises(MarketError, match=f"the sensitivity to {name} is wrong: .* adjoint is identically zero"):
        risk(_Cut(name), European(strike=100, maturity=1), PseudoRandom(paths=1024))


def _regressed(s: Tensor, d: Tensor) -> Tensor:
    later, x = torch.relu(100 - s[:, 1]) * d[1] / d[0], torch.stack([torch.ones(len(s)).double(), s[:, 0], s[:, 0] ** 2], 1)
    kept = x @ torch.linalg.lstsq(x, later).solution
    now = torch.relu(100 - s[:, 0])
    return d[0] * torch.where(now > kept, now, later)


@pytest.mark.parametrize(
    "script",
    [
        _regressed,
        lambda s, d: d[-1] * torch.relu(s[:, -1] - s[:, -1].mean()),
        lambda s, d: d[-1] * s[:, -1].sort().values,
        lambda s, d: d[-1] * above(s[:, -1], s[:, -1].quantile(0.9), 1.0),
        lambda s, d: d[-1] * torch.nn.functional.batch_norm(s, None, None, training=True)[:, -1],
        lambda s, d: d[-1] * s[:, -1].cummax(0).values,
    ],
)
@pytest.mark.parametrize("work", [price, risk])
def test_payoff_that_mixes_paths_is_refused(script: Payoff, work: Callable[..., object]) -> None:
    with pytest.raises(MarketError, match=r"mixes paths: .*two passes: .*simulated\(model, product, paths\)"):
        work(MODEL, Scripted(observations=DATES, script=script), PseudoRandom(paths=512))


def test_payoff_that_draws_random_numbers_is_refused() -> None:
    with pytest.raises(MarketError, match="different values for the same prices: it draws random numbers"):
        price(MODEL, Scripted(observations=DATES, script=lambda s, d: s[:, -1] * torch.rand(len(s))), PseudoRandom(paths=64))


def test_payoff_that_works_in_place_has_a_price() -> None:
    def payoff(s: Tensor, d: Tensor) -> Tensor:
        return d[-1] * torch.relu(s.sub_(100)[:, -1])

    expected = price(MODEL, European(strike=100, maturity=1), PseudoRandom(paths=4096))
    result = price(MODEL, Scripted(observations=(1.0,), script=payoff), PseudoRandom(paths=4096))
    assert result.value == pytest.approx(expected.value)


def test_two_passes_price_a_bermudan_put() -> None:
    """Regression on paths of their own, against a binomial tree with 2000 steps."""
    steps, dates = 2000, (0.5, 1.0)
    up = math.exp(0.2 / math.sqrt(steps))
    q = (math.exp(0.02 / steps) - 1 / up) / (up - 1 / up)
    values = np.maximum(100 - 100 * up ** np.arange(-steps, steps + 1, 2.0), 0)
    for step in range(steps - 1, -1, -1):
        values = math.exp(-0.02 / steps) * (q * values[1:] + (1 - q) * values[:-1])
        if step == steps // 2:
            values = np.maximum(values, 100 - 100 * up ** np.arange(-step, step + 1, 2.0))
    plain = Scripted(observations=dates, script=lambda s, d: d[-1] * torch.relu(100 - s[:, -1]))
    s, d = simulated(MODEL, plain, PseudoRandom(paths=50_000, seed=7))
    assert s.shape == (50_000, 2)

    def basis(x: Tensor) -> Tensor:
        return ((x / 100)[:, None] ** torch.arange(5)).double()

    later = d[1] / d[0] * torch.relu(100 - s[:, 1])
    money = s[:, 0] < 100
    fitted = torch.linalg.lstsq(basis(s[money, 0]), later[money]).solution

    def payoff(s: Tensor, d: Tensor) -> Tensor:
        now = torch.relu(100 - s[:, 0])
        return torch.where((now > 0) & (now > basis(s[:, 0]) @ fitted), d[0] * now, d[1] * torch.relu(100 - s[:, 1]))

    result = price(MODEL, Scripted(observations=dates, script=payoff), PseudoRandom(paths=200_000, seed=1))
    assert result.value == pytest.approx(float(values[0]), abs=3.5 * result.standard_error)


def test_coinciding_scramblings_have_an_error() -> None:
    """The counts of a digital are equal in all scramblings of 64 stratified points, and the mean is off by part of a point."""
    digital = Scripted(observations=(1.0,), script=lambda s, d: d[-1] * (s[:, -1] > 100))
    one = price(MODEL, digital, Sobol(paths=16 * 64))
    assert one.standard_error > 0
    covered = 0
    for strike in np.linspace(80, 120, 41):
        digital = Scripted(observations=(1.0,), script=lambda s, d, k=strike: d[-1] * (s[:, -1] > k))
        exact = math.exp(-0.02) * 0.5 * (1 + math.erf(math.log(100 / strike) / 0.2 / math.sqrt(2)))
        low, high = price(MODEL, digital, Sobol(paths=16 * 64)).estimate.interval()
        covered += bool(low <= exact <= high)
    assert covered >= 36  # of 41; without the floor, about half


def test_constants_have_no_error() -> None:
    forward = Scripted(observations=(1.0,), script=lambda s, d: d[-1] * (s[:, -1, 0] + s[:, -1, 1]))
    result = risk(Bachelier(spots=[1.0, 2.0], volatilities=[0.1, 0.2]), forward, Sobol(paths=1024))
    assert float(result.sensitivities["spots"].standard_error.max()) < 1e-9
    assert result.sensitivities["spots"].value.tolist() == pytest.approx([1.0, 1.0])


def test_few_groups_are_warned_of_and_invalid_confidence_is_refused() -> None:
    with pytest.warns(UserWarning, match="5 independent groups of paths only .* use at least 8"):
        result = risk(MODEL, European(strike=100, maturity=1), Sobol(paths=640, scramblings=5))
    with pytest.raises(MarketError, match="confidence is 95; it must lie between 0 and 1"):
        result.estimate.interval(95)
    low, high = result.estimate.interval(0.9)
    half = 2.131847 * 1.461937  # t(0.95, 4), and 1 + h / 5 with z = 1.644854
    assert float(high - low) / 2 / result.standard_error == pytest.approx(half, rel=1e-6)


RARE: dict[str, tuple[Payoff, str]] = {
    "call far out of the money": (
        lambda s, d: d[-1] * torch.relu(s[:, -1] - 400),
        "is 0 on all 1024 paths, and .* by 4: its event",
    ),
    "rare event that the probe sees": (lambda s, d: d[-1] * torch.relu(s[:, -1] - 195), "is 0 on all .* by 2: its event"),
    "bond that hardly defaults": (
        lambda s, d: d[-1] * (1 - above(s[:, -1], 400, 5)),
        r"is 0\.980199 on all 1024 .* and 0 on a path",
    ),
    "never paid": (lambda s, d: 0 * s[:, -1], "is 0 on all 1024 paths, and on paths that are stretched by 8"),
}


@pytest.mark.parametrize("work", [price, risk])
@pytest.mark.parametrize("name", RARE)
def test_event_that_no_path_sees_is_warned_of_with_the_remedy(name: str, work: Callable[..., object]) -> None:
    script, says = RARE[name]
    with pytest.warns(UserWarning, match=f"the payoff of Scripted {says}.*more paths, or importance sampling"):
        work(MODEL, Scripted(observations=DATES, script=script), PseudoRandom(paths=1024, seed=1))


def test_sensitivity_to_an_event_that_no_path_sees_is_warned_of() -> None:
    """The correlation moves only the second asset, on which there is a call far out of the money."""
    model = Bachelier(spots=[1.0, 2.0], volatilities=[0.1, 0.2], correlations=0.3, rate=0.02)
    rare = Scripted(observations=(1.0,), script=lambda s, d: d[-1] * (torch.relu(s[:, 0, 0] - 1) + torch.relu(s[:, 0, 1] - 3)))
    with pytest.warns(
        UserWarning, match="sensitivity to correlations is 0 on all 1024 paths, but not on paths .* by 4: the event"
    ):
        risk(model, rare, PseudoRandom(paths=1024))


class _OneGroup(PseudoRandom):
    """A source whose groups are not numbered."""

    def batches(self, size: int) -> Iterator[Batch]:
        for batch in super().batches(size):
            yield Batch(0, batch.first, batch.count)


def test_one_group_of_paths_is_refused() -> None:
    with pytest.raises(MarketError, match=r"_OneGroup\.batches gave 1 group of paths, and a standard error needs at least 2"):
        price(MODEL, European(strike=100, maturity=1), _OneGroup(paths=64))


LOW: dict[str, tuple[str, Payoff]] = {
    "single": ("float32", lambda s, d: d[-1] * (1000 + s[:, -1].float() / 100)),
    "half": ("float16", lambda s, d: d[-1] * torch.relu(s[:, -1].half() - 100)),
    "brain": ("bfloat16", lambda s, d: d[-1] * torch.relu(s[:, -1].bfloat16() - 100)),
}


@pytest.mark.parametrize("name", LOW)
def test_low_precision_is_named_and_not_called_a_wrong_derivative(name: str) -> None:
    kind, script = LOW[name]
    with pytest.raises(
        MarketError, match=f"payoff of Scripted computes in {kind}, whose rounding .* Compute the payoff in float64"
    ):
        found(script)


def test_jump_of_a_payoff_in_low_precision_is_still_a_jump() -> None:
    with pytest.raises(MarketError, match=r"payoff of Scripted jumps by 0\.98"):
        found(lambda s, d: d[-1].float() * (s[:, -1] > 100).float())


def test_parameter_whose_bump_is_impossible_is_listed_as_not_audited() -> None:
    model = Bachelier(spots=[1.0, 2.0], volatilities=[0.1, 0.2], correlations=0.99999999)
    result = risk(model, Basket(weights=[1, 1], strike=3, maturity=1), PseudoRandom(paths=512))
    assert list(result.audits) == list(model.parameters)
    one = result.audits["correlations"]
    assert one.bump is None
    assert result.values()["audits"]["correlations"]["bump"] is None
    assert str(one).endswith("not audited (the bumped model is impossible: a matrix of it is not positive definite)")
    assert result.audits["spots"].bump == pytest.approx(result.audits["spots"].adjoint, rel=0.01)


class _Bounded(BlackScholes):
    """A model that refuses some values in its preparation."""

    def __init__(self, name: str, bound: float):
        super().__init__(spot=100, volatility=0.2, rate=0.02)
        self.bound = name, bound

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        name, bound = self.bound
        at_least(name, float(parameters[name].detach()), bound)
        return super().prepare(parameters, times)


@pytest.mark.parametrize(("name", "value"), [("volatility", 0.2), ("spot", 100)])
def test_bump_that_a_model_refuses_is_listed_with_its_reason(name: str, value: float) -> None:
    result = risk(_Bounded(name, value), European(strike=100, maturity=1), PseudoRandom(paths=512))
    told = result.audits[name].reason
    assert told.startswith(f"the bumped model is impossible: {name} is {0.9999 * value:g}")
    assert told.endswith(f"it must be at least {value:g}")
    assert sum(bool(one.reason) for one in result.audits.values()) == 1


class _Holed(BlackScholes):
    """NaN at the last date of path 188 of each group of 512."""

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        spots = super().simulate(prepared, normals, times)
        return spots if len(spots) < 400 else spots.index_put((torch.tensor(188), torch.tensor(-1)), spots.new_tensor(math.nan))


def _with_a_rate_of(value: float) -> BlackScholes:
    model = BlackScholes(spot=100, volatility=0.2)
    model.parameters["rate"] = torch.tensor(value, dtype=torch.float64)
    return model


def _root(s: Tensor, d: Tensor) -> Tensor:
    return d[-1] * (s[:, -1] - 60).sqrt()


ROOT = Scripted(observations=DATES, script=_root)
HIDDEN = Scripted(observations=DATES, script=lambda s, d: d[-1] * (s[:, -1] > 100).double())
CALL = European(strike=100, maturity=1.0)
MANY = PseudoRandom(paths=2048, groups=4)
FREE = European(strike=0, maturity=1)


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: price(BlackScholes(spot=100, volatility=0.2, rate=math.nan), CALL, MANY), "rate of BlackScholes is nan; it"),
        (lambda: risk(_with_a_rate_of(math.inf), CALL, MANY), "rate of BlackScholes is inf; it must be a finite number"),
        (lambda: bump(MODEL, CALL, MANY, "spot", 0, math.nan), "size is nan; it must be a finite number"),
        *(
            (
                lambda f=f: f(BlackScholes(spot=1e306, volatility=0.01), FREE, PseudoRandom(paths=4096)),
                "the price of European is inf .* too large for floating-point numbers; count in a larger unit",
            )
            for f in (price, risk)
        ),
        (lambda: price(_with_a_rate_of(800.0), CALL, MANY), "the price at 1 years is inf on path 0 of group 0: the parameters"),
        (
            lambda: price(_Holed(spot=100, volatility=0.2), HIDDEN, MANY),
            "the price at 1 years is nan on path 188 of group 0: the parameters of _Holed are too large .* or its simulation",
        ),
        (lambda: risk(_Holed(spot=100, volatility=0.2), CALL, MANY), "price at 1 years is nan on path 188 of group 0"),
        (lambda: simulated(_Holed(spot=100, volatility=0.2), CALL, MANY), "price at 1 years is nan on path 188 of group 0"),
        (lambda: price(MODEL, ROOT, MANY), r"the payoff of Scripted is nan on path \d+ of group \d, with the prices .*, 5\d"),
        (lambda: risk(MODEL, ROOT, MANY), r"the payoff of Scripted is nan on path \d+ of group \d, with the prices .*, 5\d"),
        (
            lambda: prices(MODEL, Book(products={"call": European(strike=100, maturity=0.5), "root": ROOT}), MANY),
            r"the payoff of Book \(root\) is nan on path",
        ),
        (lambda: price(MODEL, European(strike=100, maturity=math.inf), MANY), "maturity is inf; it must be a finite number"),
        (
            lambda: Autocall(maturity=1, calls=1, trigger=1, protection=0.6, coupon=math.nan, references=[100], width=0.1),
            "coupon is nan; it must be a finite number",
        ),
        (
            lambda: Bermudan.fitted(MODEL, MANY, observations=DATES, exercise=lambda s: (s - 60).sqrt(), width=1.0),
            "exercise is not a finite number on a path at 1 years; a regression needs numbers",
        ),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_named(work: Callable[[], object], says: str) -> None:
    with pytest.raises(MarketError, match=says):
        work()


def test_report_has_an_audit_of_every_parameter() -> None:
    product: Product = UpAndOut(strike=95, barrier=125, maturity=1, monitorings=12, width=2.0)
    result = risk(MODEL, product, PseudoRandom(paths=512))
    audits = result.values()["audits"]
    assert list(audits) == ["spot", "volatility", "rate", "dividend"]
    assert str(result.audits["spot"]).startswith("spot: adjoint ")
    for one in audits.values():
        assert one["adjoint"] == pytest.approx(one["bump"], abs=one["error"] + 0.01 * abs(one["bump"]))


RESULTS = {"Audit", "Estimate", "Price", "Risk", "Smoothing"}  # nobody writes one
TAKES: list[Callable[..., Any]] = [
    *(getattr(aad, name) for name in aad.__all__ if name not in RESULTS | {"above"}),
    *(black_scholes, bachelier, bond_option, BasketTask, DifferentialLearning, BarrierRisk),
    *(Examples, TwinNet, TwinTraining, fit_surrogate, Bermudan.fitted, aad.Estimate.interval, Risk.table),
]


@pytest.mark.parametrize("takes", [one for one in TAKES if not inspect.isabstract(one)], ids=lambda one: one.__qualname__)
def test_argument_of_another_kind_is_refused_by_its_name(takes: Any) -> None:
    """Each argument of everything that the plugin offers, and the flags among them by what counts as true or false too."""
    kinds = get_type_hints(takes.__init__ if inspect.isclass(takes) and not hasattr(takes, "__dataclass_fields__") else takes)
    checked = [name for name in inspect.signature(takes).parameters if name in kinds and kinds[name] is not Any]
    assert checked
    for name in checked:
        for other in (object(), *(("put", 1, None, math.nan) if kinds[name] is bool else ())):
            with pytest.raises(MarketError, match=rf"^{name} is .*; it must be ") as told:
                takes(**{name: other})
            assert kinds[name] is not bool or str(told.value).endswith("it must be True or False")


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: European(strike=100, maturity=-1), "maturity is -1; it must be above 0"),
        (lambda: Basket(weights=[1], strike=100, maturity=0), "maturity is 0; it must be above 0"),
        (lambda: European(strike=True, maturity=1), "strike is True; it must be a real number"),
        (lambda: Sobol(paths=1e4), r"paths is 10000\.0; it must be a whole number"),  # type: ignore[arg-type]
        (lambda: Bachelier(spots=[1, "2"], volatilities=[1, 1]), r"spots\[1\] is '2'; it must be a real number"),  # type: ignore[list-item]
        (
            lambda: Bachelier(spots=[1, 2], volatilities=[1, 1], correlations=[[1, "a"], [0, 1]]),  # type: ignore[list-item]
            r"correlations\[0\]\[1\] is 'a'; it must be a real number",
        ),
        (lambda: Book(products=[CALL]), "; it must be a mapping of names to Product, such as European"),  # type: ignore[arg-type]
        (lambda: Book(products={"a": MODEL}), r"products\['a'\] is BlackScholes\(\.\.\.\); it must be of class Product"),  # type: ignore[dict-item]
        (lambda: risk(CALL, MODEL, MANY), r"model is European\(.*; it must be of class Model, such as BlackScholes"),  # type: ignore[arg-type]
        (lambda: risk(MODEL, CALL, 4096), "paths is 4096; it must be of class Paths, such as PseudoRandom"),  # type: ignore[arg-type]
        (lambda: bump(MODEL, CALL, MANY, "vega", 0, 0.1), "name is 'vega'; BlackScholes has spot, volatility, rate, dividend"),
        (lambda: bump(MODEL, CALL, MANY, "spot", 1, 0.1), "index is 1; spot of BlackScholes has 1 numbers, counted from 0"),
    ],
)  # fmt: skip
def test_wrong_argument_is_named_with_what_it_must_be(work: Callable[[], object], says: str) -> None:
    with pytest.raises(MarketError, match=says):
        work()


def test_scalars_of_numpy_and_torch_are_numbers() -> None:
    put = European(strike=np.float32(100), maturity=torch.tensor(1.0), call=np.bool_(False))  # type: ignore[arg-type]
    paths = PseudoRandom(paths=1024)
    expected = price(MODEL, European(strike=100, maturity=1.0, call=False), paths)
    assert price(MODEL, put, paths).value == pytest.approx(expected.value)
    two = Bachelier(spots=torch.tensor([1.0, 2.0]), volatilities=np.array([0.1, 0.2]), correlations=torch.eye(2))  # type: ignore[arg-type]
    assert two.assets == 2
