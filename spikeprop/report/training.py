"""Training by epoch: accuracy and loss of each stage, on axes that do not enlarge noise, and the seconds of the stages.

An axis of accuracies is at least ten points wide, one of losses begins at 0. Beside the accuracy on the training images stands
that on some test images after each epoch (validation), and at the last epoch that on all of them, from the run's evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.axes import percent_axis, zero_axis
from spikeprop.report.charts import HEIGHT, Line, bar_chart, legend, line_chart
from spikeprop.report.comparison import COLOURS
from spikeprop.report.html import Markup, figure, note, tag

TEST, SECONDS = 3, 3  # colours
LOW = 170  # height of a chart of losses
MADE = {"ann": "ann", "finetune": "finetuned", "train": "trained"}  # stage to the network that it makes


def training(runs: Sequence[RunRecord]) -> Markup:
    """Accuracy and loss by epoch of every trained stage, with the accuracy on test images; and the seconds."""
    logged = [(i, run) for i, run in enumerate(runs) if run.metrics]
    if not logged:
        return note("Training curves: none of these folders has a metrics.jsonl.")
    parts, several = [], len(runs) > 1
    for stage in dict.fromkeys(entry["stage"] for _, run in logged for entry in run.metrics):
        drawn = [_trained(stage, key, logged, several) for key in ("accuracy", "loss")]
        caption = f"Stage {stage}, by epoch. {_about(stage, logged)}Losses begin at 0."
        parts.append(tag("figure", *drawn, tag("figcaption", caption), id=f"training-{stage}"))
    if not several:
        seconds = {"seconds": (runs[0].report or {}).get("seconds", {})}
        picture = bar_chart(f"Seconds by stage of {runs[0].name}", seconds, "seconds", {"seconds": SECONDS})
        parts.append(figure("seconds", picture, "Seconds by stage of the run."))
    missing = [run.name for run in runs if not run.metrics]
    notes = [note(f"{', '.join(missing)}: no metrics.jsonl in the folder, so no training curve.")] if missing else []
    return tag("div", *parts, *notes, class_="figures")


def _about(stage: str, logged: Sequence[tuple[int, RunRecord]]) -> str:
    """What the curves beside the training's are, and of how many images."""
    entries = [e for _, run in logged for e in run.metrics if e["stage"] == stage]
    counts = sorted({int(e["validation_images"]) for e in entries if e.get("validation_images")})
    images = " or ".join(f"{count:,}" for count in counts)
    measured = f"Training: mean over the epoch, while the weights change. Validation: on {images} test images after it. "
    return f"{measured if counts else 'Validation by epoch: not in this log. '}Test: on all test images after the last epoch. "


def _trained(stage: str, key: str, logged: Sequence[tuple[int, RunRecord]], several: bool) -> Markup:
    """One quantity of one stage, and the test accuracy of the network that the stage made."""
    lines, kind = [], MADE.get(stage, "finetuned")
    for i, run in logged:
        points = [(float(e["epoch"] + 1), float(e[key])) for e in run.metrics if e["stage"] == stage and e.get(key) is not None]
        if not points:
            continue
        name = f"{run.name}, training" if several else "training"
        lines.append(Line(name, points, COLOURS[kind], "solid", (), i))
        checked = [(float(e["epoch"] + 1), float(e["validation"])) for e in run.metrics if _validated(e, stage)]
        if key == "accuracy" and checked:
            name = f"{run.name}, validation" if several else "validation"
            lines.append(Line(name, checked, TEST, "dashed", (), i))
        test = _tested(run, kind) if key == "accuracy" else None
        if test is not None:
            at = [(points[-1][0], test)]
            lines.append(Line(f"{run.name}, test" if several else "test", at, TEST, "mark", (), i))
    if not lines:
        return Markup()
    what, vertical = {"loss": ("loss", zero_axis), "accuracy": ("accuracy (%)", percent_axis)}[key]
    picture = line_chart(
        f"Stage {stage}: {key} by epoch", lines, "epoch", what, vertical=vertical, height=HEIGHT if key == "accuracy" else LOW
    )
    return tag("div", legend(lines), picture, class_="drawing", id=f"training-{stage}-{key}")


def _validated(entry: Mapping[str, Any], stage: str) -> bool:
    return entry["stage"] == stage and entry.get("validation") is not None


def _tested(run: RunRecord, kind: str) -> float | None:
    """Accuracy on the test images of the network that a stage made, at the run's T."""
    found = (run.report or {}).get(kind, {}).get("accuracy")
    return found.get(str(run.steps)) if isinstance(found, dict) else found
