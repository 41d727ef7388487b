"""Two commands on one folder, in separate processes: the second is refused immediately, unless the first was killed."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest
from click.testing import CliRunner, Result

from spikeprop.cli import main
from spikeprop.errors import BusyError
from spikeprop.runtime.files import remove_leftovers
from spikeprop.runtime.locks import NAME, PATIENCE, Lock, in_use, locked
from spikeprop.runtime.processes import Processes, resume_command
from tests.forked import ROOT, Program, ranks
from tests.test_untrusted import checkpoint

SOON = PATIENCE + 5.0  # seconds


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)  # where a run finds the experiment of the tests
    file = tmp_path / "quick.yaml"
    file.write_text("use: tests.sweep.quick.Quick\nx: 1.0\n")
    return file


def spikeprop(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@contextmanager
def begun(*arguments: str | Path, mark: Path, log: Path) -> Iterator[Program]:
    """``spikeprop`` in a separate process, which has already written ``mark``."""
    with Program(None, arguments, log) as process:
        process.until(mark.exists)
        yield process


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def starts(folder: Path) -> int:
    return len((folder / "starts.txt").read_text().splitlines())


def test_second_run_is_refused_and_the_first_is_not_disturbed(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with begun("run", recipe, "seconds=600", "--out", folder, mark=folder / "starts.txt", log=tmp_path / "log") as first:
        before, started = contents(folder), time.monotonic()
        second = spikeprop("run", recipe, "seconds=600", "--out", folder)
        assert time.monotonic() - started < SOON
        assert second.exit_code == 1
        said = " ".join(second.output.split())
        assert f"{folder} is in use by process {first.pid} on {platform.node()}, at work since 20" in said
        assert "wait for it, stop it, or use another --out folder" in said
        assert contents(folder) == before
        assert "stopped at the start" in spikeprop("ls", "runs", tmp_path).output  # readers take no lock
        assert contents(folder) == before
        first.send_signal(signal.SIGTERM)
        assert first.ended(60) == 128 + signal.SIGTERM, first.output
    assert f"go on with: spikeprop run {recipe} seconds=600 --out {folder}" in first.output


def test_run_resumes_after_a_kill(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with begun("run", recipe, "seconds=5", "--out", folder, mark=folder / "starts.txt", log=tmp_path / "log") as first:
        first.kill()
    assert first.poll() == -signal.SIGKILL
    assert json.loads((folder / NAME).read_text())["pid"] == first.pid  # the file is left and blocks nothing
    second = spikeprop("run", recipe, "seconds=5", "--out", folder)
    assert second.exit_code == 0, second.output
    assert starts(folder) == 2
    assert spikeprop("run", recipe, "seconds=5", "--out", folder).exit_code == 0  # the same process again


CHILDREN = """
import os, subprocess, sys, time
from pathlib import Path
from spikeprop.runtime.locks import locked
with locked(Path(sys.argv[1])):
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid]
    forked = os.fork()
    if forked == 0:
        time.sleep(600)
        os._exit(0)
    print(*children, forked, flush=True)
    time.sleep(600)
