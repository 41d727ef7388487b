"""A machine without Lava: `check` says so, and a run simulates on the reference simulator, finishes and reports it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from spikeprop.cli import main


def test_a_run_without_lava_finishes_on_the_reference_and_check_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import spikeprop_hardware.environment as environment

    monkeypatch.setenv("SPIKEPROP_LAVA_PYTHON", "/nowhere")
    monkeypatch.setattr(environment, "cache_folder", lambda: tmp_path / "cache")
    small = ["digits_cnn_stdb", "ann.plan=[4, A]", "ann.hidden=[]"]
    checked = CliRunner().invoke(main, ["check", *small])
    assert checked.exit_code == 0
    assert "a run here would take the reference simulator" in " ".join(checked.output.split())
    ran = CliRunner().invoke(main, ["run", *small, "--smoke", "--out", str(tmp_path / "run")])
    assert ran.exit_code == 0, ran.output
    simulated = json.loads((tmp_path / "run" / "report.json").read_text())["simulate"]
    assert simulated["backend"] == "reference"
    assert simulated["spikes_equal"]
    assert "/nowhere" in simulated["why"]
    assert [row["model"] for row in simulated["chip"]["energy"]["rows"]][-1] == "loihi2"
    assert "not on Lava" in ran.output
