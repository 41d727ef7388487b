"""``ModelParallel``: an experiment that trains one network by ``Interlocking`` with a process for each segment.

    torchrun --nproc-per-node=K -m spikeprop run RECIPE

Rank i trains segment i (``SegmentProcess``). All ranks save at the same step, every ``SAVE_STEPS`` steps where one of them was
asked to stop or rank 0's checkpoint is due, and after each epoch; a run that is started again continues from the last step that
all ranks have. The report has, by segment, the share of time spent waiting for neighbours, and the memory: what the process
held at most (on CUDA, of the GPU), and by how much that grew in training. Without torchrun all segments run in one process, with
the same gradients.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from spikeprop.errors import RecipeError, TrainingCollapsed
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.learn import LearningRule, MuonSGD, ProgressBar, fit, load_checkpoint, load_model, save_checkpoint
from spikeprop.learn.checkpoint import drop_progress, load_optimizer
from spikeprop.plugins.comparison import NetworkTraining, accuracy_and_loss
from spikeprop.plugins.interlocking.parallel import SegmentProcess
from spikeprop.plugins.interlocking.rule import Interlocking
from spikeprop.plugins.reports import save_report
from spikeprop.recipe import Component
from spikeprop.runtime.batches import CompleteBatches
from spikeprop.runtime.devices import find_device
from spikeprop.runtime.heartbeat import tick
from spikeprop.runtime.processes import Processes
from spikeprop.runtime.progress import bar
from spikeprop.runtime.seeding import seed_everything, seed_torch
from spikeprop.runtime.signals import stop_if_requested, stop_requested

SAVE_STEPS = 20
TOLD = ("busy_seconds", "idle_seconds", "memory_mb", "grown_mb")  # of each process


@dataclass(frozen=True, kw_only=True)
class ModelParallel(NetworkTraining):
    """Train a network by interlocking backpropagation, a process for each segment; an epoch's incomplete last batch is left out.

    Attributes:
        seed: of weights, heads and order of examples.
        rule: an ``Interlocking``.
    """

    seed: int = 0
    rule: Component[LearningRule]

    def check(self, *, here: bool = False) -> None:
        """Build all components, and cut the network.

        Raises:
            RecipeError: an invalid value, or a rule other than ``Interlocking``.
            SegmentError: the network cannot be cut.
        """
        rule, ann = self._rule(), self.ann.build()
        rule.prepare(ann, self.data.build().example(2))
        if isinstance(self.build_optimizer([*ann.parameters(), *rule.parameters()]), MuonSGD):
            raise RecipeError(
                "optimizer: MuonSGD leaves the last matrix to SGD, and each process would have one: use SGD or Adam"
            )
        self.schedule.build()
        if self.batch_size % rule.microbatches:
            raise RecipeError(f"batch_size is {self.batch_size}, which is not divisible into {rule.microbatches} micro-batches")
        if here:
            find_device(self.device)

    def run(self, context: Context) -> Report:
        """Train and evaluate; a stopped run continues."""
        self.check(here=True)
        segments, count = len(self._rule().graph(self.ann.build()).segments), context.folder.processes.count
        if count not in (1, segments):
            raise RecipeError(
                f"there are {count} processes for {segments} segments: use torchrun --nproc-per-node={segments}, or one process"
            )
        found = context.folder.stage("train", lambda: self._train(context), distributed=True)
        return save_report(context, {"name": context.name, "seed": self.seed, "epochs": self.epochs, **found}, _rows)

    def _train(self, context: Context) -> dict[str, Any]:
        group = context.folder.processes
        data, device = self.data.build(), group.device(find_device(self.device))
        seed_torch(self.seed, 1)
        model = self.ann.build().to(device)
        batches = CompleteBatches(data.train(self.batch_size, self.seed), self.batch_size)
        x = next(batches.epoch(0))[0].to(device)
        rule = self._rule()
        seed_torch(self.seed, 2)
        rule.prepare(model, x)
        graph, before = rule.graph(model), _memory(device)
        if group.count == 1:
            clock = self._alone(context, model, rule, batches)
        else:
            clock = _Parallel(self, context, SegmentProcess(model, rule, x), device).train(model, batches)
        told = torch.tensor([*clock, _memory(device), _memory(device) - before], dtype=torch.float64)
        everyone = [torch.empty_like(told) for _ in range(group.count)] if group.count > 1 else [told]
        if group.count > 1:
            distributed.all_gather(everyone, told)
            for i, segment in enumerate(graph.segments):
                for value in segment.module.state_dict(keep_vars=True).values():
                    distributed.broadcast(value.data, i)
        names = [s.name for s in graph.segments] if group.count > 1 else ["all segments"]
        tested = {}
        if context.writes:
            tested = accuracy_and_loss(model, ((a.to(device), b.to(device)) for a, b in data.test(500).epoch(0)))
            save_checkpoint(context.folder.path / "trained.safetensors", model, {})
        return {
            **tested,
            "processes": group.count,
            "segments": {name: dict(zip(TOLD, one.tolist())) for name, one in zip(names, everyone)},
        }

    def _alone(self, context: Context, model: nn.Module, rule: Interlocking, batches: CompleteBatches) -> tuple[float, float]:
        progress = context.folder.path / "progress.safetensors"
        optimizer = self.build_optimizer(rule.param_groups(model))
        history = fit(
            model, rule, batches, optimizer,
            epochs=self.epochs, schedule=self.schedule.build(), seed=self.seed, checkpoint=progress,
            callbacks=[ProgressBar("train"), *context.watchers("train")], checkpoint_seconds=context.save_every,
        )  # fmt: skip
        drop_progress(progress)
        return sum(epoch["seconds"] for epoch in history), 0.0

    def _rule(self) -> Interlocking:
        rule = self.rule.build()
        if not isinstance(rule, Interlocking):
            raise RecipeError(f"rule: {self.rule.use} does not train segments in processes of their own; use Interlocking")
        return rule


class _Parallel:
    """The training of this rank's segment."""

    def __init__(self, settings: ModelParallel, context: Context, process: SegmentProcess, device: torch.device):
        self.settings, self.context, self.process, self.device = settings, context, process, device
        self.group: Processes = context.folder.processes
        self.optimizer = settings.build_optimizer(process.parameters())
        self.rates = [group["lr"] for group in self.optimizer.param_groups]  # before a checkpoint's are loaded
        own = process.rule.own
        head = own[str(process.rank)] if str(process.rank) in own else nn.Identity()
        self.held = nn.ModuleDict({"segment": process.segment.module, "head": head})
        self.schedule = settings.schedule.build()

    def train(self, model: nn.Module, batches: CompleteBatches) -> tuple[float, float]:
        """Train; returns the seconds busy and idle, of all sessions."""
        clock, count = self.process.clock, len(batches)
        done = self._resume()
        shown = bar(None if self.group.rank else "train", total=self.settings.epochs * count, initial=done)
        self.saved = time.monotonic()
        model.train()
        self.held.train()
        for epoch in range(done // count, self.settings.epochs):
            for step, (x, y) in enumerate(batches.epoch(epoch, done % count), start=done % count):
                for group, rate in zip(self.optimizer.param_groups, self.rates):
                    group["lr"] = rate * self.schedule(done / (self.settings.epochs * count))
                seed_everything(self.settings.seed, epoch, step)
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.process.step(x.to(self.device), y.to(self.device))
                self.optimizer.step()
                done += 1
                tick()
                shown.update()
                if done % SAVE_STEPS == 0 or done % count == 0:
                    self._save_if_due(done, loss, epoch_ended=done % count == 0)
        shown.close()
        self.process.finish()
        for file in self._files():
            drop_progress(file)
        return clock.busy, clock.idle

    def _save_if_due(self, done: int, loss: Tensor | None, epoch_ended: bool) -> None:
        """Save at the same step in all processes; then stop if one of them was asked to.

        Raises:
            TrainingCollapsed: the loss of a segment is not finite, in all processes.
        """
        due = epoch_ended or (not self.group.rank and time.monotonic() - self.saved > self.context.save_every)
        lost = loss is not None and not bool(loss.isfinite())
        flags = torch.tensor([float(due), float(stop_requested()), float(lost)])
        self.process.finish()
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        if flags[2]:
            raise TrainingCollapsed(f"the loss of a segment is not finite after step {done}: lower lr")
        if not flags.any():
            return
        file, clock = self._file(done), self.process.clock
        earlier = [one for one in self._files() if one != file]  # after a kill this rank may have saved this step before
        described = {"step": done, "busy": clock.busy, "idle": clock.idle}
        save_checkpoint(file, self.held, described, self.optimizer)
        self.group.wait()  # now all have saved, and none needs an earlier step
        for one in earlier:
            drop_progress(one)
        self.saved = time.monotonic()
        self.group.independently(stop_if_requested)

    def _resume(self) -> int:
        """The last step that all ranks have saved, restored."""
        last = torch.tensor(max((self._step(file) for file in self._files()), default=0))
        distributed.all_reduce(last, distributed.ReduceOp.MIN)
        if last:
            found = load_checkpoint(self._file(int(last)))
            load_model(self.held, found)
            load_optimizer(self.optimizer, found)
            self.process.clock.busy, self.process.clock.idle = found.description["busy"], found.description["idle"]
        return int(last)

    def _file(self, step: int) -> Path:
        return self.context.folder.path / f"segment{self.group.rank}.{step}.safetensors"

    def _files(self) -> list[Path]:
        return list(self.context.folder.path.glob(f"segment{self.group.rank}.*.safetensors"))

    def _step(self, file: Path) -> int:
        return int(file.name.split(".")[1])


def _memory(device: torch.device) -> float:
    """The most memory that this process has held, in MB: of the GPU on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("accuracy", f"{values['accuracy']:.2f} %"), ("processes", str(values["processes"]))]
    for name, found in values["segments"].items():
        total = found["busy_seconds"] + found["idle_seconds"]
        idle = f"{100 * found['idle_seconds'] / max(total, 1e-9):.0f} % idle of {total:.1f} s"
        rows.append((name, f"{idle}; {found['memory_mb']:.0f} MB at most, {found['grown_mb']:.0f} of them in training"))
    return rows
