"""The faults: each function causes one kind ``times`` times, and then compares the run with an undisturbed one.

Each returns how often its fault hit a run that was still working.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.faults.runs import SETTINGS, Fault, Run, differences, ended, result

NOBODY = 65534


class Suite:
    """Runs in one folder, and the result and the seconds of an undisturbed one.

    Args:
        folder: empty.
        seed: of the moments and places of the faults.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.random = folder, random.Random(seed)
        whole = self.fresh("whole")
        process = whole.start()
        started = time.monotonic()
        assert ended(process) == 0, whole.said()
        self.seconds = time.monotonic() - started
        self.whole = result(whole.folder)

    def fresh(self, name: str, **settings: Any) -> Run:
        """A run in a new folder."""
        number = len([p for p in self.folder.iterdir() if p.is_dir()])
        return Run(self.folder / f"{name}{number}", **settings)

    def after_a_while(self, run: Run, number: int, share: float = 0.4) -> int | None:
        """Start it and send it a signal at a random moment; its exit code, or None if it ended before."""
        process = run.start()
        process.join(self.random.uniform(0, share * self.seconds))
        if not process.is_alive():
            assert ended(process) == 0, run.said()
            self.seconds *= 0.8  # the machine is faster than in the first run
            return None
        os.kill(process.pid, number)
        code = ended(process)
        return None if code == 0 else code  # the signal arrived in the last step

    def check(self, run: Run) -> None:
        """The same command again completes the run, with the result of the undisturbed one."""
        assert run.finish() == 0, run.said()
        wrong = differences(self.whole, result(run.folder))
        assert not wrong, f"{run.folder}: {wrong} differ from those of an undisturbed run"


def kills(suite: Suite, times: int) -> int:
    """SIGKILL at random times, repeatedly, until the run completes; then another run."""
    struck, run = 0, suite.fresh("killed")
    while struck < times:
        code = suite.after_a_while(run, signal.SIGKILL)
        if code is None:
            suite.check(run)
            run = suite.fresh("killed")
            continue
        assert code == -signal.SIGKILL, run.said()
        struck += 1
    suite.check(run)
    return struck


def requests(suite: Suite, times: int) -> int:
    """SIGINT and SIGTERM: the step is finished and saved, the resume command is printed, the exit code is the shell's."""
    struck = 0
    while struck < times:
        run = suite.fresh("stopped")
        number = (signal.SIGINT, signal.SIGTERM)[struck % 2]
        code = suite.after_a_while(run, number)
        if code is not None:
            assert code == 128 + number, f"{code}: {run.said()}"
            assert f"go on with: spikeprop run {run.recipe}" in run.said(), run.said()
            struck += 1
        suite.check(run)
    return struck


def damage(suite: Suite, times: int) -> int:
    """A kill, and then a checkpoint (training's progress, or a stage's network) that is truncated or has a flipped bit."""
    struck = 0
    while struck < times:
        run = suite.fresh("damaged")
        code = suite.after_a_while(run, signal.SIGKILL)
        files = [p for p in sorted(run.folder.glob("[!.]*.safetensors")) if "previous" not in p.name]
        if code is not None and files:
            file = suite.random.choice(files)
            told = corrupt(file, suite.random, truncate=struck % 2 == 0)
            ended_well = run.finish() == 0
            assert file.name in run.said(), f"{told}, and nobody said it: {run.said()}"
            if ended_well:
                assert any(words in run.said() for words in ("continuing from", "going on from", "run again")), run.said()
            else:  # there was no previous checkpoint yet
                assert "there is none before it: restore it from a copy" in run.said(), f"{told}: {run.said()}"
                file.unlink()
            struck += 1
        suite.check(run)
    return struck


