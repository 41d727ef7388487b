"""``spikeprop eval`` on photographs in ImageNet's layout: killed and resumed, distributed, refused, reported."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn

from spikeprop import CNN, IF, Poisson
from spikeprop.cli import main
from spikeprop.convert import to_spiking
from spikeprop.data import ImageNet
from spikeprop.errors import DamagedFileError
from spikeprop.evaluate import Journal
from spikeprop.experiment.evaluation import _own_folder
from spikeprop.learn import save_checkpoint
from tests.conftest import need
from tests.forked import Program, ranks

SHAPE = (3, 32, 32)
PLAN = ["A", 8, "A", 8]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a network of 1000 classes that knows some photographs; Poisson coding, so the batches' seeds matter."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"input_shape": SHAPE, "classes": 1000, "plan": PLAN, "hidden": []}
    ann = CNN(**arguments)
    if (root := data_folder()) is not None:
        recognise(ann, root)
    network = to_spiking(ann, lambda: IF(v_threshold=0.2), Poisson(), SHAPE)
    described = {
        "ann": {"use": "CNN", **arguments, "input_shape": list(SHAPE)},
        "neuron": {"use": "IF", "v_threshold": 0.2},
        "encoder": {"use": "Poisson"},
        "timesteps": 8,
        "input_shape": list(SHAPE),
        "data": {"use": "ImageNet", "mean": 0.5, "std": 0.5},
        "seed": 3,
    }
    models: dict[str, nn.Module] = {"ann": ann, "converted": network}
    for name, model in models.items():
        save_checkpoint(folder / f"{name}.safetensors", model, {"kind": "ann" if name == "ann" else "snn", **described})
    return folder


@torch.no_grad()
def recognise(ann: CNN, root: Path) -> None:
    """Set the last layer's weights so that it recognises each photograph by the deviation of its features from the mean."""
    x, y = next(ImageNet(root=str(root), size=SHAPE[-1], workers=0).test(100).epoch(0))
    features = ann.features(x).flatten(1)
    (last,) = [layer for layer in ann.classifier if isinstance(layer, nn.Linear)]
    last.weight.zero_()
    last.weight[y] = nn.functional.normalize(features - features.mean(0))


def data_folder() -> Path | None:
    folder = Path(os.environ.get("SPIKEPROP_DATA", "")) / "imagenet-sample"
    return folder if folder.exists() and "SPIKEPROP_DATA" in os.environ else None


@pytest.fixture
def photographs(data_root: Path) -> Path:
    need(data_root, "imagenet-sample")
    return data_root / "imagenet-sample"


def arguments(run: Path, photographs: Path, out: Path, *more: str | int) -> list[str]:
    fixed = ["eval", run, "--root", photographs, "--timesteps", "2,8", "--batch-size", 4, "--activity-images", 20, "--out", out]
    return [str(a) for a in (*fixed, *more)]


def spikeprop(arguments: list[str]) -> Result:
    return CliRunner().invoke(main, arguments)


