"""``Transfer``: a network learns some classes of a data set and is then fine-tuned on a few images of other classes, arm by arm.

This is the experiment for RIFLE. A seed determines the initial weights, the pretraining and the few images; all arms share
them, so differences are paired. No choice is made on test images: every arm is reported after its last epoch. The relative
distance of each layer from its pretrained weights is also reported, because RIFLE aims to increase it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spikeprop.data import ImageData, InMemorySplit
from spikeprop.errors import RecipeError
from spikeprop.evaluate import Report, ann_accuracy
from spikeprop.experiment.context import Context
from spikeprop.experiment.optimizers import check_optimizer, optimizer_of
from spikeprop.learn import (
    Backprop,
    Callback,
    LearningRule,
    ProgressBar,
    Schedule,
    drop_progress,
    fit,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from spikeprop.plugins.reports import check_arms, progress_file, report_arms
from spikeprop.plugins.rifle.callbacks import find_head
from spikeprop.recipe import Component
from spikeprop.runtime.checks import positive
from spikeprop.runtime.devices import find_device
from spikeprop.runtime.files import leaves, read_json
from spikeprop.runtime.seeding import generator, seed_torch

PRETRAINING = {"data", "ann", "source_classes", "optimizer", "schedule", "weight_decay", "pretrain_epochs", "pretrain_lr"}


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Pretrain, then fine-tune on a few images.

    Attributes:
        seeds: seeds of all random numbers; arms with the same seed are paired.
        data: a data set that fits in memory.
        ann: the network, with one output per source class; its head is replaced for ``target_classes``.
        source_classes, target_classes: class numbers.
        shots: training images of each target class.
        arms: callbacks of each arm, by name.
        baseline: the arm that the other arms are compared with.
        rule, optimizer, schedule, epochs, batch_size, lr, weight_decay: settings of the fine-tuning.
        pretrain_epochs, pretrain_lr: settings of the pretraining, by backpropagation with the same optimiser and schedule. Rates
            that the optimiser has beside ``lr``, such as MuonSGD's ``matrix_lr``, change there in the ratio pretrain_lr / lr.
        pretrained: run folder of the same pretraining, whose networks are used instead, as for other ``shots``.
        device: "auto", "cpu" or "cuda".
    """

    seeds: list[int]
    data: Component[ImageData]
    ann: Component[nn.Module]
    source_classes: list[int]
    target_classes: list[int]
    shots: int
    arms: dict[str, list[Component[Callback]]]
    baseline: str
    rule: Component[LearningRule]
    optimizer: Component[Optimizer]
    schedule: Component[Schedule]
    epochs: int = 40
    batch_size: int = 32
    lr: float = 1e-2
    weight_decay: float = 1e-4
    pretrain_epochs: int = 5
    pretrain_lr: float = 0.05
    pretrained: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_arms(self)
        check_optimizer(self.optimizer)
        positive(self, "shots", "epochs", "batch_size", "lr", "pretrain_epochs", "pretrain_lr")

    def check(self, *, here: bool = False) -> None:
        """Build all components, and find the head of the network.

        Raises:
            RecipeError: an invalid value, or classes that the data set or the network does not have.
        """
        data, model = self.data.build(), self.ann.build()
        for name in ("source_classes", "target_classes"):
            wrong = [c for c in getattr(self, name) if not 0 <= c < data.classes]
            if wrong:
                raise RecipeError(f"{name}: {wrong} are not among the {data.classes} classes of data")
        with torch.no_grad():
            scores = model.eval()(torch.zeros(1, *data.input_shape))
        if scores.shape[1] != len(self.source_classes):
            raise RecipeError(
                f"ann: {scores.shape[1]} outputs for {len(self.source_classes)} source classes; the numbers must be equal"
            )
        _new_head(model, len(self.target_classes))
        for arm in self.arms.values():
            for callback in arm:
                callback.build()
        self.rule.build()
        self.schedule.build()
        self._optimizer(model.parameters(), self.lr)
        if here:
            find_device(self.device)

    def smoke(self) -> Transfer:
        """The same experiment with few images, few epochs and two seeds."""
        data = self.data.replace(train_limit=300, test_limit=200)
        return dataclasses.replace(self, data=data, seeds=self.seeds[:2], epochs=5, pretrain_epochs=1, shots=min(self.shots, 4))

    def run(self, context: Context) -> Report:
        """Run every seed and arm; finished ones are read from the folder."""
        self.check(here=True)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.arms}
        pretrained = []
        for seed in self.seeds:
            pretrained.append(context.folder.stage(f"pretrain.{seed}", lambda s=seed: self._pretrain(s, context)))
            for name in self.arms:
                found[name].append(context.folder.stage(f"{name}.{seed}", lambda n=name, s=seed: self._finetune(n, s, context)))
        more = {"seeds": self.seeds, "shots": self.shots, "pretrained": pretrained}
        return report_arms(found, self.baseline, context, **more)

    def _pretrain(self, seed: int, context: Context) -> dict[str, Any]:
        data = self.data.build()
        seed_torch(seed, 1)
        model, file = self.ann.build().to(find_device(self.device)), f"pretrained.{seed}.safetensors"
        if self.pretrained is not None:
            load_model(model, load_checkpoint(_same_pretraining(Path(self.pretrained), context.folder.path) / file))
            save_checkpoint(context.folder.path / file, model, {})
            return {"accuracy": self._accuracy(model, data, self.source_classes)}
        fit(
            model,
            Backprop(),
            only(data.train(64, seed), self.source_classes),
            self._optimizer(model.parameters(), self.pretrain_lr),
            epochs=self.pretrain_epochs,
            schedule=self.schedule.build(),
            seed=seed,
            callbacks=[ProgressBar(f"pretrain, seed {seed}"), *context.watchers(f"pretrain.{seed}")],
            checkpoint=(progress := progress_file(context, "pretrain", seed)),
            checkpoint_seconds=context.save_every,
        )
        save_checkpoint(context.folder.path / file, model, {})
        drop_progress(progress)
        return {"accuracy": self._accuracy(model, data, self.source_classes)}

    def _finetune(self, name: str, seed: int, context: Context) -> dict[str, Any]:
        data, device = self.data.build(), find_device(self.device)
        model = self.ann.build().to(device)
        load_model(model, load_checkpoint(context.folder.path / f"pretrained.{seed}.safetensors"))
        seed_torch(seed, 2)
        _new_head(model, len(self.target_classes))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        batches = few(only(data.train(self.batch_size, seed), self.target_classes), self.shots, seed)
        rule, callbacks = self.rule.build(), [c.build() for c in self.arms[name]]
        rule.prepare(model, next(batches.epoch(0))[0].to(device))
        groups = rule.param_groups(model)
        for callback in callbacks:
            groups = callback.param_groups(model, groups)
        progress = progress_file(context, name, seed)
        history = fit(
            model,
            rule,
            batches,
            self._optimizer(groups, self.lr),
            epochs=self.epochs,
            schedule=self.schedule.build(),
            seed=seed,
            callbacks=[ProgressBar(f"{name}, seed {seed}"), *callbacks, *context.watchers(f"{name}.{seed}")],
            checkpoint=progress,
            checkpoint_seconds=context.save_every,
        )
        drop_progress(progress)
        moved = {n: float((p.detach() - before[n]).norm() / before[n].norm()) for n, p in model.named_parameters()}
        accuracy = self._accuracy(model, data, self.target_classes)
        return {"accuracy": accuracy, "training_loss": history[-1]["loss"], "moved": moved}

    def _optimizer(self, parameters: Any, rate: float) -> Optimizer:
        return optimizer_of(self.optimizer, parameters, lr=self.lr, rate=rate, weight_decay=self.weight_decay)

    def _accuracy(self, model: nn.Module, data: ImageData, classes: Sequence[int]) -> float:
        device = next(model.parameters()).device
        return ann_accuracy(model, ((x.to(device), y.to(device)) for x, y in only(data.test(500), classes).epoch(0)))


