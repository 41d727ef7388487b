"""Pictures in one line each, for notebooks: ``spikeprop.plot.raster(snn.record(images, 8))``.

Each function draws what a network, ``record``, ``fit`` or an evaluation returned into matplotlib's Axes, new ones of pyplot
unless ``ax`` is given, and returns them: titles, limits and files are matplotlib's own (``ax.set_title(...)``,
``ax.figure.savefig("a.png")``). matplotlib is imported when the first one is drawn. Suffix legend: T steps, B batch, N neurons,
K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spikeprop.errors import DataError
from spikeprop.evaluate.diagnosis import CAUSES, ConversionDiagnosis
from spikeprop.evaluate.error import LayerError
from spikeprop.evaluate.pictures import (
    BLUE,
    FEW_CLASSES,
    GREEN,
    GREY,
    ORANGE,
    VIOLET,
    draw_ann_line,
    draw_bars,
    draw_confusions,
    draw_curve,
    heat_map,
    label_steps,
)
from spikeprop.snn import INPUT, SpikeRecording, SpikingNetwork

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (ORANGE, VIOLET, GREEN, BLUE, GREY)
TRACES = 5  # potentials in one picture
MOST_LEVELS = 7  # payloads whose levels are lines
__all__ = ["accuracy_vs_T", "confusion", "conversion_error", "history", "membrane", "raster", "rates", "thresholds"]


def raster(
    spikes: SpikeRecording | Mapping[str, Tensor] | Tensor,
    ax: Axes | None = None,
    *,
    sample: int = 0,
    neurons: int = 48,
    layers: Sequence[str] | None = None,
) -> Axes:
    """When which neurons fire: a mark a spike, grey for a negative one, faint for a small payload; layers above each other.

    Args:
        spikes: ``snn.record(...)``, spikes (T, B, ...) by layer, or one layer's as a tensor (T, N) or (T, B, ...).
        ax: to draw into; None for new ones.
        sample: of the batch.
        neurons: of a layer, at even distances.
        layers: names, in order; None for all. An input that is not spikes is left out.

    Raises:
        DataError: none of these, or no such sample or layer.
    """
    trains = _trains(spikes, "spikes", layers)
    if layers is None and len(trains) > 1 and not _are_spikes(trains.get(INPUT)):
        trains.pop(INPUT, None)
    ax = _axes(ax, 7.5, 0.8 + 0.9 * max(2, len(trains)))
    first, places = 0, []
    for number, (name, train) in enumerate(trains.items()):
        sent_TN = _of_sample(train, sample, name)
        chosen = _even(sent_TN.shape[1], neurons)
        shown_TN = sent_TN[:, chosen]
        most = max(float(shown_TN.abs().max()), 1.0) if shown_TN.numel() else 1.0
        for payload in _payloads(shown_TN):
            step, row = (shown_TN == payload).nonzero(as_tuple=True)
            color, share = PALETTE[number % 4] if payload > 0 else GREY, abs(payload) / most
            ax.plot((step + 1).tolist(), (first + row).tolist(), "|", color=color, ms=5, mew=1.5, alpha=0.25 + 0.75 * share)
        places.append((first + (len(chosen) - 1) / 2, f"{name}\n{len(chosen)} of {sent_TN.shape[1]}"))
        first += len(chosen) + 2
        if number < len(trains) - 1:
            ax.axhline(first - 1.5, color=GREY, lw=0.5)
    ax.set_yticks([place for place, _ in places], [text for _, text in places])
    ax.set(xlabel="step", xlim=(0.5, len(next(iter(trains.values()))) + 0.5), ylim=(-1, first - 2))
    ax.invert_yaxis()
    _whole_steps(ax)
    return ax


def membrane(
    potentials: SpikeRecording | Tensor,
    ax: Axes | None = None,
    *,
    layer: str | None = None,
    neuron: int | Sequence[int] | None = None,
    sample: int = 0,
) -> Axes:
    """Potentials after each step, with the threshold and the neurons' spikes.

    A spike of graded neurons has its payload beside it; they send k above k times the threshold, a line each up to what was sent.

    Args:
        potentials: ``snn.record(..., membranes=True)``, or a tensor (T, N) or (T, B, ...).
        ax: to draw into; None for new ones.
        layer: of a recording; None for the first.
        neuron: numbers among the layer's neurons; None for the one that fires nearest to every other step, of a tensor for the
            first 5.
        sample: of the batch.

    Raises:
        DataError: a recording without potentials, or no such layer, neuron or sample.
    """
    sent_TN = theta = None
    if isinstance(potentials, SpikeRecording):
        held = potentials.membranes
        if not held:
            raise DataError("this recording has no potentials: record with membranes=True")
        layer = layer if layer is not None else next(iter(held))
        if layer == INPUT:
            raise DataError(f"the input has spikes but no potentials; layers that have them: {', '.join(held)}")
        v_TN = _of_sample(_named(held, layer), sample, layer)
        sent_TN = _of_sample(potentials.spikes[layer], sample, layer)
        if layer in potentials.thresholds:
            theta = potentials.thresholds[layer].expand(held[layer].shape[2:]).flatten()
    elif isinstance(potentials, Tensor):
        v_TN = _of_sample(potentials, sample, "the tensor")
    else:
        raise DataError(f"membrane draws snn.record(..., membranes=True) or a tensor, and got a {type(potentials).__name__}")
    ax = _axes(ax, 6.4, 3.2)
    steps = range(1, len(v_TN) + 1)
    for number, one in enumerate(_chosen(neuron, v_TN, None if sent_TN is None else sent_TN != 0)):
        color = PALETTE[number % len(PALETTE)]
        ax.plot(steps, v_TN[:, one].tolist(), ".-", color=color, label=f"neuron {one}")
        if theta is not None:
            ax.axhline(float(theta[one]), color=color, ls="--", lw=1, label="" if number else "threshold")
        if sent_TN is not None:
            _mark_spikes(ax, sent_TN[:, one], None if theta is None else float(theta[one]), color, first=not number)
    ax.set(xlabel="step", ylabel="potential after the step")
    ax.set_title("" if layer is None else layer, pad=14)  # above the spikes
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    _whole_steps(ax)
    return ax


def rates(given: Any, ax: Axes | None = None) -> Axes:
    """Firing rates by layer, as bars: the share of steps at which a neuron fires.

    Args:
        given: ``snn.record(...)``, ``snn.summary(images, T)``, rates by layer, or several of these by label.
        ax: to draw into; None for new ones.

    Raises:
        DataError: none of these, or a summary without images.
    """
    several = given if isinstance(given, Mapping) and not _numbers(given) else {"": given}
    series = {label: _rates_of(one) for label, one in several.items()}
    ax = _axes(ax, 5.6, 0.9 + 0.32 * max(len(found) for found in series.values()) * max(1.0, len(series) / 2))
    draw_bars(ax, {label: (PALETTE[i % len(PALETTE)], found) for i, (label, found) in enumerate(series.items())}, "firing rates")
    ax.set(xlabel="spikes a neuron a step")
    ax.grid(axis="x", alpha=0.3)
    if len(series) > 1:
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def thresholds(network: SpikingNetwork | Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Thresholds by layer, above which neurons fire: a point a neuron or channel, and a bar at the median.

    Args:
        network: a spiking network, or tensors by layer.
        ax: to draw into; None for new ones.

    Raises:
        DataError: none of these, or a network without thresholds.
    """
    if isinstance(network, SpikingNetwork):
        held = {name: neuron.spike_size for name, neuron in network.neurons().items()}
    elif isinstance(network, Mapping):
        held = dict(network)
    else:
        raise DataError(f"thresholds draws a spiking network, or tensors by layer, and got a {type(network).__name__}")
    if not held:
        raise DataError("the network has no neurons with a threshold")
    ax = _axes(ax, 5.6, 0.9 + 0.36 * len(held))
    for row, theta in enumerate(held.values()):
        values = torch.as_tensor(theta).detach().cpu().flatten().double()
        spread = 0.5 * (torch.arange(len(values)) * 0.618 % 1) - 0.25 if len(values) > 1 else torch.zeros(1)
        ax.plot(values.tolist(), (row + spread).tolist(), ".", color=VIOLET, alpha=0.6, ms=4)
        ax.plot([float(values.median())] * 2, [row - 0.35, row + 0.35], color=ORANGE, lw=2)
    ax.set_yticks(range(len(held)), list(held))
    ax.invert_yaxis()
    ax.set(xlabel="threshold", title="thresholds (bar: median)")
    ax.set_xlim(left=0)
    ax.grid(axis="x", alpha=0.3)
    return ax


