"""From the predictions for a data set to what is reported: JSON values, rows for the terminal, a table by class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.predictor import BatchPredictions, Predictor
from spikeprop.evaluate.report import other_steps, steps_text
from spikeprop.evaluate.scores import Predictions, Proportion
from spikeprop.snn import SpikingNetwork

ANN = "ANN"  # the one column of a network that has no time steps


def summarise(network: nn.Module, predictor: Predictor, batches: Sequence[BatchPredictions]) -> dict[str, Any]:
    """Accuracy and activity of a network, in JSON values.

    Returns:
        images; positions, where each image has several; levels of graded spikes, 1 of others; accuracy, by number of steps (or
        "ANN"): top1 and, where there are at least 5 classes, top5 in percent with their 95 % intervals; of positions mean_iou
        instead of top5, and the intervals take each position as an observation of its own; activity, by number of steps: rates,
        synops, energy_joules, bits_per_neuron; early_exit, where it was asked for.
    """
    predictions = Predictions.of(batches)
    return {
        "images": predictions.image_count,
        **({"positions": len(predictions.labels_N)} if predictions.dense else {}),
        "levels": levels(network),
        "accuracy": accuracies(predictor, predictions),
        "activity": activities(predictor.meter(network), predictor, batches),
        "activity_images": sum(batch.counted for batch in batches),
        **early_exit(predictor, batches),
    }


def columns(predictor: Predictor) -> list[str]:
    """Names of the columns of the predictions."""
    return [str(t) for t in predictor.timesteps] or [ANN]


def accuracies(predictor: Predictor, predictions: Predictions) -> dict[str, Any]:
    """Top-1, and top-5 or of positions the mean intersection over union, by column."""
    wanted = {"top1": 1} | ({"top5": 5} if predictions.best_NTK.shape[2] >= 5 and not predictions.dense else {})
    proportions = {name: predictions.top(k) for name, k in wanted.items()}
    found: dict[str, Any] = {column: {} for column in columns(predictor)}
    for name, at_columns in proportions.items():
        for column, proportion in zip(found, at_columns):
            found[column] |= {name: proportion.percent, f"{name}_interval": [proportion.low, proportion.high]}
    for column, mean_iou in zip(found, predictions.mean_iou() if predictions.dense else []):
        found[column] |= {"mean_iou": mean_iou}
    return found


def early_exit(predictor: Predictor, batches: Sequence[BatchPredictions]) -> dict[str, Any]:
    """What early exit saves, and accuracy with it and without; empty where nobody asked for it."""
    left = [batch.early for batch in batches if batch.early is not None]
    if not left or predictor.early_exit is None:
        return {}
    predictions, (early_N, steps_N) = Predictions.of(batches), torch.cat(left, 1)
    complete_N, most = predictions.best_NTK[:, -1, 0].long(), predictor.timesteps[-1]
    with_exit = Proportion.of(int((early_N == predictions.labels_N).sum()), len(early_N))
    without = Proportion.of(int((complete_N == predictions.labels_N).sum()), len(early_N))
    mean = float(steps_N.double().mean())
    return {
        "early_exit": {
            "confidence": predictor.early_exit.confidence,
            "timesteps": most,
            "mean_timesteps": mean,
            "steps_saved": int((most - steps_N).sum()),
            "steps_saved_percent": 100 * (1 - mean / most),
            "left_early": int((steps_N < most).sum()),
            "same_predictions": int((early_N == complete_N).sum()),
            "top1": with_exit.percent,
            "top1_interval": [with_exit.low, with_exit.high],
            "top1_without": without.percent,
            "top1_without_interval": [without.low, without.high],
        }
    }


def activities(meter: ActivityMeter | None, predictor: Predictor, batches: Sequence[BatchPredictions]) -> dict[str, Any]:
    """Rates, SynOps and energy an image, by number of steps; empty where nothing was counted."""
    counted = [batch for batch in batches if batch.counted]
    if meter is None or not counted:
        return {}
    for batch in counted:
        meter.put(batch.counts, batch.counted)
    return {
        str(t): {
            "rates": meter.rates(t),
            "synops": meter.synops(t),
            "energy_joules": meter.energy(t),
            "bits_per_neuron": meter.bits(t),
        }
        for t in predictor.timesteps
    }


def evaluation_rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Table rows (label, text) of a summary."""
    rows = []
    for column, found in values["accuracy"].items():
        label = column if column == ANN else steps_text(column, values["levels"])
        text = str(_proportion(found, "top1"))
        text += f"   top-5 {_proportion(found, 'top5')}" if "top5" in found else ""
        text += f"   mean IoU {found['mean_iou']:.2f} %" if "mean_iou" in found else ""
        if column in values["activity"]:
            active = values["activity"][column]
            text += f"   {active['energy_joules'] * 1e6:.3g} uJ   {active['bits_per_neuron']:.3g} bits a neuron"
        rows.append((label, text if column == ANN else text + other_steps(values.get("calibrated_for"), column)))
    if "early_exit" in values:
        found = values["early_exit"]
        rule = "certain" if found["confidence"] is None else f"confidence {found['confidence']:g}"
        text = f"{_proportion(found, 'top1')}   mean T {found['mean_timesteps']:.2f}"
        text += f" ({found['steps_saved_percent']:.1f} % of steps saved)"
        rows.append((f"early exit, {rule}, T <= {found['timesteps']}", text))
    return rows


def levels(network: nn.Module) -> int:
    """The most levels of a network's graded neurons; 1 if it has none. Real numbers, pooled ones too, have no levels."""
    if not isinstance(network, SpikingNetwork):
        return 1
    return max((layer.payload_bits for layer in network.dynamics().values() if not layer.arithmetic), default=1)


def class_table(predictor: Predictor, predictions: Predictions, names: Sequence[str]) -> str:
    """CSV: class number, name, images, and for each column the correctly predicted images and top-1 in percent."""
    images, correct = predictions.images(len(names)), predictions.correct(len(names))
    labels = [column if column == ANN else f"T{column}" for column in columns(predictor)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "name", "images", *(f"{kind}_{label}" for label in labels for kind in ("correct", "top1"))])
    for number, name in enumerate(names):
        seen = int(images[number])
        if seen:
            counts = [int(count) for count in correct[number]]
            table.writerow([number, name, seen, *(cell for count in counts for cell in (count, f"{100 * count / seen:.2f}"))])
    return text.getvalue()


def total_seconds(batches: Sequence[BatchPredictions]) -> float:
    """Seconds that all batches took, summed over processes and resumed starts."""
    return float(torch.tensor([batch.seconds for batch in batches], dtype=torch.float64).sum())


def _proportion(found: dict[str, Any], name: str) -> Proportion:
    return Proportion(found[name], *found[f"{name}_interval"])