def _same_pretraining(folder: Path, own: Path) -> Path:
    """The folder.

    Raises:
        RecipeError: no run is there, or its networks were pretrained in another way, or on other classes.
    """
    if not (folder / "run.json").exists():
        raise RecipeError(f"pretrained: {folder} holds no run; give the folder of a finished run of this recipe")
    theirs, ours = (leaves(read_json(path / "run.json")["recipe"]) for path in (folder, own))
    keys = {key for key in theirs | ours if key.split(".")[0] in PRETRAINING}
    if different := sorted(key for key in keys if theirs.get(key) != ours.get(key)):
        raise RecipeError(f"pretrained: {folder} holds another pretraining (it differs in {', '.join(different[:4])})")
    return folder


def only(split: Any, classes: Sequence[int]) -> InMemorySplit:
    """The images of some classes, renumbered in the given order.

    Raises:
        RecipeError: the split is not in memory.
    """
    if not isinstance(split, InMemorySplit):
        raise RecipeError(f"data: {type(split).__name__} is not in memory; use Digits, MNIST, FashionMNIST or CIFAR")
    matches = split.labels[:, None] == torch.tensor(list(classes))
    chosen = matches.any(1)
    return dataclasses.replace(split, images=split.images[chosen], labels=matches[chosen].int().argmax(1))


def few(split: InMemorySplit, shots: int, seed: int) -> InMemorySplit:
    """``shots`` random images of each class."""
    order = torch.randperm(len(split.labels), generator=generator(seed, 3))
    chosen: list[Tensor] = [order[split.labels[order] == c][:shots] for c in split.labels.unique()]
    index = torch.cat(chosen)
    return dataclasses.replace(split, images=split.images[index], labels=split.labels[index])


def _new_head(model: nn.Module, classes: int) -> None:
    name = find_head(model)
    owner, _, last = name.rpartition(".")
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise RecipeError(f"ann: the head {name} is a {type(old).__name__}; a transfer needs an nn.Linear there")
    new = nn.Linear(old.in_features, classes, bias=old.bias is not None).to(old.weight)
    setattr(model.get_submodule(owner), last, new)
