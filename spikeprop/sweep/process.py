"""One trial's process: an ordinary ``spikeprop run`` with a log of its own, and a lock that lives as long as the process does.

A sweep that is killed leaves its trials running. They hold the lock of their folder, so the sweep that follows waits for them
and no two processes write one run folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

GRACE = 30.0  # seconds that a trial has to save itself


class Lock:
    """A file that one process holds, with those that it started."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a")  # noqa: SIM115 - as long as the lock is held

    def take(self) -> bool:
        """Whether it is ours now."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def drop(self) -> None:
        """Give up our hold; a process that inherited it keeps it."""
        self.file.close()


class Process:
    """A trial that runs, or one that an earlier sweep left running.

    Args:
        arguments: of ``spikeprop``.
        log: file that its output is added to.
        lock: that it is to hold.
        threads: of the CPU.
    """

    def __init__(self, arguments: Sequence[str], log: Path, lock: Lock, threads: int):
        self.arguments, self.log, self.lock, self.threads = arguments, log, lock, threads
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Start it; False while another process holds the lock."""
        if not self.lock.take():
            return False
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spikeprop", *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, pass_fds=(self.lock.file.fileno(),), start_new_session=True,
            )  # fmt: skip
        return True

    def ended(self) -> int | None:
        """Its exit code, or None while it runs."""
        code = self.process.poll() if self.process else None
        if code is not None:
            self.lock.drop()
        return code

    def why(self, code: int) -> str:
        """What its log says of its end."""
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("Error: ")), lines[-1] if lines else f"exit code {code}")
        return told.removeprefix("Error: ")

    def stop(self) -> None:
        """Interrupt it, as Ctrl-C does, and wait until it has saved itself."""
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.lock.drop()