def accuracy_vs_T(
    accuracy: Mapping[int, float] | Mapping[str, Mapping[int, float]], ax: Axes | None = None, *, ann: float | None = None
) -> Axes:
    """Accuracy in percent against the number of steps T, on a logarithmic axis.

    Args:
        accuracy: by number of steps, as ``snn_accuracy`` returns it; or several such by label.
        ax: to draw into; None for new ones.
        ann: the ANN's accuracy, as a line.

    Raises:
        DataError: none of these.
    """
    curves: dict[str, Any] = dict(accuracy) if isinstance(accuracy, Mapping) else {}  # type: ignore[arg-type]
    if _numbers(curves):
        curves = {"SNN": curves}
    if not curves or not all(isinstance(curve, Mapping) and _numbers(curve) for curve in curves.values()):
        raise DataError("accuracy_vs_T draws {T: percent}, as snn_accuracy returns it, or several of them by label")
    ax = _axes(ax, 5.6, 3.6)
    for i, (label, curve) in enumerate(curves.items()):
        points = {int(t): float(percent) for t, percent in sorted(curve.items(), key=lambda item: int(item[0]))}
        draw_curve(ax, points, label, PALETTE[i % 4], {})
    if ann is not None:
        draw_ann_line(ax, ann, (ann, ann))
    label_steps(ax, "accuracy against time steps")
    return ax


