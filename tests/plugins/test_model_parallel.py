"""A recipe with a process for each segment: equal to one process, also when it was stopped in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spikeprop.errors import RecipeError
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.learn import load_checkpoint
from spikeprop.recipe import load_recipe
from spikeprop.runtime.processes import Processes
from tests.forked import ranks

SMALL = [
    "data={use: spikeprop.plugins.PythonSource, context: 16, train_limit: 70, test_limit: 20}", "ann.context=16", "ann.width=8",
    "ann.depth=2", "ann.heads=2", "rule.cuts=2", "rule.microbatches=2", "batch_size=16", "epochs=12", "device=cpu",
]  # fmt: skip


def test_processes_that_were_stopped_train_what_one_process_does(tmp_path: Path) -> None:
    recipe, folder = load_recipe("python_transformer_parallel", SMALL), tmp_path / "two"
    alone = recipe.experiment.run(Context(RunFolder(tmp_path / "one", recipe), recipe.name, lambda _: None)).values

    def started() -> Any:
        return ranks(2, None, ["run", recipe.name, *SMALL, "--out", folder], tmp_path / "log")

    first = started()
    first[1].until(lambda: bool(list(folder.glob("segment1.*.safetensors"))))
    first[1].terminate()
    assert all(process.ended() != 0 for process in first)
    assert not (folder / "report.json").exists()
    assert list(folder.glob("segment0.*.safetensors")), "nothing was saved"
    assert [process.ended() for process in started()] == [0, 0], (tmp_path / "log.0").read_text()
    assert not list(folder.glob("segment*"))

    found = json.loads((folder / "report.json").read_text())
    assert found["processes"] == 2
    assert found["test_loss"] == pytest.approx(alone["test_loss"], abs=1e-4)
    for segment in found["segments"].values():
        assert segment["busy_seconds"] > 0 <= segment["idle_seconds"]
        assert segment["memory_mb"] > segment["grown_mb"] >= 0
    ours, theirs = (load_checkpoint(tmp_path / name / "trained.safetensors").section("model") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() < 1e-4


def test_other_rules_uneven_micro_batches_and_numbers_of_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="rule: Backprop does not train segments in processes of their own; use Interlocking"):
        load_recipe("python_transformer_parallel", ["rule=Backprop"]).experiment.check()
    with pytest.raises(RecipeError, match="batch_size is 32, which is not divisible into 3 micro-batches"):
        load_recipe("python_transformer_parallel", ["rule.microbatches=3"]).experiment.check()
    recipe = load_recipe("python_transformer_parallel", SMALL)
    folder = RunFolder(tmp_path, recipe)
    folder.processes = Processes(0, 3)
    with pytest.raises(RecipeError, match="3 processes for 2 segments: use torchrun --nproc-per-node=2, or one process"):
        recipe.experiment.run(Context(folder, recipe.name, lambda _: None))
