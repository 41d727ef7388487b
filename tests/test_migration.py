"""Migration from SpikingJelly, snnTorch and Norse: both programs learn the same task on real images; how lines are counted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LIBRARIES = {"spikingjelly": "T = 32", "snntorch": "T = 25", "norse": "T = 32"}
LEAST = 50  # percent that 1,000 images teach either program; chance is 10


@pytest.fixture
def migration(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("migration")


@pytest.mark.filterwarnings("ignore")  # warnings of the libraries
@pytest.mark.parametrize("library", LIBRARIES)
def test_both_programs_learn_the_same_task(
    migration: Any, library: str, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library, reason="the bench extra is not installed")
    need(data_root, "MNIST")
    file = tmp_path / "found.json"
    migration.main(["--libraries", library, "--images", "1000", "--tests", "200", "--seeds", "0", "--out", str(file)])
    found = json.loads(file.read_text())["results"][library]
    last = LIBRARIES[library]
    theirs, ours = (found["accuracy"][side][last][0] for side in ("theirs", "ours"))
    assert theirs > LEAST
    assert ours > LEAST
    assert ours > theirs - 15  # three standard errors of a difference, of 200 images
    assert found["lines"]["ours"] < found["lines"]["theirs"] / 2
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(library))
    assert f" {found['lines']['theirs']} " in row
    assert f" {found['lines']['ours']} " in row


def test_lines_of_code_exclude_comments_and_docstrings(migration: Any) -> None:
    source = '''"""A docstring
of two lines."""

import os  # one


def f(x):
    """Not counted."""
    # nor this
    return g(
        x,
        "a string that is an argument",
    ) + os.getpid()


name = """counted,
both lines"""
'''
    assert migration.code_lines(source) == 1 + 1 + 4 + 2


def test_reported_line_counts_match_the_programs(migration: Any) -> None:
    """In the benchmark's JSON, and on the page about peers."""
    told = json.loads((BENCHMARKS.parent / "results/benchmarks/migration.json").read_text())["results"]
    now = {
        library: {
            side: migration.code_lines((migration.PROGRAMS / library / f"{side}.py").read_text()) for side in ("theirs", "ours")
        }
        for library in LIBRARIES
    }
    assert {library: one["lines"] for library, one in told.items()} == now
    (a, b), (c, d), (e, f) = ((lines["theirs"], lines["ours"]) for lines in now.values())
    assert f"{a}, {c} and {e} lines of theirs are {b}, {d} and {f} of ours" in (BENCHMARKS.parent / "docs/peers.md").read_text()


def test_both_programs_are_complete(migration: Any) -> None:
    assert set(LIBRARIES) == set(migration.TASKS)
    for library in LIBRARIES:
        for side in ("theirs", "ours"):
            source = (migration.PROGRAMS / library / f"{side}.py").read_text()
            assert ("spikeprop" in source.replace("SPIKEPROP_DATA", "").replace("benchmarks", "")) == (side == "ours")
            assert migration.code_lines(source) <= 45
