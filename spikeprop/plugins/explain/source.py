"""``calling_line``: the line of code that made the call which is recorded at the moment."""

from __future__ import annotations

import linecache
import sys
import sysconfig
from pathlib import Path

import torch

OWN = f"{Path(__file__).parent}/"
STARTS = (f"{OWN}step.py", f"{OWN}spiking.py")  # call the network: frames below them are not part of it
TORCH = f"{Path(torch.__path__[0])}/"
PYTHON = f"{sysconfig.get_path('stdlib')}/"

Line = tuple[str, int, str]


def calling_line() -> Line | None:
    """File, line number and text of the innermost line outside of torch, or else of the innermost of torch's modules."""
    frame, left, inner = sys._getframe(1), False, None
    while frame is not None:
        file = frame.f_code.co_filename
        if left and file in STARTS:
            break
        if _is_ours(file):
            pass
        elif file.startswith(TORCH):
            left = True
            if inner is None and file.startswith(f"{TORCH}nn/modules/") and not file.endswith("/module.py"):
                inner = _line(file, frame.f_lineno)
        elif not file.startswith("<") and (not file.startswith(PYTHON) or "-packages/" in file):
            return _line(file, frame.f_lineno)
        frame = frame.f_back
    return inner


def _is_ours(file: str) -> bool:
    return file.startswith(OWN) and not file.endswith("/gallery.py")


def _line(file: str, number: int) -> Line:
    """The path is relative to the folder from which it is imported."""
    roots = [p for p in sys.path if p and file.startswith(f"{p.rstrip('/')}/")]
    root = max(roots, key=len, default=str(Path(file).parent))
    return str(Path(file).relative_to(root)), number, linecache.getline(file, number).strip()
