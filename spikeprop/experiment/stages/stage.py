"""``Stage``: one step of a pipeline; ``PipelineRun``: what the stages of one run share; ``run_stages``: all of them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from spikeprop.errors import CheckpointError
from spikeprop.experiment.context import Context
from spikeprop.experiment.network_checkpoint import describe_network, load_network, load_spiking
from spikeprop.learn import drop_progress, load_checkpoint, save_checkpoint
from spikeprop.recipe.names import split
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.devices import find_device
from spikeprop.snn import SpikingNetwork

NIR_FILE = "network.nir"


class PipelineRun:
    """One run: its settings, its folder with the networks in it, its data and its device.

    Args:
        settings: of all stages: an experiment, which also describes its networks and names the last one.
        context: of the run.
    """

    def __init__(self, settings: Any, context: Context):
        self.settings, self.context, self.folder = settings, context, context.folder
        self.processes = context.folder.processes
        self.device = self.processes.device(find_device(settings.device))
        self.data = settings.data.build()
        self.sharded = settings.sharded and self.processes.count > 1
        if settings.sharded and not self.sharded:
            context.notify("sharded: there is one process, which keeps everything; start several with torchrun")

    @cached_property
    def steps(self) -> int:
        """Steps of the spiking network's simulation: those of its training, or of its longest test sequence."""
        found = self.settings.simulation_steps(self.data)
        return found if found is not None else longest(self.data.test(self.settings.evaluate.batch_size))

    def file(self, name: str) -> Path:
        """A file of the run folder."""
        return self.folder.path / name

    def checkpoint(self, network: str) -> Path:
        """The checkpoint of a network: "ann", "converted" or "finetuned", or "trained"."""
        return self.file(f"{network}.safetensors")

    def progress(self, stage: str) -> Path:
        """The checkpoint of a stage's unfinished training."""
        return self.file(f"{stage}.progress.safetensors")

    def save(self, model: nn.Module, network: str) -> None:
        """Write a network's checkpoint; all processes call it, since each may hold a shard."""
        if self.context.writes or self.sharded:
            description = self.describe(model) | self.settings.describe_calibration(network)
            save_checkpoint(self.checkpoint(network), model, description, writes=self.context.writes)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint says of a network."""
        return describe_network(model, self.settings, self.data, self.steps)

    def load(self, network: str) -> nn.Module:
        """A network of the run folder, on the CPU and in evaluation mode."""
        return load_network(self.checkpoint(network), self._named()).network

    def load_spiking(self, network: str) -> SpikingNetwork:
        """The same for spiking networks."""
        return load_spiking(self.checkpoint(network), self._named()).network

    def _named(self) -> tuple[str, ...]:
        """The function or object of which the recipe makes its ANN, which its checkpoints may call too."""
        ann = getattr(self.settings, "ann", None)
        return () if ann is None else (":".join(split(ann.use)),)

    def last_network(self) -> SpikingNetwork:
        """The last network of the pipeline."""
        return self.load_spiking(self.settings.last)


def longest(split: Any) -> int:
    """Steps of the longest sequence of a split."""
    return max(int(x.lengths.max()) if isinstance(x, Sequences) else x.shape[1] for x, _ in split.epoch(0))


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline, whose result is kept in ``stages.json``.

    Attributes:
        name: in ``stages.json`` and in the report.
        work: what it does; gives JSON values.
        network: the network whose checkpoint it writes; None for none.
        distributed: of several processes all do the work, and rank 0's result counts; else rank 0 does it and the others wait.
        finish: done by rank 0 after every call, also where the result was read from the folder.
    """

    name: str
    work: Callable[[PipelineRun], dict[str, Any]]
    network: str | None = None
    distributed: bool = False
    finish: Callable[[PipelineRun], None] = lambda run: None

    def result(self, run: PipelineRun) -> dict[str, Any]:
        """Its result: from the run folder, or from its work. The optimiser state of a finished stage is deleted."""
        found = run.folder.stage(self.name, lambda: self.work(run), distributed=self.distributed)
        if run.context.writes:
            drop_progress(run.progress(self.name))
            self.finish(run)
        return found


def run_stages(run: PipelineRun, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """The results of all stages, in order; those of finished ones are read from the folder."""
    run.processes.on_rank_zero(lambda: _forget_damaged(run, stages))
    run.folder.reread()
    return {stage.name: stage.result(run) for stage in stages}


def _forget_damaged(run: PipelineRun, stages: Sequence[Stage]) -> None:
    """A stage whose checkpoint cannot be read any more runs again, and so do the stages after it."""
    folder = run.folder
    if all(folder.finished(stage.name) for stage in stages) and run.file("report.json").exists():
        return  # nothing will be read: a finished run whose networks were deleted to save space stays finished
    for i, stage in enumerate(stages):
        if stage.network is None or not folder.finished(stage.name):
            continue
        file = run.checkpoint(stage.network)
        try:
            load_checkpoint(file)
        except CheckpointError as error:
            run.context.notify(f"warning: {error}. Stage {stage.name} and those after it run again")
            file.unlink(missing_ok=True)
            folder.forget([later.name for later in stages[i:]])
            return
