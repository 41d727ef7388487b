"""``Stage``: one step of the pipeline; ``PipelineRun``: what the stages of one run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from spikeprop.experiment.context import Context
from spikeprop.experiment.network_checkpoint import describe_network, load_network, load_spiking
from spikeprop.experiment.settings import HybridSettings
from spikeprop.learn import drop_progress, save_checkpoint
from spikeprop.runtime.devices import find_device
from spikeprop.snn import SpikingNetwork

NIR_FILE = "network.nir"


class PipelineRun:
    """One run: its settings, its folder with the networks in it, its data and its device.

    Args:
        settings: of all stages.
        context: of the run.
    """

    def __init__(self, settings: HybridSettings, context: Context):
        self.settings, self.context, self.folder = settings, context, context.folder
        self.processes = context.folder.processes
        self.device = self.processes.device(find_device(settings.device))
        self.data = settings.data.build()
        self.sharded = settings.sharded and self.processes.count > 1
        if settings.sharded and not self.sharded:
            context.notify("sharded: there is one process, which keeps everything; start several with torchrun")

    def file(self, name: str) -> Path:
        """A file of the run folder."""
        return self.folder.path / name

    def checkpoint(self, network: str) -> Path:
        """The checkpoint of a network: "ann", "converted" or "finetuned"."""
        return self.file(f"{network}.safetensors")

    def progress(self, stage: str) -> Path:
        """The checkpoint of a stage's unfinished training."""
        return self.file(f"{stage}.progress.safetensors")

    def save(self, model: nn.Module, network: str) -> None:
        """Write a network's checkpoint; all processes call it, since each may hold a shard."""
        if self.context.writes or self.sharded:
            description = describe_network(model, self.settings, self.data)
            save_checkpoint(self.checkpoint(network), model, description, writes=self.context.writes)

    def load(self, network: str) -> nn.Module:
        """A network of the run folder, on the CPU and in evaluation mode."""
        return load_network(self.checkpoint(network)).network

    def load_spiking(self, network: str) -> SpikingNetwork:
        """The same for "converted" and "finetuned"."""
        return load_spiking(self.checkpoint(network)).network


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
