"""``fit``: the one training loop, for ANN and SNN alike.

The loop owns optimiser, schedule, clipping and checkpoints; the rule owns gradients. The generators of torch, numpy and Python
are seeded at every step from (seed, epoch, step), so a run that was killed and resumed within an epoch ends with the same weights
as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spikeprop.errors import LabelError
from spikeprop.learn.callback import Callback, TrainingState
from spikeprop.learn.distributed.data_parallel import DataParallel
from spikeprop.learn.distributed.sharding import check_shardable, clip_gradients, is_sharded
from spikeprop.learn.fused import align, fused_steps
from spikeprop.learn.given import check_collection, read_batch
from spikeprop.learn.history import History
from spikeprop.learn.metrics import DeferredMetrics
from spikeprop.learn.rates import FACTORS
from spikeprop.learn.rule import LearningRule
from spikeprop.learn.schedule import Constant, Schedule
from spikeprop.learn.silence import SilenceCheck
from spikeprop.learn.training_checkpoint import TrainingCheckpoint
from spikeprop.runtime.batches import Batch, Batches, Shardable
from spikeprop.runtime.heartbeat import tick
from spikeprop.runtime.labels import known_on_host, read_labels
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.seeding import seed_everything


@runtime_checkable
class Constrained(Protocol):
    """A module whose parameters must stay in a range that the optimiser's step does not know."""

    def project_parameters(self) -> None: ...


@dataclass(frozen=True)
class LoopSettings:
    """What stays the same in all steps."""

    rule: LearningRule
    schedule: Schedule
    seed: int
    clip: float | None
    autocast: torch.dtype | None
    memory_format: torch.memory_format
    device: torch.device
    callbacks: Sequence[Callback]
    constrained: Sequence[Constrained]
    checkpoint: TrainingCheckpoint
    parallel: DataParallel
    silence: SilenceCheck


def fit(
    model: nn.Module,
    rule: LearningRule,
    batches: Batches | Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    schedule: Schedule | None = None,
    seed: int = 0,
    clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    autocast: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    processes: Processes = ALONE,
) -> History:
    """Train ``model`` in place and leave it in evaluation mode.

    On the CPU an optimiser runs in torch's fused form while it trains, where it has one. After every step
    ``project_parameters()`` is called on each module that has it; it moves parameters back into their range, as
    for thresholds. A spiking network in which layers stay silent is warned of once, after the first gradient.

    Args:
        model: network that ``rule`` can train, complete or sharded over the processes by ``shard``; batches go to its device.
        rule: fills ``.grad``; a rule with parameters of its own has been prepared, and the optimiser holds them
            (``rule.param_groups``).
        batches: (examples, labels) batches, of sequences (B, T, ...) or ``Sequences``; ``Batches`` resume without rereading, any
            sized iterable works.
        optimizer: over the model's parameters; its learning rate is the base that ``schedule`` multiplies.
        epochs: passes over ``batches``.
        schedule: factor on the learning rate; default constant.
        seed: seeds the global generators of torch, numpy and Python at every step.
        clip: largest gradient norm, or None.
        callbacks: hooks.
        checkpoint: file to resume from if it exists. It is written after each epoch, every ``checkpoint_seconds``, when a signal
            asks to stop, and when reading a batch fails. The previous one is kept beside it.
        checkpoint_seconds: seconds between checkpoints within an epoch.
        autocast: lower precision of convolutions and linear layers (torch.autocast; the loss is not scaled), or None.
        memory_format: in which a network of images computes while it trains, such as ``torch.channels_last``, which many
            processors prefer; afterwards its weights have torch's own again. None: as the network has it.
        processes: that train together, each on its shard of every batch; rank 0 writes the checkpoint. All pass equal arguments.

    Returns:
        one dict an epoch: epoch, loss, accuracy (percent; None for regression), lr (of the largest group), seconds; a list, which
            notebooks show.

    Raises:
        DataError: not batches that can be read once an epoch, or images in bytes.
        ValueError: no batches, an optimiser without the rule's own parameters, or a sharded network with a rule or callback that
            needs a complete one.
        LabelError: labels do not fit the images or the network's outputs.
        TrainingCollapsed: a loss is not finite, or a weight at a checkpoint.
        CheckpointError: ``checkpoint`` belongs to another network or another number of batches.
        Stopped: a signal asked to stop, within ``spikeprop.runtime.signals.deferred_signals``.
    """
    if not isinstance(batches, Batches):
        check_collection(batches)
    source = batches if isinstance(batches, Batches) else _Replayed(batches, seed)
    if processes.count > 1 and isinstance(batches, Shardable):
        source = batches.shard(processes)
    training = TrainingState(model, optimizer, epochs, len(source), batches=source, schedule=schedule or Constant())
    _check(training, rule, callbacks, processes)
    if memory_format is not None and is_sharded(model):
        raise ValueError("a network that is sharded over processes keeps torch's own memory layout: leave memory_format out")
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    progress = TrainingCheckpoint(checkpoint, checkpoint_seconds, training, rule, callbacks, processes)
    progress.resume()
    settings = LoopSettings(
        rule=rule,
        schedule=training.schedule,
        seed=seed,
        clip=clip,
        autocast=autocast,
        memory_format=memory_format or torch.preserve_format,
        device=next(model.parameters()).device,
        callbacks=callbacks,
        constrained=[module for module in model.modules() if isinstance(module, Constrained)],
        checkpoint=progress,
        parallel=DataParallel(processes, model, rule),
        silence=SilenceCheck(model, rule, processes.rank == 0),
    )
    _set_mode(model, rule, True)
    if memory_format is not None:
        model.to(memory_format=memory_format)
    for callback in callbacks:
        callback.on_start(training)
    try:
        with settings.parallel.training(), fused_steps(optimizer, model):
            while training.epoch < epochs:
                _run_epoch(training, source, settings)
    finally:
        for callback in callbacks:
            callback.on_end(training)
        if memory_format is not None:
            model.to(memory_format=torch.contiguous_format)
        _set_mode(model, rule, False)
    return History(training.history)


