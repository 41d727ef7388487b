"""``spikeprop explain``: an offline page about one training step of any torch network, with every backward edge in numbers.

At each edge x_bar = sum over outputs of y_bar * dy/dx, upstream times local = downstream. ``trace_step`` records the step,
``page_data`` turns it into JSON, ``replay`` computes the gradients from that JSON alone, ``write_page`` writes the page;
``explain`` does all of this. Learning rules (slot ``LearningRule``) can be compared with backpropagation (``variants``).
Formulas: ``spikeprop.plugins.derivatives``.
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
    """Trace a training step, compare rules and write the page.

    Args:
        subject: the training step.
        path: HTML file.
        rules: learning rules to compare with backpropagation, by name.
        limit: maximum of numbers in all tensors for a complete page; larger pages contain samples.

    Returns:
        the data of the page, with "bytes", the size of the file.

    Raises:
        ExplainError: the step cannot be shown.
    """
    step = trace_step(subject)
    data = page_data(subject, step, limit)
    if rules:
        data["variants"] = variants(subject, step, rules)
    return {**data, "bytes": write_page(path, data)}
