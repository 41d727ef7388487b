"""The comparison of runs: one table, and curves of accuracy against T, SynOps and energy, and of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spikeprop.evaluate import ENERGY_MODEL
from spikeprop.evaluate.report import LABELS, steps_text
from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.charts import COLOURS as COUNT
from spikeprop.report.charts import Line, legend, line_chart, styles
from spikeprop.report.html import Markup, figure, join, note, number, numbers, percent, table, tag

STYLES = {"ann": "dotted", "converted": "dashed", "finetuned": "solid", "trained": "solid"}
COLOURS = {
    "ann": 2,
    "converted": 1,
    "finetuned": 0,
    "trained": 0,
}  # by network for a single run; several runs have one colour each
Costs = Callable[[dict[str, Any]], float]


def overview(runs: Sequence[RunRecord]) -> Markup:
    """A table with one line for each run; experiments of plugins, which have other results, are in a second table."""
    numbered = list(enumerate(runs))
    jobs = [(i, run) for i, run in numbered if run.pipeline or run.report is None]
    others = [(i, run) for i, run in numbered if not (run.pipeline or run.report is None)]
    several = len(runs) > 1
    parts = []
    if jobs:
        heads = _heads([run for _, run in jobs])
        rows = [_row(i, run, [cell for head, cell in zip(HEADS, _figures(run)) if head in heads], several) for i, run in jobs]
        parts.append(table("Runs" if not others else "Pipelines", [*NAMED, *heads, *WHERE], rows, class_="runs"))
        parts += [note(text) for text in filter(None, (_certainty(run, several) for _, run in jobs))]
    if others:
        rows = [_row(i, run, [run.headline_text()], several) for i, run in others]
        parts.append(table("Experiments of plugins", [*NAMED, "figures", *WHERE], rows, class_="runs"))
    return join(parts)


def _row(i: int, run: RunRecord, figures: list[Any], several: bool) -> list[Any]:
    swatch = tag("span", class_=f"swatch c{i % COUNT}") if several else ""
    named = tag("span", swatch, tag("a", run.name, href=f"#run-{i}"), class_="named")
    return [named, run.recipe, run.state, *figures, str(_seed(run)), run.started(), _commit(run)]


def _certainty(run: RunRecord, several: bool) -> str:
    """On how many images a run's accuracies are measured, and how certain they are; empty where it does not say it."""
    report, images = run.report or {}, run.stages.get("data", {}).get("result", {}).get("test_images")
    bands = {"ANN": report["ann"].get("interval")} if run.hybrid else {}
    for kind, label in run.networks.items():
        bands[f"{label}, T = {run.steps}"] = report[kind].get("interval", {}).get(str(run.steps))
    shown = [f"{label} {band[0]:.2f} to {band[1]:.2f} %" for label, band in bands.items() if band]
    if not (images and shown):
        return ""
    what = f"{run.name}: accuracies of" if several else "Accuracies of"
    return f"{what} {images:,} test images; 95 % intervals: {'; '.join(shown)}."


NAMED, WHERE = ["run", "recipe", "state"], ["seed", "begun", "commit"]
HEADS = ["ANN", *LABELS.values(), "T", "MACs", "SynOps", "uJ, ANN", "uJ, SNN", "seconds"]
OF_HYBRID = ["ANN", "converted", "fine-tuned", "MACs", "uJ, ANN"]


def _heads(runs: Sequence[RunRecord]) -> list[str]:
    """The columns that some run has: there is no ANN where all were trained from scratch, and the other way round."""
    scratch = any("trained" in run.networks for run in runs)
    hybrid = not scratch or any(run.hybrid for run in runs)
    tuned = any("finetuned" in run.networks for run in runs)
    absent = {*([] if scratch else ["trained"]), *([] if hybrid else OF_HYBRID), *([] if tuned else ["fine-tuned"])}
    return [head for head in HEADS if head not in absent]


