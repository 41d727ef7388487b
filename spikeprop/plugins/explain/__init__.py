"""``spikeprop explain``: one training step of any torch network as an offline page, every edge of its backward pass in numbers.

``trace_step`` records the step, ``page_data`` turns it into JSON, ``replay`` computes the gradients from that JSON alone,
``write_page`` makes the page; ``explain`` does all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeprop.learn import LearningRule
from spikeprop.plugins.explain.data import COMPLETE, page_data
from spikeprop.plugins.explain.html import page_html, write_page
from spikeprop.plugins.explain.replay import replay
from spikeprop.plugins.explain.step import TracedStep, TrainingStep, trace_step
from spikeprop.plugins.explain.variants import variants

__all__ = ["TracedStep", "TrainingStep", "explain", "page_data", "page_html", "replay", "trace_step", "variants", "write_page"]


def explain(
    subject: TrainingStep, path: Path, rules: Mapping[str, LearningRule] | None = None, *, limit: int = COMPLETE
) -> dict[str, Any]:
    """Trace a subject, compare rules and write the page.

    Args:
        subject: what to show.
        path: of the HTML file.
        rules: variants to show beside backpropagation, by name.
        limit: numbers in all tensors up to which the page holds every one.

    Returns:
        the page's data, with "bytes", the size of the file.

    Raises:
        ExplainError: something that cannot be shown.
    """
    step = trace_step(subject)
    data = page_data(subject, step, limit)
    if rules:
        data["variants"] = variants(subject, step, rules)
    return {**data, "bytes": write_page(path, data)}