def corrupt(file: Path, source: random.Random, *, truncate: bool) -> str:
    """Truncate a file, or flip one of its bits; returns a description."""
    content = bytearray(file.read_bytes())
    place = source.randrange(len(content))
    if truncate:
        file.write_bytes(content[:place])
        return f"{file} cut off after {place} bytes"
    bit = source.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"{file} with bit {bit} of byte {place} flipped"


def full_disk(suite: Suite, times: int) -> int:
    """No space left at a random write: by a limit on the size of files, or by an error at the nth flush or renaming."""
    struck = 0
    while struck < times:
        run = suite.fresh("full")
        if struck % 2:
            fault = Fault(largest_file=suite.random.randrange(20_000, 600_000))
        else:
            fault = Fault(prepare=partial(no_space_after, suite.random.randrange(1, 60)))
        code = run.finish(fault)
        if code != 0:
            assert code == 1, run.said()
            assert "cannot write" in run.said(), run.said()
            assert "Traceback" not in run.said(), run.said()
            struck += 1
        suite.check(run)
    return struck


def no_space_after(writes: int) -> None:
    """From now on in this process: ``writes`` flushes and renamings succeed, then the disk is full."""
    left = [writes]

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return call(*arguments)

        return limited

    os.fsync, os.replace = wrap(os.fsync), wrap(os.replace)


@contextlib.contextmanager
def tiny_disk(folder: Path, kilobytes: int) -> Iterator[Path | None]:
    """A file system in memory of that size; None if this user may not mount one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True)
    try:
        yield folder if made.returncode == 0 else None
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def real_full_disk(suite: Suite, times: int) -> int:
    """A file system that is really full and is then enlarged. Counts 0 if none may be mounted."""
    struck = 0
    for number in range(times):
        with tiny_disk(suite.folder / f"disk{number}", suite.random.randrange(300, 2500)) as disk:
            if disk is None:
                return 0
            run = Run(disk / "run")
            code = run.finish()
            struck += code != 0
            assert code in (0, 1), run.said()
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, capture_output=True)
            suite.check(run)
    return struck


def read_only(suite: Suite, times: int) -> int:
    """An unwritable folder is reported before any training."""
    for number in range(times):
        parent = suite.folder / f"closed{number}"
        parent.mkdir()
        parent.chmod(0o555)
        run = Run(parent / "run")
        log = suite.folder / f"closed{number}.log"
        code = _elsewhere(run, log).finish(Fault(user=NOBODY if os.getuid() == 0 else None))
        said = log.read_text()
        assert code == 1, said
        assert "Permission denied" in said, said
        assert "Traceback" not in said, said
        assert not list(parent.iterdir())
        parent.chmod(0o755)
    return times


def _elsewhere(run: Run, log: Path) -> Run:
    """The same run with its log not beside the folder."""

    class Logged(Run):
        @property
        def log(self) -> Path:
            return log

    return Logged(run.folder, run.settings, run.recipe)


def not_a_number(suite: Suite, times: int) -> int:
    """A learning rate that drives the loss to NaN: an error with advice, and no file with a NaN."""
    for _ in range(times):
        run = suite.fresh("nan", settings=[*SETTINGS, "train.lr=1e12"])
        assert run.finish() == 1, run.said()
        assert "lower the learning rate" in run.said(), run.said()
        for file in run.folder.glob("[!.]*.safetensors"):
            assert all(torch.isfinite(t).all() for t in load_file(file).values() if t.is_floating_point()), file
    return times


def jumping_clock(suite: Suite, times: int) -> int:
    """A wall clock that jumps by up to a year, forwards and backwards, at each reading."""
    for _ in range(times):
        run = suite.fresh("clock")
        assert run.finish(Fault(prepare=partial(_jump, suite.random.random()))) == 0, run.said()
        suite.check(run)
    return times


def _jump(seed: float) -> None:
    import tqdm.std

    source, real = random.Random(seed), time.time

    def jumping() -> float:
        return real() + source.uniform(-3e7, 3e7)

    time.time = tqdm.std.time = jumping  # type: ignore[attr-defined]
