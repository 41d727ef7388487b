"""Arms of an experiment beside each other: means over seeds and differences to a baseline, pair by pair, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprop.evaluate import Report
from spikeprop.evaluate.intervals import in_words, mean_interval, paired_difference
from spikeprop.experiment.context import Context
from spikeprop.plugins.pictures import draw_arms

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def check_seeds(seeds: Sequence[int], baseline: str, arms: Mapping[str, Any]) -> None:
    """ValueError for a baseline that is no arm, or seeds that are not different."""
    if baseline not in arms:
        raise ValueError(f"baseline is {baseline!r}, which is not an arm; arms: {', '.join(arms)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {list(seeds)}; give at least one, each once")


def report_arms(found: Found, baseline: str, context: Context, **more: Any) -> Report:
    """The report of an experiment with arms, saved with its picture in the run folder.

    Args:
        found: by arm and in the order of seeds, results with an "accuracy" in percent; the rest of them goes into the report too.
        baseline: the arm that the others are held against.
        context: of the run.
        more: further values of the report.
    """
    accuracy = {name: [one["accuracy"] for one in runs] for name, runs in found.items()}
    arms = {
        name: {
            "accuracy": values,
            **mean_interval(values),
            "against_baseline": paired_difference(values, accuracy[baseline]),
            "runs": [{k: v for k, v in one.items() if k != "accuracy"} for one in found[name]],
        }
        for name, values in accuracy.items()
    }
    values = {
        "name": context.name,
        "baseline": baseline,
        **more,
        "arms": arms,
        "seconds": context.folder.seconds(),
        "provenance": context.folder.provenance(),
    }
    rows = [(name, _in_words(arm, name == baseline)) for name, arm in arms.items()]
    report = Report(name=context.name, values=values, rows=rows)
    if context.writes:
        report.save(context.folder.path / "report.json")
        draw_arms(accuracy, baseline, context.folder.path / "report.png", context.name)
    return report


def _in_words(arm: dict[str, Any], is_baseline: bool) -> str:
    text = in_words(arm, unit=" %")
    collapsed = sum("collapsed" in one for one in arm["runs"])
    text += f", {collapsed} of {arm['n']} collapsed" if collapsed else ""
    return text if is_baseline else f"{text}   against the baseline {in_words(arm['against_baseline'], sign=True)}"
