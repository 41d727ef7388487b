"""A few hundred of the files of `make fuzz`, chosen by Hypothesis; and a test that the fuzzing detects failures."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikeprop.errors import RecipeError
from tests.fuzz import targets
from tests.fuzz.guard import Guard
from tests.fuzz.seeds import KINDS, seeds
from tests.fuzz.targets import attempt, one, ready

PATIENT = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    return ready(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_corrupted_files_raise_only_spikeprop_errors(kind: str, guard: Guard) -> None:
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=PATIENT,
    )
    @given(st.randoms(use_true_random=False))
    def read(source: random.Random) -> None:
        content, wrong = one(kind, source, guard)
        assert wrong is None, f"{content[:2000]!r}: {wrong}"

    read()


@pytest.mark.parametrize("kind", KINDS)
def test_intact_files_are_read(kind: str, guard: Guard) -> None:
    for seed in seeds(kind):
        file = guard.folder / f"whole{targets.SUFFIXES[kind]}"
        file.write_bytes(seed.content)
        if kind not in ("checkpoint", "json"):
            targets.TARGETS[kind](file)
        assert attempt(kind, seed.content, guard) is None


def test_forbidden_actions_of_a_reader_are_detected(guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(what: object) -> str | None:
        return attempt("json", b"{}", guard, what)  # type: ignore[arg-type]

    def hang(_: Path) -> None:
        try:
            while True:
                time.sleep(0.01)
        except Exception:
            pass

    def refuse(_: Path) -> None:
        raise RecipeError("no")

    assert "ZeroDivisionError" in str(run(lambda _: 1 / 0))
    assert "to write" in str(run(lambda _: (tmp_path / "a").write_text("x")))
    assert "os.remove" in str(run(lambda _: (tmp_path / "a").unlink()))
    assert "/etc/passwd" in str(run(lambda _: Path("/etc/passwd").read_text()))
    assert "Popen" in str(run(lambda _: subprocess.run([sys.executable, "-c", ""])))
    assert "os.system" in str(run(lambda _: os.system("true")))
    monkeypatch.setattr(targets, "SECONDS", 0.2)
    assert "more than" in str(run(hang))
    assert run(refuse) is None
    assert run(lambda _: (guard.folder / "a").write_text("x")) is None
