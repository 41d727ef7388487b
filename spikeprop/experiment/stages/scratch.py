"""The stage ``train`` of a spiking network: it is built of the recipe's module, and trained from scratch."""

from __future__ import annotations

from typing import Any

from spikeprop.experiment.stages.stage import PipelineRun
from spikeprop.experiment.stages.training import train
from spikeprop.learn import CollapseGuard
from spikeprop.runtime.seeding import seed_torch


def train_spiking(run: PipelineRun) -> dict[str, Any]:
    """Train the spiking network; its checkpoint is ``trained.safetensors``, also where there are no epochs."""
    settings, seed = run.settings.train, run.settings.seed
    seed_torch(seed, 1)
    network = run.settings.build_network(run.data)
    for note in network.notes:
        run.context.notify(note)
    history = train(run, "train", network, settings, settings.build_rule(), seed + 1, CollapseGuard(run.data.classes))
    run.save(network, "trained")
    return {"history": history}