def _run_epoch(training: TrainingState, batches: Batches, settings: LoopSettings) -> None:
    started, parallel, checkpoint = time.monotonic(), settings.parallel, settings.checkpoint
    deferred = DeferredMetrics(training, settings.device)
    for batch in _read(training, batches, settings, deferred):
        rank = parallel.processes.rank
        seed_everything(settings.seed, training.epoch, training.step, *([rank] if rank else []))  # rank 0 draws as one process
        _set_lr(training, settings.schedule)
        parallel.announce_save(checkpoint.due)
        x, y = read_batch(batch, training.model, parallel)
        with known_on_host(y):
            layout = settings.memory_format if len(x.shape) == 4 else torch.preserve_format
            x = x.to(settings.device, non_blocking=True, memory_format=layout)
            y = y.to(settings.device, non_blocking=True)
            _one_step(training, settings, x, y, deferred)
        for callback in settings.callbacks:
            callback.on_step(training)
        save = parallel.stop_requested() or parallel.save_due(checkpoint.due)
        if save and training.step < training.steps_per_epoch:
            if checkpoint.path is not None:
                deferred.read()
                checkpoint.save()
            parallel.stop_if_requested()
    deferred.read()
    lr = max(training.optimizer.param_groups, key=lambda group: sum(p.numel() for p in group["params"]))["lr"]
    metrics = {**training.metrics, "lr": lr, "seconds": round(time.monotonic() - started, 2)}
    for callback in settings.callbacks:
        callback.on_epoch(training, metrics)
    training.history.append(metrics)
    training.epoch, training.step = training.epoch + 1, 0
    training.loss_sum, training.correct, training.seen, training.sums = 0.0, 0, 0, {}
    checkpoint.save()
    if training.epoch < training.epochs:  # otherwise the training is complete, and its caller saves the result
        parallel.stop_if_requested()


def _read(training: TrainingState, batches: Batches, settings: LoopSettings, deferred: DeferredMetrics) -> Iterator[Batch]:
    """The remaining batches of an epoch; where reading one fails, the training is saved before the error is raised."""
    try:
        yield from batches.epoch(training.epoch, training.step)
    except Exception:
        sharded = settings.parallel.sharded  # then the other processes, which do not know of the error, would have to send shards
        if settings.checkpoint.path is not None and training.step > 0 and not sharded:
            with suppress(Exception):  # the first error is the one to report
                deferred.read()
                settings.checkpoint.save()
        raise


