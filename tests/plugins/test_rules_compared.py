"""The comparison of local rules: what it measures, against known values, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikeprop import Backprop
from spikeprop.errors import RecipeError
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.learn import EProp, SquaredError
from spikeprop.plugins import DirectFeedbackAlignment
from spikeprop.plugins.angles import degrees
from spikeprop.plugins.local_rules.measuring import LiveBytes, gradient
from spikeprop.recipe import load_recipe


def test_angles_of_known_directions() -> None:
    a = torch.tensor([1.0, 0.0])
    assert float(degrees(a, 3 * a)) == 0
    assert float(degrees(a, -a)) == pytest.approx(180)
    assert float(degrees(a, torch.tensor([1.0, 1.0]))) == pytest.approx(45)
    assert float(degrees(a, torch.tensor([1.0, 1e-8]))) == pytest.approx(5.73e-7, rel=1e-3)
    assert float(degrees(a, torch.zeros(2))) == 90


def test_a_gradient_is_measured_on_a_copy() -> None:
    """Neither gradients, batch statistics nor random numbers of the training change."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    found = gradient(Backprop(), model, torch.rand(8, 4), torch.arange(8) % 3)
    assert list(found) == ["0.weight", "3.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.set_rng_state(state)


def test_live_bytes_of_a_known_program() -> None:
    """Views and what was there count nothing; what is freed counts no more."""
    there = torch.zeros(100)
    with LiveBytes([there]) as live:
        a = torch.zeros(1000)  # 4,000 bytes
        a.view(10, 100).t()
        there.view(10, 10)
        b = a + 1  # 8,000
        del a
        c = b.exp()  # 8,000 again
        del b
    assert live.peak == 8000
    assert c.shape == (1000,)


def run(path: Path, *overrides: str) -> Any:
    few = ["data={use: Digits, train_limit: 64, test_limit: 40}", "ann.plan=[4, A]", "spiking.plan=[4, A]", "ann.hidden=[]"]
    arms = "arms={backprop: Backprop, direct: spikeprop.plugins.DirectFeedbackAlignment}"
    recipe = load_recipe(
        "rules_compared", [*few, arms, "rates={direct: 1e-2}", "seeds=[0]", "epochs=2", "timesteps=4", *overrides]
    )
    return recipe.experiment.run(Context(RunFolder(path, recipe), recipe.name, lambda _: None))


class Pair(nn.Module):
    """Two outputs."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x.flatten(1)


def test_a_network_of_several_outputs_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"Pair returns a tuple; a comparison needs one tensor of scores"):
        load_recipe("rules_compared", [f"ann={{use: {__name__}.Pair}}"]).experiment.check()


def test_an_angle_is_to_the_gradient_of_the_arms_own_loss() -> None:
    experiment = load_recipe("rules_compared").experiment
    direct, smoothed = DirectFeedbackAlignment(loss=SquaredError()), Backprop(label_smoothing=0.1)
    assert experiment._reference("backprop", direct) == Backprop(loss=SquaredError())
    assert experiment._reference("backprop", smoothed) == smoothed
    own = EProp(timesteps=8, loss=SquaredError())
    assert experiment._reference("e-prop, spiking", own).loss == SquaredError()


@pytest.mark.slow  # the smoke test of the recipe draws it too
def test_the_page_has_every_arm_and_its_figures(tmp_path: Path) -> None:
    values = run(tmp_path / "run").values
    arms, page = values["arms"], (tmp_path / "run" / "report.md").read_text()
    assert list(arms) == ["backprop", "direct", "BPTT, spiking", "e-prop, spiking"]
    assert all(set(curve) == {0.0} for curve in arms["backprop"]["angles"].values())
    assert all(len(curve) == 2 for arm in arms.values() for curve in arm["angles"].values())
    assert arms["direct"]["angles"]["features.0.weight"][0] > 1
    assert arms["direct"]["angles"]["classifier.1.weight"][0] == pytest.approx(0, abs=0.1)
    assert [name for name, arm in arms.items() if "converted" in arm] == ["backprop", "direct"]
    assert (arms["backprop"]["own"], arms["direct"]["own"]) == (0, 10 * 4 * 4 * 4)
    for name, arm in arms.items():
        assert sum(line.startswith(f"| {name} |") for line in page.splitlines()) == 3
        assert f"| {name} | {arm['mean']:.2f} |" in page
        assert arm["bytes"] > 0 < arm["seconds"]
        assert arm["knows"]
    assert (tmp_path / "run" / "report.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rates={other: 0.1}", "rates: 'other' is not an arm"),
        ("rates={direct: 0.0}", "rates: that of 'direct' is 0"),
        ("spiking_arms={direct: BPTT}", "both have direct"),
        ("timesteps=0", "timesteps is 0"),
    ],
)
def test_invalid_comparisons_are_refused(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        run(tmp_path, override)
