"""``Heartbeat``: processes that work together notice within a time limit that one of them hangs, and say which.

A process that dies closes its connections, which the others notice immediately. One that is stopped (SIGSTOP, a suspended
machine) keeps them open, and the others would wait for it inside a collective operation, where Python cannot interrupt them. So
each process counts in the group's store, in a thread; another thread watches the counts of the others, and ends this process if
one of them has not changed for ``limit`` seconds.

A deadlock leaves these threads alive. So within ``progressing``, as in a training, a count carries the number of steps (``tick``)
and where the process is. If a process makes no step for ``limit`` seconds while another waits for as long in a collective
operation, the watching processes name both and end. Elsewhere, work of any length is no fault as long as its process lives.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

VARIABLE = "SPIKEPROP_PATIENCE"
LIMIT = 600.0  # seconds
KEY = "heartbeat/{}"
WORKS, PROPAGATES, WAITS = "0", "1", "2"  # where a process is; a backward pass may wait for other processes inside
TORCH, OURS = Path(str(torch.__file__)).parent, Path(__file__).parents[1]


class _Work:
    """Steps of this process, whose threads and signals are also one for the process."""

    steps, thread = 0, 0


_work = _Work()


@contextmanager
def progressing() -> Iterator[None]:
    """Within this context the calling thread's work must make a step every ``limit`` seconds while another process waits."""
    before, _work.thread = _work.thread, threading.get_ident()
    try:
        yield
    finally:
        _work.thread = before


def tick() -> None:
    """A step is done."""
    _work.steps += 1


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


@dataclass
class _Peer:
    """What is known of a process: its last sign of life, and since when its steps and its state are the same."""

    seen: float
    beat: str = ""
    since: float = field(default=0.0)

    def hear(self, beat: str, now: float) -> None:
        """Take note of a beat: number, host, process, and within ``progressing`` steps, state and place."""
        if beat == self.beat:
            return
        self.seen = now
        if self.beat.split()[3:5] != beat.split()[3:5]:
            self.since = now
        self.beat = beat

    def stalled(self, now: float, limit: float) -> str:
        """Where this process has been for longer than the limit; empty if it makes steps."""
        words = self.beat.split()
        return words[4] if len(words) > 4 and now - self.since > limit else ""

    @property
    def name(self) -> str:
        """Process, machine, and place in the code."""
        words = self.beat.split()
        at = f", in {words[5]}" if len(words) > 5 else ""
        return f"process {words[2]} on {words[1]}{at}" if words else "which has never appeared"


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
        self._answered = time.monotonic()
        self._peers = [_Peer(self._answered) for _ in range(count)]
        works = (self._beat, self._watch)
        self._threads = [threading.Thread(target=work, name=f"spikeprop {work.__name__}", daemon=True) for work in works]

    def start(self) -> None:
        """Begin to count and to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads; one that waits for a store that does not answer is left, since it ends with the process."""
        self._over.set()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(self.every)

    def _beat(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                self.store.set(KEY.format(self.rank), f"{number} {socket.gethostname()} {os.getpid()}{_state()}")
                for rank, peer in enumerate(self._peers):
                    if self.store.check([KEY.format(rank)]):
                        peer.hear(self.store.get(KEY.format(rank)).decode(), time.monotonic())
                self._answered = time.monotonic()
            except RuntimeError:  # the store has ended with its process, which the connections tell
                return
            self._over.wait(self.every)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self.every):
            now = time.monotonic()
            if now - before > self.every + self.limit / 2:  # this process itself was stopped, perhaps with all others
                self._answered = now
                for peer in self._peers:
                    peer.seen = peer.since = now
            before = now
            message = self._missing(now)
            if message and not self._over.is_set():
                self._over.set()
                self.end(message)

    def _missing(self, now: float) -> str:
        """Which processes have been silent or without a step for too long; empty if none."""
        remedy = (
            f"this process ends. The same command resumes from the last checkpoint; {VARIABLE} sets the seconds (now "
            f"{self.limit:.0f})"
        )
        stopped = f"for {self.limit:.0f} s: see whether it is stopped, or its machine is; {remedy}"
        if now - self._answered > self.limit:
            return f"rank {self.rank}: the process that holds the group's store has not answered {stopped}"
        if now - self._answered > 2 * self.every:
            return ""  # nothing is heard of anyone, so nobody else is late
        late = [rank for rank, peer in enumerate(self._peers) if rank != self.rank and now - peer.seen > self.limit]
        if late:
            return f"rank {self.rank}: {self._named(late)} has given no sign of life {stopped}"
        blocked = self._blocked(now)
        return f"rank {self.rank}: {blocked}; {remedy}" if blocked else ""

    def _blocked(self, now: float) -> str:
        """Which processes make no step while others wait for them; empty if none."""
        states = {rank: peer.stalled(now, self.limit) for rank, peer in enumerate(self._peers)}
        kinds = sorted(set(states.values()) - {""})
        first, last = ([rank for rank, state in states.items() if kinds and state == kinds[end]] for end in (0, -1))
        if len(kinds) > 1:
            return (
                f"{self._named(first)} has made no step for {self.limit:.0f} s, while {self._named(last)} waits in a collective "
                "operation: see what it waits for there (a lock, a queue, a file), or whether it needs more time"
            )
        if kinds == [WAITS] and len(first) == self.count:
            return (
                f"all processes have waited in collective operations for {self.limit:.0f} s ({self._named(first)}): they do not "
                "wait for the same one, so see whether a callback or a rule calls one in some of the processes only"
            )
        return ""

    def _named(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} ({self._peers[rank].name})" for rank in ranks)


def _state() -> str:
    """Steps, kind and place of the thread within ``progressing``; empty outside."""
    frame = sys._current_frames().get(_work.thread)
    if frame is None:
        return ""
    while frame.f_back is not None and Path(frame.f_code.co_filename).parent == TORCH:  # how an operator is called
        frame = frame.f_back
    kind = _kind(Path(frame.f_code.co_filename))
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(TORCH):
        frame = frame.f_back
    place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}:{frame.f_code.co_name}"
    return f" {_work.steps} {kind} {place.replace(' ', '-')}"


def _kind(file: Path) -> str:
    """What a process does whose innermost function is in this file."""
    if file.is_relative_to(TORCH) and file.match("autograd/graph.py"):
        return PROPAGATES
    ours = file.is_relative_to(OURS) and (file.parent.name == "distributed" or file.name == "processes.py")  # with CUDA
    torchs = file.is_relative_to(TORCH) and ("distributed" in file.parts or file.match("parallel/distributed.py"))
    return WAITS if ours or torchs else WORKS


def _end(message: str) -> None:
    """End this process, whose main thread cannot be interrupted where it waits."""
    os.write(2, f"Error: {message}\n".encode())
    os._exit(1)
