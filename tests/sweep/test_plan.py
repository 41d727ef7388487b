"""The command line of a sweep: values in brackets, ranges, all combinations, proposals of tpe."""

from __future__ import annotations

from pathlib import Path

import pytest

from spikeprop.errors import RecipeError
from spikeprop.sweep import SweepAxis, SweepPlan, parse_axis, split_values
from spikeprop.sweep.tpe import propose

QUICK = "use: tests.sweep.quick.Quick\nx: 1.0\n"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "quick.yaml"
    file.write_text(QUICK)
    return str(file)


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("1,2", ["1", "2"]),
        ("[1,2],[4]", ["[1,2]", "[4]"]),
        ("{use: LIF, leak: 0.9},IF", ["{use: LIF, leak: 0.9}", "IF"]),
        ("[[1,2],[3]]", ["[[1,2],[3]]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("'[',']'", ["'['", "']'"]),
        ("null, 0.5", ["null", "0.5"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(written: str, values: list[str]) -> None:
    assert split_values(written) == values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr", "write it as"),
        ("=1", "write it as"),
        ("lr=", "write it as"),
        ("lr=1,,2", "nothing between two commas"),
        ("lr=1,2,1", "1 is there twice"),
        ("t=[1,2", "']' is missing"),
        ("t=1]", "']' closes nothing"),
        ("t=[1}", "'}' closes nothing"),
        ("t='a,b", '"\'" is missing'),
        ("lr=2..1", "from a smaller number to a larger one"),
        ("lr=log:0..1", "logarithmic one from above 0"),
    ],
)
def test_invalid_axes_are_named(text: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_axis(text)
    assert told in str(caught.value)


def test_ranges_are_parsed() -> None:
    assert parse_axis("n=2..8") == SweepAxis("n", (), 2, 8)
    assert parse_axis("n=2..8").integers
    axis = parse_axis("lr=log:1e-5..1e-2")
    assert (axis.low, axis.high, axis.log, axis.integers) == (1e-5, 1e-2, True, False)


def test_a_grid_is_every_combination_in_order(recipe: str) -> None:
    plan = SweepPlan.of(recipe, ["x=1,2", "tags=[1,2],[4]", "seconds=0"])
    assert [tuple(values.values()) for values in plan.grid()] == [
        ("1", "[1,2]", "0"), ("1", "[4]", "0"), ("2", "[1,2]", "0"), ("2", "[4]", "0"),
    ]  # fmt: skip
    assert plan.varied == ["x", "tags"]


def test_wrong_key_is_refused_and_one_wrong_value_is_not(recipe: str) -> None:
    with pytest.raises(RecipeError, match="no 'y'"):
        SweepPlan.of(recipe, ["y=1,2"])
    assert len(list(SweepPlan.of(recipe, ["x=nonsense,2"]).grid())) == 2


def test_keys_twice_and_ranges_in_a_grid_are_refused(recipe: str) -> None:
    with pytest.raises(RecipeError, match="x is given twice"):
        SweepPlan.of(recipe, ["x=1", "x=2"])
    with pytest.raises(RecipeError, match="--sampler tpe"):
        SweepPlan.of(recipe, ["x=0..1"])


def test_identity_ignores_trials_jobs_and_threads(recipe: str) -> None:
    plan = SweepPlan.of(recipe, ["x=0.0..1.0"], sampler="tpe", trials=2)
    more = SweepPlan.of(recipe, ["x=0.0..1.0"], sampler="tpe", trials=9, jobs=3, threads=1)
    assert plan.identity() == more.identity()
    assert plan.identity() != SweepPlan.of(recipe, ["x=0.0..2.0"], sampler="tpe").identity()


def test_tpe_approaches_the_optimum_and_is_reproducible(recipe: str) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    plan = SweepPlan.of(recipe, ["x=0.0..1.0", "seconds=0,1"], sampler="tpe", trials=30)
    told: list[tuple[dict[str, str], float | None]] = [({"x": "0.9", "seconds": "1"}, None)]  # a failed trial
    for number in range(1, 30):
        values = propose(plan, number, told)
        assert 0 <= float(values["x"]) <= 1
        told.append((values, 1 - (float(values["x"]) - 0.3) ** 2 - int(values["seconds"])))
    best = max((value, values["x"]) for values, value in told if value is not None)
    assert best[0] > 0.995
    assert propose(plan, 12, told[:12]) == told[12][0]
    late = [int(values["seconds"]) for values, _ in told[15:]]
    assert sum(late) < len(late) / 3  # it has learnt to avoid long trials
