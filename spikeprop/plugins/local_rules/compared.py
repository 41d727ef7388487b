"""``RulesCompared``: one network trained by every rule: accuracy, angle to backprop by layer, cost, memory, locality.

A ``RuleComparison`` whose networks are also converted to spikes, with arms on a spiking network of the same layers for rules that
simulate (e-prop, and BPTT as their reference). The page is report.md in the run folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, Self

import torch
from torch import nn

from spikeprop.convert import convert, spiking
from spikeprop.data import LabelledData
from spikeprop.errors import RecipeError
from spikeprop.evaluate import Report, snn_accuracy
from spikeprop.evaluate.intervals import in_words, mean_interval
from spikeprop.experiment.context import Context
from spikeprop.learn import BPTT, Backprop, Callback, LearningRule
from spikeprop.plugins.comparison import RuleComparison
from spikeprop.plugins.local_rules.measuring import ANGLE_OF, AngleLog, LiveBytes, seconds_each
from spikeprop.plugins.local_rules.pictures import draw
from spikeprop.plugins.reports import Values, arm_in_words, arms_of, save_report
from spikeprop.recipe import Component
from spikeprop.runtime.checks import positive
from spikeprop.runtime.devices import find_device
from spikeprop.runtime.files import write_text
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

ROUNDS = 7  # of the measurement of seconds
ANGLE_IMAGES = 256
KNOWS = {  # of rules that do not say it themselves
    "Backprop": "its input, its slope, and by W^T the errors of the layers that read it, in one backward pass",
    "ActivationRelaxation": "its input, its slope, and by W^T the errors of the layers that read it, in many sweeps",
    "BPTT": "as backprop, at every step of the simulation, which is stored",
    "EProp": "a trace of its input, its neuron's slope, and by fixed random weights the output's error at this step",
}


@dataclass(frozen=True, kw_only=True)
class RulesCompared(RuleComparison):
    """Compare learning rules on one network, and on the spiking network of the same layers.

    Attributes:
        timesteps: T of the converted networks, and of the spiking arms.
        spiking: module with neurons that the spiking arms train.
        spiking_arms: rules that simulate, by name; may be empty. Their reference is BPTT.
    """

    timesteps: int = 8
    spiking: Component[nn.Module]
    spiking_arms: dict[str, Component[LearningRule]]

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "timesteps")
        if twice := self.arms.keys() & self.spiking_arms.keys():
            raise ValueError(f"spiking_arms and arms both have {', '.join(sorted(twice))}: give each arm a name of its own")

    def rules(self) -> dict[str, Component[LearningRule]]:
        steps = {name: rule.with_timesteps(self.timesteps) for name, rule in self.spiking_arms.items()}
        return {**self.arms, **steps}

    def check(self, *, here: bool = False) -> None:
        super().check(here=here)
        data = self.data.build()
        if not hasattr(data, "input_shape"):
            raise RecipeError(f"data: {self.data.use} has no images of one shape, which the conversion to spikes needs")
        for name in self.spiking_arms:
            self.rules()[name].build().prepare(self.network(name, data), data.example(2))

    def smoke(self) -> Self:
        """The same with few examples, one epoch, one seed and six steps."""
        return dataclasses.replace(super().smoke(), timesteps=6, seeds=self.seeds[:1])

    def run(self, context: Context) -> Report:
        """Run every arm and seed, and measure cost and memory; finished stages are read from the folder."""
        self.check(here=True)
        found = self.trained(context)
        cost = context.folder.stage("cost", self._cost)
        arms = {name: {**arm, **cost[name], **_over_seeds(arm["runs"])} for name, arm in arms_of(found, self.baseline).items()}
        values = {"name": context.name, "baseline": self.baseline, "seeds": self.seeds, "epochs": self.epochs, "arms": arms}
        values["timesteps"] = self.timesteps
        if context.writes:
            write_text(context.folder.path / "report.md", page(values))
        return save_report(context, values, _rows, draw)

    def network(self, name: str, data: LabelledData) -> nn.Module:
        if name in self.arms:
            return super().network(name, data)
        return spiking(self.spiking.build(), data.input_shape)

    def observers(self, name: str, rule: LearningRule, data: LabelledData, device: torch.device) -> list[Callback]:
        x, y = next(data.train(ANGLE_IMAGES, seed=0).epoch(0))
        return [AngleLog(rule, self._reference(name, rule), x.to(device), y.to(device))]

    def kept(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        names = [key for key in history[-1] if key.startswith(ANGLE_OF)]
        curves = {key.removeprefix(ANGLE_OF): [round(epoch[key], 2) for epoch in history] for key in names}
        return {**super().kept(history), "angles": curves}

    def tested(self, name: str, model: nn.Module, data: LabelledData, device: torch.device) -> dict[str, Any]:
        if isinstance(model, SpikingNetwork):
            return {"accuracy": snn_accuracy(model, data, [self.timesteps])[self.timesteps]}
        images = islice(data.train(ANGLE_IMAGES, seed=1).epoch(0), 2)
        network = convert(model, images, timesteps=self.timesteps, binary=True)
        converted = snn_accuracy(network, data, [self.timesteps])[self.timesteps]
        return {**super().tested(name, model, data, device), "converted": converted}

    def _reference(self, name: str, rule: LearningRule) -> LearningRule:
        """Whose gradient is the true one; of the same loss, which for a simulation may be that of each step."""
        if name in self.arms:
            return Backprop(**_of(rule, "loss", "label_smoothing"))
        return BPTT(timesteps=self.timesteps, **_of(rule, "loss", "each_step"))

    def _cost(self) -> dict[str, Any]:
        """Seconds and bytes of one gradient by each arm, and the numbers that its rule holds beside the network."""
        data, device = self.data.build(), find_device(self.device)
        x, y = (part.to(device) for part in next(data.train(self.batch_size, seed=0).epoch(0)))
        work, found = {}, {}
        for name, component in self.rules().items():
            seed_torch(self.seeds[0], 1)
            model, rule = self.network(name, data).to(device).train(), component.build()
            rule.prepare(model, x)
            work[name] = lambda r=rule, m=model: r.step(m, x, y)
            rule.step(model, x, y)
            model.zero_grad(set_to_none=True)
            with LiveBytes([x, y, *model.parameters(), *model.buffers(), *rule.parameters()]) as live:
                rule.step(model, x, y)
            own = sum(value.numel() for value in rule.state_dict().values())
            knows = getattr(rule, "knows", KNOWS.get(type(rule).__name__, ""))
            found[name] = {"bytes": live.peak, "own": own, "knows": knows}
        return {name: {**found[name], "seconds": seconds} for name, seconds in seconds_each(work, ROUNDS).items()}


def _of(rule: LearningRule, *names: str) -> dict[str, Any]:
    """Those of a rule's attributes that it has."""
    return {name: getattr(rule, name) for name in names if hasattr(rule, name)}


