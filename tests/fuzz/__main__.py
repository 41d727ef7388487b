"""``python -m tests.fuzz``: more than 100,000 spoilt files of six kinds are read, with counts.

Workers read what ``mutate`` makes of real files, a process for each kind: one that dies (a crash below Python) or stalls is a
finding, and the next goes on behind it. Then Hypothesis does the choosing, which shrinks what it finds, and where atheris is
installed it steers by coverage. A finding is kept as a file, with the number that makes it again.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tests.fuzz.seeds import KINDS, SUFFIXES

COUNTS = {"recipe": 20_000, "checkpoint": 16_000, "nir": 10_000, "cifar": 30_000, "image": 30_000, "json": 4_000}
BY_HYPOTHESIS = 500  # of each kind
BY_ATHERIS = {"recipe": 10_000, "cifar": 30_000}
STALLED = 120.0  # seconds without a file; beyond the limit for one, which Python keeps by itself


@dataclass
class Job:
    """The files of one kind, and how far they are read."""

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
        """A process that reads on."""
        self.moved = (self.done.value, time.monotonic())
        target = (self.kind, self.seed, self.count, self.folder, self.done)
        self.process = multiprocessing.get_context("forkserver").Process(target=work, args=target)
        self.process.start()

    def look(self) -> bool:
        """Whether all is read; a process that died or stalls is noted and replaced."""
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
        shutil.copy(self.folder / self.kind / f"input{SUFFIXES[self.kind]}", kept)
        kept.with_suffix(".txt").write_text(what, encoding="utf-8")


def source_of(kind: str, seed: int, number: int) -> random.Random:
    """The choices of one file."""
    return random.Random(f"{seed} {kind} {number}")


def work(kind: str, seed: int, count: int, folder: Path, done: Any) -> None:
    """In a process of its own: read files until ``done`` has reached ``count``."""
    from tests.fuzz.targets import limited, one, ready

    guard = ready(folder / kind)
    limited()
    while done.value < count:
        number = done.value
        content, wrong = one(kind, source_of(kind, seed, number), guard)
        if wrong is not None:
            (folder / f"{kind}-{number}{SUFFIXES[kind]}").write_bytes(content)
            (folder / f"{kind}-{number}.txt").write_text(wrong, encoding="utf-8")
        done.value = number + 1


@click.command()
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Multiplies every count.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for findings; default a temporary one.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Only these.")
@click.option("--number", type=int, help="Read one file of the kind again, and show what happens.")
def main(seed: int, scale: float, keep: Path | None, processes: int, kinds: tuple[str, ...], number: int | None) -> None:
    """Read spoilt files; exit code 1 if reading one of them did anything but succeed or raise an error of ours."""
    folder = keep or Path(tempfile.mkdtemp(prefix="fuzz"))
    folder.mkdir(parents=True, exist_ok=True)
    if number is not None:
        from tests.fuzz.targets import one, ready

        sys.exit(one(kinds[0], source_of(kinds[0], seed, number), ready(folder / kinds[0]))[1])
    started = time.monotonic()
    read = _bulk([Job(kind, max(1, round(COUNTS[kind] * scale)), seed, folder) for kind in kinds], processes)
    read += _steered(kinds, scale, folder)
    found = sorted(folder.glob("*.txt"))
    minutes = (time.monotonic() - started) / 60
    click.echo(f"{read:,} files read in {minutes:.1f} min; {len(found)} findings{f' in {folder}' if found else ''}")
    for file in found[:20]:
        click.echo(f"  {file.stem}: {file.read_text(encoding='utf-8').strip().splitlines()[-1][:200]}")
    sys.exit(1 if found else 0)


def _bulk(jobs: list[Job], processes: int) -> int:
    """All jobs, so many at a time."""
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(waiting.pop(0))
            running[-1].start()
            running[-1].began = time.monotonic()
        time.sleep(0.2)
        for job in [job for job in running if job.look()]:
            running.remove(job)
            found = len(list(job.folder.glob(f"{job.kind}-*.txt")))
            seconds = time.monotonic() - job.began
            click.echo(f"  {job.kind:<12}{job.count:>8,} files in {seconds:>5.0f} s, {found} findings")
    return sum(job.count for job in jobs)


def _steered(kinds: tuple[str, ...], scale: float, folder: Path) -> int:
    """The same with Hypothesis's choices, then atheris's; each in a process of its own."""
    read = 0
    for tool, counts in (("hypothesis", dict.fromkeys(KINDS, BY_HYPOTHESIS)), ("atheris", BY_ATHERIS)):
        if importlib.util.find_spec(tool) is None:
            click.echo(f"  {tool} is not installed (pip install 'spikeprop[fuzz]'): left out")
            continue
        for kind in (k for k in kinds if k in counts):
            count = max(1, round(counts[kind] * scale))
            own = folder / f"{tool}-{kind}"
            command = [sys.executable, "-m", "tests.fuzz.steered", tool, kind, str(count), str(own)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode:
                (folder / f"{tool}-{kind}.txt").write_text(done.stdout[-4000:] + done.stderr[-8000:], encoding="utf-8")
            click.echo(f"  {kind:<12}{count:>8,} files by {tool}{', with a finding' if done.returncode else ''}")
            read += count
    return read


if __name__ == "__main__":
    main()
