"""Training a spiking network from scratch: recipe -> data -> train -> evaluate -> export -> simulate.

``SpikingTraining`` builds the network of an ordinary module with neurons in it (``spikeprop.spiking``), and trains it by a rule
of ``spikeprop.learn``: on still samples for a number of steps, or on sequences, such as the frames of an event camera. It shares
stages, run folder and report with the hybrid conversion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.convert import spiking
from spikeprop.data import LabelledData
from spikeprop.errors import RecipeError, SpikepropError
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.experiment.network_checkpoint import described
from spikeprop.experiment.pipeline import SMOKE_IMAGES, check_code, check_machine, report_on
from spikeprop.experiment.settings import ScratchSettings
from spikeprop.experiment.stages import SCRATCH, PipelineRun, run_stages
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.timed_input import time_first


@dataclass(frozen=True, kw_only=True)
class SpikingTraining(ScratchSettings):
    """Train a spiking network from scratch, evaluate it, export it, and check it on Lava."""

    last: ClassVar[str] = "trained"  # network of the pipeline

    def run(self, context: Context) -> Report:
        """All stages in order; finished ones are read from the folder. ``check`` is called before, by the command line."""
        run = PipelineRun(self, context)
        results = run_stages(run, SCRATCH)
        return report_on(run, {**results["evaluate"], "simulate": results["simulate"]})

    def simulation_steps(self, data: LabelledData) -> int | None:
        """Steps of a simulation; None for sequences of unequal length."""
        if not data.in_time:
            return self.train.timesteps
        x = data.example(1)
        return x.shape[1] if isinstance(x, Tensor) else None

    def describe_model(self, model: nn.Module) -> dict[str, Any]:
        """How the network of a checkpoint is built."""
        assert isinstance(model, SpikingNetwork)
        return {"network": described(model)}

    def describe_calibration(self, network: str) -> dict[str, Any]:
        """Nothing is calibrated."""
        return {}

    def build_network(self, data: LabelledData) -> SpikingNetwork:
        """The spiking network, with weights as they start."""
        return spiking(self.model.build(), data.input_shape, encoder=self.encoder.build(), read=self.read)

    def outline(self) -> SpikingNetwork:
        """The network that is trained, for what is asked of its shapes."""
        return self.build_network(self.data.build())

    def smoke(self) -> SpikingTraining:
        """The same on a few examples and one epoch: does it run from end to end?"""
        return replace(
            self,
            data=self.data.replace(train_limit=SMOKE_IMAGES, test_limit=SMOKE_IMAGES // 2),
            train=replace(self.train, epochs=min(1, self.train.epochs), batch_size=16),
            evaluate=replace(self.evaluate, batch_size=16),
            simulate=replace(self.simulate, samples=min(1, self.simulate.samples)),
        )

    def check(self, *, here: bool = False) -> None:
        """Build every component and the network, and run it once, so that mistakes are found before training.

        Args:
            here: check also whether this machine has the device.

        Raises:
            RecipeError: a bad value, a module that is no spiking network or does not fit the data, or a device that this machine
                lacks.
        """
        self.train.check()
        data = self.data.build()
        self._check_steps(data)
        with torch.random.fork_rng(devices=[]):
            network = self._checked_network(data)
            rule, x = self.train.build_rule(), data.example(2)
            rule.prepare(network, x)
            groups = rule.param_groups(network)
            for callback in self.train.callbacks:
                groups = callback.build().param_groups(network, groups)
            self.train.build_optimizer(groups)
        self.simulate.check_fit(self.outline)
        if here:
            check_machine(self)

    def _check_steps(self, data: LabelledData) -> None:
        name, steps = type(data).__name__, self.simulation_steps(data)
        given = self.train.timesteps
        if data.in_time and given not in (None, steps):
            raise RecipeError(
                f"train.timesteps: {given}, but {name} gives sequences, which have {steps or 'their own'} steps; leave it out"
            )
        if not data.in_time:
            check_code(self.encoder, {*self.evaluate.timesteps} | ({given} if given is not None else set()))
        if not data.in_time and given is None:
            raise RecipeError(
                f"train.timesteps is missing: {name} gives still samples, which are simulated for a number of steps"
            )
        if data.in_time and steps is not None and max(self.evaluate.timesteps, default=0) > steps:
            raise RecipeError(f"evaluate.timesteps: {self.evaluate.timesteps}, but sequences of {name} have {steps} steps")

    def _checked_network(self, data: LabelledData) -> SpikingNetwork:
        name = type(data).__name__
        try:
            network = self.build_network(data).train()
            x, lengths = time_first(network, data.example(2))
            if lengths is not None:
                lengths = lengths - torch.arange(2)  # as they will differ
            with torch.no_grad():
                output = network(x, None if data.in_time else self.train.timesteps, lengths=lengths)
        except RecipeError:
            raise
        except (SpikepropError, ValueError, RuntimeError) as error:
            shape = "x".join(map(str, data.input_shape))
            raise RecipeError(f"model: {self.model.use} does not fit data: {name}, of {shape}: {error}") from error
        if tuple(output.shape) != (2, data.classes, *data.label_shape):
            raise RecipeError(
                f"model: {self.model.use} has outputs {tuple(output.shape[1:])}, but data: {name} has {data.classes} classes; "
                f"set model.classes={data.classes}"
            )
        return network
