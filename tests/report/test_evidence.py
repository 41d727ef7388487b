"""The page's evidence: confusions that give the reported accuracy, the network's spikes, and reasons for what is missing."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from spikeprop import Digits
from spikeprop.cli import main
from spikeprop.deploy import record
from spikeprop.errors import RunError
from spikeprop.experiment.network_checkpoint import load_network
from spikeprop.experiment.run_record import RunRecord, run_folders
from spikeprop.report.evidence import evidence
from spikeprop.report.raster import raster
from spikeprop.report.thumbnails import LARGEST, thumbnail
from tests.report.conftest import SHORT


@pytest.fixture
def folder(page_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(page_run, tmp_path / "run"))


def right(run: RunRecord) -> float:
    assert run.report
    return run.report["finetuned"]["accuracy"][str(run.steps)]


def test_confusions_are_those_of_the_reported_accuracy(page_run: Path) -> None:
    run = RunRecord.read(page_run)
    found = evidence(run)
    told = found["confusion"]
    counts = np.array(told["counts"])
    assert told["complete"]
    assert counts.sum() == told["images"] == 360
    assert 100 * counts.trace() / counts.sum() == pytest.approx(right(run), abs=1e-9)
    labels = torch.cat([y for _, y in Digits().test(100).epoch(0)])
    assert counts.sum(1).tolist() == torch.bincount(labels, minlength=10).tolist()
    off = counts - np.diag(counts.diagonal())
    assert [n for *_, n in told["commonest"]] == sorted(off[off > 0].tolist(), reverse=True)[:20]


def test_example_images_are_of_the_test_set_with_their_predictions(page_run: Path) -> None:
    found = evidence(RunRecord.read(page_run))
    images, labels = next(Digits().test(360).epoch(0))
    for kind, shown in found["examples"].items():
        assert shown
        for one in shown:
            assert one["label"] == str(int(labels[one["number"]]))
            assert (one["label"] == one["prediction"]) == (kind == "correct")
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"].partition(",")[2]))))
            assert np.abs(pixels / 255 - images[one["number"], 0].numpy()).max() < 1 / 255
    assert len({one["label"] for one in found["examples"]["correct"]}) == 8  # one of each class first


def test_raster_equals_the_networks_spikes(page_run: Path) -> None:
    run = RunRecord.read(page_run)
    (shown, *_) = evidence(run)["rasters"]
    network = load_network(page_run / "finetuned.safetensors").network
    image = next(Digits().test(360).epoch(0))[0][shown["number"]]
    trains, _ = record(network, image[None], run.steps)  # type: ignore[arg-type]
    trains.pop("input")
    constant, *layers = shown["layers"]
    values = image.flatten()[constant["chosen"]] / image.abs().max()
    assert constant["values"] == pytest.approx(values.tolist(), abs=1e-3)
    assert [layer["name"] for layer in layers] == list(trains)
    for layer in layers:
        flat_TN = trains[layer["name"]][0].reshape(run.steps, -1)
        assert layer["neurons"] == flat_TN.shape[1]
        expected = {
            (row, step) for row, neuron in enumerate(layer["chosen"]) for step in np.nonzero(flat_TN[:, neuron])[0].tolist()
        }
        assert {(row, step) for row, step, _ in layer["spikes"]} == expected


def test_negative_spikes_keep_their_sign(digits_cnn: Any) -> None:
    from spikeprop import MaxActivation, SignedIF, convert

    images = next(Digits().test(64).epoch(0))[0]
    network = convert(digits_cnn, [images], SignedIF(), MaxActivation()).eval()
    signs = {sign for layer in raster(network, images[0], 16) for *_, sign in layer["spikes"]}
    assert signs == {1, -1}


def test_images_are_predicted_again_if_no_predictions_were_saved(folder: Path) -> None:
    whole = evidence(RunRecord.read(folder))["confusion"]
    (folder / "page.json").unlink()
    (folder / "predictions" / "finetuned" / "predictions.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="predicted again"):
        assert evidence(RunRecord.read(folder))["confusion"] == whole
    shutil.rmtree(folder / "predictions")
    asked = evidence(RunRecord.read(folder))
    assert asked["confusion"] == whole
    few = evidence(RunRecord.read(folder), samples=50)
    assert (few["confusion"]["images"], few["confusion"]["complete"]) == (50, False)
    none = evidence(RunRecord.read(folder), samples=0)
    assert "confusion" not in none
    assert "--samples 0" in none["missing"]["confusion"]
    assert none["thresholds"]


def test_evidence_is_computed_again_only_if_the_checkpoint_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = evidence(RunRecord.read(folder))
    with monkeypatch.context() as patch:
        patch.setattr("spikeprop.report.evidence.load_network", lambda _: pytest.fail("made again"))
        assert evidence(RunRecord.read(folder)) == json.loads(json.dumps(made))
    shutil.copy(folder / "converted.safetensors", folder / "finetuned.safetensors")
    shutil.copy(folder / "converted.json", folder / "finetuned.json")
    assert evidence(RunRecord.read(folder))["asked"] != made["asked"]
    for text in ("{", "[]"):
        (folder / "page.json").write_text(text)
        assert "confusion" in evidence(RunRecord.read(folder))
        assert json.loads((folder / "page.json").read_text())["asked"]


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"settings": 3}', '{"settings": {"timesteps": 8}}'])
def test_predictions_with_a_damaged_evaluation_are_listed_as_missing(folder: Path, text: str) -> None:
    (folder / "page.json").unlink(missing_ok=True)
    (folder / "predictions" / "finetuned" / "evaluation.json").write_text(text)
    found = evidence(RunRecord.read(folder))
    assert "evaluation.json is damaged" in found["missing"]["confusion"]
    assert found["thresholds"]


@pytest.mark.filterwarnings("default:.*its images are predicted again")  # the command line prints it
@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_run_predicts_again_if_its_evaluation_is_damaged(folder: Path, text: str) -> None:
    before = right(RunRecord.read(folder))
    stages = {k: v for k, v in RunRecord.read(folder).stages.items() if k in ("data", "ann", "convert", "finetune")}
    (folder / "stages.json").write_text(json.dumps(stages))
    (folder / "report.json").unlink()
    (folder / "predictions").rename(folder / "evaluate.progress")
    (folder / "evaluate.progress" / "finetuned" / "evaluation.json").write_text(text)
    done = CliRunner().invoke(main, ["run", "digits_cnn_stdb", *SHORT, "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert re.search(r"finetuned.evaluation\.json is damaged: its images are predicted again", done.output)
    assert right(RunRecord.read(folder)) == before


def test_code_from_outside_is_imported_for_a_report_only_if_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange_data.py").write_text("from spikeprop import Digits\nclass Own(Digits):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    about = json.loads((folder / "run.json").read_text())
    about["recipe"]["data"] = {"use": "strange_data.Own"}
    (folder / "run.json").write_text(json.dumps(about))

    def page(*more: str) -> str:
        done = CliRunner().invoke(main, ["report", str(folder), "-o", str(tmp_path / "p.html"), "--samples", "50", *more])
        assert done.exit_code == 0, done.output
        return (tmp_path / "p.html").read_text()

    assert "--import strange_data" in page()
    assert "strange_data" not in sys.modules
    assert "--import strange_data" not in page("--import", "strange_data")
    assert sys.modules.pop("strange_data")


def test_missing_evidence_is_listed_with_the_reason(folder: Path, tmp_path: Path) -> None:
    run = RunRecord.read(folder)
    (folder / "page.json").unlink(missing_ok=True)
    settings = {**run.settings, "data": {"use": "CIFAR10", "root": str(tmp_path / "nowhere")}}
    found = evidence(replace(run, about={**run.about, "recipe": settings}))
    assert "nowhere" in found["missing"]["examples"]
    assert not (folder / "page.json").exists()  # the data may exist at the next call
    (folder / "finetuned.safetensors").write_bytes(b"damaged")
    assert "finetuned" in evidence(run)["missing"]["rasters"]
    (folder / "finetuned.safetensors").unlink()
    assert "holds no finetuned.safetensors" in evidence(run)["missing"]["confusion"]


def test_runs_are_found_with_their_state(folder: Path, tmp_path: Path) -> None:
    (run,) = map(RunRecord.read, run_folders(tmp_path))
    assert (run.state, run.recipe, run.name) == ("finished", "digits_cnn_stdb", "run")
    assert run.started().endswith(" UTC")
    assert run.size() == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert list(run.headline()) == ["ANN", "converted, T = 8", "fine-tuned, T = 8"]
    (folder / "report.json").unlink()
    assert RunRecord.read(folder).state == "stopped after simulate"
    (folder / "finetune.progress.safetensors").touch()
    assert RunRecord.read(folder).state == "stopped at finetune"
    (folder / "stages.json").write_text("[]")
    with pytest.raises(RunError, match=r"stages\.json is damaged"):
        RunRecord.read(folder)
    with pytest.raises(RunError, match="is no run folder"):
        RunRecord.read(tmp_path)


def test_ls_runs_is_a_table_and_names_what_is_damaged(folder: Path, tmp_path: Path) -> None:
    def listed() -> str:
        return CliRunner().invoke(main, ["ls", "runs", str(tmp_path)]).output

    accuracy = f"fine-tuned, T = 8 {right(RunRecord.read(folder)):.4g}"
    assert re.search(rf"run +finished +digits_cnn_stdb +ANN [\d.]+, converted, T = 8 [\d.]+, {re.escape(accuracy)} +\d", listed())
    (folder / "report.json").unlink()
    assert "stopped after simulate" in listed()
    shutil.copytree(folder, tmp_path / "corrupted")
    for text in ("{", "[]", "\0", "[" * 100_000):
        (tmp_path / "corrupted" / "run.json").write_text(text)
        done = CliRunner().invoke(main, ["ls", "runs", str(tmp_path)])
        assert done.exit_code == 0
        assert re.search(r"run +stopped after simulate", done.stdout)  # the other folders are listed
        assert done.stderr.count("run.json") == 1
        assert "corrupted/run.json is damaged" in done.stderr
    shutil.rmtree(folder)
    assert "no runs in" in listed()
    refused = CliRunner().invoke(main, ["ls", "Neuron", str(tmp_path)])
    assert refused.exit_code == 2
    assert "a folder is for `ls runs" in refused.output


def test_thumbnails_invert_the_normalisation_and_are_small() -> None:
    image = torch.rand(3, 200, 100)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    small = (image[:, :16, :16] - shift) / scale
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(thumbnail(small, mean, std).partition(",")[2]))))
    assert np.abs(pixels / 255 - image[:, :16, :16].permute(1, 2, 0).numpy()).max() <= 0.51 / 255
    assert max(Image.open(io.BytesIO(base64.b64decode(thumbnail(image, 0.0, 1.0).partition(",")[2]))).size) == LARGEST
    with pytest.raises(ValueError, match="2 channels"):
        thumbnail(torch.zeros(2, 4, 4), 0.0, 1.0)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_evidence_of_a_run_that_may_only_be_read_is_complete(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (folder / "page.json").unlink(missing_ok=True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys.modules[evidence.__module__], "write_json", refuse)
    found = evidence(RunRecord.read(folder))
    assert found["missing"] == {}
    assert {"confusion", "examples", "rasters", "thresholds"} <= set(found)
    assert not (folder / "page.json").exists()