"""


def test_children_that_outlive_a_killed_process_do_not_keep_its_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILDREN, str(tmp_path)], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        try:
            time.sleep(0.5)  # the child has started its program
            assert in_use(tmp_path)
            process.kill()
            process.wait()
            for child in children:
                os.kill(child, 0)  # alive
            assert Lock(tmp_path / NAME).holder() == "another process", "a process that is gone is not named"
            with locked(tmp_path):
                assert in_use(tmp_path)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
    assert not in_use(tmp_path)


def test_rank_0_holds_the_lock_for_all_processes(tmp_path: Path) -> None:
    with locked(tmp_path, Processes(rank=1)):
        assert not in_use(tmp_path)
    with locked(tmp_path, Processes(rank=0)), pytest.raises(BusyError), locked(tmp_path):
        pass


def test_lock_waits_for_a_process_that_is_ending(tmp_path: Path) -> None:
    program = "import sys, time; from pathlib import Path; from spikeprop.runtime.locks import locked\n"
    program += "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with locked(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_file_system_without_locks_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(number, "not here")

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with pytest.warns(UserWarning, match=r"without locks \(not here\): a second process"), locked(tmp_path):
        pass


def test_unlockable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the folder .*file: .*; use another --out folder"), locked(tmp_path / "file"):
        pass
    (tmp_path / NAME).symlink_to(tmp_path / "file")  # a link to another file
    with pytest.raises(OSError, match="cannot write"), locked(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("text", ["", "{", "[" * 900, "3", "{}", '{"pid": "x", "host": 1, "since": 2}', "\xff" * 2000])
def test_unreadable_lock_file_names_another_process(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text, encoding="latin-1")
    assert Lock(tmp_path / NAME).holder() == "another process"
    remove_leftovers(tmp_path)
    assert (tmp_path / NAME).exists()


def test_a_second_evaluation_is_refused(tmp_path: Path) -> None:
    file, folder = checkpoint(tmp_path / "a.safetensors"), tmp_path / "eval"
    command = ("eval", file, "--out", folder, "--device", "cpu")
    with begun(*command, "--timesteps", "60000", mark=folder / "evaluation.json", log=tmp_path / "log") as first:
        second = spikeprop(*command, "--restart", "--timesteps", "1")
        assert second.exit_code == 1
        assert f"is in use by process {first.pid}" in " ".join(second.output.split())
        assert "60000" in (folder / "evaluation.json").read_text(), "--restart threw away what another is at"
    third = spikeprop(*command, "--restart", "--timesteps", "1", "--limit", "20")
    assert third.exit_code == 0, third.output


def test_sweep_waits_for_a_run_that_was_started_by_hand(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    trial = folder / "000"
    with begun("run", recipe, "x=0.0", "seconds=8", "--out", trial, mark=trial / "starts.txt", log=tmp_path / "log"):
        swept = spikeprop("sweep", recipe, "x=0.0", "seconds=8", "--metric", "value", "--out", folder)
    assert swept.exit_code == 0, swept.output
    assert "000 is still running for an earlier sweep, or by hand" in swept.output
    assert starts(trial) == 1


def test_second_sweep_is_refused_and_the_first_is_named(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    axes = ("x=0.5", "seconds=600")
    with begun("sweep", recipe, *axes, "--out", folder, mark=folder / "000" / "starts.txt", log=tmp_path / "log") as first:
        second = spikeprop("sweep", recipe, *axes, "--out", folder)
        assert second.exit_code == 1
        assert f"another sweep is at work in {folder} (process {first.pid} on " in " ".join(second.output.split())
        first.terminate()
        first.ended(60)


def test_processes_of_one_run_share_the_lock_and_print_the_resume_command_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["run", "digits_cnn_stdb", "train.epochs=5000", "simulate.samples=0", "device=cpu", "--out", str(folder)]
    first = ranks(2, None, command, tmp_path / "first")
    try:
        first[0].until((folder / "metrics.jsonl").exists)
        second = ranks(2, None, command, tmp_path / "second")
        assert [run.ended(120) for run in second] == [1, 1]
        said = " ".join("".join(run.output for run in second).split())
        assert said.count("is in use by process") == 1, said
        for run in first:
            run.terminate()
        assert [run.ended(120) for run in first] == [143, 143]
        output = "".join(run.output for run in first)
    finally:
        for run in first:
            run.kill()
    assert output.count("go on with:") == 1, output
    assert f"go on with: torchrun --nproc-per-node=2 -m spikeprop {' '.join(command)}" in output


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "spikeprop run 'a b'"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}, "torchrun --nproc-per-node=2 -m spikeprop run 'a b'"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1"}, None),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}, "4 processes, started on all machines as these were"),
    ],
)
def test_resume_command_starts_as_many_processes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str | None
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resume_command(["run", "a b"]) == says
