"""What a node of a cluster does with a trial: it checks that it has what the trial needs, and then runs it as a process.

A node that lacks something (the sweep's folder, the working directory, this code) is *unfit*, and says what is missing: a trial
there would fail, or compute something else.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from spikeprop.runtime.locks import Lock
from spikeprop.sweep.process import TrialProcess

UNFIT, BUSY, ENDED = "unfit", "busy", "ended"
SEEN_AFTER = 3.0  # seconds within which a new file of another machine appears
POLL_SECONDS = 0.1


def run_trial(
    folder: str, arguments: Sequence[str], log: str, lock: str, threads: int, *,
    mark: str, here: str, code: str, variables: Mapping[str, str],
) -> tuple[str, int, str]:  # fmt: skip
    """Run a trial on this machine until it ends; it ends, saved, with the process that called this.

    Args:
        folder: its run folder.
        arguments: of ``spikeprop``.
        log: file for its output.
        lock: file of its lock.
        threads: CPU threads.
        mark: a file that the sweep has just written beside the trials.
        here: working directory.
        code: ``fingerprint`` of the sweep's spikeprop.
        variables: of the environment.

    Returns:
        UNFIT, BUSY (another process works on the trial) or ENDED; its exit code; and what is missing or why it failed.
    """
    missing = missing_here(mark, here, code)
    if missing:
        return UNFIT, 1, missing
    process = TrialProcess(
        Path(folder), arguments, Path(log), Lock(Path(lock)), threads, here=Path(here), variables=variables, tied=True
    )
    try:
        if not process.start():
            return BUSY, 1, ""
        while (ended := process.ended()) is None:
            time.sleep(POLL_SECONDS)
    finally:
        process.stop()
    return ENDED, ended, process.reason(ended) if ended else ""


def missing_here(mark: str, here: str, code: str) -> str:
    """What this machine lacks of a sweep's folder, working directory and code, with the remedy; empty if nothing."""
    deadline = time.monotonic() + SEEN_AFTER
    while not Path(mark).exists():
        if time.monotonic() > deadline:
            return f"it does not see the sweep's folder {Path(mark).parents[1]}; choose an --out folder that all nodes share"
        time.sleep(POLL_SECONDS)
    if not Path(here).is_dir():
        return f"it has no folder {here}, where the sweep was started; start the sweep in a folder that all nodes share"
    if fingerprint() != code:
        return "its spikeprop is another version than the sweep's; install the same one, and restart Ray there"
    return ""


@functools.cache
def fingerprint() -> str:
    """SHA-256 of spikeprop's source files, those of spikeprop-hardware included."""
    import spikeprop_hardware

    import spikeprop

    digest = hashlib.sha256()
    for package in (spikeprop, spikeprop_hardware):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
