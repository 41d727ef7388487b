"""A process that hangs is named within the time limit; one that works for long, or that was stopped with all others, is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spikeprop.runtime.heartbeat import VARIABLE, Heartbeat, limit_from_environment

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from pathlib import Path
from spikeprop.runtime.processes import processes
with processes() as group:
    Path(sys.argv[1], f"ready{group.rank}").touch()
    time.sleep(float(sys.argv[2]) * (group.rank == 0))  # the others wait for rank 0, for longer than the limit
    group.wait()
    print("rank", group.rank, "done", flush=True)
    if len(sys.argv) > 3:
        time.sleep(600 * group.rank)
        group.wait()
"""

TRAINING = """
import sys, threading, time
from pathlib import Path
import torch
from spikeprop import Backprop, fit
from spikeprop.learn import Callback
from spikeprop.runtime.processes import processes

class Deadlock(Callback):
    def on_step(self, training):
        Path(sys.argv[1], f"ready{group.rank}").touch()
        if training.step == 2 and sys.argv[2] == "lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        if sys.argv[2] == "slow":
            time.sleep(0.7)  # longer than the limit in all, shorter in each step
        if training.step == 2 and sys.argv[2] == "barrier":
            group.wait()

with processes() as group:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    callbacks = [Deadlock()] if group.rank else []
    batches = [(torch.rand(4, 4), torch.arange(4) % 2)] * 5
    fit(model, Backprop(), batches, torch.optim.SGD(model.parameters(), 0.1), epochs=1, callbacks=callbacks, processes=group)
    print("rank", group.rank, "done", flush=True)
"""


def start(folder: Path, port: int, *arguments: str, limit: str = "3", program: str = PROGRAM) -> list[subprocess.Popen[str]]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "hardware"), *sys.path])
    about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), VARIABLE: limit, "PYTHONPATH": paths}
    command = [sys.executable, "-c", program, str(folder), *arguments]
    environments = [{**os.environ, **about, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=e) for e in environments]


@pytest.mark.skipif(os.name != "posix", reason="SIGSTOP is of POSIX")
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_within_the_limit(tmp_path: Path, stopped: int, unused_port: int) -> None:
    """Rank 0 also holds the group's store, without torchrun."""
    runs = start(tmp_path, unused_port, "0", "hang")
    try:
        for rank in range(2):
            while not (tmp_path / f"ready{rank}").exists():
                assert runs[rank].poll() is None, runs[rank].communicate()[0]
                time.sleep(0.05)
        time.sleep(2)  # both have met, and rank 0 waits for rank 1
        runs[stopped].send_signal(signal.SIGSTOP)
        told, _ = runs[1 - stopped].communicate(timeout=60)
        assert runs[1 - stopped].returncode == 1
        who = (
            rf"rank 1 \(process {runs[1].pid} on .*\) has given no sign of life for 3 s" if stopped else "holds the group's store"
        )
        assert re.search(who, told), told
        assert VARIABLE in told
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def test_long_work_of_one_rank_is_no_fault(tmp_path: Path, unused_port: int) -> None:
    runs = start(tmp_path, unused_port, "5", limit="2")
    for rank, run in enumerate(runs):
        told, _ = run.communicate(timeout=120)
        assert run.returncode == 0, told
        assert f"rank {rank} done" in told


DEADLOCKS = {
    "lock": r"rank 1 \(process {1} on .*:on_step\) has made no step for 2 s, while rank 0 \(process {0} on .*:step\) waits in a ",
    "barrier": r"all processes have waited in collective operations for 2 s \(rank 0 \(.*:step\), rank 1 \(.*:wait\)\)",
}


@pytest.mark.parametrize("fault", DEADLOCKS)
def test_a_deadlock_in_a_training_is_named(tmp_path: Path, fault: str, unused_port: int) -> None:
    """The threads of both processes are alive: rank 1 waits for a lock, or in another collective operation than rank 0."""
    runs = start(tmp_path, unused_port, fault, limit="2", program=TRAINING)
    try:
        told = [run.communicate(timeout=60)[0] for run in runs]
        assert [run.returncode for run in runs] == [1, 1]
        assert re.search(DEADLOCKS[fault].format(*(run.pid for run in runs)), "\n".join(told)), told
        assert VARIABLE in told[0] + told[1]
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def test_a_training_with_slow_steps_is_no_fault(tmp_path: Path, unused_port: int) -> None:
    runs = start(tmp_path, unused_port, "slow", limit="2", program=TRAINING)
    for rank, run in enumerate(runs):
        told, _ = run.communicate(timeout=60)
        assert run.returncode == 0, told
        assert f"rank {rank} done" in told


class Store:
    """A store in memory; rank 1 never counts."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key].encode()


def test_a_rank_that_never_appears_is_named() -> None:
    told: list[str] = []
    beat = Heartbeat(Store(), 0, 2, 0.4, told.append)
    beat.start()
    time.sleep(1.2)
    beat.stop()
    assert len(told) == 1
    assert "rank 1 (which has never appeared)" in told[0]


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=VARIABLE):
        limit_from_environment()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