def _one_step(training: TrainingState, settings: LoopSettings, x: Any, y: Tensor, deferred: DeferredMetrics) -> None:
    training.optimizer.zero_grad(set_to_none=True)
    x, y = settings.parallel.shard(x, y)
    with nullcontext() if settings.autocast is None else torch.autocast(settings.device.type, settings.autocast):
        result = settings.rule.step(settings.parallel.wrapped, x, y)  # its backward pass recomputes, so it needs autocast too
    settings.silence.after_gradient(training.model, x)
    deferred.add(*_reduce(result, y, settings.parallel))
    for callback in settings.callbacks:
        callback.on_gradient(training)
    if settings.clip is not None:
        clip = clip_gradients if settings.parallel.sharded else nn.utils.clip_grad_norm_
        clip([*training.model.parameters(), *settings.rule.parameters()], settings.clip)
    align(training.optimizer)
    training.optimizer.step()
    for module in settings.constrained:
        module.project_parameters()
    training.step += 1
    tick()


def _reduce(result: dict[str, Tensor], y: Tensor, parallel: DataParallel) -> tuple[list[str], Tensor]:
    """Sum the gradients over the processes; returns the names of the rule's own scalars, and the complete batch's sums.

    The sums are those of labels, correct predictions, the loss and the rule's scalars, in float64.
    """
    names = sorted(set(result) - {"loss", "scores"})
    means = torch.stack([result[name].detach().double() for name in ("loss", *names)])
    try:
        correct, size = read_labels(result["scores"], y).correct(result["scores"])
        size = size.to(means)
    except LabelError:  # the rule's loss has taken these targets: it is regression, which has no correct predictions
        size = torch.full_like(means[0], y.numel())  # filled on the device: a copy from the host would wait for it
        correct = torch.full_like(size, math.nan)
    return names, parallel.reduce(torch.cat([torch.stack([size, correct.double()]), means * size]))


def _set_lr(training: TrainingState, schedule: Schedule) -> None:
    factor = schedule(training.steps_done / training.steps)
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _set_mode(model: nn.Module, rule: LearningRule, training: bool) -> None:
    model.train(training)
    rule.own.train(training)


def _check(training: TrainingState, rule: LearningRule, callbacks: Sequence[Callback], processes: Processes) -> None:
    if training.steps_per_epoch == 0:
        raise ValueError("no batches to train on")
    held = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    if any(p.is_inference() for p in training.model.parameters()):
        raise ValueError("the network was made in inference mode, so it cannot be trained: use copy.deepcopy(model)")
    trained = [p for p in training.model.parameters() if p.requires_grad]
    if trained and not any(id(p) in held for p in trained):
        raise ValueError(
            f"the optimiser holds none of this {type(training.model).__name__}'s parameters, so nothing would be trained: make "
            "it of model.parameters() (spikeprop.spiking and spikeprop.convert give networks with parameters of their own)"
        )
    if ignored := sorted(FACTORS.keys() & {key for group in training.optimizer.param_groups for key in group}):
        raise ValueError(
            f"the optimiser would ignore {', '.join(ignored)} of its groups: make it of "
            "with_rates(rule.param_groups(model), lr=..., weight_decay=...), which multiplies the rates"
        )
    missing = sum(id(p) not in held for p in rule.parameters() if p.requires_grad)
    if missing:
        raise ValueError(
            f"the optimiser lacks {missing} parameters of {type(rule).__name__}'s own: "
            "call rule.prepare(model, x), then make it of rule.param_groups(model)"
        )
    if is_sharded(training.model):
        check_shardable(rule, callbacks, training.optimizer)
        if processes.count == 1:
            raise ValueError("the network is sharded over processes: give fit the same processes, whose gradients it sums")


class _Replayed:
    """An ordinary sized iterable of batches as ``Batches``: the earlier batches of a resumed epoch are read and dropped.

    What it draws from global generators (a DataLoader's order, augmentation) depends only on epoch and batch.
    """

    def __init__(self, batches: Iterable[Batch], seed: int):
        self.batches, self.seed = batches, seed

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        seed_everything(self.seed, epoch, 0, 0)
        batches = iter(self.batches)
        for number in range(len(self)):
            seed_everything(self.seed, epoch, number, 1)
            batch = next(batches, None)
            if batch is None:
                return
            if number >= start:
                yield batch
