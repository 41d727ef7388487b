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
from collections.abc import Mapping, Sequence
from pathlib import Path

from spikeprop.runtime.locks import Lock, in_use
from spikeprop.sweep.plan import SweepPlan

GRACE = 30.0  # seconds for a trial to save before it is killed
# `-m spikeprop`, with SIGTERM at the end of the thread that started it: prctl(PR_SET_PDEATHSIG, SIGTERM)
TIED = "import ctypes, runpy; ctypes.CDLL(None).prctl(1, 15); runpy.run_module('spikeprop', run_name='__main__', alter_sys=True)"


class ThisMachine:
    """Trials as processes of this machine.

    Args:
        plan: of the sweep.
    """

    def __init__(self, plan: SweepPlan):
        self.jobs = plan.jobs or 1
        self.threads = plan.threads or max(1, (os.cpu_count() or 1) // self.jobs)

    def trial(self, folder: Path, arguments: Sequence[str], log: Path, lock: Lock) -> TrialProcess:
        """A trial to start."""
        return TrialProcess(folder, arguments, log, lock, self.threads)

    def close(self) -> None:
        """Nothing is open."""


class TrialProcess:
    """A running trial, or one that an earlier sweep left running.

    Args:
        folder: its run folder.
        arguments: of ``spikeprop``.
        log: file to which its output is appended.
        lock: that it holds.
        threads: CPU threads.
        here: working directory; default this process's.
        variables: of its environment, beside this process's.
        tied: whether it is stopped, and saves, when the thread that started it ends (on Linux).
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], log: Path, lock: Lock, threads: int, *,
        here: Path | None = None, variables: Mapping[str, str] | None = None, tied: bool = False,
    ):  # fmt: skip
        self.folder, self.arguments, self.log, self.lock = folder, arguments, log, lock
        self.here, self.tied = here, tied
        self.variables = {**(variables or {}), "OMP_NUM_THREADS": str(threads)}
        self._interrupted = False
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Start it; False while another process works on it."""
        if in_use(self.folder) or not self.lock.acquire():
            return False
        assert self.lock.descriptor is not None
        program = ["-c", TIED] if self.tied and sys.platform == "linux" else ["-m", "spikeprop"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.variables}, cwd=self.here, pass_fds=(self.lock.descriptor,), start_new_session=True,
            )  # fmt: skip
        return True

    def ended(self) -> int | None:
        """Its exit code, or None while it or another process works on it; if that one stops before the end, it is started."""
        if self.process is None:
            if in_use(self.folder) or not self.lock.acquire():
                return None
            if not (self.folder / "report.json").exists():
                self.start()
                return None
        code = 0 if self.process is None else self.process.poll()
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

    def interrupt(self) -> None:
        """Interrupt it, as Ctrl-C does; only once, since a second signal ends it without saving."""
        if self.process and self.process.poll() is None and not self._interrupted:
            self._interrupted = True
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """Interrupt it, and wait until it has saved."""
        if self.process and self.process.poll() is None:
            self.interrupt()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.lock.release()
