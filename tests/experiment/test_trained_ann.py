"""A run takes over the ANN of another one whose training is the same, and no other."""

from __future__ import annotations

from click.testing import CliRunner

from spikeprop.cli import main

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
    refused = run("train.lr=0.05", "--ann", str(first), "--out", str(tmp_path / "third"))
    assert refused.exit_code == 1
    assert "they differ in train" in refused.output
    assert not (tmp_path / "third").exists()
    (second / "ann.safetensors").write_bytes(b"another")
    other = run("convert.calibrator=MaxActivation", "--ann", str(first), "--out", str(second))
    assert other.exit_code == 1
    assert "give another --out" in other.output


def test_a_folder_without_an_ann_is_refused(tmp_path):
    refused = CliRunner().invoke(main, ["run", RECIPE, "--ann", str(tmp_path)])
    assert refused.exit_code == 1
    assert "Traceback" not in refused.output
    assert str(tmp_path) in refused.output