def conversion_error(given: Any, ax: Axes | None = None) -> Axes:
    """Where a conversion loses: errors by layer.

    Args:
        given: ``explain_conversion(...)``: of each layer what it inherits and what it adds, by cause, at its largest T; or
            ``evaluate.conversion_error(...)``: the relative error by layer and T.
        ax: to draw into; None for new ones.

    Raises:
        DataError: none of these.
    """
    if isinstance(given, ConversionDiagnosis):
        return _diagnosis(given, ax)
    known = isinstance(given, Mapping) and given and all(isinstance(by_t, Mapping) for by_t in given.values())
    if not known or not all(isinstance(error, LayerError) for by_t in given.values() for error in by_t.values()):
        raise DataError("conversion_error draws what explain_conversion(snn, ann, images) or conversion_error(...) returns")
    steps = [*next(iter(given.values()))]
    ax = _axes(ax, 2.6 + 0.6 * len(steps), 1.2 + 0.34 * len(given))
    cells = [[by_t[t].total for t in steps] for by_t in given.values()]
    ax.figure.colorbar(heat_map(ax, cells, list(given), steps, "{:.2f}", cmap="magma_r", vmax=1), ax=ax, extend="max")
    ax.set(xlabel="T", title="relative error")
    return ax


def confusion(predicted: Tensor, labels: Tensor, ax: Axes | None = None, *, names: Sequence[str] | None = None) -> Axes:
    """Which class is taken for which, in percent of the true class.

    Args:
        predicted: scores (B, K), such as a network's output, or classes (B,).
        labels: classes (B,).
        ax: to draw into; None for new ones.
        names: of the classes; None for their numbers.

    Raises:
        DataError: shapes or classes that do not fit.
    """
    predicted, labels = torch.as_tensor(predicted).detach().cpu(), torch.as_tensor(labels).detach().cpu()
    classes = predicted.shape[1] if predicted.dim() == 2 else 1 + int(max(predicted.max(), labels.max()))
    found = predicted.argmax(1) if predicted.dim() == 2 else predicted
    if found.shape != labels.shape or labels.dim() != 1 or labels.is_floating_point() or found.is_floating_point():
        raise DataError(
            f"predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)}: give scores (B, K) or classes (B,), and one "
            "whole number a label"
        )
    classes = len(names) if names is not None else classes
    if int(labels.min()) < 0 or int(torch.maximum(labels, found).max()) >= classes:
        raise DataError(f"labels or predictions hold a class outside 0..{classes - 1}: names and scores are of {classes} classes")
    counts = torch.bincount(labels * classes + found, minlength=classes * classes).view(classes, classes)
    ax = _axes(ax, 5.6, 5.0)
    if classes <= FEW_CLASSES:
        draw_confusions(
            ax, {"confusion": counts, "column": ""}, [str(n) for n in (names if names is not None else range(classes))]
        )
    else:
        ax.imshow((counts / counts.sum(1, keepdim=True)).numpy(), cmap="Oranges", vmin=0, vmax=1)
        ax.set(xlabel="predicted class", ylabel="class")
    ax.set_title(f"{100 * float((found == labels).double().mean()):.2f} % of {len(labels):,}")
    return ax


