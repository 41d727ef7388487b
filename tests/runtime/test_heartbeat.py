"""A process that hangs is named within the time limit; one that works for long, or that was stopped with all others, is not."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from spikeprop.runtime.heartbeat import VARIABLE, Heartbeat, limit_from_environment
from tests.forked import Program, ranks

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


def start(folder: Path, *arguments: str, limit: str = "3", program: str = PROGRAM) -> list[Program]:
    return ranks(2, program, [folder, *arguments], folder / "log", {VARIABLE: limit})


@pytest.mark.skipif(os.name != "posix", reason="SIGSTOP is of POSIX")
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_within_the_limit(tmp_path: Path, stopped: int) -> None:
    """Rank 0 also holds the group's store, without torchrun."""
    runs = start(tmp_path, "0", "hang")
    try:
        for rank, run in enumerate(runs):
            run.until((tmp_path / f"ready{rank}").exists)
        time.sleep(1)  # both have met, and rank 0 waits for rank 1
        runs[stopped].send_signal(signal.SIGSTOP)
        assert runs[1 - stopped].ended(60) == 1
        told = runs[1 - stopped].output
        who = (
            rf"rank 1 \(process {runs[1].pid} on .*\) has given no sign of life for 3 s" if stopped else "holds the group's store"
        )
        assert re.search(who, told), told
        assert VARIABLE in told
    finally:
        for run in runs:
            run.kill()


def test_long_work_of_one_rank_is_no_fault(tmp_path: Path) -> None:
    runs = start(tmp_path, "5", limit="2")
    for rank, run in enumerate(runs):
        assert run.ended(120) == 0, run.output
        assert f"rank {rank} done" in run.output


DEADLOCKS = {
    "lock": r"rank 1 \(process {1} on .*:on_step\) has made no step for 2 s, while rank 0 \(process {0} on .*:step\) waits in a ",
    "barrier": r"all processes have waited in collective operations for 2 s \(rank 0 \(.*:step\), rank 1 \(.*:wait\)\)",
}


@pytest.mark.parametrize("fault", DEADLOCKS)
def test_a_deadlock_in_a_training_is_named(tmp_path: Path, fault: str) -> None:
    """The threads of both processes are alive: rank 1 waits for a lock, or in another collective operation than rank 0."""
    runs = start(tmp_path, fault, limit="2", program=TRAINING)
    try:
        assert [run.ended(60) for run in runs] == [1, 1]
        told = [run.output for run in runs]
        assert re.search(DEADLOCKS[fault].format(*(run.pid for run in runs)), "\n".join(told)), told
        assert VARIABLE in told[0] + told[1]
    finally:
        for run in runs:
            run.kill()


def test_a_training_with_slow_steps_is_no_fault(tmp_path: Path) -> None:
    runs = start(tmp_path, "slow", limit="2", program=TRAINING)
    for rank, run in enumerate(runs):
        assert run.ended(60) == 0, run.output
        assert f"rank {rank} done" in run.output


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
