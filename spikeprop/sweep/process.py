"""``TrialProcess``: a trial's ``spikeprop run`` with its own log, and a lock that ends with the process.

A sweep that is killed leaves its trials running. A trial holds its lock from its start (it gets the lock of its run folder only
later), so the next sweep waits for it. That sweep also waits for a run that was started by hand in a trial's folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from spikeprop.runtime.locks import Lock, in_use

GRACE = 30.0  # seconds for a trial to save before it is killed


class TrialProcess:
    """A running trial, or one that an earlier sweep left running.

    Args:
        folder: its run folder.
        arguments: of ``spikeprop``.
        log: file to which its output is appended.
        lock: that it holds.
        threads: CPU threads.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], log: Path, lock: Lock, threads: int):
        self.folder, self.arguments, self.log, self.lock, self.threads = folder, arguments, log, lock, threads
        self.process: subprocess.Popen[bytes] | None = None

    def acquire(self) -> bool:
        """Take the trial's lock; False while another process works on the trial."""
        return not in_use(self.folder) and self.lock.acquire()

    def start(self) -> bool:
        """Start it; False while another process works on it."""
        if not self.acquire():
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

    def reason(self, code: int) -> str:
        """Why it failed, from its log."""
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        at = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("Error: ")), None)
        if at is None:
            return lines[-1] if lines else f"exit code {code}"
        more = itertools.takewhile(lambda line: line.startswith("  "), lines[at + 1 :])  # one line a mistake
        return "; ".join([lines[at].removeprefix("Error: "), *(line.strip() for line in more)])

    def stop(self) -> None:
        """Interrupt it, as Ctrl-C does, and wait until it has saved."""
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.lock.release()
