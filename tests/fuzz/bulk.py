"""The main part of the fuzzing: a worker process for each kind reads file after file; its parent watches it."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.seeds import SUFFIXES
from tests.fuzz.targets import limited, one, ready

STALLED = 120.0  # seconds without a file; longer than the limit for one file, which Python enforces


@dataclass
class Job:
    """The files of one kind, and how many have been read."""

    kind: str
    count: int
    seed: int
    folder: Path
    done: Any = field(default_factory=lambda: multiprocessing.get_context("forkserver").Value("i", 0))
    findings: list[str] = field(default_factory=list)
    process: Any = None
    began: float = field(default_factory=time.monotonic)
    moved: tuple[int, float] = (0, 0.0)

    def start(self) -> None:
        """Start a process that continues."""
        self.moved = (self.done.value, time.monotonic())
        target = (self.kind, self.seed, self.count, self.folder, self.done)
        self.process = multiprocessing.get_context("forkserver").Process(target=work, args=target)
        self.process.start()

    def look(self) -> bool:
        """Whether all files are read; a process that died or stalls is recorded and replaced."""
        if self.process.is_alive():
            if self.done.value != self.moved[0]:
                self.moved = (self.done.value, time.monotonic())
            if time.monotonic() - self.moved[1] < STALLED:
                return False
            self.process.kill()
        self.process.join()
        if self.done.value < self.count:
            self._note(f"the process ended with {self.process.exitcode} (or stalled)")
            self.done.value += 1
            self.start()
            return False
        return True

    def _note(self, what: str) -> None:
        number = self.done.value
        kept = self.folder / f"{self.kind}-{number}{SUFFIXES[self.kind]}"
        last = self.folder / self.kind / f"input{SUFFIXES[self.kind]}"
        if last.exists():
            shutil.copy(last, kept)
        kept.with_suffix(".txt").write_text(what, encoding="utf-8")


def source_of(kind: str, seed: int, number: int) -> random.Random:
    """The random choices of one file."""
    return random.Random(f"{seed} {kind} {number}")


def work(kind: str, seed: int, count: int, folder: Path, done: Any) -> None:
    """In a separate process: read files until ``done`` reaches ``count``."""
    guard = ready(folder / kind)
    limited()
    parent = multiprocessing.parent_process()
    while done.value < count and (parent is None or parent.is_alive()):
        number = done.value
        content, wrong = one(kind, source_of(kind, seed, number), guard)
        if wrong is not None:
            (folder / f"{kind}-{number}{SUFFIXES[kind]}").write_bytes(content)
            (folder / f"{kind}-{number}.txt").write_text(wrong, encoding="utf-8")
        done.value = number + 1
