"""Looking at a network's spikes: how many steps at once, and which layers stay silent.

Suffix legend: T steps, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spikeprop.errors import DataError
from spikeprop.snn.folding import evaluated
from spikeprop.snn.timed_input import time_first

if TYPE_CHECKING:
    from spikeprop.snn.network import SpikingNetwork

WATCHED_BYTES = 2**28  # the unpacked spikes of the largest layer while someone watches


def watched_chunk(network: SpikingNetwork, images: int, timesteps: int) -> int:
    """Steps at once while someone watches: a layer's unpacked spikes stay within ``WATCHED_BYTES``, or are one step's."""
    largest = max(torch.Size(shape).numel() for shape in network.shapes().values())
    return max(1, min(timesteps, WATCHED_BYTES // (4 * images * largest)))


def samples_for(network: SpikingNetwork, x: Any) -> tuple[Tensor, Tensor | None]:
    """Samples as a data set gives them, on the network's device and as it reads them, and the lengths of sequences.

    Raises:
        DataError: neither a tensor nor ``Sequences``.
    """
    if not isinstance(x, Tensor) and not hasattr(x, "lengths"):
        raise DataError(
            f"samples are a {type(x).__name__}; pass a tensor (B, ...), sequences (B, T, ...) or Sequences: of a loader the "
            "first part of a batch"
        )
    return time_first(network, x.to(next((p.device for p in network.parameters()), "cpu")))


@torch.no_grad()
def silent_layers(network: SpikingNetwork, x: Any, timesteps: int | None) -> list[str]:
    """Layers in which no neuron fires within ``timesteps`` steps on samples x (B, ...): STDB cannot reach what is below them.

    Sequences (B, T, ...), or ``Sequences``, have their own number of steps, and ``timesteps`` is None.

    The network is left in evaluation mode.
    """
    active: set[str] = set()

    def observe(name: str, spikes_TB: Tensor) -> None:
        if bool((spikes_TB != 0).any()):
            active.add(name)

    examples = len(x)
    x, lengths = time_first(network, x.to(next((p.device for p in network.parameters()), x.device)))
    chunk = watched_chunk(network, examples, timesteps or len(x))
    network.eval()(x, timesteps, lengths=lengths, chunk=chunk, observe=observe)
    return [name for name in evaluated(network).dynamics() if name not in active]  # of what ran
