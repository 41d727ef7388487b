"""The report page: head, style, contents, the comparison of runs, then each run; the page loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report import comparison, plugin_section, run_section
from spikeprop.report.charts import COLOURS
from spikeprop.report.html import Markup, folded, join, note, table, tag
from spikeprop.runtime.files import leaves

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(runs: Sequence[RunRecord], evidence: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """The page as HTML.

    Args:
        runs: in the order of the page.
        evidence: of each run, from ``spikeprop.report.evidence``.
        title: of the page; default the run's name.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("a page needs at least one run")
    title = title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} - spikeprop"),
        tag("style", _resource("style.css")),
    )
    body = tag("body", tag("header", tag("h1", title), _contents(runs)), tag("main", *_main(runs, evidence)), _script())
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _main(runs: Sequence[RunRecord], evidence: Sequence[Mapping[str, Any]]) -> list[Markup]:
    parts = [tag("h2", "Overview", id="overview"), _choice(runs), comparison.overview(runs)]
    if any(run.pipeline for run in runs):
        parts += [tag("h2", "Accuracy", id="accuracy"), comparison.curves(runs)]
    if any(run.metrics or (run.pipeline and _trains(run)) for run in runs):
        parts += [tag("h2", "Training", id="training"), comparison.training(runs)]
    parts += [_run(i, run, found, len(runs) == 1) for i, (run, found) in enumerate(zip(runs, evidence))]
    return parts


def _trains(run: RunRecord) -> bool:
    """Whether a run has epochs of training, by its recipe."""
    sections = [run.settings.get(name) for name in ("train", "finetune")]
    return any(section.get("epochs", 1) for section in sections if isinstance(section, Mapping))


def _run(number: int, run: RunRecord, found: Mapping[str, Any], alone: bool) -> Markup:
    name = f"run-{number}"
    if run.report is None:
        inside = note(f"This run is not finished ({run.state}), so it has no results; the same command continues it.")
    elif run.pipeline:
        inside = run_section.sections(run, found, name)
    else:
        inside = plugin_section.sections(run, name)
    parts = [inside, tag("h3", "Provenance", id=f"{name}-provenance"), _provenance(run)]
    summary = "Layers, spikes, confusions, provenance" if run.pipeline else "Result and provenance"
    heading = tag("h2", run.name if alone else f"{run.name} ({run.recipe})", id=name)
    return tag(
        "section",
        heading,
        *(parts if alone else [folded(summary, *parts)]),
    )


def _provenance(run: RunRecord) -> Markup:
    about, report = run.about, run.report or {}
    machine, commits = about.get("machine", {}), {name: stage.get("commit") for name, stage in run.stages.items()}
    commits = commits or report.get("provenance", {}).get("commits", {})
    seconds = {name: stage["seconds"] for name, stage in run.stages.items()} or report.get("seconds", {})
    rows = [
        ["recipe", run.recipe],
        ["state", run.state],
        ["seed", str(run.settings.get("seed", run.settings.get("seeds", "-")))],
        ["begun", run.started()],
        ["commit", str(about.get("commit"))],
        ["device", str(report.get("device", "-"))],
        *([key, str(value)] for key, value in machine.items()),
        ["python", str(about.get("python", "-"))],
        *([key, str(value)] for key, value in about.get("versions", {}).items()),
        ["energy", str(report.get("energy_joules", {}).get("constants", "-"))],
    ]
    stages = [[name, f"{spent:.2f}", str(commits.get(name))] for name, spent in seconds.items()]
    settings = [[key, str(value)] for key, value in leaves(run.settings).items()]
    return join([
        table("Machine, versions and settings of the run", ["what", "value"], rows),
        table("Seconds and commit by stage", ["stage", "seconds", "commit"], stages) if stages else Markup(),
        folded("Settings", table("The resolved recipe", ["key", "value"], settings)),
    ])  # fmt: skip


def _contents(runs: Sequence[RunRecord]) -> Markup:
    links = [("overview", "Overview")]
    links += [("accuracy", "Accuracy")] if any(run.pipeline for run in runs) else []
    links += [("training", "Training")] if any(run.metrics for run in runs) else []
    links += [(f"run-{i}", run.name) for i, run in enumerate(runs)]
    if len(runs) == 1 and runs[0].pipeline:  # a long page
        links += run_section.links(runs[0], "run-0")
    return tag("nav", tag("ul", *(tag("li", tag("a", text, href=f"#{name}")) for name, text in links)), aria_label="Contents")


def _choice(runs: Sequence[RunRecord]) -> Markup:
    """Check boxes that hide a run's curves; the script enables them."""
    if len(runs) == 1:
        return Markup()
    ticked = [tag("input", type="checkbox", checked="checked", data_shows=i) for i in range(len(runs))]
    swatches = [tag("span", class_=f"swatch c{i % COLOURS}") for i in range(len(runs))]
    boxes = [tag("label", box, swatch, run.name) for box, swatch, run in zip(ticked, swatches, runs)]
    return tag("fieldset", tag("legend", "Curves shown"), *boxes, class_="choice")


def _script() -> Markup:
    return tag("script", Markup(_resource("script.js")))


def _resource(name: str) -> Markup:
    return Markup(files("spikeprop.report").joinpath(name).read_text(encoding="utf-8"))
