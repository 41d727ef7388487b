"""Accuracy of an ANN, and of a spiking network at every number of steps of interest from one pass.

The accumulated output after t steps is the network's answer at T = t, so one simulation of max(T) steps answers for all
smaller T; memory does not grow with T.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import length_hint

import torch
from torch import Tensor, nn

from spikeprop.evaluate.activity import ActivityMeter, device_of
from spikeprop.progress import bar
from spikeprop.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

Batch = tuple[Tensor, Tensor]


@torch.no_grad()
def ann_accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Top-1 accuracy in percent, in evaluation mode.

    Raises:
        ValueError: no images.
    """
    model.eval()
    correct = seen = 0
    device = device_of(model)
    for x, y in batches:
        correct += int((model(x.to(device)).argmax(1) == y.to(device)).sum())
        seen += len(y)
    if seen == 0:
        raise ValueError("no images to evaluate on")
    return 100 * correct / seen


@torch.no_grad()
def snn_accuracy(
    network: SpikingNetwork,
    batches: Iterable[Batch],
    timesteps: Sequence[int],
    *,
    meter: ActivityMeter | None = None,
    seed: int = 0,
    label: str | None = None,
) -> dict[int, float]:
    """Top-1 accuracy in percent at each number of steps.

    Args:
        network: spiking network; evaluated in evaluation mode.
        batches: (images, labels).
        timesteps: numbers of steps, in any order, each at least 1.
        meter: counts spikes over the meter's own number of steps.
        seed: seeds the encoder's draws, a batch at a time.
        label: text of the progress bar, None for no bar.

    Raises:
        ValueError: no images, or timesteps below 1.
    """
    wanted = sorted(set(timesteps))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"timesteps {list(timesteps)}: give at least one number, each at least 1")
    network.eval()
    correct, seen, device = dict.fromkeys(wanted, 0), 0, device_of(network)
    with bar(label, total=length_hint(batches) or None, leave=False) as shown:
        for number, (x, y) in enumerate(batches):
            x, y = x.to(device), y.to(device)
            seed_torch(seed, number)
            observe = meter.start(len(y)) if meter is not None else None
            watched = meter.timesteps if meter is not None else 0
            chunks = network.unroll(x, wanted[-1], observe=observe, observed_steps=watched)
            steps = (step for chunk in chunks for step in chunk)
            for t, output_BK in enumerate(steps, 1):
                if t in correct:
                    correct[t] += int((output_BK.argmax(1) == y).sum())
            seen += len(y)
            shown.update()
    if seen == 0:
        raise ValueError("no images to evaluate on")
    return {t: 100 * count / seen for t, count in correct.items()}
