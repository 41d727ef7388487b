"""``RuleComparison``: an experiment that trains one network by several learning rules, with the same seeds, data and optimiser.

Each arm and seed is a stage of its own, so a run that was stopped goes on. Seeds pair the arms: the same first weights, the same
order of examples; differences to the baseline are means over pairs with their 95 % interval. Accuracy, of images or of every
character of a text, is that after the last epoch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from spikeprop.data import LabelledData
from spikeprop.errors import RecipeError, TrainingCollapsed
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.experiment.settings import find_device
from spikeprop.learn import LearningRule, ProgressBar, Schedule, drop_progress, fit
from spikeprop.plugins.arms import check_seeds, report_arms
from spikeprop.recipe import Component
from spikeprop.runtime.seeding import seed_torch

SMOKE_EXAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class RuleComparison:
    """One network, several learning rules.

    Attributes:
        seeds: of weights and order of examples; they pair the arms.
        data, ann, optimizer, schedule: components shared by all arms.
        arms: learning rules by name.
        baseline: name of the arm that the others are held against.
        epochs, batch_size, lr, weight_decay: as in training.
        device: as for the main job.
    """

    seeds: list[int]
    data: Component[LabelledData]
    ann: Component[nn.Module]
    arms: dict[str, Component[LearningRule]]
    baseline: str
    optimizer: Component[Optimizer]
    schedule: Component[Schedule]
    epochs: int
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_seeds(self.seeds, self.baseline, self.arms)
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")

    def check(self, *, here: bool = False) -> None:
        """Build every component, and prepare each rule for the network.

        Raises:
            RecipeError: a bad value, or an ANN that does not fit the data.
            SegmentError: a network that a rule cannot cut.
        """
        data, ann = self.data.build(), self.ann.build()
        x = data.example(2)
        with torch.no_grad():
            scores = ann.eval()(x)
        if scores.shape[:2] != (2, data.classes):
            raise RecipeError(f"ann: {self.ann.use} has {scores.shape[1]} outputs, but data has {data.classes} classes")
        for arm in self.arms.values():
            rule = arm.build()
            rule.prepare(ann, x)
            self._optimizer(rule, ann)
        self.schedule.build()
        if here:
            find_device(self.device)

    def smoke(self) -> RuleComparison:
        """The same on a few examples, one epoch and two seeds."""
        data = self.data.replace(train_limit=SMOKE_EXAMPLES, test_limit=SMOKE_EXAMPLES)
        return dataclasses.replace(self, data=data, epochs=1, batch_size=16, seeds=self.seeds[:2])

    def run(self, context: Context) -> Report:
        """Every arm and seed; finished ones are read from the folder."""
        self.check(here=True)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.arms}
        for seed in self.seeds:  # seeds outside, so that an unfinished run has all arms of the seeds that it has
            for name in self.arms:
                found[name].append(
                    context.folder.stage(f"{name}.{seed}", lambda n=name, s=seed: self._train(n, s, context), distributed=True)
                )
        return report_arms(found, self.baseline, context, seeds=self.seeds, epochs=self.epochs)

    def _train(self, name: str, seed: int, context: Context) -> dict[str, Any]:
        group = context.folder.processes
        data, device = self.data.build(), group.device(find_device(self.device))
        seed_torch(seed, 1)
        model = self.ann.build().to(device)
        batches = data.train(self.batch_size, seed)
        rule = self.arms[name].build()
        seed_torch(seed, 2)  # what a rule draws leaves the network's weights as they are
        rule.prepare(model, next(batches.epoch(0))[0].to(device))
        progress = context.folder.path / f"{_plain(name)}.{seed}.progress.safetensors"
        result: dict[str, Any] = {}
        try:
            history = fit(
                model,
                rule,
                batches,
                self._optimizer(rule, model),
                epochs=self.epochs,
                schedule=self.schedule.build(),
                seed=seed,
                callbacks=[ProgressBar(None if group.rank else f"{name}, seed {seed}"), *context.watchers(f"{name}.{seed}")],
                checkpoint=progress,
                processes=group,
                checkpoint_seconds=context.save_every,
            )
            result["last_epoch"] = {key: value for key, value in history[-1].items() if key not in ("seconds", "lr")}
        except TrainingCollapsed as error:  # so it is with this rule at this rate: a result, of the network as it stands
            context.notify(f"{name}, seed {seed}: {error}")
            result["collapsed"] = str(error)
        tested = measured(model, ((x.to(device), y.to(device)) for x, y in data.test(500).epoch(0)))
        if context.writes:
            drop_progress(progress)
        return {**tested, **result, "parameters": sum(p.numel() for p in model.parameters())}

    def _optimizer(self, rule: LearningRule, model: nn.Module) -> Optimizer:
        return self.optimizer.build(rule.param_groups(model), lr=self.lr, weight_decay=self.weight_decay)


@torch.no_grad()
def measured(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Top-1 accuracy in percent and mean cross-entropy in nats, over every label, in evaluation mode."""
    model.eval()
    right, loss, seen = 0, 0.0, 0
    for x, y in batches:
        scores = model(x)
        right += int((scores.argmax(1) == y).sum())
        loss += float(F.cross_entropy(scores, y, reduction="sum"))
        seen += y.numel()
    return {"accuracy": 100 * right / seen, "test_loss": loss / seen}


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)
