"""``Heartbeat``: processes that work together notice within a time limit that one of them hangs, and say which.

A process that dies closes its connections, which the others notice immediately. One that is stopped (SIGSTOP, a suspended
machine) keeps them open, and the others would wait for it inside a collective operation, where Python cannot interrupt them. So
each process counts in the group's store, in a thread; another thread watches the counts of the others, and ends this process if
one of them has not changed for ``limit`` seconds. Work of any length is no fault as long as its process lives.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

VARIABLE = "SPIKEPROP_PATIENCE"
LIMIT = 600.0  # seconds
KEY = "heartbeat/{}"


def limit_from_environment() -> float:
    """Seconds after which a silent process is missing: $SPIKEPROP_PATIENCE, or ten minutes.

    Raises:
        ValueError: it is not a positive number.
    """
    text = os.environ.get(VARIABLE, str(LIMIT))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ValueError(f"{VARIABLE} is {text!r}; give the seconds after which a silent process is missing, default {LIMIT:.0f}")
    return limit


class Heartbeat:
    """The signs of life of this process and of its peers.

    Args:
        store: of the process group (``set``, ``check``, ``get``).
        rank: of this process.
        count: of processes.
        limit: seconds without a sign of life.
        end: called with the message once a process is missing; default writes it to standard error and ends this process.
    """

    def __init__(self, store: Any, rank: int, count: int, limit: float, end: Callable[[str], None] | None = None):
        self.store, self.rank, self.count, self.limit = store, rank, count, limit
        self.end = end or _end
        self.every = min(5.0, limit / 4)
        self._over = threading.Event()
        self._beats: dict[int, str] = {}
        self._seen = dict.fromkeys(range(count), time.monotonic())
        self._answered = time.monotonic()

    def start(self) -> None:
        """Begin to count and to watch."""
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name=f"spikeprop {work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """End both threads."""
        self._over.set()

    def _beat(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                self.store.set(KEY.format(self.rank), f"{number} {socket.gethostname()} {os.getpid()}")
                for rank in range(self.count):
                    if self.store.check([KEY.format(rank)]):
                        self._hear(rank, self.store.get(KEY.format(rank)).decode())
                self._answered = time.monotonic()
            except RuntimeError:  # the store has ended with its process, which the connections tell
                return
            self._over.wait(self.every)

    def _hear(self, rank: int, beat: str) -> None:
        if self._beats.get(rank) != beat:
            self._beats[rank], self._seen[rank] = beat, time.monotonic()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self.every):
            now = time.monotonic()
            if now - before > self.every + self.limit / 2:  # this process itself was stopped, perhaps with all others
                self._answered = now
                self._seen = dict.fromkeys(self._seen, now)
            before = now
            message = self._missing(now)
            if message and not self._over.is_set():
                self._over.set()
                self.end(message)

    def _missing(self, now: float) -> str:
        """Which processes have been silent for too long; empty if none."""
        remedy = (
            f"see whether it is stopped, or its machine is; this process ends. The same command resumes from the last "
            f"checkpoint; {VARIABLE} sets the seconds"
        )
        if now - self._answered > self.limit:
            return f"rank {self.rank}: the process that holds the group's store has not answered for {self.limit:.0f} s: {remedy}"
        late = [rank for rank, seen in self._seen.items() if rank != self.rank and now - seen > self.limit]
        named = ", ".join(f"rank {rank} ({self._place(rank)})" for rank in late)
        return f"rank {self.rank}: {named} has given no sign of life for {self.limit:.0f} s: {remedy}" if late else ""

    def _place(self, rank: int) -> str:
        _, host, process = self._beats[rank].split() if rank in self._beats else ("", "", "")
        return f"process {process} on {host}" if host else "which has never appeared"


def _end(message: str) -> None:
    """End this process, whose main thread cannot be interrupted where it waits."""
    os.write(2, f"Error: {message}\n".encode())
    os._exit(1)
