"""Spike rasters: when chosen neurons of each layer fire while one image is shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeprop.evaluate.activity import device_of
from spikeprop.snn import INPUT, SpikingNetwork
from spikeprop.snn.watching import watched_chunk

NEURONS = 48  # of a layer, at even distances
LAYERS = 16  # of a network, at even distances


@torch.no_grad()
def raster(network: SpikingNetwork, image: Tensor, timesteps: int) -> list[dict[str, Any]]:
    """Which of the chosen neurons fire when.

    Args:
        network: in evaluation mode; not changed.
        image: (C, H, W), as the data set gives it.
        timesteps: steps to simulate.

    Returns:
        by layer, in order: its name, how many neurons it has, the numbers of those chosen, and their spikes as
        [row among the chosen, step, sign]. An input that is not spikes is left out.
    """
    chosen: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    trains: dict[str, list[Tensor]] = {}

    def observe(name: str, spikes_TB: Tensor) -> None:
        flat_TN = spikes_TB[:, 0].flatten(1)
        if name not in chosen:
            sizes[name] = flat_TN.shape[1]
            chosen[name] = _even(flat_TN.shape[1], NEURONS)
        trains.setdefault(name, []).append(flat_TN[:, chosen[name].to(flat_TN.device)].cpu().clone())

    x = image[None].to(device_of(network))
    for _ in network.unroll(x, timesteps, chunk=watched_chunk(network, 1, timesteps), observe=observe):
        pass
    spiking = [name for name in trains if name != INPUT or not network.encoder.constant]
    names = [spiking[i] for i in _even(len(spiking), LAYERS).tolist()]
    found = {name: _events(torch.cat(trains[name])) for name in names}
    return [{"name": n, "neurons": sizes[n], "chosen": chosen[n].tolist(), "spikes": found[n]} for n in names]


def _even(count: int, wanted: int) -> Tensor:
    """At most ``wanted`` of the numbers below ``count``, at even distances."""
    if count <= wanted:
        return torch.arange(count)
    return torch.arange(wanted) * count // wanted


def _events(train_TN: Tensor) -> list[list[int]]:
    where = train_TN.T.nonzero()
    signs = train_TN.T[where[:, 0], where[:, 1]].sign().long()
    return torch.cat([where, signs[:, None]], 1).tolist()