def _figures(run: RunRecord) -> list[Any]:
    """The cells under HEADS."""
    found = run.figures()
    if not found or run.report is None:
        return ["-"] * len(HEADS)
    shares = [percent(found[name]) if found[name] is not None else "-" for name in HEADS[: 1 + len(LABELS)]]
    synops = round(found["SynOps"] or 0)
    joules = [f"{found[name]:.4g}" if found[name] is not None else "-" for name in ("uJ, ANN", "uJ, SNN")]
    levels = run.report[next(iter(run.networks))].get("levels", 1)
    return [
        *shares,
        found["T"] if levels == 1 else f"{found['T']} x {levels}",
        found["MACs"] if found["MACs"] is not None else "-",
        synops,
        *joules,
        f"{sum(run.report['seconds'].values()):.1f}",
    ]


def curves(runs: Sequence[RunRecord]) -> Markup:
    """Accuracy against time steps, SynOps and energy of all runs of a pipeline."""
    shown = [(i, run) for i, run in enumerate(runs) if run.pipeline]
    if not shown:
        return note("Accuracy against T, SynOps and energy: none of these runs is a finished one of a pipeline.")
    several = len(runs) > 1
    parts = [_against_steps(shown, several)]
    synops: Costs = lambda active: sum(active["synops"].values())  # noqa: E731
    joules: Costs = lambda active: active["energy_joules"] * 1e6  # noqa: E731
    macs = {i: float(run.report["macs"]) for i, run in shown if run.report and run.hybrid}
    energy = {i: run.report["energy_joules"]["ann"] * 1e6 for i, run in shown if run.report and run.hybrid}
    parts.append(_against("synops", "SynOps an example (of an ANN: multiply-accumulates)", shown, several, synops, macs))
    parts.append(_against("energy", f"uJ an example ({ENERGY_MODEL})", shown, several, joules, energy))
    lacking = [run.name for _, run in shown if not run.report or not run.report[next(iter(run.networks))].get("activity")]
    if lacking:
        why = f"{', '.join(lacking)}: the report is of a version that counts spikes at one T only, so there is one point of cost."
        parts.append(note(why))
    return tag("div", *parts, class_="figures")


def _against_steps(shown: Sequence[tuple[int, RunRecord]], several: bool) -> Markup:
    lines, rows = [], []
    for i, run in shown:
        report = run.report or {}
        steps: set[float] = set()
        for kind in run.networks:
            points = _points(report[kind])
            steps |= {float(t) for t, _ in points}
            bands = report[kind].get("interval", {})
            band = [(t, *bands[str(int(t))]) for t, _ in points if bands.get(str(int(t)))]
            lines.append(Line(_label(run, kind, several), points, _colour(i, kind, several), STYLES[kind], band, i))
            rows += [[lines[-1].label, *_steps_and_bits(report[kind], int(t)), f"{a:.2f}"] for t, a in points]
        if run.hybrid:
            level = [(t, report["ann"]["accuracy"]) for t in sorted({min(steps), max(steps)})]
            lines.append(Line(_label(run, "ann", several), level, _colour(i, "ann", several), "dotted", (), i))
    marks = sorted({x for line in lines for x, _ in line.points})
    picture = line_chart("Accuracy against time steps", lines, "time steps T", "accuracy (%)", log=True, marks=marks)
    caption = "Accuracy against the number of time steps, of the test set; bands are 95 % intervals where the report has them."
    below = numbers("Accuracy by T", ["network", "T", "bits a neuron", "accuracy (%)"], rows)
    return figure("accuracy-steps", join([_legend(lines, several), picture]), caption, below)


def _steps_and_bits(found: dict[str, Any], steps: int) -> tuple[str, str]:
    """T, with the levels of graded spikes; and the bits that a neuron sends for an image, where they were counted."""
    levels, active = found.get("levels", 1), (found.get("activity") or {}).get(str(steps), {})
    bits = f"{active['bits_per_neuron']:.3g}" if "bits_per_neuron" in active else "-"
    return (str(steps) if levels == 1 else f"{steps} x {levels} levels"), bits


