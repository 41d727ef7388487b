"""Pictures (PNG, by matplotlib) of accuracy against time steps and energy, firing rates, classes and errors of the conversion.

They are files for papers and slides; the report page draws its own charts as SVG, because it must work in one file without a
network and let the reader pick values, which an image cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprop.evaluate.activity import ENERGY_MODEL
from spikeprop.evaluate.error import LayerError
from spikeprop.evaluate.report import networks_of
from spikeprop.runtime.files import write_atomically

GREY, VIOLET, ORANGE, GREEN, BLUE = "#333333", "#8c6bb1", "#d95f0e", "#2a7f62", "#3b6ea5"
COLOURS = {"converted": VIOLET, "finetuned": ORANGE, "trained": ORANGE}
LEAST_PERCENT = 10.0  # of an axis of accuracies
FEW_CLASSES = 20  # more classes are shown as a sorted curve
Curve = dict[int, float]


def draw_run(values: dict[str, Any], path: Path, title: str) -> None:
    """A pipeline's run: accuracy against steps, accuracy against energy, and firing rates by layer."""
    figure = new_figure(12.5, 3.6)
    steps, energy, rates = figure.subplots(1, 3, width_ratios=[1.6, 1.4, 1.4])
    ann = values.get("ann")
    for kind, (label, color) in _kinds(values).items():
        found = values[kind]
        curve = {int(t): a for t, a in found["accuracy"].items()}
        bands = {int(t): tuple(band) for t, band in found["interval"].items()}
        draw_curve(steps, curve, label, color, bands)
        _energy_curve(energy, curve, found["activity"], label, color)
    if ann:
        draw_ann_line(steps, ann["accuracy"], ann["interval"])
        energy.plot([values["energy_joules"]["ann"] * 1e6], [ann["accuracy"]], "s", color=GREY, label="ANN")
    label_steps(steps, title)
    _energy_axis(energy)
    draw_bars(rates, _rates_of_kinds(values), f"firing rate, T = {values['rates_at']}")
    save_figure(figure, path)


def draw_evaluation(
    values: dict[str, Any],
    path: Path,
    *,
    names: Sequence[str],
    by_class: Mapping[str, Any],
    ann: Mapping[str, Any] | None = None,
) -> None:
    """One evaluation: accuracy against steps and against energy, firing rates and classes; for an ANN only the classes.

    Args:
        values: of the report.
        path: PNG file.
        names: of the classes.
        by_class: "confusion" (C, C) counts and "top1" (C,) percent, NaN for classes without images, at "column".
        ann: the ANN's summary, for its line.
    """
    spiking = bool(values["timesteps"])
    figure = new_figure(11.5, 8.6) if spiking else new_figure(6.4, 5.2)
    grid = figure.subplots(2, 2).flatten() if spiking else [figure.subplots()]
    if spiking:
        steps, energy, rates = grid[:3]
        _evaluation_curves(steps, values, ann)
        top1 = _column(values, "top1")
        _energy_curve(energy, top1, values["activity"], values["network"], ORANGE)
        if ann and ann.get("energy_joules"):
            energy.plot([ann["energy_joules"] * 1e6], [ann["accuracy"]["ANN"]["top1"]], "s", color=GREY, label="ANN")
        _energy_axis(energy)
        _rates_by_steps(rates, values["activity"])
    if len(names) <= FEW_CLASSES:
        draw_confusions(grid[-1], by_class, names)
    else:
        _sorted_classes(grid[-1], by_class, names)
    accuracy = "" if spiking else f", top-1 {values['accuracy']['ANN']['top1']:.2f} %"
    figure.suptitle(f"{values['network']} on {values['settings']['data']['use']}, {values['images']:,} images{accuracy}")
    save_figure(figure, path)


