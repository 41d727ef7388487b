"""The hybrid conversion: recipe -> data -> ann -> convert -> finetune -> evaluate -> export -> simulate.

``HybridConversion`` is the experiment of Rathi et al. 2020 ("Enabling deep spiking neural networks with hybrid conversion and
spike timing dependent backpropagation"). Its stages are the files of ``spikeprop.experiment.stages``, which lists them. The
result of each stage is kept in the run folder, so a stopped run continues with the stage in which it stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from spikeprop.data import ImageData
from spikeprop.errors import RecipeError
from spikeprop.evaluate import Report, draw_run, run_rows
from spikeprop.experiment import completion
from spikeprop.experiment.context import Context
from spikeprop.experiment.network_checkpoint import check_buildable, check_network, check_weights, outline_network
from spikeprop.experiment.settings import HybridSettings, RunSettings, trial_optimizer
from spikeprop.experiment.stages import HYBRID, PipelineRun, run_stages
from spikeprop.learn import LearningRule, check_shardable
from spikeprop.recipe import Component, Problems
from spikeprop.runtime.devices import find_device
from spikeprop.snn import Encoder, SpikingNetwork
from spikeprop.snn.differential import DifferentialIF

SMOKE_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class HybridConversion(HybridSettings):
    """Train an ANN, convert it, fine-tune it with spikes, evaluate it, export it, and check it on Lava."""

    @property
    def last(self) -> str:
        """Network of the pipeline: without fine-tuning the converted one, which is not written twice."""
        return "finetuned" if self.finetune.epochs else "converted"

    @classmethod
    def complete(cls, tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The complete tree of a recipe's, and what is missing that nothing can stand for."""
        return completion.complete(tree)

    def run(self, context: Context) -> Report:
        """All stages in order; finished ones are read from the folder. ``check`` is called before, by the command line."""
        run = PipelineRun(self, context)
        results = run_stages(run, [stage for stage in HYBRID if self.finetune.epochs or stage.name != "finetune"])
        own = {
            "finetuned_epochs": self.finetune.epochs,
            "thresholds": results["convert"]["thresholds"],
            "conversion": self.convert.describe_choice(),
        }
        simulated, why = results["simulate"], results["export"].get("why")
        if why and self.simulate.samples:  # the rows say why nothing was simulated, although the recipe asks for it
            simulated = {**simulated, "why": why}
        return report_on(run, {**results["evaluate"], **own, "simulate": simulated})

    def simulation_steps(self, data: ImageData) -> int:
        """Steps of a simulation."""
        return self.finetune.timesteps

    def describe_model(self, model: nn.Module) -> dict[str, Any]:
        """How the network of a checkpoint is built."""
        return {
            "ann": self.ann.describe(),
            "neuron": self.convert.neuron.describe(),
            "encoder": self.convert.encoder.describe(),
        }

    def describe_calibration(self, network: str) -> dict[str, Any]:
        """For a network whose thresholds are as calibrated: for how many steps, and why neuron and calibrator were chosen."""
        if network != "converted":
            return {}
        choice = self.convert.describe_choice()
        found = {"calibrated_for": choice["calibrated_for"], "why": choice["why"]}
        return {key: value for key, value in found.items() if value}

    def outline(self) -> SpikingNetwork:
        """The network that is converted, untrained, for what is asked of its shapes."""
        return outline_network(self.ann, self.convert.neuron, self.convert.encoder, self.data.build())

    def smoke(self) -> HybridConversion:
        """The same on a few images, epochs and steps: does it run from end to end?"""
        calibrator = self.convert.calibrator.with_timesteps(4, override=True)
        steps = None if self.convert.timesteps is None else 4
        return replace(
            self,
            data=self.data.replace(train_limit=SMOKE_IMAGES, test_limit=SMOKE_IMAGES // 2),
            train=replace(self.train, epochs=min(1, self.train.epochs), batch_size=16),
            convert=replace(self.convert, images=16, calibrator=calibrator, timesteps=steps),
            finetune=replace(self.finetune, epochs=min(1, self.finetune.epochs), batch_size=16, timesteps=2),
            evaluate=replace(self.evaluate, timesteps=[2, 4], finetuned_up_to=None, batch_size=16),
            simulate=replace(self.simulate, samples=min(1, self.simulate.samples)),
        )

    def check(self, *, here: bool = False) -> None:
        """Build every component, and an outline of the ANN and its conversion, so that mistakes are found before training.

        Args:
            here: check also whether this machine has the device.

        Raises:
            RecipeError: a bad value, an ANN that does not fit the data, or a device that this machine lacks.
            ConversionError: an ANN that cannot be converted.
            SegmentError: an ANN that the learning rule cannot cut into segments.
        """
        problems = Problems()
        for settings in (self.train, self.convert, self.finetune):
            with problems.collected():
                settings.check()
        with problems.collected():
            self._check_gradient()
        with problems.collected():
            check_code(self.convert.encoder, {self.finetune.timesteps, *self.evaluate.timesteps})
        with problems.collected():
            data = self.check_parts({"ann": self.ann, "data": self.data})
            check_network(self.ann, self.convert.neuron, self.convert.encoder, data)
            if not problems:
                self._check_training(data)
        problems.raise_all()
        self.simulate.check_fit(self.outline)
        if self.sharded:
            self._check_sharded()
        if here:
            check_machine(self)

    @classmethod
    def check_parts(cls, parts: Mapping[str, Any]) -> Any:
        """The data set, if it is among the ``parts`` of a recipe; network and data are checked, each by itself.

        Raises:
            RecipeError: a network that cannot be built, or files of weights or data that are not there; naming all of it.
        """
        problems, data = Problems(), None
        for check in (check_buildable, check_weights) if "ann" in parts else ():
            with problems.collected():
                check(parts["ann"])
        with problems.collected():
            data = parts["data"].build() if "data" in parts else None
            getattr(data, "input_shape", None)  # data of one's own are read for it
        problems.raise_all()
        return data

    def _check_gradient(self) -> None:
        """Not every neuron can be fine-tuned."""
        if self.finetune.epochs and isinstance(self.convert.neuron.build(), DifferentialIF):
            raise RecipeError("finetune: DifferentialIF passes no gradient; use finetune.epochs=0, or convert.neuron=GradedIF")

    def _check_training(self, data: ImageData) -> None:
        """Prepare rule and callbacks with the ANN: some cannot train every network, or look for a module that it lacks."""
        rule, callbacks = self.train.rule.build(), [c.build() for c in self.train.callbacks]
        if not self.train.epochs or not (callbacks or type(rule).prepare is not LearningRule.prepare):
            return
        ann = self.ann.build()
        rule.prepare(ann, data.example(2))
        groups = rule.param_groups(ann)
        for callback in callbacks:
            groups = callback.param_groups(ann, groups)
        self.train.build_optimizer(groups)

    def _check_sharded(self) -> None:
        """Not every rule, callback and optimiser can train a sharded network."""
        if self.train.memory_format != "contiguous":
            raise RecipeError("train.memory_format: a sharded network keeps torch's own layout: leave it out, or sharded=false")
        for stage, rule in (("train", self.train.rule.build()), ("finetune", self.finetune.build_rule())):
            settings = getattr(self, stage)
            try:
                if settings.epochs:
                    check_shardable(rule, [c.build() for c in settings.callbacks], trial_optimizer(settings))
            except ValueError as error:
                raise RecipeError(f"{stage}: {error}") from error


def check_code(encoder: Component[Encoder], timesteps: Collection[int]) -> None:
    """Raises RecipeError where a simulation of fewer steps is not the beginning of one of more, and several are evaluated."""
    if len(timesteps) > 1 and not encoder.build().stationary:
        raise RecipeError(
            f"evaluate.timesteps: what {encoder.use} sends depends on the number of steps, and these are {sorted(timesteps)}: "
            "evaluate the number of steps that is trained, and no other"
        )


def check_machine(settings: RunSettings) -> None:
    """Raises RecipeError if this machine lacks what the settings ask for."""
    if find_device(settings.device).type == "cpu" and settings.precision == "float16":
        raise RecipeError("precision: float16 is for CUDA, and this run is on the CPU; use precision=bfloat16 or float32")


def report_on(run: PipelineRun, results: dict[str, Any]) -> Report:
    """The report of a run, from what its stages found; its files are written by the process that writes."""
    name = run.context.name
    values = {
        "name": name,
        "seed": run.settings.seed,
        "timesteps": run.steps,
        **results,
        "seconds": run.folder.seconds(),
        "device": str(run.device),
        "provenance": run.folder.provenance(),
    }
    report = Report(name=name, values=values, rows=run_rows(values))
    if run.context.writes:
        report.save(run.file("report.json"))
        draw_run(values, run.file("report.png"), name)
    return report
