"""``RuleComparison``: an experiment that trains one network by several learning rules, with the same seeds, data and optimiser.

Each arm and seed is a stage of its own, so an interrupted run can be resumed. Arms with the same seed are paired: they have the
same initial weights and the same order of examples. Differences to the baseline are means over pairs with 95 % intervals.
Accuracy (of images, or of all characters of a text) is measured after the last epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from spikeprop.data import LabelledData
from spikeprop.errors import RecipeError, TrainingCollapsed
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.experiment.optimizers import check_optimizer, optimizer_of
from spikeprop.learn import Callback, LearningRule, ProgressBar, Schedule, drop_progress, fit
from spikeprop.plugins.pictures import draw_curves
from spikeprop.plugins.reports import check_arms, progress_file, report_arms
from spikeprop.recipe import Component
from spikeprop.runtime.checks import positive
from spikeprop.runtime.devices import find_device
from spikeprop.runtime.labels import predicted, read_labels
from spikeprop.runtime.seeding import seed_torch

SMOKE_EXAMPLES = 64
MEASURED = {  # what rules that iterate tell of an epoch, beside the loss
    "angle": "angle to backprop (degrees)",
    "residual": "residual of the relaxation",
    "backward_passes": "cost (backward passes)",
}


@dataclass(frozen=True, kw_only=True)
class NetworkTraining:
    """How a network of an experiment is trained.

    Attributes:
        data, ann, optimizer, schedule: components.
        epochs, batch_size, lr, weight_decay: settings of the training.
        device: "auto", "cpu" or "cuda".
    """

    data: Component[LabelledData]
    ann: Component[nn.Module]
    optimizer: Component[Optimizer]
    schedule: Component[Schedule]
    epochs: int
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)
        positive(self, "epochs", "batch_size", "lr")

    def smoke(self) -> Self:
        """The same experiment with few examples and one epoch."""
        data = self.data.replace(train_limit=SMOKE_EXAMPLES, test_limit=SMOKE_EXAMPLES)
        return dataclasses.replace(self, data=data, epochs=1, batch_size=16)

    def build_optimizer(self, parameters: Any, rate: float | None = None) -> Optimizer:
        """The optimiser with the training's weight decay and rate; a rate in place of that moves all of the optimiser's."""
        return optimizer_of(self.optimizer, parameters, lr=self.lr, rate=rate, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class RuleComparison(NetworkTraining):
    """Compare learning rules on one network; all arms share the settings of the training.

    Attributes:
        seeds: seeds of weights and order of examples; arms with the same seed are paired.
        arms: learning rule of each arm, by name.
        baseline: the arm that the other arms are compared with.
        rates: learning rate of an arm, by name, where it is not ``lr``. Rates that the optimiser has beside it, such as
            MuonSGD's ``matrix_lr``, are those at ``lr``; an arm has them in the ratio of its rate to ``lr``.
    """

    seeds: list[int]
    arms: dict[str, Component[LearningRule]]
    baseline: str
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arms(self)
        for name, rate in self.rates.items():
            if name not in self.rules():
                raise ValueError(f"rates: {name!r} is not an arm; arms: {', '.join(self.rules())}")
            if not rate > 0:
                raise ValueError(f"rates: that of {name!r} is {rate}; it must be positive")

    def rules(self) -> dict[str, Component[LearningRule]]:
        """The learning rule of every arm that is trained."""
        return self.arms

    def check(self, *, here: bool = False) -> None:
        """Build all components, and prepare each rule for the network.

        Raises:
            RecipeError: an invalid value, or an ANN that does not fit the data.
            SegmentError: a rule cannot cut the network.
        """
        data, ann = self.data.build(), self.ann.build()
        x = data.example(2)
        with torch.no_grad():
            scores = ann.eval()(x)
        if not isinstance(scores, Tensor):
            raise RecipeError(f"ann: {self.ann.use} returns a {type(scores).__name__}; a comparison needs one tensor of scores")
        if scores.shape[:2] != (2, data.classes):
            raise RecipeError(f"ann: {self.ann.use} has {scores.shape[1]} outputs, but data has {data.classes} classes")
        for arm in self.arms.values():
            rule = arm.build()
            rule.prepare(ann, x)
            self.build_optimizer(rule.param_groups(ann))
        self.schedule.build()
        if here:
            find_device(self.device)

    def smoke(self) -> Self:
        """The same experiment with few examples, one epoch and two seeds."""
        return dataclasses.replace(super().smoke(), seeds=self.seeds[:2])

    def run(self, context: Context) -> Report:
        """Run every arm and seed; finished ones are read from the folder."""
        self.check(here=True)
        found = self.trained(context)
        report = report_arms(found, self.baseline, context, seeds=self.seeds, epochs=self.epochs)
        histories = {name: [one["history"] for one in runs if "history" in one] for name, runs in found.items()}
        measured = {
            name: runs for name, runs in histories.items() if any(MEASURED.keys() & epoch.keys() for r in runs for epoch in r)
        }
        if context.writes and measured:
            draw_curves(measured, {"loss": "training loss", **MEASURED}, context.folder.path / "curves.png")
        return report

    def trained(self, context: Context) -> dict[str, list[dict[str, Any]]]:
        """Results of every arm, in the order of seeds."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.rules()}
        for seed in self.seeds:  # outer loop, so that an unfinished run has all arms of its finished seeds
            for name in found:
                found[name].append(
                    context.folder.stage(f"{name}.{seed}", lambda n=name, s=seed: self._train(n, s, context), distributed=True)
                )
        return found

    def _train(self, name: str, seed: int, context: Context) -> dict[str, Any]:
        group = context.folder.processes
        data, device = self.data.build(), group.device(find_device(self.device))
        seed_torch(seed, 1)
        model = self.network(name, data).to(device)
        batches = data.train(self.batch_size, seed)
        rule = self.rules()[name].build()
        seed_torch(seed, 2)  # the rule's random numbers do not change the network's weights
        rule.prepare(model, next(batches.epoch(0))[0].to(device))
        progress = progress_file(context, name, seed)
        result: dict[str, Any] = {}
        try:
            history = fit(
                model,
                rule,
                batches,
                self.build_optimizer(rule.param_groups(model), self.rates.get(name)),
                epochs=self.epochs,
                schedule=self.schedule.build(),
                seed=seed,
                callbacks=[
                    ProgressBar(None if group.rank else f"{name}, seed {seed}"),
                    *self.observers(name, rule, data, device),
                    *context.watchers(f"{name}.{seed}"),
                ],
                checkpoint=progress,
                processes=group,
                checkpoint_seconds=context.save_every,
            )
            result |= self.kept(history)
        except TrainingCollapsed as error:  # a result: the present network is evaluated
            context.notify(f"{name}, seed {seed}: {error}")
            result["collapsed"] = str(error)
        tested = self.tested(name, model, data, device)
        if context.writes:
            drop_progress(progress)
        return {**tested, **result, "parameters": sum(p.numel() for p in model.parameters())}

    def network(self, name: str, data: LabelledData) -> nn.Module:
        """The network of an arm, as its training begins."""
        return self.ann.build()

    def observers(self, name: str, rule: LearningRule, data: LabelledData, device: torch.device) -> list[Callback]:
        """Callbacks of an arm's training."""
        return []

    def kept(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """What the report keeps of a training."""
        return {
            "history": [{k: v for k, v in epoch.items() if k in ("loss", "accuracy", *MEASURED)} for epoch in history],
            "last_epoch": {key: value for key, value in history[-1].items() if key not in ("seconds", "lr")},
        }

    def tested(self, name: str, model: nn.Module, data: LabelledData, device: torch.device) -> dict[str, Any]:
        """Figures of a trained network, with its "accuracy" in percent."""
        return accuracy_and_loss(model, ((x.to(device), y.to(device)) for x, y in data.test(500).epoch(0)))


@torch.no_grad()
def accuracy_and_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Top-1 accuracy in percent and mean cross-entropy in nats, over every label, in evaluation mode."""
    model.eval()
    correct, loss, count = 0, 0.0, 0
    for x, y in batches:
        scores = model(x)
        y = read_labels(scores, y, ignorable=False).classes()
        correct += int((predicted(scores) == y).sum())
        loss += float(F.cross_entropy(scores, y, reduction="sum"))
        count += y.numel()
    return {"accuracy": 100 * correct / count, "test_loss": loss / count}
