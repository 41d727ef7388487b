"""The plugins' experiments on digits: arms are paired, interrupted runs resume, collapsed arms are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spikeprop.errors import RecipeError
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.plugins import RuleComparison, Transfer
from spikeprop.recipe import Recipe, load_recipe

DIGITS = ["data={use: Digits, train_limit: 96, test_limit: 90}", "ann.input_shape=[1, 8, 8]", "seeds=[3, 4]"]


def run(recipe: Recipe, path: Path) -> Report:
    return recipe.experiment.run(Context(RunFolder(path, recipe), recipe.name, lambda _: None))


def rules(*overrides: str) -> Recipe:
    relaxed = "{use: spikeprop.plugins.ActivationRelaxation, step_size: 1.0, backward_weights: learnt, measure_angle: true}"
    arms = f"arms={{backprop: Backprop, relaxed: {relaxed}}}"
    return load_recipe("mnist_mlp_ar", [*DIGITS, "ann.hidden=[16]", "epochs=2", "batch_size=32", arms, *overrides])


def transfer(*overrides: str) -> Recipe:
    arms = "arms={plain: [], rifle: [spikeprop.plugins.L2SP, {use: spikeprop.plugins.RIFLE, resets: 1}]}"
    return load_recipe(
        "mnist_cnn_rifle", [*DIGITS, "ann.plan=[4, A]", "epochs=4", "shots=3", "pretrain_epochs=1", arms, *overrides]
    )


@pytest.mark.parametrize("make", [rules, transfer])
def test_interrupted_run_resumes_to_the_same_report(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make()
    whole = run(recipe, tmp_path / "whole")
    name = "_train" if isinstance(recipe.experiment, RuleComparison) else "_finetune"
    kind = type(recipe.experiment)
    original = getattr(kind, name)

    def stopped(self: Any, arm: str, seed: int, context: Context) -> Any:
        if (arm, seed) == (next(reversed(self.arms)), 4):
            raise KeyboardInterrupt
        return original(self, arm, seed, context)

    monkeypatch.setattr(kind, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = run(recipe, tmp_path / "stopped")
    assert resumed.values["arms"] == whole.values["arms"]
    assert json.loads((tmp_path / "stopped" / "report.json").read_text())["seeds"] == [3, 4]
    assert (tmp_path / "stopped" / "report.png").stat().st_size > 5000
    assert not list((tmp_path / "stopped").glob("*progress*"))


def test_an_arm_that_collapses_is_a_result(tmp_path: Path) -> None:
    report = run(rules("lr=1e20", "optimizer=SGD", "epochs=3"), tmp_path / "run")
    assert "collapsed" in report.rows[0][1]
    assert "the loss is" in report.values["arms"]["backprop"]["runs"][0]["collapsed"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("target_classes=[5, 12]", r"target_classes: \[12\] are not among the 10 classes"),
        ("ann.classes=4", "ann: 4 outputs for 5 source classes"),
        ("shots=0", "shots is 0"),
        ("baseline=other", "not an arm"),
        ("arms.plain=[Nothing]", r"arms\.plain\.0: no component 'Nothing'"),
    ],
)
def test_invalid_transfer_is_refused(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        transfer(override).experiment.check()
    assert isinstance(transfer().experiment, Transfer)


def test_what_rules_measure_is_kept_by_epoch_and_drawn(tmp_path: Path) -> None:
    arms = run(rules("seeds=[3]"), tmp_path).values["arms"]
    assert [set(epoch) for epoch in arms["backprop"]["runs"][0]["history"]] == [{"loss", "accuracy"}] * 2
    for epoch in arms["relaxed"]["runs"][0]["history"]:
        assert epoch["angle"] > 1
        assert epoch["residual"] < 1e-5
        assert epoch["backward_passes"] == 1
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_a_transfer_takes_the_pretrained_networks_of_another_run(tmp_path: Path) -> None:
    first = run(transfer("seeds=[3]", "epochs=2"), tmp_path / "first").values
    again = run(transfer("seeds=[3]", "epochs=2", f"pretrained={tmp_path / 'first'}"), tmp_path / "again").values
    assert again["pretrained"] == first["pretrained"]
    assert again["arms"] == first["arms"]
    other = transfer("seeds=[3]", "epochs=2", f"pretrained={tmp_path / 'first'}", "source_classes=[5, 6, 7, 8, 0]")
    with pytest.raises(RecipeError, match=r"first holds another pretraining \(it differs in source_classes"):
        run(other, tmp_path / "other")
