"""A machine without Lava: `check` says so, and a run simulates on the reference simulator, finishes and reports it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from spikeprop.cli import main
from spikeprop.errors import HardwareError
from spikeprop.experiment.stages import simulation


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


def test_a_chip_that_cannot_take_the_trained_network_costs_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> dict[str, Any]:
        raise HardwareError("layer 'a' may get 3,000,000 in a step")

    for name, found in (("compare", {"samples": 1}), ("encoded", None), ("chip_budget", {"cores": 2})):
        monkeypatch.setattr(simulation, name, lambda *_, found=found: found)
    monkeypatch.setattr(simulation, "simulate_on_chip", refuses)
    (tmp_path / "network.nir").touch()
    said: list[str] = []
    settings = SimpleNamespace(samples=1, backend="reference", target="loihi1", bits=())
    data = SimpleNamespace(in_time=False, test=lambda _: SimpleNamespace(epoch=lambda _: iter([(None, None)])))
    run = SimpleNamespace(
        settings=SimpleNamespace(simulate=settings, seed=0), file=lambda name: tmp_path / name, data=data, steps=4,
        last_network=lambda: None, context=SimpleNamespace(notify=said.append),
    )  # fmt: skip
    found = simulation.simulate_network(run)  # type: ignore[arg-type]
    why = {"target": "loihi1", "why": "layer 'a' may get 3,000,000 in a step"}
    assert found == {"samples": 1, "backend": "reference", "on_chip": why, "chip": {"cores": 2}}
    assert "not simulated in the integers of loihi1" in said[0]
