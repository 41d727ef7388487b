"""Spiking networks trained from scratch: the pipeline on sequences, its checks, its folder without questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from spikeprop.cli import main
from spikeprop.errors import RecipeError
from spikeprop.experiment.network_checkpoint import load_spiking
from spikeprop.recipe import check
from spikeprop.snn.normalisation import ThresholdBatchNorm

CLASSES, STEPS = 3, 4


def recordings(folder: Path, lengths: list[int] | None = None) -> Path:
    """Sequences of two channels of 4x4 pixels, in which the class is the row that blinks."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 48), ("test", 18)):
        labels = np.arange(count) % CLASSES
        x = (rng.random((count, STEPS, 2, 4, 4)) < 0.1).astype(np.float32)
        x[np.arange(count), :, 0, labels] += 2
        more: dict[str, Any] = {"lengths": np.resize(lengths, count)} if lengths else {}
        np.savez(folder / f"{name}.npz", x=x, y=labels, **more)
    return folder


def tree(folder: Path, **more: Any) -> dict[str, Any]:
    """A recipe on these sequences."""
    model = {
        "use": "SpikingCNN", "input_shape": [2, 4, 4], "classes": CLASSES, "plan": [6, "A"], "hidden": [8],
        "neuron": {"use": "LIF", "leak": 0.7, "surrogate": "Triangle"}, "batch_norm": "threshold",
    }  # fmt: skip
    train = {"rule": "BPTT", "optimizer": "Adam", "schedule": "Constant", "epochs": 8, "batch_size": 12, "lr": 0.02}
    data = {"use": "FrameData", "root": str(folder), "frame_shape": [2, 4, 4], "classes": CLASSES, "timesteps": STEPS}
    return {
        "use": "SpikingTraining", "seed": 0, "data": data, "model": model, "encoder": "Frames", "train": train,
        "evaluate": {"timesteps": [2], "batch_size": 6}, "simulate": {"samples": 0},
    } | more  # fmt: skip


def cli(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on sequences."""
    folder = tmp_path_factory.mktemp("scratch")
    file = folder / "blinks.yaml"
    file.write_text(json.dumps(tree(recordings(folder))))
    cli("run", file, "--out", folder / "run", "--no-tensorboard")
    return folder / "run"


def test_network_learns_sequences_and_is_measured_after_their_first_steps(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert list(report["trained"]["accuracy"]) == ["2", str(STEPS)]
    assert report["trained"]["accuracy"][str(STEPS)] > 90
    assert report["timesteps"] == report["rates_at"] == STEPS
    assert "ann" not in report
    assert report["energy_joules"]["snn"] > 0


def test_checkpoint_holds_the_network_its_data_and_its_steps(run: Path) -> None:
    loaded = load_spiking(run / "trained.safetensors")
    assert any(isinstance(module, ThresholdBatchNorm) for module in loaded.network.modules())
    assert (loaded.timesteps, loaded.input_shape, loaded.data["use"]) == (STEPS, (2, 4, 4), "FrameData")


def test_folder_is_evaluated_exported_simulated_and_shown_without_questions(run: Path, tmp_path: Path) -> None:
    folder = run.parent
    shown = cli("eval", run, "--root", folder, "--out", tmp_path / "eval")
    assert "T = 2" in shown  # evaluate.timesteps of the recipe
    assert "T = 4" in shown
    asked = ["eval", run, "--root", folder, "--timesteps", "3", "--out", tmp_path / "asked"]
    assert "T = 4" not in cli(*asked)
    cli("export", run, "-o", tmp_path / "net.nir")
    shown = cli("simulate", tmp_path / "net.nir", "--backend", "reference", "--root", folder, "--samples", 6)
    assert "all equal" in shown
    assert "all equal" in cli("simulate", run, "--backend", "reference", "--root", folder, "--timesteps", 2)
    cli("report", run, "-o", tmp_path / "page.html")
    assert "Fires" not in (page := (tmp_path / "page.html").read_text())
    assert all(f"run-0-{part}" in page for part in ("rates", "raster-0", "confusion"))
    refused = CliRunner().invoke(main, ["explain", str(run), "--root", str(folder), "-o", str(tmp_path / "x.html")])
    assert "batch-norm over time" in refused.output
    cli("run", folder / "blinks.yaml", "--out", run, "--no-tensorboard")  # finished: nothing runs again


def test_sequences_of_unequal_length_are_measured_up_to_their_own_end(tmp_path: Path) -> None:
    data = {**tree(recordings(tmp_path, [2, 3, 3]))["data"], "timesteps": None}
    given = tree(tmp_path, data=data, evaluate={"timesteps": [1], "batch_size": 6})
    with pytest.raises(RecipeError, match="padding of shorter sequences"):
        check(given).check()
    given["model"] |= {"batch_norm": None, "neuron": {"use": "LIF", "v_threshold": 0.1, "surrogate": "Triangle"}}
    (tmp_path / "r.yaml").write_text(json.dumps(given))
    cli("run", tmp_path / "r.yaml", "train.epochs=1", "--out", tmp_path / "run", "--no-tensorboard")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["trained"]["accuracy"]) == ["1", "3"]
    asked = ["eval", tmp_path / "run", "--root", tmp_path, "--batch-size", 1, "--out", tmp_path / "eval", "--timesteps"]
    assert "T = 3" in cli(*asked, "1,3")  # though some batches have two steps
    refused = CliRunner().invoke(main, [str(a) for a in (*asked, "1,9", "--restart")])
    assert "the sequences have 3 steps, so there is no prediction after 9" in refused.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "Digits"}, "train.timesteps is missing: Digits gives still samples"),
        ({"train": {"timesteps": 7}}, "train.timesteps: 7, but FrameData gives sequences, which have 4 steps"),
        ({"evaluate": {"timesteps": [9]}}, "sequences of FrameData have 4 steps"),
        ({"model": {"classes": 4}}, "set model.classes=3"),
        ({"model": {"input_shape": [1, 4, 4]}}, "does not fit data: FrameData, of 2x4x4"),
        ({"model": {"batch_norm": "temporal", "timesteps": 3}}, "3 factors was given 4 steps"),
        ({"model": {"batch_norm": "temporal"}}, "'temporal' has a factor for each"),
        ({"model": {"plan": [4, "A", "A", "A"]}}, "too small"),
        ({"encoder": "Latency"}, "reads still samples alone"),
    ],
)
def test_mistake_is_found_before_training(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = tree(tmp_path)
    for key, value in changes.items():
        given[key] = {**given[key], **value} if isinstance(value, dict) else value
    with pytest.raises((RecipeError, ValueError), match=words):
        check(given).check()


def test_smoke_runs_a_recurrent_network(tmp_path: Path) -> None:
    model = {
        "use": "SpikingMLP", "input_shape": [2, 4, 4], "classes": CLASSES, "hidden": [8], "recurrent": True,
        "readout": {"use": "Integrator", "leak": 0.8},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(tree(recordings(tmp_path), model=model, read="max")))
    output = cli("run", tmp_path / "r.yaml", "--smoke", "--out", tmp_path / "run", "--no-tensorboard")
    assert "trained, T = 4" in output
    assert torch.isfinite(torch.tensor(json.loads((tmp_path / "run" / "report.json").read_text())["trained"]["accuracy"]["4"]))