def results(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """All results that must not depend on interruptions and processes, that is, without times."""
    tensors = load_file(folder / "predictions.safetensors")
    del tensors["seconds"]
    report = json.loads((folder / "report.json").read_text())
    timeless = {key: report[key] for key in ("images", "accuracy", "activity", "activity_images", "classes", "settings")}
    return tensors, timeless, (folder / "classes.csv").read_text()


def assert_same(one: Path, other: Path) -> None:
    (tensors, report, table), (tensors2, report2, table2) = results(one), results(other)
    assert tensors.keys() == tensors2.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], tensors2[name])] == []
    assert report == report2
    assert table == table2


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation from beginning to end in one process."""
    root = data_folder()
    if root is None:
        pytest.skip("imagenet-sample is not under SPIKEPROP_DATA")
    folder = tmp_path_factory.mktemp("whole")
    result = spikeprop(arguments(run, root, folder))
    assert result.exit_code == 0, result.output
    return folder


def test_sigkill_in_the_middle_changes_nothing(run: Path, photographs: Path, whole: Path, tmp_path: Path) -> None:
    """A real process is killed; its finished batches are not predicted again, and the result is the same."""
    command = arguments(run, photographs, tmp_path, "--save-every", 0)
    parts = tmp_path / "parts"
    with Program(None, command, tmp_path.with_suffix(".log")) as process:
        process.until(lambda: parts.exists() and len(list(parts.glob("0*"))) >= 3)
    assert process.poll() == -signal.SIGKILL
    assert not (tmp_path / "predictions.safetensors").exists(), "the kill came too late to mean anything"
    kept = [load_file(part)["seconds"] for part in sorted(parts.glob("0*"))]
    result = spikeprop(command)
    assert result.exit_code == 0, result.output
    assert_same(tmp_path, whole)
    assert torch.equal(load_file(tmp_path / "predictions.safetensors")["seconds"][: len(kept)], torch.cat(kept))
    assert not parts.exists()


def test_two_processes_equal_one(run: Path, photographs: Path, whole: Path, tmp_path: Path) -> None:
    """100 images in 25 batches, 12 and 13 of them: every image once, and the same predictions with as many threads each."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    runs = ranks(2, None, arguments(run, photographs, tmp_path), tmp_path.with_suffix(".log"), threads)
    for one in runs:
        assert one.ended() == 0, one.output
    assert "".join(one.output for one in runs).count("T = 8") == 1
    assert_same(tmp_path, whole)


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written, except the lock, into which every process writes."""
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}


def test_other_settings_are_refused_and_named(run: Path, photographs: Path, whole: Path) -> None:
    before = stamps(whole)
    for more, says in (
        (("--timesteps", "2,9"), "timesteps: [2, 8] there, [2, 9] here"),
        (("--batch-size", 5), "batch_size: 4 there, 5 here"),
        (("--limit", 50), "data.limit: null there, 50 here, data.fingerprint: "),
        (("--network", "ann"), "checkpoint: "),
    ):
        result = spikeprop([*arguments(run, photographs, whole), *map(str, more)])
        assert result.exit_code == 1
        assert f"holds another evaluation ({says}" in result.output
        assert "--restart" in result.output
    assert before == stamps(whole)


def test_an_evaluation_with_other_options_has_a_folder_of_its_own(tmp_path: Path) -> None:
    whole, few = ({"checkpoint": "a", "limit": limit} for limit in (None, 10))
    folder = tmp_path / "ann"
    assert _own_folder(folder, few, False) == folder
    for settings, name in ((whole, "ann"), (few, "ann-2"), (whole, "ann"), (few, "ann-2")):
        found = _own_folder(folder, settings, False)
        assert found.name == name
        Journal(found, settings).open({})
    assert _own_folder(folder, few, True).name == "ann-2"
    assert _own_folder(folder, {**few, "limit": 5}, True) == folder  # to begin again is to delete
    assert _own_folder(folder, {**few, "checkpoint": "b"}, False) == folder  # is refused there


def test_restart_is_the_remedy_for_a_damaged_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "ann"
    folder.mkdir()
    (folder / "evaluation.json").write_text("{")
    with pytest.raises(DamagedFileError, match="--restart to predict again"):
        _own_folder(folder, {"checkpoint": "a"}, False)
    assert _own_folder(folder, {"checkpoint": "a"}, True) == folder


def test_restart_deletes_the_folders_predictions(run: Path, photographs: Path, tmp_path: Path) -> None:
    assert spikeprop([*arguments(run, photographs, tmp_path), "--limit", "8"]).exit_code == 0
    result = spikeprop([*arguments(run, photographs, tmp_path), "--limit", "12", "--restart"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 12


def test_the_folder_holds_predictions_and_reports(whole: Path, photographs: Path) -> None:
    assert set(stamps(whole)) == {
        "predictions.safetensors", "classes.csv", "evaluation.json", "report.json", "report.png",
    }  # fmt: skip
    report = json.loads((whole / "report.json").read_text())
    assert report["images"] == 100
    assert list(report["accuracy"]) == list(report["activity"]) == ["2", "8"]
    assert report["activity_images"] == 20
    low, high = report["accuracy"]["8"]["top5_interval"]
    assert low <= report["accuracy"]["8"]["top5"] <= high
    assert report["settings"]["seed"] == 3
    assert report["provenance"]["machine"]["cores"]
    assert report["seconds"] > 0
    assert report["images_per_second"] == pytest.approx(100 / report["seconds"], rel=0.02)
    rows = list(csv.DictReader((whole / "classes.csv").read_text().splitlines()))
    numbered = [line.split("\t")[1] for line in (photographs / "classes.tsv").read_text().splitlines()[1:]]
    assert [row["class"] for row in rows] == sorted(numbered, key=int)
    assert rows[0]["name"] == "tench"
    assert {row["images"] for row in rows} == {"1"}
    correct = sum(int(row["correct_T8"]) for row in rows)
    assert correct == report["accuracy"]["8"]["top1"]
    assert 5 < correct < 100


def test_a_run_folder_offers_its_networks(run: Path, photographs: Path, tmp_path: Path) -> None:
    both = [*arguments(run, photographs, tmp_path), "--limit", "8", "--network", "converted", "--network", "ann"]
    result = spikeprop(both)
    assert result.exit_code == 0, result.output
    assert "ANN" in result.output
    assert "T = 8" in result.output
    ann = json.loads((tmp_path / "ann" / "report.json").read_text())
    assert ann["macs"] == 8 * 27 * 16 * 16 + 8 * 72 * 8 * 8 + 8 * 8 * 8 * 1000
    assert ann["activity"] == {}
    missing = spikeprop([*arguments(run, photographs, tmp_path), "--network", "finetuned"])
    assert "has no finetuned.safetensors; it has ann, converted" in missing.output
    assert "leave --network out" in spikeprop(["eval", str(run / "ann.safetensors"), "--network", "ann"]).output
    assert "has no ann, converted, finetuned or trained.safetensors" in spikeprop(["eval", str(tmp_path)]).output


def test_a_network_of_other_classes_or_images_is_refused(run: Path, tmp_path: Path) -> None:
    result = spikeprop(["eval", str(run), "--data", "Digits", "--out", str(tmp_path / "a")])
    assert "this network reads (batch, *(3, 32, 32))" in result.output
    ann = CNN(input_shape=(1, 8, 8), classes=7, plan=[4], hidden=[])
    shape: dict[str, Any] = {"input_shape": [1, 8, 8]}
    described = {"use": "CNN", **shape, "classes": 7, "plan": [4], "hidden": []}
    data = {"use": "Digits", "mean": 0.0, "std": 1.0}
    save_checkpoint(tmp_path / "ann.safetensors", ann, {"kind": "ann", "ann": described, "data": data, "seed": 0, **shape})
    result = spikeprop(["eval", str(tmp_path / "ann.safetensors")])
    assert "has 7 outputs, and the data have 10 classes" in result.output