def _against(
    name: str, x_label: str, shown: Sequence[tuple[int, RunRecord]], several: bool, cost: Costs, of_ann: dict[int, float]
) -> Markup:
    lines = []
    for i, run in shown:
        report = run.report or {}
        for kind in run.networks:
            active = report[kind].get("activity") or _at_one(report, kind, run.steps)
            levels, points = report[kind].get("levels", 1), _points(report[kind])
            at = [(cost(active[str(int(t))]), a, steps_text(int(t), levels)) for t, a in points if str(int(t)) in active]
            if at:
                points, names = [(x, a) for x, a, _ in at], {x: text for x, _, text in at}
                lines.append(Line(_label(run, kind, several), points, _colour(i, kind, several), STYLES[kind], (), i, names))
        if i in of_ann:
            point = [(of_ann[i], report["ann"]["accuracy"])]
            lines.append(Line(_label(run, "ann", several), point, _colour(i, "ann", several), "mark", (), i))
    what = x_label.partition(" ")[0]
    picture = line_chart(f"Accuracy against {what}", lines, x_label, "accuracy (%)", log=True)
    rows = [[line.label, line.names.get(x, "-"), f"{x:.6g}", f"{y:.2f}"] for line in lines for x, y in line.points]
    below = numbers(f"Accuracy by {what}", ["network", "T", what, "accuracy (%)"], rows)
    return figure(f"accuracy-{name}", join([_legend(lines, several), picture]), f"Accuracy against {what} an example.", below)


def _at_one(report: dict[str, Any], kind: str, steps: int) -> dict[str, Any]:
    """Older reports count only the spikes of the last network, at one T."""
    if kind == "converted" and report.get("finetuned_epochs", 1):
        return {}
    return {str(steps): {"synops": report["synops"], "energy_joules": report["energy_joules"]["snn"]}}


def training(runs: Sequence[RunRecord]) -> Markup:
    """Loss and accuracy by epoch, of every trained stage."""
    logged = [(i, run) for i, run in enumerate(runs) if run.metrics]
    if not logged:
        return note("Training curves: none of these folders has a metrics.jsonl.")
    parts = []
    for stage in dict.fromkeys(entry["stage"] for _, run in logged for entry in run.metrics):
        parts += [_trained(stage, key, logged, len(runs) > 1) for key in ("loss", "accuracy")]
    missing = [run.name for run in runs if not run.metrics]
    notes = [note(f"{', '.join(missing)}: no metrics.jsonl in the folder, so no training curve.")] if missing else []
    return tag("div", *(p for p in parts if p), *notes, class_="figures")


def _trained(stage: str, key: str, logged: Sequence[tuple[int, RunRecord]], several: bool) -> Markup:
    lines = []
    for i, run in logged:
        points = [(float(e["epoch"] + 1), float(e[key])) for e in run.metrics if e["stage"] == stage and key in e]
        if points:
            lines.append(Line(run.name, points, i if several else COLOURS["finetuned"], "solid", (), i))
    if not lines:
        return Markup()
    what = {"loss": "loss", "accuracy": "accuracy in training (%)"}[key]
    title = f"Stage {stage}: {key} by epoch"
    picture = line_chart(title, lines, "epoch", what)
    rows = [[line.label, number(x), f"{y:.6g}"] for line in lines for x, y in line.points]
    return figure(f"training-{stage}-{key}", picture, title,
                  numbers(title, ["run", "epoch", what], rows))  # fmt: skip


def _legend(lines: Sequence[Line], several: bool) -> Markup:
    """For several runs the table shows their colours, so the legend only explains the line styles."""
    if not several:
        return legend(lines)
    last = "mark" if any(line.style == "mark" for line in lines) else "dotted"
    solid = [label for label in ("fine-tuned", "trained") if any(label in line.label for line in lines)]
    others = {"dashed": "converted", last: "ANN"} if any("ANN" in line.label for line in lines) else {}
    return styles({"solid": " or ".join(solid), **others})


def _points(found: dict[str, Any]) -> list[tuple[float, float]]:
    return [(float(t), a) for t, a in found["accuracy"].items() if a is not None]


def _label(run: RunRecord, kind: str, several: bool) -> str:
    what = "ANN" if kind == "ann" else run.networks[kind]
    return f"{run.name}, {what}" if several else what


def _colour(run: int, kind: str, several: bool) -> int:
    return run if several else COLOURS[kind]


def _seed(run: RunRecord) -> Any:
    return run.settings.get("seed", run.settings.get("seeds", "-"))


def _commit(run: RunRecord) -> str:
    return run.about.get("commit") or "installed"
