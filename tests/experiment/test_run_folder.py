"""A run's folder records each session that worked in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spikeprop.experiment import run_folder
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.recipe import load_recipe


def session(path: Path, stages: list[str]) -> dict[str, Any]:
    folder = RunFolder(path, load_recipe("digits_cnn_stdb"))
    for name in stages:
        folder.stage(name, lambda: {"done": True})
    return json.loads((path / "run.json").read_text())


def test_versions_commit_and_machine_of_each_session_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = session(tmp_path, ["data"])
    assert "sessions" not in begun
    monkeypatch.setattr(run_folder, "describe_machine", lambda: {"commit": "other", "machine": {"cores": 99}})
    second = session(tmp_path, ["data", "ann", "convert"])
    assert {key: value for key, value in second.items() if key != "sessions"} == begun
    (continued,) = second["sessions"]
    assert (continued["commit"], continued["machine"]) == ("other", {"cores": 99})
    assert session(tmp_path, ["data", "ann", "convert"]) == second  # nothing was left to do
    assert len(session(tmp_path, ["evaluate"])["sessions"]) == 2
    assert len(RunFolder(tmp_path, load_recipe("digits_cnn_stdb")).provenance()["sessions"]) == 2


def test_a_session_that_fails_is_recorded_too(tmp_path: Path) -> None:
    session(tmp_path, [])
    folder = RunFolder(tmp_path, load_recipe("digits_cnn_stdb"))
    with pytest.raises(ZeroDivisionError):
        folder.stage("data", lambda: {"a": 1 / 0})
    assert len(session(tmp_path, [])["sessions"]) == 1
