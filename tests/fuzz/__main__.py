"""``python -m tests.fuzz``: more than 100,000 corrupted files of all kinds are read, with counts.

Workers, one for each kind, read real files that ``mutate`` has changed: a worker that dies (a crash below Python) or stalls is a
finding, and the next one continues after that file. Then Hypothesis makes the choices and shrinks its findings; if atheris is
installed, it follows coverage. A finding is kept as a file, with the number that reproduces it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.fuzz.bulk import Job, source_of
from tests.fuzz.seeds import KINDS, RECORDINGS

COUNTS: dict[str, int] = {
    "recipe": 8_000,
    "checkpoint": 8_000,
    "nir": 6_000,
    "cifar": 42_000,
    "image": 42_000,
    "json": 2_000,
} | dict.fromkeys(RECORDINGS, 6_000)
BY_HYPOTHESIS = 300  # of each kind
BY_ATHERIS = {"recipe": 2_000, "cifar": 20_000, "aedat3": 10_000, "frames": 5_000}
PROGRESS_SECONDS = 60.0  # seconds between two progress messages


@click.command()
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Multiplies every count.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for findings; default a temporary one.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, help="Only these.")
@click.option("--number", type=int, help="Read one file of the kind again, and show what happens.")
def main(seed: int, scale: float, keep: Path | None, processes: int, kinds: tuple[str, ...], number: int | None) -> None:
    """Read corrupted files; exit code 1 if reading one of them did anything but succeed or raise a SpikepropError."""
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
    """Run all jobs, at most ``processes`` at a time."""
    waiting, running, told = list(jobs), [], time.monotonic()
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(waiting.pop(0))
            running[-1].start()
            running[-1].began = time.monotonic()
        time.sleep(0.2)
        if time.monotonic() - told > PROGRESS_SECONDS:
            click.echo("  " + ", ".join(f"{job.kind} {job.done.value:,}" for job in running), err=True)
            told = time.monotonic()
        for job in [job for job in running if job.look()]:
            running.remove(job)
            found = len(list(job.folder.glob(f"{job.kind}-*.txt")))
            seconds = time.monotonic() - job.began
            click.echo(f"  {job.kind:<12}{job.count:>8,} files in {seconds:>5.0f} s, {found} findings")
    return sum(job.count for job in jobs)


def _steered(kinds: tuple[str, ...], scale: float, folder: Path) -> int:
    """The same with the choices of Hypothesis, then of atheris; each in a separate process."""
    read = 0
    for tool, counts in (("hypothesis", dict.fromkeys(COUNTS, BY_HYPOTHESIS)), ("atheris", BY_ATHERIS)):
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
