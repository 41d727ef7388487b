"""The section of a plugin's experiment: the table that its run printed, its arms or learners with intervals, its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.html import Markup, join, note, table, tag


def sections(run: RunRecord, name: str) -> Markup:
    """All parts of the section; ``name`` is the prefix of their ids."""
    report = run.report or {}
    parts = []
    if report.get("table"):
        parts.append(table("What the run printed", ["what", "value"], report["table"], id=f"{name}-printed"))
    if "arms" in report:
        parts.append(_arms(report, name))
    if "learners" in report:
        parts.append(_learners(report["learners"], report.get("published", {}), name))
    if not parts:
        parts.append(table("Values of the report", ["what", "value"], _values(report), id=f"{name}-values"))
    pictures = [_picture(file, run) for file in sorted(run.path.glob("*.png"))] or [note("The folder holds no picture.")]
    lacking = note("Curves against T, rates, rasters and confusions: this experiment's report has none.")
    return join([tag("h3", "Result", id=f"{name}-result"), *parts, *pictures, lacking])


def _arms(report: Mapping[str, Any], name: str) -> Markup:
    heads = ["arm", "mean (%)", "95 % interval", "n", "against the baseline", "95 % interval", "collapsed"]
    rows = []
    for arm, found in report["arms"].items():
        against = found["against_baseline"]
        difference = ["baseline", "-"] if arm == report["baseline"] else [f"{against['mean']:+.2f}", _interval(against, "+.2f")]
        collapsed = sum("collapsed" in one for one in found.get("runs", []))
        rows.append([arm, f"{found['mean']:.2f}", _interval(found), found["n"], *difference, collapsed])
    return table("Arms, over seeds", heads, rows, id=f"{name}-arms")


def _learners(learners: Mapping[str, Any], published: Mapping[str, Any], name: str) -> Markup:
    measures = [key for key, value in next(iter(learners.values())).items() if isinstance(value, dict) and "by_seed" in value]
    heads = ["learner", *(text for key in measures for text in (key.replace("_", " "), "95 % interval")), "seeds", "published"]
    rows = []
    for learner, found in learners.items():
        cells = [text for key in measures for text in (f"{found[key]['mean']:.4g}", _interval(found[key], ".4g"))]
        rows.append([learner, *cells, found[measures[0]]["n"], _published(published.get(learner))])
    return table("Learners, over seeds", heads, rows, id=f"{name}-learners")


def _published(found: Any) -> Any:
    """Published means by source, with deviation over runs and p of Welch's test; reports of before hold one mean."""
    if not isinstance(found, Mapping):
        return found
    return "; ".join(
        f"{source} {one['mean']:.4g}" + "".join(f", {key} {one[key]:.2g}" for key in ("std", "p") if one.get(key) is not None)
        for source, one in found.items()
    )


def _interval(found: Mapping[str, Any], form: str = ".2f") -> str:
    ends = found.get("interval")
    return f"{ends[0]:{form}} to {ends[1]:{form}}" if ends else "-"


def _values(report: Mapping[str, Any]) -> list[list[Any]]:
    skipped = {"provenance", "seconds", "table"}
    return [[key, value] for key, value in report.items() if key not in skipped and isinstance(value, str | int | float)]


def _picture(file: Path, run: RunRecord) -> Markup:
    data = base64.b64encode(file.read_bytes()).decode()
    image = tag("img", src=f"data:image/png;base64,{data}", alt=f"{file.name} of {run.name}, as the run drew it", class_="drawn")
    return tag("figure", image, tag("figcaption", f"{file.name}, as the run drew it."))
