"""The notebooks of docs/ run from top to bottom, and what is stored in them is what they print, show and draw."""

from __future__ import annotations

import base64
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.forked import ROOT, Program
from tests.test_tutorials import without_figures

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DRIVER = f"""
import json, pathlib, sys
sys.path.insert(0, {str(ROOT / "docs")!r})
import execute
given = json.loads(pathlib.Path("given.ipynb").read_text())
pathlib.Path("done.ipynb").write_text(json.dumps(execute.executed(given)))
"""


def outputs(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(output: dict[str, Any]) -> dict[str, str]:
    """What an output shows, by kind, without its figures, which depend on the machine."""
    held = {"text/plain": output["text"]} if "text" in output else output["data"]
    return {kind: "" if kind == "image/png" else without_figures("".join(text)) for kind, text in held.items()}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run_and_show_what_is_stored_in_them(file: Path, tmp_path: Path) -> None:
    """Without Jupyter: ``docs/execute.py`` runs the cells, as it did when the outputs were written."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    bare = {**stored, "cells": [{**cell, "outputs": []} if "outputs" in cell else cell for cell in stored["cells"]]}
    (tmp_path / "given.ipynb").write_text(json.dumps(bare))
    with Program(DRIVER, [], tmp_path / "log", tmp_path) as program:
        assert program.ended() == 0, program.output[-3000:]
    done = json.loads((tmp_path / "done.ipynb").read_text())
    for cell, was, now in zip(stored["cells"], outputs(stored), outputs(done)):
        assert [texts(output) for output in now] == [texts(output) for output in was], cell


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_executed_small_and_drawn(file: Path) -> None:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    if find_spec("nbformat") is not None:
        __import__("nbformat").validate(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    pictures = [o["data"]["image/png"] for found in outputs(notebook) for o in found if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # axes, text and data
    assert file.stat().st_size < 300_000
    assert not re.search(r"/(?:home|root|tmp)/", file.read_text(encoding="utf-8"))


def test_every_notebook_has_a_page() -> None:
    assert {file.stem for file in NOTEBOOKS} == {page.stem for page in FOLDER.glob("*.md")} == {"own-network", "zoo"}
