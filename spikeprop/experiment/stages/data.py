"""The stage ``data``: the data set is read, and fetched where the recipe says so."""

from __future__ import annotations

from typing import Any

from spikeprop.experiment.stages.stage import PipelineRun
from spikeprop.experiment.stages.training import training_batches


def load_data(run: PipelineRun) -> dict[str, Any]:
    """The sizes of the data set."""
    train, test = training_batches(run, run.settings.train, 0), run.data.test(1)
    return {"use": type(run.data).__name__, "train_batches": len(train), "test_images": len(test)}
