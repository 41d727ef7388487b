"""Summary of the PMD experiment: SNR by power, peaks, gap to the link without PMD, iterations to the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprop.evaluate.intervals import in_words, mean_interval, paired_difference
from spikeprop.plugins.ldbp_pmd.training import within_one_percent

OURS, REFERENCE, STRONGER = "LDBP-PMD", "DBP + LMS", "LDBP + least squares"
PUBLISHED = {"gap_db": 0.30, "iterations": 428}  # abstract of arXiv:2010.12313


def summarise(
    name: str, realisations: Sequence[int], free: Mapping[float, dict[str, float]], found: Mapping[float, list[dict[str, Any]]]
) -> dict[str, Any]:
    """The values of the report.

    Args:
        name: name of the recipe.
        realisations: realisations of PMD, in the order of ``found``.
        free: SNR in dB of each arm without PMD, by power in dBm.
        found: SNR in dB of each arm and the curve of training, by power and realisation.
    """
    arms = [arm for arm in next(iter(found.values()))[0] if arm not in ("curve", "dgd_ps")]
    snr = {arm: {power: [run[arm] for run in runs] for power, runs in found.items()} for arm in arms}
    peaks = {arm: [max(values) for values in zip(*by_power.values())] for arm, by_power in snr.items()}
    bound = {arm: max(values[arm] for values in free.values()) for arm in next(iter(free.values()))}
    best = max(found, key=lambda power: sum(snr[OURS][power]))
    curves = [run["curve"] for run in found[best]]
    return {
        "name": name,
        "realisations": list(realisations),
        "dgd_ps": [run["dgd_ps"] for run in found[best]],
        "without_pmd_db": {f"{power:g}": values for power, values in free.items()},
        "with_pmd_db": {arm: {f"{p:g}": mean_interval(v) | {"values": v} for p, v in by.items()} for arm, by in snr.items()},
        "peak_without_pmd_db": bound,
        "peak_db": {arm: mean_interval(values) | {"values": values} for arm, values in peaks.items()},
        "gap_db": mean_interval([bound["LDBP"] - peak for peak in peaks[OURS]]),
        "gain_db": {other: paired_difference(peaks[OURS], peaks[other]) for other in arms if other != OURS},
        "closed": {ref: _closed(peaks[OURS], peaks[ref], bound["LDBP"]) for ref in (REFERENCE, STRONGER)},
        "best_power_dbm": best,
        "curves": curves,
        "iterations_to_1_percent": mean_interval([within_one_percent(c) for c in curves])
        | {"values": [*map(within_one_percent, curves)]},
        "published": PUBLISHED,
    }


def _closed(ours: Sequence[float], reference: Sequence[float], bound: float) -> dict[str, Any]:
    """Closed fraction of the gap between reference and bound: (ours - reference) / (bound - reference), of the means."""
    mine, other = sum(ours) / len(ours), sum(reference) / len(reference)
    return {"share": (mine - other) / (bound - other) if bound != other else None}


def rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The table at the end of a run."""
    found = [(f"peak SNR without PMD, {arm}", f"{peak:.2f} dB") for arm, peak in values["peak_without_pmd_db"].items()]
    found += [(f"peak SNR, {arm}", in_words(peak, unit=" dB")) for arm, peak in values["peak_db"].items()]
    published = values["published"]
    found.append(
        ("LDBP-PMD below LDBP without PMD", f"{in_words(values['gap_db'], unit=' dB')}; paper {published['gap_db']:.2f} dB")
    )
    for other in (REFERENCE, STRONGER):
        found.append((f"LDBP-PMD above {other}", in_words(values["gain_db"][other], sign=True, unit=" dB")))
    count = values["iterations_to_1_percent"]
    each = ", ".join(map(str, count["values"]))
    found.append((
        f"iterations to 1 % of the peak, {values['best_power_dbm']:g} dBm",
        f"{count['mean']:.0f} ({each}); paper {published['iterations']}",
    ))  # fmt: skip
    for change in values["changes"]:
        curve = change["curve"]
        text = f"{change['before']:.2f} dB, then {curve[0][1]:.2f} dB, {curve[-1][1]:.2f} dB after {curve[-1][0]} iterations"
        back = within_one_percent(curve)
        found.append((f"PMD changes from {change['from']} to {change['to']}", f"{text}; within 1 % of its peak after {back}"))
    return found
