"""Training of a receiver by Adam on the mean squared error of its symbols; an interrupted run resumes with the same batches.

The phase of each block is aligned before the error is computed (``signals.aligned``), as in chaeger/LDBP. The batch of an
iteration depends only on the iteration's number, so no state of the order is saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import TrainingCollapsed
from spikeprop.learn import drop_progress, load_checkpoint, load_latest, load_model, save_checkpoint
from spikeprop.learn.checkpoint import has_checkpoint, load_optimizer
from spikeprop.plugins.ldbp_pmd.blocks import Blocks
from spikeprop.plugins.ldbp_pmd.receiver import LearnedReceiver
from spikeprop.plugins.ldbp_pmd.signals import Signal
from spikeprop.runtime.checks import at_least_one, not_negative
from spikeprop.runtime.progress import bar
from spikeprop.runtime.seeding import generator
from spikeprop.runtime.signals import stop_if_requested, stop_requested

CHECKPOINT_SECONDS = 30.0
EVALUATED = 50  # blocks per call of the receiver in an evaluation


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Settings of the training of a receiver.

    Attributes:
        iterations: most steps of Adam at constant rates.
        batch: blocks per step.
        lr: learning rate of dispersion filters, Kerr coefficients and the equaliser after them.
        rotation_lr, dgd_lr: learning rates of rotations and of DGD filters. The latter must be lower: as long as the
            polarisations are not separated, filters that shrink to zero also lower the error.
        warmup: iterations over which the rates rise linearly at the beginning.
        plateau_db: the constant rates end as soon as the mean training error of ``window`` iterations is less than this below
            that of the window before; 0 to do all ``iterations``. All windows then use the same batches, so that only the
            receiver differs. Test blocks play no role.
        window: see ``plateau_db``.
        decay: iterations after the constant rates, in which they fall by a cosine.
        decay_to: fraction of the rates at the end of ``decay``.
        every: iterations between evaluations on the test blocks.

    """

    iterations: int = 1500
    batch: int = 100
    lr: float = 1e-3
    rotation_lr: float = 2e-2
    dgd_lr: float = 2e-3
    warmup: int = 0
    plateau_db: float = 0.0
    window: int = 50
    decay: int = 0
    decay_to: float = 0.1
    every: int = 50

    def __post_init__(self) -> None:
        at_least_one(self, "iterations", "batch", "every", "window")
        not_negative(self, "lr", "rotation_lr", "dgd_lr", hint="; use 0 to keep those parameters fixed")
        not_negative(self, "warmup", "plateau_db", "decay", hint="; use 0 for none")
        if not 0 <= self.decay_to <= 1:
            raise ValueError(f"decay_to is {self.decay_to}; it must lie in [0, 1]")

    def share(self, iteration: int, plateau: int | None) -> float:
        """Factor of the rates at an iteration; ``plateau`` is where the constant rates ended, None before."""
        rising = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        if plateau is None:
            return rising
        return rising * (self.decay_to + (1 - self.decay_to) * (1 + math.cos(math.pi * (iteration - plateau) / self.decay)) / 2)

    def at_plateau(self, errors: Sequence[float]) -> bool:
        """Whether the constant rates end after iterations with these training errors."""
        count = len(errors)
        if count >= self.iterations:
            return True
        if not self.plateau_db or count < 2 * self.window or count % self.window:
            return False
        last, before = math.fsum(errors[-self.window :]), math.fsum(errors[-2 * self.window : -self.window])
        return 10 * math.log10(before / last) < self.plateau_db

    def optimizer(self, receiver: LearnedReceiver) -> torch.optim.Adam:
        """Adam for all parameters with a positive rate."""
        pmd = receiver.pmd_parameters()
        others = [p for p in receiver.parameters() if all(p is not q for q in pmd)]
        groups = [{"params": others, "lr": self.lr}]
        if pmd:
            dgd, rotation = pmd
            groups += [{"params": [dgd], "lr": self.dgd_lr}, {"params": [rotation], "lr": self.rotation_lr}]
        return torch.optim.Adam([group for group in groups if group["lr"] > 0])


def processed(receiver: LearnedReceiver, samples: Tensor) -> Tensor:
    """Apply the receiver to (B, P, 2 K) samples without gradients, in batches."""
    with torch.no_grad():
        return torch.cat([receiver(part) for part in samples.split(EVALUATED)])


