"""The stage ``ann``: the ANN is built and trained."""

from __future__ import annotations

from typing import Any

from spikeprop.experiment.stages.stage import PipelineRun
from spikeprop.experiment.stages.training import train
from spikeprop.runtime.seeding import seed_torch


def train_ann(run: PipelineRun) -> dict[str, Any]:
    """Train the ANN; its checkpoint is ``ann.safetensors``."""
    settings, seed = run.settings.train, run.settings.seed
    seed_torch(seed, 1)
    ann = run.settings.ann.build()
    history = train(run, "ann", ann, settings, settings.rule.build(), seed + 1)
    run.save(ann, "ann")
    return {"history": history}
