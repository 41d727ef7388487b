"""Run parts, each in a process of its own with a time limit, and keep what they find as they find it.

A part prints one JSON object a line; after every line the file of results is written anew (a temporary name, then renamed), so a
run that is killed keeps all that was found. A part that crashes, hangs or fills the memory ends alone: its process group is
killed at its limit. What a part leaves of its share goes to the parts after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.parts import Absent, Context, Part
from spikeprop.runtime.files import read_json, write_json

DONE = ("done", "skipped")
LEAST = 5.0  # seconds with which no part is started
ABSENT = "absent"  # key of the line by which a part says that it cannot run here
PATIENCE = 5.0  # seconds for a killed process to go


@dataclass
class Results:
    """The file of results."""

    file: Path
    found: dict[str, Any]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def part(self, name: str) -> dict[str, Any]:
        """What is known of a part."""
        return self.found["parts"].setdefault(name, {})

    def save(self) -> None:
        """Write the file, complete or not at all."""
        with self.lock:
            write_json(self.file, self.found)


def opened(file: Path, about: dict[str, Any], *, again: bool) -> Results:
    """Results to add to: those of an earlier run on the same GPU in the same form, or none.

    Raises:
        ValueError: the file has those of another one.
    """
    fresh = {"benchmark": "gpu", **about, "parts": {}}
    if again or not file.is_file():
        return Results(file, fresh)
    known = read_json(file)
    for name, now in (("small", about["settings"]["small"]), ("gpu", about["machine"]["gpu"])):
        place = known.get("settings" if name == "small" else "machine") or {}
        if place.get(name) != now:
            raise ValueError(
                f"{file} has results with {name} = {place.get(name)}, and here it is {now}: give another --out, or --again"
            )
    return Results(file, {**fresh, "parts": known["parts"]})


def run_all(parts: Sequence[Part], results: Results, budget: float, *, small: bool, say: Callable[[str], None] = print) -> None:
    """Run the parts that are not done, in order; each may take its share of what is left of the budget."""
    end = time.monotonic() + budget
    waiting = [part for part in parts if results.part(part.name).get("status") not in DONE]
    for part in parts:
        if part not in waiting:
            say(f"{part.name}: {results.part(part.name)['status']} before, left as it is")
    for number, part in enumerate(waiting):
        left = end - time.monotonic()
        limit = left * part.seconds / sum(other.seconds for other in waiting[number:])
        if limit < LEAST:
            results.part(part.name).update(status="not run", error="no time was left of the budget", records=[])
            results.save()
        else:
            run_part(part, results, limit, small=small)
        known = results.part(part.name)
        reason = f": {known['error'].strip().splitlines()[-1]}" if known.get("error") else ""
        say(f"{part.name}: {known['status']}, {len(known['records'])} records in {known.get('seconds', 0):.0f} s{reason}")


def run_part(part: Part, results: Results, limit: float, *, small: bool) -> None:
    """Run one part in its own process; its records and how it ended go into the results."""
    known = results.part(part.name)
    known.clear()
    known.update(status="running", limit=limit, records=[])
    results.save()
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command(part, limit, small),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            reader = threading.Thread(target=_read, args=(process.stdout, known, results), daemon=True)
            reader.start()
            reader.join(limit)
            late = reader.is_alive()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0 if late else PATIENCE)
        finally:
            _end(process)
        reader.join(PATIENCE)
        if not reader.is_alive() and process.stdout is not None:
            process.stdout.close()
        errors.seek(0)
        said = errors.read()[-4000:]
    known["seconds"] = time.monotonic() - start
    if known.pop(ABSENT, None):
        known["status"] = "skipped"
    elif late:
        known.update(status="timed out", error=f"it took longer than {limit:.0f} s\n")
    elif process.returncode != 0:
        known.update(status="failed", error=said or f"it ended with {process.returncode}")
    else:
        bad = [record for record in known["records"] if record.get("good") is False]
        known["status"] = "wrong" if bad else "done"
        if bad:
            known["error"] = f"{len(bad)} of {len(known['records'])} are wrong, the first: {json.dumps(bad[0])[:500]}"
    results.save()


def command(part: Part, limit: float, small: bool) -> list[str]:
    """What runs a part."""
    return [sys.executable, "-m", "benchmarks.gpu", "--part", part.name, "--budget", str(limit)] + ["--small"] * small


def environment() -> dict[str, str]:
    """That of a part: it finds this repository, and its output comes at once."""
    paths = [str(ROOT), str(ROOT / "hardware"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def _read(lines: IO[str], known: dict[str, Any], results: Results) -> None:
    for line in lines:
        with contextlib.suppress(ValueError):  # what libraries print is no JSON
            record = json.loads(line)
            if not isinstance(record, dict):
                continue
            if ABSENT in record:
                known.update({ABSENT: True, "error": record[ABSENT]})
            else:
                known["records"].append(record)
            results.save()


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process group of a part that has not ended; one that hangs in the driver is left behind."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)


def run_here(part: Part, context: Context) -> int:
    """In a part's own process: print its records; returns the exit code."""
    try:
        for record in part.records(context):
            print(json.dumps(record), flush=True)
    except Absent as absent:
        print(json.dumps({ABSENT: str(absent)}), flush=True)
    except Exception:
        traceback.print_exc()
        return 1
    return 0