def history(epochs: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Loss by epoch, and the accuracy on an axis of its own to the right (``ax.figure.axes[-1]``) where there is one.

    Args:
        epochs: what ``fit`` returned; or several of them, one after another, in one list.
        ax: to draw into; None for new ones.

    Raises:
        DataError: no epochs, or without a loss.
    """
    rows = list(epochs)
    if not rows or not all(isinstance(row, Mapping) and "loss" in row for row in rows):
        raise DataError("history draws what fit returned, one dict an epoch with its loss; there is none")
    ax = _axes(ax, 5.6, 3.2)
    numbers = range(1, len(rows) + 1)
    ax.plot(numbers, [row["loss"] for row in rows], ".-", color=ORANGE, label="loss")
    ax.set(xlabel="epoch", ylabel="loss", title="training")
    ax.yaxis.label.set_color(ORANGE)
    ax.grid(alpha=0.3)
    _whole_steps(ax)
    percent = [math.nan if row.get("accuracy") is None else row["accuracy"] for row in rows]
    if not all(map(math.isnan, percent)):
        right = ax.twinx()
        right.plot(numbers, percent, ".-", color=BLUE, label="accuracy")
        right.set_ylabel("accuracy (%)", color=BLUE)
    return ax


# parts ------------------------------------------------------------------------------------------------------------------------


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _mark_spikes(ax: Axes, sent_T: Tensor, theta: float | None, color: str, *, first: bool) -> None:
    """A neuron's spikes at the top edge; of a graded one with payloads, and the further levels at which it sent more."""
    at = (sent_T.nonzero().flatten() + 1).tolist()
    at_top: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    ax.plot(at, [1.0] * len(at), "v", color=color, ms=6, label="spike" if first else "", **at_top)
    payloads = _payloads(sent_T)
    if all(abs(payload) == 1 for payload in payloads):
        return
    for step in at:
        ax.text(step, 1.03, f"{float(sent_T[step - 1]):g}", color=color, fontsize=7, ha="center", va="bottom", **at_top)
    for payload in payloads:
        if theta is not None and 1 < payload <= MOST_LEVELS:
            ax.axhline(payload * theta, color=color, ls=":", lw=0.7, label=f"payload {payload:g}" if first else "")


def _payloads(sent: Tensor) -> list[float]:
    """The different numbers that were sent, other than 0."""
    return [float(value) for value in sent.unique() if value != 0]


def _whole_steps(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _trains(given: Any, what: str, layers: Sequence[str] | None) -> dict[str, Tensor]:
    found = given.spikes if isinstance(given, SpikeRecording) else {"": given} if isinstance(given, Tensor) else given
    if not isinstance(found, Mapping) or not found or not all(isinstance(train, Tensor) for train in found.values()):
        raise DataError(
            f"{what} are snn.record(...), tensors (T, B, ...) by layer, or one tensor; this is a {type(given).__name__}"
        )
    return {name: _named(found, name) for name in layers} if layers is not None else dict(found)


def _named(held: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in held:
        raise DataError(f"there is no layer {name!r}; there are {', '.join(held)}")
    return held[name]


def _of_sample(train: Tensor, sample: int, name: str) -> Tensor:
    """One sample's values (T, N) of (T, B, ...) or (T, N)."""
    train = train.detach().cpu()
    if train.dim() < 2 or len(train) == 0:
        raise DataError(f"{name}: a tensor {tuple(train.shape)}; give (T, N) or (T, B, ...)")
    if train.dim() == 2:
        return train
    if not -train.shape[1] <= sample < train.shape[1]:
        raise DataError(f"{name}: sample {sample} of a batch of {train.shape[1]}")
    return train[:, sample].flatten(1)


def _are_spikes(train: Tensor | None) -> bool:
    """Whether all values are whole numbers, and not one picture at every step."""
    return train is not None and bool((train == train.round()).all()) and not bool((train == train[:1]).all())


def _chosen(neuron: int | Sequence[int] | None, v_TN: Tensor, fired_TN: Tensor | None) -> list[int]:
    count = v_TN.shape[1]
    if neuron is None:
        return list(range(min(TRACES, count))) if fired_TN is None else [int((fired_TN.sum(0) - len(v_TN) / 2).abs().argmin())]
    wanted = [neuron] if isinstance(neuron, int) else list(neuron)
    wrong = [one for one in wanted if not 0 <= one < count]
    if wrong:
        raise DataError(f"there is no neuron {wrong[0]}: the layer has {count}, counted from 0")
    return wanted


def _even(count: int, wanted: int) -> list[int]:
    return list(range(count)) if count <= wanted else [i * count // wanted for i in range(wanted)]


def _numbers(given: Mapping[Any, Any]) -> bool:
    return bool(given) and all(isinstance(value, int | float) for value in given.values())


def _rates_of(given: Any) -> dict[str, float]:
    if isinstance(given, SpikeRecording):
        found = given.rates()
    elif isinstance(given, Mapping):
        found = dict(given)
    else:
        rows = getattr(given, "layers", [])
        found = {row.name: row.rate for row in rows if getattr(row, "rate", None) is not None}
        if rows and not found:
            raise DataError("this summary has no rates: give it images, snn.summary(images, T)")
    if not _numbers(found):
        raise DataError(
            f"rates are snn.record(...), snn.summary(images, T), or numbers by layer; this is a {type(given).__name__}"
        )
    return found


def _diagnosis(found: ConversionDiagnosis, ax: Axes | None) -> Axes:
    """Stacked bars: what each layer adds, by cause; a mark at what it inherits."""
    timesteps = max(found.agreement)
    rows = found.at(timesteps)
    ax = _axes(ax, 7.4, 1.4 + 0.36 * len(rows))
    left = [0.0] * len(rows)
    for cause, color in zip(CAUSES, (VIOLET, ORANGE, GREEN, GREY)):
        parts = [row.own * getattr(row, cause) for row in rows]
        ax.barh(range(len(rows)), parts, left=left, color=color, label=cause)
        left = [a + b for a, b in zip(left, parts)]
    ax.plot([100 * row.inherited for row in rows], range(len(rows)), "D", color="k", ms=5, label="inherited")
    ax.set_yticks(range(len(rows)), [row.layer for row in rows])
    ax.invert_yaxis()
    ax.set(xlabel="error relative to the ANN's activation (%)")
    ax.set_title(f"T = {timesteps}: predicts as the ANN for {found.agreement[timesteps]:.1f} % of {found.images}", fontsize=10)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax
