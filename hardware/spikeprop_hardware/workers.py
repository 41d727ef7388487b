"""A part that runs in another Python: started as a process group of its own, followed by its progress, ended where it hangs.

A copy of this package is all that is on its path, for the caller's libraries may be of another Python.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from spikeprop_hardware.errors import HardwareError

PATIENCE = 300.0  # seconds; a slice of a run takes a few, also on a machine that is busy
Steps = tuple[int, int]  # time steps done, all


def copy_package(folder: Path) -> None:
    """This package, into the folder that a worker runs in."""
    shutil.copytree(Path(__file__).parent, folder / "spikeprop_hardware", ignore=shutil.ignore_patterns("__pycache__"))


def run_worker(
    title: str,
    command: Sequence[str],
    folder: Path,
    progress: Callable[[int, int], None],
    patience: float,
    instead: str = "",
) -> None:
    """Run ``command`` in ``folder``, where it writes result.npz.

    Args:
        title: of the simulator, in errors.
        command: a Python and its arguments.
        folder: with a copy of this package.
        progress: called with the numbers of each line "progress DONE ALL" that it prints.
        patience: seconds without such a line after which it is ended.
        instead: what else a user may do where it hangs.

    Raises:
        HardwareError: it failed, or made no progress; with the end of its output.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYENV"))} | {"PYTHONPATH": str(folder)}
    tail: deque[str] = deque(maxlen=30)
    reached: list[Steps] = []
    worker = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a process group of its own, so that a simulator's own processes end with it
    )
    try:
        _follow(worker, tail, reached, progress, patience)
    except (queue.Empty, subprocess.TimeoutExpired):
        where = f"after step {reached[-1][0]} of {reached[-1][1]}" if reached else "before its first step"
        raise HardwareError(
            f"{title}'s worker (process {worker.pid}) made no progress for {patience:g} s {where} and was ended: run it again, "
            f"on a machine that is less busy if there is one; {instead}or, where a slice of this run may take so long, a longer "
            f"patience. Its last output:\n{''.join(tail) or 'none'}"
        ) from None
    finally:
        if worker.returncode is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    if worker.returncode != 0 or not (folder / "result.npz").exists():
        raise HardwareError(f"the {title} simulation failed (exit status {worker.returncode}):\n{''.join(tail)}")


def _follow(
    worker: subprocess.Popen[str],
    tail: deque[str],
    reached: list[Steps],
    progress: Callable[[int, int], None],
    patience: float,
) -> None:
    """Pass on the worker's progress until it ends, each in ``reached`` too; queue.Empty or TimeoutExpired after ``patience``
    seconds without any."""
    reports: queue.SimpleQueue[Steps | None] = queue.SimpleQueue()
    assert worker.stdout is not None
    threading.Thread(target=_listen, args=(worker.stdout, tail, reports), daemon=True).start()
    while (report := reports.get(timeout=patience)) is not None:
        reached.append(report)
        progress(*report)
    worker.wait(timeout=patience)


def _listen(stdout: IO[str], tail: deque[str], reports: queue.SimpleQueue[Steps | None]) -> None:
    """Read to the end: "progress DONE ALL" goes to ``reports``, then None; every other line to ``tail``."""
    with stdout:
        for line in stdout:
            words = line.split()
            if len(words) == 3 and words[0] == "progress":
                reports.put((int(words[1]), int(words[2])))
            else:
                tail.append(line)
    reports.put(None)
