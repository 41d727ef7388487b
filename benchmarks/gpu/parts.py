"""The parts of the benchmark: what each measures, and what a part is told."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


class Absent(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """What a part is told.

    Attributes:
        device: "cuda", or "cpu" for the small form.
        seconds: its time limit; a part leaves out what would not end in time.
        small: a form for machines without a GPU, whose figures say nothing.
        began: ``time.monotonic()`` at its start.
    """

    device: str
    seconds: float
    small: bool
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until the limit."""
        return self.began + self.seconds - time.monotonic()


@dataclass(frozen=True)
class Part:
    """One part, run in a process of its own.

    Attributes:
        name: in the JSON.
        module: of this package; its ``run(context, **options)`` yields records.
        what: it measures.
        seconds: expected on an H200 with 16 cores, from bytes and from compilation times here: no GPU has run it.
        options: passed to ``run``.
    """

    name: str
    module: str
    what: str
    seconds: int
    options: dict[str, str] = field(default_factory=dict)

    def records(self, context: Context) -> Iterator[dict[str, Any]]:
        """Run it in this process."""
        return importlib.import_module(f"benchmarks.gpu.{self.module}").run(context, **self.options)


def _speed(contender: str, seconds: int, what: str) -> Part:
    return Part(f"speed: {contender}", "speed", what, seconds, {"contender": contender})


STEP = "training step and inference of a VGG5, T = 4, 20, 100, float32 and bfloat16 autocast: "
PARTS = (
    Part("checks", "checks", "every Triton kernel against the reference, four sizes, three types", 60),
    Part("tests", "suite", "tests/snn/engine/test_cuda.py on the GPU", 120),
    Part("roofline", "roofline", "bytes that each kernel must move over its time, against the bandwidth of a copy", 40),
    _speed("spikeprop", 60, STEP + "ours"),
    _speed("compiled loop", 90, STEP + "a loop over layers, neurons by torch.compile"),
    _speed("SpikingJelly Triton", 50, STEP + "SpikingJelly on its Triton back end"),
    _speed("SpikingJelly CuPy", 50, STEP + "SpikingJelly on CuPy (2.x: on its compiled CUDA extension, CuPy's successor)"),
    _speed("SpikingJelly torch", 60, STEP + "SpikingJelly on its torch back end"),
    Part("cifar10", "cifar", "CIFAR-10 trained as an ANN, converted, fine-tuned with STDB, evaluated", 120),
)
MACHINE = Part("machine", "machine", "the machine, its GPU, versions", 15)


def by_name(name: str) -> Part:
    return next(part for part in (MACHINE, *PARTS) if part.name == name)


def plan(budget: float, *, small: bool) -> str:
    """The parts, what each measures, and the seconds expected."""
    lines = [f"{part.name:<22}{part.seconds:>5} s  {part.what}" for part in PARTS]
    total = sum(part.seconds for part in (MACHINE, *PARTS))
    end = f"{'all':<22}{total:>5} s  expected on an H200 (no GPU has run it); the budget is {budget:.0f} s"
    form = ["in the small form, on the CPU, its times say nothing:"] if small else []
    return "\n".join([*form, *lines, end])
