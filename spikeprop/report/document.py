"""The report page: head, style, contents, the comparison of runs, then each run; the page loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report import comparison, headline, plugin_section, run_section
from spikeprop.report.charts import marker_key
from spikeprop.report.html import Markup, folded, note, tag
from spikeprop.report.provenance import provenance
from spikeprop.report.training import training

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
    alone = len(runs) == 1
    parts = [tag("h2", "Overview", id="overview")]
    parts += [headline.tiles(runs[0]), headline.notes(runs[0], evidence[0])] if alone and runs[0].pipeline else []
    parts += [_choice(runs), comparison.overview(runs)]
    if any(run.pipeline for run in runs):
        parts += [tag("h2", "Accuracy", id="accuracy"), comparison.curves(runs)]
    if _has_training(runs):
        parts += [tag("h2", "Training", id="training"), training(runs)]
    parts += [_run(i, run, found, alone) for i, (run, found) in enumerate(zip(runs, evidence))]
    return [*parts, tag("h2", "Provenance", id="provenance"), provenance(runs)]


def _has_training(runs: Sequence[RunRecord]) -> bool:
    return any(run.metrics or (run.pipeline and _trains(run)) for run in runs)


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
    several = [headline.tiles(run), headline.notes(run, found)] if run.pipeline and not alone else []
    summary = "Network, spikes, confusions, conversion" if run.pipeline else "Result"
    heading = tag("h2", f"{run.name} ({run.recipe})", id=name)
    return tag("section", heading, *several, inside if alone else folded(summary, inside))


def _contents(runs: Sequence[RunRecord]) -> Markup:
    links = [("overview", "Overview")]
    links += [("accuracy", "Accuracy")] if any(run.pipeline for run in runs) else []
    links += [("training", "Training")] if _has_training(runs) else []
    if len(runs) == 1 and runs[0].pipeline:  # a long page
        links += run_section.links(runs[0], "run-0")
    else:
        links += [(f"run-{i}", run.name) for i, run in enumerate(runs)]
    links.append(("provenance", "Provenance"))
    return tag("nav", tag("ul", *(tag("li", tag("a", text, href=f"#{name}")) for name, text in links)), aria_label="Contents")


def _choice(runs: Sequence[RunRecord]) -> Markup:
    """Check boxes that hide a run's curves; the script enables them."""
    if len(runs) == 1:
        return Markup()
    ticked = [tag("input", type="checkbox", checked="checked", data_shows=i) for i in range(len(runs))]
    swatches = [marker_key(i) for i in range(len(runs))]
    boxes = [tag("label", box, swatch, run.name) for box, swatch, run in zip(ticked, swatches, runs)]
    return tag("fieldset", tag("legend", "Curves shown"), *boxes, class_="choice")


def _script() -> Markup:
    return tag("script", Markup(_resource("script.js")))


def _resource(name: str) -> Markup:
    return Markup(files("spikeprop.report").joinpath(name).read_text(encoding="utf-8"))
