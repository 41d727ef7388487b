"""Reports of the plugins' experiments: one that is saved with its picture, and one that compares arms.

An arm is one variant of an experiment. Arms share their seeds, so differences to the baseline are paired; means and differences
have 95 % intervals of Student's t over seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprop.evaluate import Report
from spikeprop.evaluate.intervals import in_words, mean_interval, paired_difference
from spikeprop.experiment.context import Context
from spikeprop.plugins.pictures import draw_arms
from spikeprop.runtime.checks import distinct

Values = dict[str, Any]
Rows = list[tuple[str, str]]


def save_report(
    context: Context, values: Values, rows: Callable[[Values], Rows], draw: Callable[[Values, Path], None] | None = None
) -> Report:
    """The report of a run, saved as report.json, with a picture report.png.

    Args:
        context: of the run.
        values: figures; the run's seconds and provenance are added.
        rows: makes the table of the complete values.
        draw: draws the complete values to a PNG file.
    """
    values = {**values, "seconds": context.folder.seconds(), "provenance": context.folder.provenance()}
    report = Report(name=context.name, values=values, rows=rows(values))
    if context.writes:
        report.save(context.folder.path / "report.json")
        if draw is not None:
            draw(values, context.folder.path / "report.png")
    return report


def check_arms(experiment: Any) -> None:
    """Check an experiment with ``seeds``, ``arms`` and ``baseline``.

    Raises:
        ValueError: a baseline that is not an arm, no seeds, or a seed that occurs twice.
    """
    if experiment.baseline not in experiment.arms:
        raise ValueError(f"baseline is {experiment.baseline!r}, which is not an arm; arms: {', '.join(experiment.arms)}")
    distinct(experiment, "seeds")


def progress_file(context: Context, arm: str, seed: int) -> Path:
    """Where the training of an arm and seed saves its progress."""
    return context.folder.path / f"{re.sub(r'[^a-zA-Z0-9]+', '_', arm)}.{seed}.progress.safetensors"


def report_arms(found: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str, context: Context, **more: Any) -> Report:
    """The report of an experiment with arms.

    Args:
        found: results by arm, in the order of seeds; each has "accuracy" in percent, and further values for the report.
        baseline: the arm that the other arms are compared with.
        context: of the run.
        more: further values of the report.
    """
    arms = arms_of(found, baseline)
    return save_report(
        context,
        {"name": context.name, "baseline": baseline, **more, "arms": arms},
        lambda _: [(name, arm_in_words(arm, name == baseline)) for name, arm in arms.items()],
        lambda _, path: draw_arms({name: arm["accuracy"] for name, arm in arms.items()}, baseline, path, context.name),
    )


def arms_of(found: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str) -> dict[str, Values]:
    """Accuracies of each arm, their mean, the paired differences to the baseline, and the other values of its runs."""
    accuracy = {name: [one["accuracy"] for one in runs] for name, runs in found.items()}
    return {
        name: {
            "accuracy": values,
            **mean_interval(values),
            "against_baseline": paired_difference(values, accuracy[baseline]),
            "runs": [{k: v for k, v in one.items() if k != "accuracy"} for one in found[name]],
        }
        for name, values in accuracy.items()
    }


def arm_in_words(arm: Values, is_baseline: bool) -> str:
    """The mean of an arm with its interval, and the difference to the baseline."""
    text = in_words(arm, unit=" %")
    collapsed = sum("collapsed" in one for one in arm["runs"])
    text += f", {collapsed} of {arm['n']} collapsed" if collapsed else ""
    return text if is_baseline else f"{text}   against the baseline {in_words(arm['against_baseline'], sign=True)}"
