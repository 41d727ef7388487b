"""Summary of the PMD experiment: SNR by power, peaks, gap to the link without PMD, bits, and iterations to the peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spikeprop.evaluate.intervals import in_words, mean_interval, paired_difference
from spikeprop.plugins.ldbp_pmd.training import within_one_percent

OURS, JOINT = "LDBP-PMD", "LDBP + equaliser, jointly"
PUBLISHED = {"gap_db": 0.30, "iterations": 428}  # abstract of arXiv:2010.12313


def summarise(
    name: str, realisations: Sequence[int], free: Mapping[float, dict[str, Any]], found: Mapping[float, list[dict[str, Any]]]
) -> dict[str, Any]:
    """The values of the report.

    Args:
        name: name of the recipe.
        realisations: realisations of PMD, in the order of ``found``.
        free: "arms" without PMD (quality of each, see ``bits.quality``), "curves" and "plateaus", by power in dBm.
        found: "arms", the "curve" of the training, and the "plateaus" where constant rates ended, by power and realisation.
    """
    arms = list(next(iter(found.values()))[0]["arms"])
    snr = {arm: {power: [run["arms"][arm]["snr"] for run in runs] for power, runs in found.items()} for arm in arms}
    peaks = {arm: [max(values) for values in zip(*by_power.values())] for arm, by_power in snr.items()}
    bound = {arm: max(one["arms"][arm]["snr"] for one in free.values()) for arm in next(iter(free.values()))["arms"]}
    best = max(found, key=lambda power: sum(snr[OURS][power]))
    return {
        "name": name,
        "realisations": list(realisations),
        "dgd_ps": [run["dgd_ps"] for run in found[best]],
        "without_pmd_db": {f"{p:g}": {arm: each["snr"] for arm, each in one["arms"].items()} for p, one in free.items()},
        "bound_curves": {f"{p:g}": one["curves"] for p, one in free.items()},
        "with_pmd_db": {arm: {f"{p:g}": mean_interval(v) | {"values": v} for p, v in by.items()} for arm, by in snr.items()},
        "peak_without_pmd_db": bound,
        "peak_db": {arm: mean_interval(values) | {"values": values} for arm, values in peaks.items()},
        "gap_db": mean_interval([bound["LDBP"] - peak for peak in peaks[OURS]]),
        "gain_db": {other: paired_difference(peaks[OURS], peaks[other]) for other in arms if other != OURS},
        "bits": {f"{p:g}": {arm: _bits(run["arms"][arm] for run in runs) for arm in arms} for p, runs in found.items()},
        "best_power_dbm": best,
        "curves": [run["curve"] for run in found[best]],
        "start_db": mean_interval([run["curve"][0][1] for run in found[best]]),
        "plateaus": {f"{p:g}": _plateaus([free[p]["plateaus"], *(run["plateaus"] for run in runs)]) for p, runs in found.items()},
        "iterations_to_1_percent": to_one_percent([(run["curve"], run["plateaus"][OURS]) for run in found[best]]),
    }


def to_one_percent(trainings: Sequence[tuple[Sequence[Sequence[Any]], int | None]]) -> dict[str, Any]:
    """Iterations to 1 % of the peak at constant rates: mean, interval and values.

    Args:
        trainings: curves, and the iterations at which the constant rates ended.

    """
    counts = [within_one_percent([point for point in curve if end is None or point[0] <= end]) for curve, end in trainings]
    return mean_interval(counts) | {"values": counts}


def _plateaus(each: Sequence[Mapping[str, int]]) -> dict[str, list[int]]:
    """Iterations at constant rates of every training, by arm."""
    return {arm: [one[arm] for one in each if arm in one] for arm in dict.fromkeys(arm for one in each for arm in one)}


def _bits(arms: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """GMI with its interval, and the errors of all realisations together; None of Gaussian symbols."""
    each = list(arms)
    if "gmi" not in each[0]:
        return None
    errors, bits = (sum(one[name] for one in each) for name in ("errors", "bits"))
    return {"gmi": mean_interval([one["gmi"] for one in each]), "errors": errors, "bits": bits, "ber": errors / bits}


def rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The table at the end of a run."""
    power, paper = f"{values['best_power_dbm']:g}", values["published"]
    found = [(f"peak SNR without PMD, {arm}", f"{peak:.2f} dB") for arm, peak in values["peak_without_pmd_db"].items()]
    for arm, peak in values["peak_db"].items():
        bits = values["bits"][power][arm]
        told = f"; at {power} dBm GMI {in_words(bits['gmi'])} bit, BER {bits['errors']:,} / {bits['bits']:,}" if bits else ""
        found.append((f"peak SNR, {arm}", in_words(peak, unit=" dB") + told))
    theirs = f"; paper {paper['gap_db']:.2f} dB" if paper else ""
    found.append(("LDBP-PMD below LDBP without PMD", in_words(values["gap_db"], unit=" dB") + theirs))
    for other, gain in values["gain_db"].items():
        found.append((f"LDBP-PMD above {other}", in_words(gain, sign=True, unit=" dB")))
    found.append((f"SNR at the start of LDBP-PMD, {power} dBm", in_words(values["start_db"], unit=" dB")))
    for arm, ends in values["plateaus"][power].items():
        told = f"{sum(ends) / len(ends):.0f} ({min(ends)} to {max(ends)})"
        found.append((f"iterations at constant rates, {arm}, {power} dBm", told))
    count = values["iterations_to_1_percent"]
    found.append(
        (f"iterations to 1 % of the peak, {power} dBm", _counts(count) + (f"; paper {paper['iterations']}" if paper else ""))
    )
    return [*found, *_starts(values), *(_change(one) for one in values["changes"]), *_drift(values["drift"])]


def _starts(values: dict[str, Any]) -> list[tuple[str, str]]:
    again = values["repeats"]
    if not again:
        return []
    first = dict(zip(values["realisations"], (curve[-1][1] for curve in values["curves"])))
    other = [one["other_db"] - first[one["realisation"]] for one in again]
    random = [one["random"][-1][1] - first[one["realisation"]] for one in again]
    count = to_one_percent([(one["random"], one["random_plateau"]) for one in again])
    return [
        ("another start instead", ", ".join(f"{d:+.2f}" for d in other) + " dB"),
        ("random rotations instead", ", ".join(f"{d:+.2f}" for d in random) + f" dB; to 1 % of the peak {_counts(count)}"),
    ]


def _change(change: dict[str, Any]) -> tuple[str, str]:
    ways = []
    for way, told in (("alone", "trained on"), ("equalizer", "after a start by the equaliser")):
        found = change[way]
        curve, count = found["curve"], to_one_percent([(found["curve"], found["plateau"])])["values"][0]
        ways.append(f"{told} {curve[0][1]:.2f} to {curve[-1][1]:.2f} dB, 1 % after {count}")
    text = f"{change['before']:.2f} dB, then {change['after']:.2f} dB; {'; '.join(ways)}"
    return f"PMD changes from {change['from']} to {change['to']}", text


def _drift(drift: dict[str, Any] | None) -> list[tuple[str, str]]:
    if drift is None:
        return []
    told = f"{drift['after'][0]:.2f} to {drift['after'][-1]:.2f} dB"
    return [(f"drift, {len(drift['after'])} updates", f"trained on {told}; as it was {drift['fixed'][-1]:.2f} dB at the end")]


def _counts(count: dict[str, Any]) -> str:
    return f"{count['mean']:.0f} ({', '.join(map(str, count['values']))})"
