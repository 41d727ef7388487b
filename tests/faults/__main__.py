"""``python -m tests.faults``: all faults, with counts. ``--seed`` varies times and places, ``--scale`` the number of faults."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from tests.faults import cases, workers

FAULTS: dict[str, tuple[Callable[[cases.Suite, int], int], int]] = {
    "SIGKILL at a random moment": (cases.kills, 60),
    "SIGINT, SIGTERM at a random moment": (cases.requests, 6),
    "checkpoint truncated, bit flipped": (cases.damage, 12),
    "disk full: a limit, injected": (cases.full_disk, 10),
    "disk full: a file system in memory": (cases.real_full_disk, 4),
    "folder that may not be written": (cases.read_only, 1),
    "loss that is not a number": (cases.not_a_number, 1),
    "data-loader worker killed": (workers.lost_workers, 4),
    "clock that jumps": (cases.jumping_clock, 2),
}


@click.command()
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Multiplies every count.")
@click.option("--only", help="Kinds whose name holds this.")
def main(seed: int, scale: float, only: str | None) -> None:
    """Run every fault; exit code 1 if one of them changed a result."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        suite = cases.Suite(Path(folder), seed)
        click.echo(f"an undisturbed run takes {suite.seconds:.1f} s; seed {seed}")
        for name, (fault, times) in FAULTS.items():
            if only and only not in name:
                continue
            started = time.monotonic()
            try:
                struck = fault(suite, max(1, round(times * scale)))
                click.echo(f"  {name:<36} {struck:>4} times, nothing lost  ({time.monotonic() - started:.0f} s)")
            except AssertionError as error:
                failed += 1
                click.echo(f"  {name:<36} FAILED: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
