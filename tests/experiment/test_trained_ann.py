"""A run takes over the ANN of another one whose training is the same, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from spikeprop.cli import main
from spikeprop.experiment.run_record import RunRecord
from spikeprop.runtime.zoo_index import VARIABLE

RECIPE = "digits_cnn_stdb"


def test_one_training_serves_two_conversions_and_another_one_is_refused(tmp_path):
    def run(*arguments: str):
        return CliRunner().invoke(main, ["run", RECIPE, "--smoke", "--no-tensorboard", "simulate.samples=0", *arguments])

    first, second = tmp_path / "first", tmp_path / "second"
    assert run("--out", str(first)).exit_code == 0
    taken = run("convert.calibrator=MaxActivation", "--ann", str(first), "--out", str(second))
    assert taken.exit_code == 0, taken.output
    assert (second / "ann.safetensors").read_bytes() == (first / "ann.safetensors").read_bytes()
    curves = [[x for x in (path / "metrics.jsonl").read_text().splitlines() if '"ann"' in x] for path in (first, second)]
    assert curves[0] == curves[1] != []  # with its seconds: not trained again
    finetune = ("simulate.samples=0", "--out", str(tmp_path / "tuned"))
    tuned = CliRunner().invoke(main, ["finetune", str(first), *finetune])  # of a smoke run's network no figure is a result
    assert tuned.exit_code == 0, tuned.output
    assert "digits_cnn_stdb-finetuned, smoke run: not a result" in tuned.output
    assert RunRecord.read(tmp_path / "tuned").recipe == "digits_cnn_stdb-finetuned, smoke"
    again = CliRunner().invoke(main, ["run", str(tmp_path / "tuned" / "recipe.yaml"), "--out", str(tmp_path / "tuned")])
    assert "smoke run: not a result" in again.output
    refused = run("train.lr=0.05", "--ann", str(first), "--out", str(tmp_path / "third"))
    assert refused.exit_code == 1
    assert "they differ in train" in refused.output
    assert not (tmp_path / "third").exists()
    (second / "ann.safetensors").write_bytes(b"another")
    other = run("convert.calibrator=MaxActivation", "--ann", str(first), "--out", str(second))
    assert other.exit_code == 1
    assert "give another --out" in other.output


def test_a_run_takes_over_an_ann_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def invoke(*arguments: str):
        return CliRunner().invoke(main, arguments)

    first, second, zoo = tmp_path / "first", tmp_path / "second", tmp_path / "zoo"
    common = ("run", RECIPE, "--smoke", "--no-tensorboard", "simulate.samples=0")
    assert invoke(*common, "--out", str(first)).exit_code == 0
    about = json.loads((first / "run.json").read_text())
    (first / "run.json").write_text(json.dumps(about | {"smoke": False}))
    added = invoke("zoo", "add", str(first), "digits-ann", "--network", "ann", "--to", str(zoo))
    assert added.exit_code == 0, added.output
    assert "--ann zoo:digits-ann" in (zoo / "digits-ann" / "card.md").read_text()
    monkeypatch.setenv(VARIABLE, str(zoo))
    elsewhere = f"data.root={tmp_path}"  # which decides nothing; Digits are part of a package
    taken = invoke(*common, elsewhere, "convert.calibrator=MaxActivation", "--ann", "zoo:digits-ann", "--out", str(second))
    assert taken.exit_code == 0, taken.output
    assert (second / "ann.safetensors").read_bytes() == (first / "ann.safetensors").read_bytes()
    assert json.loads((second / "stages.json").read_text())["ann"] == json.loads((first / "stages.json").read_text())["ann"]
    unknown = invoke(*common, "--ann", "zoo:digits-bnn", "--out", str(tmp_path / "third"))
    assert unknown.exit_code == 1
    assert "digits-ann" in unknown.output
    (zoo / "digits-ann" / "stages.json").write_text("{}")
    damaged = invoke(*common, "--ann", "zoo:digits-ann", "--out", str(tmp_path / "third"))
    assert damaged.exit_code == 1
    assert "SHA-256 differs" in damaged.output
    (first / "stages.json").unlink()
    without = invoke("zoo", "add", str(first), "digits-ann", "--network", "ann", "--to", str(zoo))
    assert without.exit_code == 1
    assert "how its ANN was trained" in without.output
    assert (zoo / "digits-ann" / "ann.safetensors").exists()


def test_a_folder_without_an_ann_is_refused(tmp_path):
    refused = CliRunner().invoke(main, ["run", RECIPE, "--ann", str(tmp_path)])
    assert refused.exit_code == 1
    assert "Traceback" not in refused.output
    assert str(tmp_path) in refused.output
