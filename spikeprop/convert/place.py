"""Where in the network's own code something happens: the innermost line that is neither PyTorch's nor the tracer's."""

from __future__ import annotations

import linecache
from pathlib import Path
from traceback import walk_tb
from types import FrameType

import torch

from spikeprop.runtime import tracing

Place = tuple[str, int]  # file and line
OUR_OWN = (*map(str, torch.__path__), str(Path(__file__).parent), tracing.__file__, "<")  # "<": generated code


def place_of_frame(frame: FrameType | None) -> Place | None:
    """The innermost line of the network's code, from a frame inside the trace outwards; None if it is PyTorch's."""
    while frame is not None and frame.f_code is not tracing.OwnTracer.run_traced.__code__:
        if not frame.f_code.co_filename.startswith(OUR_OWN):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def place_of_error(error: BaseException) -> Place | None:
    """The innermost line of the network's code that an error passed."""
    found = None
    for frame, line in walk_tb(error.__traceback__):
        if not frame.f_code.co_filename.startswith(OUR_OWN):
            found = frame.f_code.co_filename, line
    return found


def told(place: Place | None) -> str:
    """The place in words, to be put after what happened there; empty if there is none."""
    if place is None:
        return ""
    file, line = place
    source = linecache.getline(file, line).strip()
    return f" at {file}:{line}" + (f", `{source}`" if source else "")