def snr_of(receiver: LearnedReceiver, signal: Signal, blocks: Blocks) -> float:
    """Effective SNR of the receiver in dB."""
    return signal.snr(blocks.symbols, signal.detect(processed(receiver, blocks.samples), blocks.power))


@dataclass
class Course:
    """The course of a training.

    Attributes:
        curve: pairs [iteration, effective SNR in dB on the test blocks]; lists, like JSON.
        errors: training error of each iteration.
        plateau: iterations at constant rates, None before their end.

    """

    curve: list[list[Any]]
    errors: list[float]
    plateau: int | None = None

    @property
    def snr(self) -> float:
        """Effective SNR at the end, dB."""
        return self.curve[-1][1]

    def constant(self) -> list[list[Any]]:
        """The part of ``curve`` at constant rates."""
        return [point for point in self.curve if self.plateau is None or point[0] <= self.plateau]


def fit_receiver(
    receiver: LearnedReceiver, signal: Signal, data: tuple[Blocks, Blocks], settings: Fitting, seed: Sequence[int], path: Path
) -> Course:
    """Train on the first of ``data``, evaluate on the second.

    Args:
        receiver: trained in place.
        signal: to detect symbols with.
        data: training and test blocks.
        settings: settings of the training.
        seed: seed of the batches.
        path: file of the trained receiver. During training, a progress file with a similar name allows resuming.

    Raises:
        TrainingCollapsed: the loss is not finite.
        Stopped: a signal requested a stop; the current step is finished and saved.

    """
    optimizer = settings.optimizer(receiver)
    rates = [group["lr"] for group in optimizer.param_groups]
    course = _resume(path, receiver, optimizer)
    saved, most = time.monotonic(), settings.iterations + settings.decay
    with bar(path.stem, total=most, initial=len(course.errors), unit="iteration", leave=False) as shown:
        while (i := len(course.errors)) < (most if course.plateau is None else course.plateau + settings.decay):
            if i % settings.every == 0:
                course.curve.append([i, snr_of(receiver, signal, data[1])])
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * settings.share(i, course.plateau)
            drawn = generator(*seed, i % settings.window if settings.plateau_db else i)
            chosen = torch.randint(len(data[0]), (settings.batch,), generator=drawn)
            course.errors.append(_advance(receiver, signal, data[0], optimizer, chosen))
            if course.plateau is None and settings.at_plateau(course.errors):
                course.plateau = i + 1
            shown.update()
            if stop_requested() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                save_checkpoint(_progress(path), receiver, asdict(course), optimizer, keep_previous=True)
                saved = time.monotonic()
            stop_if_requested()
    if course.curve[-1][0] < len(course.errors):
        course.curve.append([len(course.errors), snr_of(receiver, signal, data[1])])
        save_checkpoint(path, receiver, asdict(course), optimizer)
    drop_progress(_progress(path))
    return course


def load_receiver(receiver: LearnedReceiver, path: Path) -> LearnedReceiver:
    """Load the result of a finished training into ``receiver``."""
    load_model(receiver, load_checkpoint(path))
    return receiver


def within_one_percent(curve: Sequence[Sequence[Any]]) -> int:
    """The first iteration whose SNR in dB is within 1 % of the maximum of the curve."""
    peak = max(snr for _, snr in curve)
    return next(i for i, snr in curve if snr >= peak - 0.01 * abs(peak))


def _progress(path: Path) -> Path:
    return path.with_name(f"{path.stem}.progress{path.suffix}")


def _resume(path: Path, receiver: LearnedReceiver, optimizer: torch.optim.Optimizer) -> Course:
    if has_checkpoint(_progress(path)):
        checkpoint = load_latest(_progress(path))
    elif path.exists():
        checkpoint = load_checkpoint(path)
    else:
        return Course([], [])
    load_model(receiver, checkpoint)
    load_optimizer(optimizer, checkpoint)
    return Course(*(checkpoint.description[name] for name in ("curve", "errors", "plateau")))


def _advance(
    receiver: LearnedReceiver, signal: Signal, blocks: Blocks, optimizer: torch.optim.Optimizer, chosen: Tensor
) -> float:
    optimizer.zero_grad()
    loss = signal.error(blocks.symbols[chosen], signal.detect(receiver(blocks.samples[chosen]), blocks.power))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingCollapsed(f"the receiver's loss is {value}: lower training.lr, rotation_lr or dgd_lr, or the launch power")
    loss.backward()
    optimizer.step()
    return value
