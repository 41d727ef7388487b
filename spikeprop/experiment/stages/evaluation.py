"""The stage ``evaluate``: accuracy, activity and energy of the run's networks; of a conversion also the error by layer."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from spikeprop.convert import activation_scales, relu_activations, uncalibrated
from spikeprop.errors import DamagedFileError, EvaluationError
from spikeprop.evaluate import (
    CONSTANTS,
    MAC_JOULES,
    Journal,
    Predictor,
    conversion_error,
    count_macs,
    draw_conversion_error,
    scalars_by_steps,
)
from spikeprop.experiment.evaluation import evaluate_network, evaluation_settings
from spikeprop.experiment.stages.stage import PipelineRun

PROGRESS = "evaluate.progress"  # folder of the predictions while the stage runs, by network
PREDICTIONS = "predictions"  # their folder once it is finished
ERROR_IMAGES = 16  # for the error of the conversion, layer by layer
ACTIVITY_IMAGES = 500  # whose spikes are counted: SynOps come out within a few percent, and a network is simulated once


def evaluate_networks(run: PipelineRun) -> dict[str, Any]:
    """Evaluate ANN, converted and fine-tuned network (where there is one); on other ranks than 0 the result is empty."""
    settings, finetune = run.settings.evaluate, run.settings.finetune
    timesteps = sorted({*settings.timesteps, finetune.timesteps})
    limit = max(settings.finetuned_up_to or max(timesteps), finetune.timesteps)
    reported = {"converted": timesteps}
    if finetune.epochs:
        reported["finetuned"] = [t for t in timesteps if t <= limit]
    ann = run.load("ann").to(run.device)
    summaries = {"ann": _summary(run, "ann", ann, ())}
    for network, steps in reported.items():
        summaries[network] = _summary(run, network, run.load_spiking(network).to(run.device), steps)
    if run.processes.rank:
        return {}
    top1 = summaries["ann"]["accuracy"]["ANN"]
    result: dict[str, Any] = {
        "images": summaries["ann"]["images"],
        "ann": {"accuracy": top1["top1"], "interval": top1["top1_interval"], **_of_positions(top1)},
    }
    for network, steps in reported.items():
        result[network] = _at_steps(summaries[network], steps)
        run.context.show(network, scalars_by_steps(result[network]))
    result["conversion_error"] = _conversion_error(run, ann, timesteps)
    macs, activity = count_macs(ann, run.data.input_shape), result[run.settings.last]["activity"][str(finetune.timesteps)]
    energy = {
        "ann": macs * MAC_JOULES,
        "snn": activity["energy_joules"],
        "constants": CONSTANTS,
    }
    rates = {"rates_at": finetune.timesteps, "rates": activity["rates"], "synops": activity["synops"]}
    return {**result, **rates, "macs": macs, "energy_joules": energy}


def evaluate_trained(run: PipelineRun) -> dict[str, Any]:
    """Evaluate a spiking network that was trained from scratch; on other ranks than 0 the result is empty."""
    timesteps = sorted({*run.settings.evaluate.timesteps, run.steps})
    summary = _summary(run, "trained", run.last_network().to(run.device), timesteps)
    if run.processes.rank:
        return {}
    found = _at_steps(summary, timesteps)
    run.context.show("trained", scalars_by_steps(found))
    activity = found["activity"][str(run.steps)]
    energy = {"snn": activity["energy_joules"], "constants": CONSTANTS}
    rates = {"rates_at": run.steps, "rates": activity["rates"], "synops": activity["synops"]}
    return {"trained": found, **rates, "energy_joules": energy}


def keep_predictions(run: PipelineRun) -> None:
    """Move the predictions for the test images to their folder: the report page shows confusions and examples from them."""
    for folder in run.file(PROGRESS).glob("*"):
        if (folder / "predictions.safetensors").exists():
            kept = run.file(PREDICTIONS) / folder.name
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            folder.rename(kept)
    shutil.rmtree(run.file(PROGRESS), ignore_errors=True)


def _summary(run: PipelineRun, name: str, network: nn.Module, timesteps: Sequence[int]) -> dict[str, Any]:
    """The summary of a network's predictions for the test images."""
    settings = run.settings.evaluate
    predictor = Predictor(timesteps=tuple(timesteps), seed=run.settings.seed, early_exit=settings.early_exit)
    split = run.data.test(settings.batch_size)
    journal = Journal(run.file(PROGRESS) / name, evaluation_settings(network, split, predictor, ACTIVITY_IMAGES))
    evaluation = evaluate_network(
        network, split, predictor, journal, lambda: _begin(journal),
        processes=run.processes, activity_images=ACTIVITY_IMAGES, label=f"evaluate {name}",
    )  # fmt: skip
    return evaluation.summary


def _begin(journal: Journal) -> None:
    """Begin, or continue; what was begun on another device, to which a run may move, or is damaged begins again."""
    try:
        journal.open({})
    except EvaluationError:
        journal.open({}, restart=True)
    except DamagedFileError:
        warnings.warn(f"{journal.path / 'evaluation.json'} is damaged: its images are predicted again", stacklevel=2)
        journal.open({}, restart=True)


def _at_steps(summary: dict[str, Any], steps: Sequence[int]) -> dict[str, Any]:
    """A spiking network's summary in the form of the report, at these numbers of steps."""
    accuracy = {t: found for t, found in summary["accuracy"].items() if int(t) in steps}
    return {
        "accuracy": {t: found["top1"] for t, found in accuracy.items()},
        "interval": {t: found["top1_interval"] for t, found in accuracy.items()},
        **(
            {"mean_iou": ious} if (ious := {t: found["mean_iou"] for t, found in accuracy.items() if "mean_iou" in found}) else {}
        ),
        "activity": {t: found for t, found in summary["activity"].items() if int(t) in steps},
        "activity_images": summary["activity_images"],
        "levels": summary["levels"],
        **({"early_exit": summary["early_exit"]} if "early_exit" in summary else {}),
    }


def _of_positions(found: dict[str, Any]) -> dict[str, float]:
    return {"mean_iou": found["mean_iou"]} if "mean_iou" in found else {}


def _conversion_error(run: PipelineRun, ann: nn.Module, timesteps: Sequence[int]) -> dict[str, Any]:
    """By layer and number of steps: how far rates are from the ANN's activations, on a few test images; and its picture."""
    images = next(run.data.test(ERROR_IMAGES).epoch(0))[0].to(run.device)
    network = run.load_spiking("converted").to(run.device)
    plain = uncalibrated(network, ann, images)
    with torch.no_grad():
        errors = conversion_error(network, images, relu_activations(plain, images), activation_scales(network), timesteps)
    draw_conversion_error(errors, run.file("conversion_error.png"), run.context.name)
    return {name: {str(t): asdict(error) for t, error in by_t.items()} for name, by_t in errors.items()}
