"""Where figures come from: machine, versions, commits and settings; what several runs share stands once, folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.html import Markup, folded, join, note, table, tag
from spikeprop.runtime.files import leaves

RECIPE = "recipe.yaml"
FEW = 20  # differences between runs; more are folded


def provenance(runs: Sequence[RunRecord]) -> Markup:
    """Tables of what differs between the runs, what is equal, and the seconds of the stages."""
    about, settings = [_about(run) for run in runs], [_settings(run) for run in runs]
    names = [run.name for run in runs]
    if len(runs) == 1:
        parts = [folded("Machine, versions and commit", _equal("Machine, versions and commit", about[0])), _stages(runs)]
        return join([*parts, folded("Every setting, defaults included", _equal("The resolved recipe", settings[0]))])
    parts = []
    for what, found in (("provenance", about), ("settings", settings)):
        keys = list(dict.fromkeys(key for one in found for key in one))
        same = {key: found[0][key] for key in keys if all(one.get(key) == found[0].get(key) for one in found) and key in found[0]}
        rows = [[key, *(one.get(key, "-") for one in found)] for key in keys if key not in same]
        shown = table(f"Differences in {what}", ["what", *names], rows)
        many = folded(f"{len(rows)} differences in {what}", shown, unfolded=len(rows) <= FEW)
        parts.append(many if rows else note(f"All runs have the same {what}."))
        parts.append(folded(f"Equal in all runs: {len(same)} of {len(keys)} ({what})", _equal(f"Equal {what}", same)))
    return join([*parts, _stages(runs)])


def recipe_text(run: RunRecord, name: str) -> Markup:
    """The recipe as the run wrote it, with every default; or why there is none."""
    file = run.path / RECIPE
    if not file.is_file():
        return note(f"The folder holds no {RECIPE}.")
    text = file.read_text(encoding="utf-8", errors="replace")
    block = tag("pre", text, class_="wide", tabindex=0, data_file=f"{run.name}.yaml")
    return folded(f"Recipe {run.recipe}, {len(text.splitlines())} lines, every default included", block, id=f"{name}-recipe")


def _equal(caption: str, found: Mapping[str, str]) -> Markup:
    return table(caption, ["what", "value"], [list(pair) for pair in found.items()])


def _about(run: RunRecord) -> dict[str, str]:
    about, report = run.about, run.report or {}
    return {
        "recipe": run.recipe,
        "state": run.state,
        "seed": str(run.settings.get("seed", run.settings.get("seeds", "-"))),
        "begun": run.started(),
        "commit": str(about.get("commit")),
        "device": str(report.get("device", "-")),
        **{key: str(value) for key, value in about.get("machine", {}).items()},
        "python": str(about.get("python", "-")),
        **{key: str(value) for key, value in about.get("versions", {}).items()},
        "energy": str(report.get("energy_joules", {}).get("constants", "-")),
    }


def _settings(run: RunRecord) -> dict[str, str]:
    return {key: str(value) for key, value in leaves(run.settings).items()}


def _stages(runs: Sequence[RunRecord]) -> Markup:
    """Seconds of each stage, and its commit where it is another than the run's."""
    rows = []
    for run in runs:
        report = run.report or {}
        commits = {name: stage.get("commit") for name, stage in run.stages.items()}
        commits = commits or report.get("provenance", {}).get("commits", {})
        seconds = {name: stage["seconds"] for name, stage in run.stages.items()} or report.get("seconds", {})
        first = [run.name] if len(runs) > 1 else []
        rows += [[*first, name, f"{spent:.2f}", str(commits.get(name))] for name, spent in seconds.items()]
    heads = [*(["run"] if len(runs) > 1 else []), "stage", "seconds", "commit"]
    return folded("Seconds and commit by stage", table("Seconds and commit by stage", heads, rows)) if rows else Markup()
