"""Training as the stages ``ann``, ``finetune`` and ``train`` do it: the stage's settings to one call of ``fit``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spikeprop.experiment.settings import FineTuningSettings, TrainingSettings
from spikeprop.experiment.stages.stage import PipelineRun
from spikeprop.experiment.stages.validation import BATCH, Validation
from spikeprop.learn import Batches, Callback, LearningRule, MetricsLog, ProgressBar, fit, shard
from spikeprop.runtime.batches import CompleteBatches
from spikeprop.runtime.devices import cpu_multiplies_bfloat16


def train(
    run: PipelineRun,
    stage: str,
    model: nn.Module,
    settings: TrainingSettings | FineTuningSettings,
    rule: LearningRule,
    seed: int,
    *guards: Callback,
) -> list[dict[str, Any]]:
    """Train a network in place, on the run's device; an interrupted training continues from its checkpoint.

    Args:
        run: data, device and folder.
        stage: its name, in metrics.jsonl and for the checkpoint.
        model: ANN or spiking network.
        settings: of the stage.
        rule: not yet prepared.
        seed: of the batches and of ``fit``.
        guards: callbacks of the stage's own, before those of the recipe.

    Returns:
        The metrics of each epoch; none with 0 epochs.
    """
    if settings.epochs == 0:
        return []
    if run.sharded:
        shard(model, run.processes, run.device)
    else:
        model.to(run.device)
    batches, callbacks = training_batches(run, settings, seed), [c.build() for c in settings.callbacks]
    rule.prepare(model, next(batches.epoch(0))[0].to(run.device))
    groups = rule.param_groups(model)
    for callback in callbacks:
        groups = callback.param_groups(model, groups)
    logs = _logs(run, stage, _validation(run, settings, len(batches)))
    channels_last = isinstance(settings, TrainingSettings) and settings.memory_format == "channels_last"
    return fit(
        model,
        rule,
        batches,
        settings.build_optimizer(groups),
        epochs=settings.epochs,
        schedule=settings.schedule.build(),
        seed=seed,
        clip=settings.clip,
        callbacks=[*logs, *guards, *callbacks, *run.context.watchers(stage)],
        checkpoint=run.progress(stage),
        processes=run.processes,
        checkpoint_seconds=run.context.save_every,
        autocast=_autocast(run),
        memory_format=torch.channels_last if channels_last else None,
    )


def training_batches(run: PipelineRun, settings: TrainingSettings | FineTuningSettings, seed: int) -> Batches:
    """The batches of a stage's training."""
    split = run.data.train(settings.batch_size, seed)
    return CompleteBatches(split, settings.batch_size) if settings.drop_last else split


def _autocast(run: PipelineRun) -> torch.dtype | None:
    """The run's lower precision, if it has one that this device computes faster."""
    if run.settings.precision == "float32":
        return None
    if run.device.type == "cpu" and not cpu_multiplies_bfloat16():
        run.context.notify(
            "warning: precision: bfloat16 is slower than float32 on this processor, which has neither AVX-512 BF16 nor AMX; "
            "training in float32"
        )
        return None
    return getattr(torch, run.settings.precision)


def _validation(run: PipelineRun, settings: TrainingSettings | FineTuningSettings, batches: int) -> Validation | None:
    """What measures test images after each epoch; None where no process alone has the complete network."""
    if run.sharded or run.processes.rank:
        return None
    steps = None if run.data.in_time else getattr(settings, "timesteps", None)
    return Validation(run.data.test(BATCH), batches * settings.batch_size, steps, run.settings.seed)


def _logs(run: PipelineRun, stage: str, validation: Validation | None) -> list[Callback]:
    """Progress bar and metrics; on other ranks than 0 callbacks that do nothing, so that those after them have the same index."""
    if run.processes.rank:
        return [Callback(), Callback()]
    return [ProgressBar(stage), MetricsLog(run.file("metrics.jsonl"), stage, validation)]