def draw_conversion_error(errors: Mapping[str, Mapping[int, LayerError]], path: Path, title: str) -> None:
    """Heat maps, layer by number of steps, of the relative error and its three parts."""
    layers, steps = list(errors), [*next(iter(errors.values()))]
    figure = new_figure(2.2 + 4 * (1.1 + 0.5 * len(steps)), 1.6 + 0.34 * len(layers))
    axes, image = figure.subplots(1, 4, sharey=True), None
    parts = ("total", "clipping", "quantisation", "unevenness")
    for axis, part in zip(axes, parts):
        cells = [[getattr(errors[layer][t], part) for t in steps] for layer in layers]
        image = heat_map(axis, cells, layers, steps, "{:.2f}", cmap="magma_r", vmax=1)
        axis.set(title=part, xlabel="T")
    figure.colorbar(image, ax=axes, label="relative error", extend="max")
    figure.suptitle(title)
    save_figure(figure, path)


# elements of pictures ---------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path, *axes: Any, grid: str = "both", dpi: int = 130) -> None:
    """Write a figure as a PNG file; ``axes`` get a light grid and lose their top and right edges."""
    for axis in axes:
        axis.grid(axis=grid, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format="png"))


def _column(values: dict[str, Any], key: str) -> dict[int, Any]:
    return {int(t): found[key] for t, found in values["accuracy"].items() if key in found}


def draw_curve(axis: Any, curve: Curve, label: str, color: str, bands: Mapping[int, Any], style: str = "o-") -> None:
    axis.plot(list(curve), list(curve.values()), style, color=color, label=label, ms=4)
    if bands:
        low, high = zip(*bands.values())
        axis.fill_between(list(bands), low, high, color=color, alpha=0.2, lw=0)


def draw_ann_line(axis: Any, accuracy: float, interval: Sequence[float]) -> None:
    axis.axhline(accuracy, color=GREY, ls="--", lw=1, label="ANN")
    axis.axhspan(*interval, color=GREY, alpha=0.1, lw=0)


def label_steps(axis: Any, title: str) -> None:
    steps = sorted({int(x) for line in axis.get_lines() if line.get_label() != "ANN" for x in line.get_xdata()})
    axis.set(xscale="log", xlabel="time steps T", ylabel="accuracy (%)", title=title, ylim=_calm(*axis.get_ylim()))
    axis.set_xticks(steps, [str(t) for t in steps])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(loc="best")  # where it covers no point


