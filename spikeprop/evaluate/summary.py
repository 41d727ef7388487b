"""From the answers to a data set to what is reported: JSON values, rows for the terminal, a table by class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.answers import BatchAnswers, Question
from spikeprop.evaluate.scores import Answers, Share

ANN = "ANN"  # the one column of a network that has no time steps


def summarise(network: nn.Module, question: Question, batches: Sequence[BatchAnswers]) -> dict[str, Any]:
    """What the answers say of a network, in JSON values.

    Returns:
        images; accuracy, by number of steps (or "ANN"): top1 and, where it means something, top5 in percent with their 95 %
        intervals, or None where there is no answer yet; activity, by number of steps: rates, synops, energy_joules.
    """
    answers = Answers.of(batches)
    return {
        "images": len(answers.labels_N),
        "accuracy": accuracies(question, answers),
        "activity": activities(question.meter(network), question, batches),
        "activity_images": sum(batch.counted for batch in batches),
    }


def columns(question: Question) -> list[str]:
    """Names of the columns of the answers."""
    return [str(t) for t in question.timesteps] or [ANN]


def accuracies(question: Question, answers: Answers) -> dict[str, Any]:
    """Top-1 and top-5, by column."""
    wanted = {"top1": 1} | ({"top5": 5} if answers.best_NTK.shape[2] >= 5 else {})
    shares = {name: answers.top(k) for name, k in wanted.items()}
    found: dict[str, Any] = {}
    for i, column in enumerate(columns(question)):
        available = not question.timesteps or question.main_steps[i] >= 1
        found[column] = {key: value for name in wanted for key, value in _json(name, shares[name][i])} if available else None
    return found


def activities(meter: ActivityMeter | None, question: Question, batches: Sequence[BatchAnswers]) -> dict[str, Any]:
    """Rates, SynOps and energy an image, by number of steps; empty where nothing was counted."""
    counted = [batch for batch in batches if batch.counted]
    if meter is None or not counted:
        return {}
    for batch in counted:
        meter.put(batch.counts, batch.counted)
    return {
        str(t): {"rates": meter.rates(steps), "synops": meter.synops(steps), "energy_joules": meter.energy(steps)}
        for t, steps in zip(question.timesteps, question.main_steps)
        if steps >= 1
    }


def accuracy_lines(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Table rows (label, text) of a summary."""
    rows = []
    for column, found in values["accuracy"].items():
        label = column if column == ANN else f"T = {column}"
        if found is None:
            rows.append((label, f"unavailable: the first {values['extra_steps']} steps give no answer"))
            continue
        text = str(_share(found, "top1"))
        text += f"   top-5 {_share(found, 'top5')}" if "top5" in found else ""
        if column in values["activity"]:
            text += f"   {values['activity'][column]['energy_joules'] * 1e6:.3g} uJ"
        rows.append((label, text))
    return rows


def class_table(question: Question, answers: Answers, names: Sequence[str]) -> str:
    """CSV: class number, name, images, and for each column the images told right and top-1 in percent."""
    images, right = answers.images(len(names)), answers.right(len(names))
    labels = [column if column == ANN else f"T{column}" for column in columns(question)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "name", "images", *(f"{kind}_{label}" for label in labels for kind in ("right", "top1"))])
    for number, name in enumerate(names):
        seen = int(images[number])
        if seen:
            told = [int(count) for count in right[number]]
            table.writerow([number, name, seen, *(cell for count in told for cell in (count, f"{100 * count / seen:.2f}"))])
    return text.getvalue()


def seconds(batches: Sequence[BatchAnswers]) -> float:
    """Of all processes together, over however many starts."""
    return float(torch.tensor([batch.seconds for batch in batches], dtype=torch.float64).sum())


def _json(name: str, share: Share) -> list[tuple[str, Any]]:
    return [(name, share.percent), (f"{name}_interval", [share.low, share.high])]


def _share(found: dict[str, Any], name: str) -> Share:
    return Share(found[name], *found[f"{name}_interval"])
