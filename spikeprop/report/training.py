"""Training by epoch: accuracy and loss of each stage, on axes that do not enlarge noise, and the seconds of the stages.

An axis of accuracies is at least ten points wide, one of losses begins at 0. A run measures its test images once after a stage;
that accuracy stands beside the curve's last epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.axes import percent_axis, zero_axis
from spikeprop.report.charts import HEIGHT, Line, bar_chart, legend, line_chart
from spikeprop.report.comparison import COLOURS
from spikeprop.report.html import Markup, figure, note, tag

TEST, SECONDS = 3, 3  # colours
LOW = 170  # height of a chart of losses
MADE = {"ann": "ann", "finetune": "finetuned", "train": "trained"}  # stage to the network that it makes


def training(runs: Sequence[RunRecord]) -> Markup:
    """Accuracy and loss by epoch of every trained stage, with the accuracy on the test images after it; and the seconds."""
    logged = [(i, run) for i, run in enumerate(runs) if run.metrics]
    if not logged:
        return note("Training curves: none of these folders has a metrics.jsonl.")
    parts, several = [], len(runs) > 1
    for stage in dict.fromkeys(entry["stage"] for _, run in logged for entry in run.metrics):
        drawn = [_trained(stage, key, logged, several) for key in ("accuracy", "loss")]
        caption = f"Stage {stage}, by epoch. Test: on the test images after the last epoch. Losses begin at 0."
        parts.append(tag("figure", *drawn, tag("figcaption", caption), id=f"training-{stage}"))
    if not several:
        seconds = {"seconds": (runs[0].report or {}).get("seconds", {})}
        picture = bar_chart(f"Seconds by stage of {runs[0].name}", seconds, "seconds", {"seconds": SECONDS})
        parts.append(figure("seconds", picture, "Seconds by stage of the run."))
    missing = [run.name for run in runs if not run.metrics]
    notes = [note(f"{', '.join(missing)}: no metrics.jsonl in the folder, so no training curve.")] if missing else []
    return tag("div", *parts, *notes, class_="figures")


def _trained(stage: str, key: str, logged: Sequence[tuple[int, RunRecord]], several: bool) -> Markup:
    """One quantity of one stage, and the test accuracy of the network that the stage made."""
    lines, kind = [], MADE.get(stage, "finetuned")
    for i, run in logged:
        points = [(float(e["epoch"] + 1), float(e[key])) for e in run.metrics if e["stage"] == stage and e.get(key) is not None]
        if not points:
            continue
        name = f"{run.name}, training" if several else "training"
        lines.append(Line(name, points, COLOURS[kind], "solid", (), i))
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


def _tested(run: RunRecord, kind: str) -> float | None:
    """Accuracy on the test images of the network that a stage made, at the run's T."""
    found = (run.report or {}).get(kind, {}).get("accuracy")
    return found.get(str(run.steps)) if isinstance(found, dict) else found