def _over_seeds(runs: list[dict[str, Any]]) -> Values:
    """Means over seeds: accuracy after conversion, and the angle's curve of each weight; of runs that did not collapse."""
    curves = [run["angles"] for run in runs if "angles" in run]
    names = [*curves[0]] if curves else []
    found: Values = {"angles": {name: [fmean(at) for at in zip(*(one[name] for one in curves))] for name in names}}
    converted = [run["converted"] for run in runs if "converted" in run]
    return {**found, "converted": mean_interval(converted)} if converted else found


def _rows(values: Values) -> list[tuple[str, str]]:
    base = values["arms"][values["baseline"]]
    return [
        (
            name,
            f"{arm_in_words(arm, arm is base)}, angle {_angles(arm, -1)}, {arm['seconds'] / base['seconds']:.1f} x time, "
            f"{arm['bytes'] / base['bytes']:.1f} x memory",
        )
        for name, arm in values["arms"].items()
    ]


def page(values: Mapping[str, Any]) -> str:
    """Tables in Markdown: accuracies; angles by layer; cost and locality."""
    arms, base = values["arms"], values["arms"][values["baseline"]]
    heads = f"| rule | accuracy (%) | against {values['baseline']} | converted, T = {values['timesteps']} (%) |"
    lines = [heads, "| --- | --- | --- | --- |"]
    for name, arm in arms.items():
        against = "" if arm is base else in_words(arm["against_baseline"], sign=True)
        lines.append(
            f"| {name} | {in_words(arm)} | {against} | {in_words(arm['converted']) if 'converted' in arm else 'spiking'} |"
        )
    lines += ["", "| rule | angle by layer, first epoch (degrees) | last epoch |", "| --- | --- | --- |"]
    lines += [f"| {name} | {_angles(arm, 0)} | {_angles(arm, -1)} |" for name, arm in arms.items()]
    lines += ["", "| rule | time | memory | numbers of its own | a weight knows |", "| --- | --- | --- | --- | --- |"]
    for name, arm in arms.items():
        times, memory = arm["seconds"] / base["seconds"], arm["bytes"] / base["bytes"]
        lines.append(f"| {name} | {times:.1f} x | {memory:.1f} x | {arm['own']:,} | {arm['knows']} |")
    return "\n".join(lines) + "\n"


def _angles(arm: Mapping[str, Any], epoch: int) -> str:
    return ", ".join(f"{curve[epoch]:.0f}" for curve in arm["angles"].values()) or "-"
