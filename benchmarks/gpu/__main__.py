"""Command line of the GPU benchmark; see the package."""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import __doc__ as about
from benchmarks.gpu.parts import MACHINE, PARTS, Context, by_name, plan
from benchmarks.gpu.running import Results, opened, run_all, run_here, run_part

OUT, COMPILED = Path("runs/bench/gpu.json"), Path("results/benchmarks/gpu_kernels.json")
FAILED, NO_GPU = 1, 3  # exit codes
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 (a part failed, or found something wrong), 3 (no GPU; nothing failed)."""
    options = _options(argv)
    if options.part:
        return _one_part(options)
    if options.compile:
        from benchmarks.gpu.expectation import compile_all

        compile_all(options.out or COMPILED)
        return 0
    return _all_parts(options)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", None, about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=720.0, help="seconds for all parts together, default 720")
    parser.add_argument("--out", type=Path, help=f"results, default {OUT}; parts that are done there are not run again")
    parser.add_argument("--again", action="store_true", help="run all parts, whatever --out has")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="default all")
    parser.add_argument("--compile", action="store_true", help=f"compile for GPUs that are not here instead, into {COMPILED}")
    parser.add_argument("--part", help="run one part in this process and print its records, one JSON object a line")
    parser.add_argument("--small", action="store_true", help="the small form on the CPU, also where there is a GPU")
    return parser.parse_args(argv)


def _one_part(options: argparse.Namespace) -> int:
    if sys.platform == "linux":  # a part must not outlive the process that keeps its records
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    return run_here(by_name(options.part), Context("cpu" if options.small else "cuda", options.budget, options.small))


def _all_parts(options: argparse.Namespace) -> int:
    out = options.out or OUT
    machine, why = _machine(options, out)
    small = options.small or not machine.get("gpu")
    print(f"GPU: {machine.get('gpu') or f'no GPU was found{why}'}")
    print(plan(options.budget, small=small), flush=True)
    settings = {"budget": options.budget, "small": small}
    try:
        results = opened(out, {"settings": settings, "machine": {"gpu": None, **machine}}, again=options.again)
    except ValueError as error:
        print(error, file=sys.stderr)
        return FAILED
    chosen = [part for part in PARTS if options.parts is None or part.name in options.parts]
    run_all(chosen, results, options.budget - MACHINE.seconds, small=small, say=lambda line: print(line, flush=True))
    print(f"results: {out}")
    if not small:
        from benchmarks.gpu.picture import draw

        print(f"picture: {draw(results.found, out.with_suffix('.png'))}")
    if any(results.part(part.name)["status"] not in ("done", "skipped") for part in chosen):
        return FAILED
    if not machine.get("gpu"):
        print("no GPU was found: every part ran in its small form on the CPU, kernels by Triton's interpreter", file=sys.stderr)
        return NO_GPU
    return 0


def _machine(options: argparse.Namespace, out: Path) -> tuple[dict[str, Any], str]:
    """What a process of its own finds of this machine, and why it found nothing."""
    results = Results(out.with_suffix(".machine.json"), {"parts": {}})
    run_part(MACHINE, results, 4.0 * MACHINE.seconds, small=options.small)
    results.file.unlink(missing_ok=True)
    known = results.part(MACHINE.name)
    return (known["records"][0], "") if known["records"] else ({}, f" ({known.get('error', '').strip()})")


if __name__ == "__main__":
    sys.exit(main())
