"""The stage ``simulate``: a few test images on Lava, every spike compared with PyTorch's; and the size on the chip."""

from __future__ import annotations

from typing import Any

from spikeprop.deploy import chip_budget, compare
from spikeprop.experiment.stages.stage import NIR_FILE, PipelineRun
from spikeprop.runtime.seeding import seed_torch


def simulate_network(run: PipelineRun) -> dict[str, Any]:
    """Simulate ``network.nir``; without samples, or where there is no such file, the stage is left out."""
    samples, file = run.settings.simulate.samples, run.file(NIR_FILE)
    if samples == 0 or not file.exists():
        return {"samples": 0}
    images, labels = next(run.data.test(samples).epoch(0))
    seed_torch(run.settings.seed, 3)
    steps = None if run.data.in_time else run.steps
    return compare(run.last_network(), file, images, labels, steps, run.context.notify) | {"chip": chip_budget(file)}
