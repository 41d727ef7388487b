"""Training as the stages ``ann``, ``finetune`` and ``train`` do it: the stage's settings to one call of ``fit``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spikeprop.experiment.settings import FineTuningSettings, TrainingSettings
from spikeprop.experiment.stages.stage import PipelineRun
from spikeprop.learn import Callback, LearningRule, MetricsLog, ProgressBar, fit, shard


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
    batches, callbacks = run.data.train(settings.batch_size, seed), [c.build() for c in settings.callbacks]
    rule.prepare(model, next(batches.epoch(0))[0].to(run.device))
    groups = rule.param_groups(model)
    for callback in callbacks:
        groups = callback.param_groups(model, groups)
    precision = run.settings.precision
    return fit(
        model,
        rule,
        batches,
        settings.build_optimizer(groups),
        epochs=settings.epochs,
        schedule=settings.schedule.build(),
        seed=seed,
        clip=settings.clip,
        callbacks=[*_logs(run, stage), *guards, *callbacks, *run.context.watchers(stage)],
        checkpoint=run.progress(stage),
        processes=run.processes,
        checkpoint_seconds=run.context.save_every,
        autocast=None if precision == "float32" else getattr(torch, precision),
    )


def _logs(run: PipelineRun, stage: str) -> list[Callback]:
    """Progress bar and metrics; on other ranks than 0 callbacks that do nothing, so that those after them have the same index."""
    if run.processes.rank:
        return [Callback(), Callback()]
    return [ProgressBar(stage), MetricsLog(run.file("metrics.jsonl"), stage)]
