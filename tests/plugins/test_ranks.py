"""Of several processes in one run, only rank 0 writes the reports of the plugins' experiments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.recipe import load_recipe
from spikeprop.runtime.processes import Processes

DIGITS = ["data={use: Digits, train_limit: 96, test_limit: 90}", "ann.input_shape=[1, 8, 8]", "seeds=[3]"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("aad_barrier", ["monitorings=12", "grid_spots=12", "grid_times=6", "bumps=0"]),
        ("aad_differential", ["seeds=[0]", "dimension=2"]),
        ("ldbp_pmd", []),
        ("ldbp_single", []),
        ("map_cartpole", ["seeds=1", "episodes=3"]),
        ("map_multiplexer", ["seeds=1"]),
        ("mnist_mlp_ar", [*DIGITS, "ann.hidden=[8]", "arms={backprop: Backprop}", "baseline=backprop"]),
        ("qr_least_squares", []),
    ],
)
def test_only_rank_zero_writes(name: str, overrides: list[str], tmp_path: Path) -> None:
    if name == "map_cartpole":
        pytest.importorskip("gymnasium", reason="the rl extra is not installed")
    recipe = load_recipe(name, overrides)
    recipe = replace(recipe, experiment=recipe.experiment.smoke())

    def run(rank: int) -> tuple[object, set[str]]:
        """The values of the report, and the new files."""
        before = {file.name for file in tmp_path.iterdir()}
        folder = RunFolder(tmp_path, recipe, processes=Processes(rank))
        report = recipe.experiment.run(Context(folder, name, lambda _: None))
        return report.values, {file.name for file in tmp_path.iterdir()} - before

    values, written = run(0)
    tables = {"sensitivities.csv", "superbuckets.png"} if name == "aad_barrier" else set()
    reported = {"report.json", "report.png", *tables}
    assert reported <= written
    for file in reported:
        (tmp_path / file).unlink()
    assert run(1) == (values, set())
