"""One trial's process: an ordinary ``spikeprop run`` with a log of its own, and a lock that lives as long as the process does.

A sweep that is killed leaves its trials running. They hold a lock from the moment that they are started, as the lock of their run
folder they hold only once it is made; so the sweep that follows waits for them. It waits, too, for a run that somebody began in
a trial's folder by hand.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from spikeprop.runtime.locks import Lock, in_use

GRACE = 30.0  # seconds that a trial has to save itself


class Process:
    """A trial that runs, or one that an earlier sweep left running.

    Args:
        folder: of its run.
        arguments: of ``spikeprop``.
        log: file that its output is added to.
        lock: that it is to hold.
        threads: of the CPU.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], log: Path, lock: Lock, threads: int):
        self.folder, self.arguments, self.log, self.lock, self.threads = folder, arguments, log, lock, threads
        self.process: subprocess.Popen[bytes] | None = None

    def free(self) -> bool:
        """Whether nobody else is at work on it; then its lock is ours."""
        return not in_use(self.folder) and self.lock.acquire()

    def start(self) -> bool:
        """Start it; False while another process is at work on it."""
        if not self.free():
            return False
        assert self.lock.descriptor is not None
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spikeprop", *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, pass_fds=(self.lock.descriptor,), start_new_session=True,
            )  # fmt: skip
        return True

    def ended(self) -> int | None:
        """Its exit code, or None while it runs."""
        code = self.process.poll() if self.process else None
        if code is not None:
            self.lock.release()
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
        self.lock.release()
