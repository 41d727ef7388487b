"""A picture of the results: how near kernels come to the memory's bandwidth, seconds and memory of every contender, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import OURS

Found = dict[str, Any]
SPEED = "speed: "


def draw(found: Found, file: Path) -> Path:
    """Draw what is there of the results; returns the file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(18, 10), layout="constrained")
    machine, parts = found["machine"], found["parts"]
    state = ", ".join(f"{name} {known.get('status', 'not run')}" for name, known in parts.items())
    versions = ", ".join(
        f"{name} {machine['versions'][name]}" for name in ("torch", "triton") if name in machine.get("versions", {})
    )
    title = f"spikeprop on {machine.get('gpu')}, commit {machine.get('commit') or 'unknown'}, {versions}"
    figure.suptitle(f"{title}\n{state}", fontsize=11)
    _roofline(axes[0, 0], parts.get("roofline", {}).get("records", []))
    cases = _speed_cases(parts)
    _bars(axes[0, 1], cases, "training step", "median", "training step, ms", 1e3)
    _bars(axes[0, 2], cases, "inference", "images_per_s", "inference, images/s", 1)
    _bars(axes[1, 0], cases, "training step", "peak_mib", "training step, peak above idle, MiB", 1)
    _checks(axes[1, 1], parts)
    _cifar(axes[1, 2], parts.get("cifar10", {}).get("records", []))
    figure.savefig(file, dpi=100)
    plt.close(figure)
    return file


def _empty(axis: Any, title: str) -> None:
    axis.set_title(title)
    axis.text(0.5, 0.5, "no results", ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()


def _roofline(axis: Any, records: list[Found]) -> None:
    """A bar a kernel and setting: percent of the copy's bandwidth."""
    title = "bytes that must move / time, % of a copy's bandwidth"
    copy = next((r["bytes_per_s"] for r in records if r["kernel"] == "copy"), None)
    measured = [r for r in records if r["kernel"] != "copy"]
    if copy is None or not measured:
        _empty(axis, title)
        return
    names = [f"{r['kernel'].lstrip('_')}, {_type_of(r['setting'])}" for r in measured]
    bars = axis.barh(names, [100 * r["of_copy"] for r in measured], color="#2a9d8f")
    axis.bar_label(bars, [f"{r['bytes_per_s'] / 1e12:.2f} TB/s" for r in measured], fontsize=7, padding=2)
    axis.axvline(100, color="black", linewidth=1)
    axis.set_xlim(right=max(100, *(100 * r["of_copy"] for r in measured)) * 1.25)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.set_title(f"{title} ({copy / 1e12:.2f} TB/s)", fontsize=10)


def _type_of(setting: str) -> str:
    return setting.split(" ", 2)[2]


def _speed_cases(parts: Found) -> dict[str, list[Found]]:
    return {name.removeprefix(SPEED): known.get("records", []) for name, known in parts.items() if name.startswith(SPEED)}


def _bars(axis: Any, cases: dict[str, list[Found]], what: str, field: str, title: str, factor: float) -> None:
    """Groups of T and precision, a bar a contender, logarithmic."""
    shown = {
        name: {_group(r): r[field] * factor for r in records if r["what"] == what and field in r}
        for name, records in cases.items()
    }
    groups = list(dict.fromkeys(group for of in shown.values() for group in of))
    shown = {name: of for name, of in shown.items() if of}
    if not groups:
        _empty(axis, title)
        return
    width = 0.8 / len(shown)
    for number, (name, of) in enumerate(shown.items()):
        places = [i + (number - (len(shown) - 1) / 2) * width for i, group in enumerate(groups) if group in of]
        bars = axis.bar(places, [of[group] for group in groups if group in of], width, label=name)
        axis.bar_label(bars, [f"{of[group]:.3g}" for group in groups if group in of], fontsize=6, rotation=90, padding=2)
    axis.set_xticks(range(len(groups)), groups, fontsize=7)
    axis.set_yscale("log")
    axis.margins(y=0.2)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    axis.set_title(title, fontsize=10)


def _group(record: Found) -> str:
    return f"T={record['T']}\nB={record['batch']}\n{record['precision']}"


def _checks(axis: Any, parts: Found) -> None:
    """Counts of what equals the reference, and what does not."""
    checked = parts.get("checks", {}).get("records", [])
    tests = parts.get("tests", {}).get("records", [])
    lines = [f"kernels against the reference: {sum(r['good'] for r in checked)} of {len(checked)} good"] if checked else []
    lines += [f"  WRONG {r['kernel']}, {r['setting']}: {r['difference']:.3g}" for r in checked if not r["good"]][:12]
    for record in tests:
        lines.append(f"CUDA tests: {record['passed']} passed, {len(record['failed'])} failed, {record['skipped']} skipped")
        lines += [f"  FAILED {name}" for name in list(record["failed"])[:8]]
    lines += [f"{name}: {percent:.1f} % of predictions are ours" for name, percent in agreement(parts).items()]
    lines += [f"{name} {known['status']}: {_last_line(known)}" for name, known in parts.items() if known.get("error")]
    axis.text(0, 1, "\n".join(line[:100] for line in lines) or "no results", va="top", fontsize=8, transform=axis.transAxes)
    axis.set_title("checks, and what ended early", fontsize=10)
    axis.set_axis_off()


def agreement(parts: Found) -> dict[str, float]:
    """Percent of each contender's predictions that equal ours, over all cases of inference that both have."""
    cases = {
        name: {_group(record): record["predictions"] for record in records if "predictions" in record}
        for name, records in _speed_cases(parts).items()
    }
    ours, found = cases.pop(OURS, {}), {}
    for name, of in cases.items():
        pairs = [pair for group in of if group in ours for pair in zip(of[group], ours[group])]
        if pairs:
            found[name] = 100 * sum(theirs == own for theirs, own in pairs) / len(pairs)
    return found


def _last_line(known: Found) -> str:
    return next(iter(reversed(known["error"].strip().splitlines())), "")


def _cifar(axis: Any, records: list[Found]) -> None:
    """Accuracy and seconds of each stage."""
    bars: dict[str, tuple[float, float]] = {}
    for record in records:
        accuracy, seconds = record.get("accuracy"), record["seconds"]
        if isinstance(accuracy, dict):
            bars |= {f"{record['stage']}\nT={steps}": (percent, seconds) for steps, percent in accuracy.items()}
        elif accuracy is not None:
            bars[record["stage"]] = (accuracy, seconds)
    source = next((r["data"] for r in records if "data" in r), "")
    title = f"accuracy, % on {source}"[:90]
    if not bars:
        _empty(axis, title)
        return
    drawn = axis.bar(list(bars), [percent for percent, _ in bars.values()], color="#e76f51")
    axis.bar_label(drawn, [f"{percent:.2f}\n{seconds:.0f} s" for percent, seconds in bars.values()], fontsize=8, padding=2)
    axis.set_ylim(0, 115)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(title, fontsize=10)
