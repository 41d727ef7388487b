"""The fault of runs on photographs, which worker processes decode: one worker is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.faults.cases import Suite
from tests.faults.runs import differences, ended, result

WNIDS = ("n01440764", "n01443537", "n01484850")


def lost_workers(suite: Suite, times: int) -> int:
    """A worker is killed: the run reports it, saves, and resumes to the same result."""
    root = suite.folder / "photographs"
    _photographs(root)
    recipe = suite.folder / "photographs.yaml"
    recipe.write_text(PHOTOGRAPHS.replace("ROOT", str(root)), encoding="utf-8")
    whole = suite.fresh("workers", settings=[], recipe=str(recipe))
    assert whole.finish() == 0, whole.said()
    struck = 0
    while struck < times:
        run = suite.fresh("workers", settings=[], recipe=str(recipe))
        process = run.start()
        struck += _kill_a_worker(process, suite.random)
        if ended(process) != 0:
            assert "Error: a process that decodes photographs died" in run.said(), run.said()  # threads may print errors too
        assert run.finish() == 0, run.said()
        wrong = differences(result(whole.folder), result(run.folder))
        assert not wrong, f"{run.folder}: {wrong} differ from those of an undisturbed run"
    return struck


def _kill_a_worker(process: Any, source: random.Random) -> bool:
    """Wait for a child of the run, then a short time, then kill the child if it still exists."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    time.sleep(source.uniform(0, 1))
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            found = [int(p) for p in children.read_text().split()]
            if found:
                os.kill(found[0], signal.SIGKILL)
                return True
        time.sleep(0.001)
    return False


def _photographs(root: Path) -> None:
    source = random.Random(0)
    for split, count in (("train", 16), ("val", 4)):
        for wnid in WNIDS:
            (root / split / wnid).mkdir(parents=True)
            for i in range(count):
                image = Image.frombytes("RGB", (40, 40), source.randbytes(40 * 40 * 3))
                image.save(root / split / wnid / f"{i}.JPEG")


PHOTOGRAPHS = """
seed: 0
device: cpu
data: {use: ImageNet, root: ROOT, size: 32, workers: 2}
ann: {use: CNN, input_shape: [3, 32, 32], classes: 1000, plan: [A, 4, A], hidden: []}
train: {rule: Backprop, optimizer: SGD, schedule: Constant, epochs: 2, batch_size: 4, lr: 0.01, weight_decay: 0.0}
convert: {neuron: IF, encoder: Direct, calibrator: MaxActivation, images: 8}
finetune: {rule: BPTT, optimizer: Adam, schedule: Constant, timesteps: 2, epochs: 1, batch_size: 4}
evaluate: {timesteps: [2]}
simulate: {samples: 0}
"""
