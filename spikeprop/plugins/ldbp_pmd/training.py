"""Training a receiver by Adam on the mean squared error of its symbols; a run that was killed goes on with the same batches.

The data have their phase aligned block by block (``signals.aligned``), as in chaeger/LDBP. Batches are drawn from the training
blocks by the number of the iteration alone, so nothing of the order has to be kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import TrainingCollapsed
from spikeprop.learn import drop_progress, load_checkpoint, load_latest, load_model, save_checkpoint
from spikeprop.learn.checkpoint import has_checkpoint, load_optimizer
from spikeprop.plugins.ldbp_pmd.blocks import Blocks
from spikeprop.plugins.ldbp_pmd.receiver import LearnedReceiver
from spikeprop.plugins.ldbp_pmd.signals import Signal, effective_snr, squared_error
from spikeprop.runtime.progress import bar
from spikeprop.runtime.seeding import generator
from spikeprop.runtime.signals import stop_if_requested, stop_requested

CHECKPOINT_SECONDS = 30.0
LOOK = 50  # blocks through the receiver at once when it is judged


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a receiver is trained.

    Attributes:
        iterations: steps of Adam.
        batch: blocks in each.
        lr: of dispersion filters and Kerr coefficients.
        rotation_lr, dgd_lr: of rotations and of DGD filters. The latter must be the slower: while the polarisations are not yet
            apart, filters that shrink to nothing lower the error too.
        final: share of the rates that is left at the end, on a cosine; 1 for constant rates.
        every: iterations between looks at the test blocks.

    """

    iterations: int = 1500
    batch: int = 100
    lr: float = 1e-3
    rotation_lr: float = 2e-2
    dgd_lr: float = 2e-3
    final: float = 1.0
    every: int = 50

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "rotation_lr", "dgd_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative, 0 leaves those parameters as they are")

        if not 0 <= self.final <= 1:
            raise ValueError(f"final is {self.final}; it lies in [0, 1]")

    def share(self, iteration: int) -> float:
        """Share of the rates at an iteration."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * iteration / self.iterations)) / 2

    def optimizer(self, receiver: LearnedReceiver) -> torch.optim.Adam:
        """Adam over what has a rate."""
        pmd = receiver.pmd_parameters()
        others = [p for p in receiver.parameters() if all(p is not q for q in pmd)]
        groups = [{"params": others, "lr": self.lr}]
        if pmd:
            dgd, rotation = pmd
            groups += [{"params": [dgd], "lr": self.dgd_lr}, {"params": [rotation], "lr": self.rotation_lr}]
        return torch.optim.Adam([group for group in groups if group["lr"] > 0])


def processed(receiver: LearnedReceiver, samples: Tensor) -> Tensor:
    """(B, P, 2 K) samples through the receiver, without gradients, some blocks at a time."""
    with torch.no_grad():
        return torch.cat([receiver(part) for part in samples.split(LOOK)])


def judge(receiver: LearnedReceiver, signal: Signal, blocks: Blocks) -> float:
    """Effective SNR in dB."""
    return effective_snr(blocks.symbols, signal.detect(processed(receiver, blocks.samples), blocks.power))


def fit_receiver(
    receiver: LearnedReceiver, signal: Signal, data: tuple[Blocks, Blocks], settings: Fitting, seed: Sequence[int], path: Path
) -> list[list[Any]]:
    """Train on the first of ``data``, look at the second.

    Args:
        receiver: trained in place.
        signal: to detect symbols with.
        data: training and test blocks.
        settings: iterations, rates.
        seed: of the batches.
        path: of what is left at the end. Until then, progress lies beside it, which a killed run goes on from.

    Returns:
        [iteration, effective SNR in dB on the test blocks], from 0 to the last; lists, as JSON gives them back.

    Raises:
        TrainingCollapsed: the loss is not finite.
        Stopped: a signal asked for it; the step is finished and saved.

    """
    optimizer = settings.optimizer(receiver)
    rates = [group["lr"] for group in optimizer.param_groups]
    start, curve = _resume(path, receiver, optimizer)
    saved = time.monotonic()
    with bar(path.stem, total=settings.iterations, initial=start, unit="iteration", leave=False) as shown:
        for i in range(start, settings.iterations):
            if i % settings.every == 0:
                curve.append([i, judge(receiver, signal, data[1])])
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * settings.share(i)
            chosen = torch.randint(len(data[0]), (settings.batch,), generator=generator(*seed, i))
            _advance(receiver, signal, data[0], optimizer, chosen)
            shown.update()
            if stop_requested() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                described = {"iteration": i + 1, "curve": curve}
                save_checkpoint(_progress(path), receiver, described, optimizer, keep_previous=True)
                saved = time.monotonic()
            stop_if_requested()
    if curve[-1][0] < settings.iterations:
        curve.append([settings.iterations, judge(receiver, signal, data[1])])
        save_checkpoint(path, receiver, {"iteration": settings.iterations, "curve": curve}, optimizer)
    drop_progress(_progress(path))
    return curve


def load_receiver(receiver: LearnedReceiver, path: Path) -> LearnedReceiver:
    """``receiver`` with what a finished training left."""
    load_model(receiver, load_checkpoint(path))
    return receiver


def within_one_percent(curve: Sequence[Sequence[Any]]) -> int:
    """The first iteration at which the SNR in dB is within 1 % of the highest of the curve."""
    peak = max(snr for _, snr in curve)
    return next(i for i, snr in curve if snr >= peak - 0.01 * abs(peak))


def _progress(path: Path) -> Path:
    return path.with_name(f"{path.stem}.progress{path.suffix}")


def _resume(path: Path, receiver: LearnedReceiver, optimizer: torch.optim.Optimizer) -> tuple[int, list[Any]]:
    if has_checkpoint(_progress(path)):
        checkpoint = load_latest(_progress(path))
    elif path.exists():
        checkpoint = load_checkpoint(path)
    else:
        return 0, []
    load_model(receiver, checkpoint)
    load_optimizer(optimizer, checkpoint)
    return checkpoint.description["iteration"], checkpoint.description["curve"]


def _advance(receiver: LearnedReceiver, signal: Signal, blocks: Blocks, optimizer: torch.optim.Optimizer, chosen: Tensor) -> None:
    optimizer.zero_grad()
    loss = squared_error(blocks.symbols[chosen], signal.detect(receiver(blocks.samples[chosen]), blocks.power))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingCollapsed(f"the receiver's loss is {value}: lower training.lr, rotation_lr or dgd_lr, or the launch power")
    loss.backward()
    optimizer.step()