def _calm(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of percentages, around those of the data, so wide that a difference by chance looks like one."""
    half = max(high - low, LEAST_PERCENT) / 2
    middle = max(min((low + high) / 2, 101 - half), half - 1)
    return max(middle - half, -1.0), min(middle + half, 101.0)  # lines at 0 and 100 % stay visible


def _evaluation_curves(axis: Any, values: dict[str, Any], ann: Mapping[str, Any] | None) -> None:
    draw_curve(axis, _column(values, "top1"), "top-1", ORANGE, _column(values, "top1_interval"))
    if _column(values, "top5"):
        draw_curve(axis, _column(values, "top5"), "top-5", VIOLET, _column(values, "top5_interval"), "o:")
    if ann:
        found = ann["accuracy"]["ANN"]
        draw_ann_line(axis, found["top1"], found["top1_interval"])
    label_steps(axis, "accuracy, with 95 % intervals")


def _energy_curve(axis: Any, curve: Curve, activity: Mapping[str, Any], label: str, color: str) -> None:
    points = [(activity[str(t)]["energy_joules"] * 1e6, a, t) for t, a in curve.items() if str(t) in activity]
    if points:
        energies, accuracies, _ = zip(*points)
        axis.plot(energies, accuracies, "o-", color=color, label=label, ms=4)
        for x, y, t in points:
            axis.annotate(f"T={t}", (x, y), xytext=(4, -9), textcoords="offset points", fontsize=7, color=color)


def _energy_axis(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set(xscale="log", xlabel=f"uJ an image ({ENERGY_MODEL})", ylabel="accuracy (%)", title="accuracy against energy")
    axis.grid(alpha=0.3)
    axis.margins(x=0.12)  # room for the numbers of steps
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    if axis.get_lines():
        axis.legend(loc="best")


def _kinds(values: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The networks to show, with label and colour."""
    return {kind: (label, COLOURS[kind]) for kind, label in networks_of(values).items()}


def _rates_of_kinds(values: dict[str, Any]) -> dict[str, tuple[str, dict[str, float]]]:
    """Label to (colour as in the other plots, rates by layer) at the steps of training."""
    steps = str(values["rates_at"])
    return {label: (color, values[kind]["activity"][steps]["rates"]) for kind, (label, color) in _kinds(values).items()}


def draw_bars(axis: Any, rates: Mapping[str, tuple[str, dict[str, float]]], title: str) -> None:
    thickness = 0.8 / len(rates)
    for i, (label, (color, by_layer)) in enumerate(rates.items()):
        layers = [name for name in by_layer if name != "input"]
        places = [row + (i - (len(rates) - 1) / 2) * thickness for row in range(len(layers))]
        axis.barh(places, [by_layer[name] for name in layers], thickness, color=color, label=label)
        axis.set_yticks(range(len(layers)), layers, fontsize=8 if len(layers) <= 12 else 5)
    axis.invert_yaxis()
    axis.set(xlabel="spikes a neuron a step", title=title)


def _rates_by_steps(axis: Any, activity: Mapping[str, Any]) -> None:
    """Heat map of the firing rates, layer by number of steps."""
    axis.set(title="spikes a neuron a step", xlabel="T")
    if not activity:
        axis.text(0.5, 0.5, "not counted", ha="center", transform=axis.transAxes)
        return
    steps = list(activity)
    layers = [name for name in activity[steps[0]]["rates"] if name != "input"]
    cells = [[activity[t]["rates"][layer] for t in steps] for layer in layers]
    axis.figure.colorbar(heat_map(axis, cells, layers, steps, "{:.3f}", cmap="magma_r"), ax=axis)


def heat_map(
    axis: Any,
    cells: Sequence[Sequence[float]],
    rows: Sequence[Any],
    columns: Sequence[Any],
    text: str,
    *,
    cmap: str,
    vmax: float | None = None,
) -> Any:
    """Cells from 0 (light) to ``vmax`` (dark), each with its number; returns the image, for a colour bar."""
    most = vmax or max(map(max, cells), default=0) or 1.0
    image = axis.imshow(cells, cmap=cmap, vmin=0, vmax=most, aspect="auto")
    axis.set_xticks(range(len(columns)), [str(column) for column in columns])
    axis.set_yticks(range(len(rows)), rows, fontsize=8 if len(rows) <= 12 else 5)
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            shade = "w" if cell > most / 2 else "k"
            axis.text(column, row, text.format(cell), ha="center", va="center", fontsize=7, color=shade)
    return image


def draw_confusions(axis: Any, by_class: Mapping[str, Any], names: Sequence[str]) -> None:
    """Heat map of true class by predicted class, in percent of the true class; a class without images is a blank row."""
    counts = by_class["confusion"].double()
    cells = (100 * counts / counts.sum(1, keepdim=True)).numpy()
    axis.imshow(cells, cmap="Oranges", vmin=0, vmax=100)
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            if cell >= 0.5:
                axis.text(column, row, f"{cell:.0f}", ha="center", va="center", fontsize=7, color="w" if cell > 60 else "k")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="predicted class", ylabel="class", title=f"confusions, {by_class['column']} (% of the class)")


def _sorted_classes(axis: Any, by_class: Mapping[str, Any], names: Sequence[str]) -> None:
    """Accuracy of every class in ascending order, with the names of the worst and the best."""
    seen = [(float(a), name) for a, name in zip(by_class["top1"], names) if a == a]
    seen.sort()
    axis.fill_between(range(len(seen)), [a for a, _ in seen], color=ORANGE, alpha=0.35, lw=0, step="mid")
    named = [f"{a:3.0f} %  {name}" for a, name in seen]
    text = "\n".join(["worst", *named[:5], "", "best", *named[-5:][::-1]])
    axis.text(0.03, 0.97, text, transform=axis.transAxes, va="top", fontsize=7, family="monospace")
    axis.set(
        xlabel="classes, sorted",
        ylabel="top-1 (%)",
        ylim=(0, 100),
        xlim=(0, len(seen) - 1),
        title=f"accuracy by class, {by_class['column']}",
    )
