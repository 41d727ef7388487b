"""A short run of digits_cnn_stdb without the simulation on Lava."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from spikeprop.cli import main

SHORT = ["train.epochs=5", "finetune.epochs=2", "evaluate.timesteps=[2,8]", "simulate.samples=0"]


@pytest.fixture(scope="session")
def page_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("page") / "short"
    result = CliRunner().invoke(main, ["run", "digits_cnn_stdb", *SHORT, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder
