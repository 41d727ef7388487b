"""The comparison of runs: one table, and curves of accuracy against T, SynOps and energy, by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spikeprop.evaluate import ENERGY_MODEL
from spikeprop.evaluate.report import LABELS, steps_text
from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.axes import percent_axis
from spikeprop.report.charts import Line, bar_chart, legend, line_chart, marker_key, ring_key, styles
from spikeprop.report.headline import energy_terms, recommended
from spikeprop.report.html import Markup, figure, folded, join, note, percent, table, tag

STYLES = {"ann": "dotted", "converted": "dashed", "finetuned": "solid", "trained": "solid"}
COLOURS = {"ann": 2, "converted": 1, "finetuned": 0, "trained": 0}  # a network's on the complete page; runs differ in markers
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
        parts.append(table("Runs" if not others else "Pipelines", [*NAMED, *heads, *WHERE], rows, kind="runs"))
    if others:
        rows = [_row(i, run, [run.headline_text()], several) for i, run in others]
        parts.append(table("Experiments of plugins", [*NAMED, "figures", *WHERE], rows, kind="runs"))
    return join(parts)


def _row(i: int, run: RunRecord, figures: list[Any], several: bool) -> list[Any]:
    swatch = marker_key(i) if several else ""
    named = tag("span", swatch, tag("a", run.name, href=f"#run-{i}"), class_="named")
    return [named, run.recipe, run.state, *figures, str(_seed(run)), run.started(), _commit(run)]


NAMED, WHERE = ["run", "recipe", "state"], ["seed", "begun", "commit"]
HEADS = ["ANN", *LABELS.values(), "T", "MACs", "SynOps", "uJ, ANN", "uJ, SNN", "recommended T", "seconds"]
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
        recommended(run),
        f"{sum(run.report['seconds'].values()):.1f}",
    ]


def curves(runs: Sequence[RunRecord]) -> Markup:
    """Accuracy against time steps, SynOps and energy of all runs of a pipeline; SynOps and energy take turns."""
    shown = [(i, run) for i, run in enumerate(runs) if run.pipeline]
    if not shown:
        return note("Accuracy against T, SynOps and energy: none of these runs is a finished one of a pipeline.")
    several = len(runs) > 1
    synops: Costs = lambda active: sum(active["synops"].values())  # noqa: E731
    joules: Costs = lambda active: active["energy_joules"] * 1e6  # noqa: E731
    macs = {i: float(run.report["macs"]) for i, run in shown if run.report and run.hybrid}
    energy = {i: run.report["energy_joules"]["ann"] * 1e6 for i, run in shown if run.report and run.hybrid}
    parts = [
        _against_steps(shown, several),
        _against("synops", "SynOps an example (ANN: MACs)", shown, several, synops, macs),
        _against("energy", f"uJ an example ({ENERGY_MODEL})", shown, several, joules, energy),
        *(_by_layer(shown[0][1]) if not several else []),
    ]
    table_of_steps = table("Every measured T", STEP_HEADS, [row for _, run in shown for row in _step_rows(run, several)])
    return tag(
        "div",
        _toggle(),
        tag("div", *parts, class_="figures"),
        folded("Numbers of every measured T", table_of_steps),
        class_="costs",
    )


def _toggle() -> Markup:
    """The choice between SynOps and energy, which the style sheet reads."""
    choices = [("synops", "SynOps"), ("energy", "energy")]
    boxes = [
        tag("input", type="radio", name="cost", value=key, checked="checked" if key == "energy" else None) for key, _ in choices
    ]
    labels = [tag("label", box, f" {text}") for box, (_, text) in zip(boxes, choices)]
    return tag("fieldset", tag("legend", "Cost shown as"), *labels, class_="choice")


STEP_HEADS = ["network", "T", "accuracy (%)", "95 % interval", "bits a neuron", "SynOps", "uJ", "of the ANN's energy",
              "recommended"]  # fmt: skip


def _step_rows(run: RunRecord, several: bool) -> list[list[Any]]:
    """Rows under STEP_HEADS: the ANN, then each network at each number of steps."""
    report, best = run.report or {}, recommended(run)
    ann = report["energy_joules"]["ann"] if run.hybrid else None
    rows: list[list[Any]] = []
    if ann is not None:
        accuracy, band = f"{report['ann']['accuracy']:.2f}", _band(report["ann"].get("interval"))
        rows.append([_label(run, "ann", several), "-", accuracy, band, "-", report["macs"], f"{ann * 1e6:.4g}", "1", ""])
    for kind in run.networks:
        for t, a in _points(report[kind]):
            at = str(int(t))
            steps, bits = _steps_and_bits(report[kind], int(t))
            cost: list[Any] = [None, None, None]
            if active := (report[kind].get("activity") or {}).get(at):
                joules: float = active["energy_joules"]
                share = f"{joules / ann:.3f}" if ann else None
                cost = [round(sum(active["synops"].values())), f"{joules * 1e6:.4g}", share]
            chosen = "yes" if kind == list(run.networks)[-1] and int(t) == best else ""
            band = _band(report[kind].get("interval", {}).get(at))
            rows.append([_label(run, kind, several), steps, f"{a:.2f}", band, bits, *cost, chosen])
    return rows


def _band(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}" if ends else "-"


def _by_layer(run: RunRecord) -> list[Markup]:
    """SynOps and energy by the layer whose spikes cause them, at the recommended T if counted there, or the run's."""
    best = recommended(run)
    at = best if best is not None and energy_terms(run, best) else run.steps
    terms = energy_terms(run, at) or {}
    label = list(run.networks.values())[-1]
    colours = {label: COLOURS[list(run.networks)[-1]]}
    parts = []
    for name, what, place, scale in (
        ("synops", "SynOps an example", 0, 1.0),
        ("energy", f"uJ an example ({ENERGY_MODEL})", 1, 1e6),
    ):
        bars = {layer: found[place] * scale for layer, found in terms.items()}
        caption = f"{what.partition(' ')[0]} by the layer whose spikes cause them, at T = {at}" + (
            ", the recommended one." if at == best else "."
        )
        picture = bar_chart(f"{caption} {run.name}", {label: bars}, what, colours)
        parts.append(figure(f"layers-{name}", picture, caption, class_=f"of-{name}"))
    return parts


def _against_steps(shown: Sequence[tuple[int, RunRecord]], several: bool) -> Markup:
    lines = []
    for i, run in shown:
        report = run.report or {}
        steps: set[float] = set()
        for kind in run.networks:
            points = _points(report[kind])
            steps |= {float(t) for t, _ in points}
            bands = report[kind].get("interval", {})
            band = [(t, *bands[str(int(t))]) for t, _ in points if bands.get(str(int(t)))]
            chosen = recommended(run) if kind == list(run.networks)[-1] else None
            look = (COLOURS[kind], STYLES[kind], band if not several else ())
            lines += [Line(_label(run, kind, several), points, *look, i, chosen=chosen)] if points else []
        if run.hybrid and steps:
            level = [(t, report["ann"]["accuracy"]) for t in sorted({min(steps), max(steps)})]
            lines.append(Line(_label(run, "ann", several), level, COLOURS["ann"], "dotted", (), i))
    if not lines:
        return note("Accuracy against T: no network of these runs has an accuracy.")
    marks = sorted({x for line in lines for x, _ in line.points})
    picture = line_chart(
        "Accuracy against time steps", lines, "time steps T", "accuracy (%)", log=True, marks=marks, vertical=percent_axis
    )
    caption = "Accuracy on the test images." + ("" if several else " Bands are 95 % intervals where the report has them.")
    return figure("accuracy-steps", join([_legend(lines, shown, several), picture]), caption)


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
            at = [(cost(active[str(int(t))]), a, steps_text(int(t), levels), int(t)) for t, a in points if str(int(t)) in active]
            if at:
                points, names = [(x, a) for x, a, *_ in at], {x: text for x, _, text, _ in at}
                best = recommended(run) if kind == list(run.networks)[-1] else None
                chosen = next((x for x, *_, t in at if t == best), None)
                lines.append(Line(_label(run, kind, several), points, COLOURS[kind], STYLES[kind], (), i, names, chosen))
        if i in of_ann:
            point = [(of_ann[i], report["ann"]["accuracy"])]
            lines.append(Line(_label(run, "ann", several), point, COLOURS["ann"], "mark", (), i))
    what = x_label.partition(" ")[0]
    if not lines:
        return note(f"Accuracy against {what}: no network of these runs has an accuracy with its {what}.")
    picture = line_chart(f"Accuracy against {what}", lines, x_label, "accuracy (%)", log=True, vertical=percent_axis)
    caption = f"Accuracy against {what} an example."
    return figure(f"accuracy-{name}", join([_legend(lines, shown, several), picture]), caption, class_=f"of-{name}")


def _at_one(report: dict[str, Any], kind: str, steps: int) -> dict[str, Any]:
    """Older reports count only the spikes of the last network, at one T."""
    if kind == "converted" and report.get("finetuned_epochs", 1):
        return {}
    return {str(steps): {"synops": report["synops"], "energy_joules": report["energy_joules"]["snn"]}}


def _legend(lines: Sequence[Line], shown: Sequence[tuple[int, RunRecord]], several: bool) -> Markup:
    """For several runs the boxes show their markers, so the legend only explains colours and styles of the networks."""
    best = {recommended(run) for _, run in shown}
    ringed = [line.colour for line in lines if line.chosen is not None]
    text = "recommended T" + (f" = {best.pop()}" if len(best) == 1 else "")
    ring = [ring_key(text, ringed[0])] if ringed else []
    if not several:
        return legend(lines, *ring)
    used = {(line.style, line.colour): line.label.rpartition(", ")[2] for line in lines}
    return tag("ul", styles({label: look for look, label in used.items()}), *ring, class_="legend")


def _points(found: dict[str, Any]) -> list[tuple[float, float]]:
    return [(float(t), a) for t, a in found["accuracy"].items() if a is not None]


def _label(run: RunRecord, kind: str, several: bool) -> str:
    what = "ANN" if kind == "ann" else run.networks[kind]
    return f"{run.name}, {what}" if several else what


def _seed(run: RunRecord) -> Any:
    return run.settings.get("seed", run.settings.get("seeds", "-"))


def _commit(run: RunRecord) -> str:
    return run.about.get("commit") or "installed"
