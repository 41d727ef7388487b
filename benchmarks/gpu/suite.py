"""The CUDA tests as a part: pytest on ``tests/snn/engine/test_cuda.py``, on the GPU or by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.parts import Absent, Context

FILE = "tests/snn/engine/test_cuda.py"
SMALL = "test_a_potential_at_the_threshold or test_scan_back_of_half_precision"
WORKERS = 4  # the time goes into compilation


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record: how many passed, what failed."""
    if importlib.util.find_spec("pytest") is None:
        raise Absent("pytest is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"} if context.small else dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", FILE]
        if context.small:
            command += ["-k", SMALL]
        elif importlib.util.find_spec("xdist") and (os.cpu_count() or 1) > WORKERS:
            command += ["-n", str(WORKERS)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise RuntimeError(f"pytest wrote no report:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        yield summary(report)


def summary(report: Path) -> dict[str, Any]:
    """Counts, and the first lines of what failed."""
    cases = list(ET.parse(report).iter("testcase"))
    failures = {
        f"{case.get('classname')}.{case.get('name')}": (found.get("message") or "")[:500]
        for case in cases
        for kind in ("failure", "error")
        for found in case.iter(kind)
    }
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    return {"passed": len(cases) - len(failures) - skipped, "skipped": skipped, "failed": failures, "good": not failures}
