"""What happens while one example is shown: when chosen neurons fire, potentials, and the scores of the classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeprop.evaluate.activity import device_of
from spikeprop.snn import INPUT, SpikingNetwork
from spikeprop.snn.folding import evaluated
from spikeprop.snn.normalisation import needs_all_steps
from spikeprop.snn.timed_input import time_first
from spikeprop.snn.watching import watched_chunk

NEURONS = 48  # of a layer, at even distances
LAYERS = 16  # of a network, at even distances
TRACED = 4  # layers of which one neuron's potential is shown
CURVES = 5  # classes whose scores are shown


@torch.no_grad()
def raster(network: SpikingNetwork, image: Tensor, timesteps: int | None) -> list[dict[str, Any]]:
    """Which of the chosen neurons fire when.

    Args:
        network: in evaluation mode; not changed.
        image: (C, H, W), as the data set gives it, or a sequence (T, ...).
        timesteps: steps to simulate; None for a sequence.

    Returns:
        by layer, in order: its name, how many neurons it has, the numbers of those chosen, and their spikes as
        [row among the chosen, step, payload]. An input that is the same at every step has no spikes and "values", from -1 to 1.
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

    x, _ = time_first(network, image[None].to(device_of(network)))
    steps = timesteps or len(x)
    for _ in network.unroll(x, timesteps, chunk=watched_chunk(network, 1, steps), observe=observe):
        pass
    spiking = [name for name in trains if name != INPUT or timesteps is None or not network.encoder.constant]
    names = [spiking[i] for i in _even(len(spiking), LAYERS).tolist()]
    found = {name: _events(torch.cat(trains[name])) for name in names}
    shown = [{"name": n, "neurons": sizes[n], "chosen": chosen[n].tolist(), "spikes": found[n]} for n in names]
    if timesteps is None or not network.encoder.constant:
        return shown
    return [_constant(network.encoded(x, timesteps)[0, 0]), *shown]


def _constant(step: Tensor) -> dict[str, Any]:
    """An input that is not spikes: chosen values of what enters at every step, as parts of the largest."""
    values = step.flatten().float()
    chosen = _even(len(values), NEURONS)
    shares = (values[chosen] / values.abs().max().clamp(min=1e-12)).cpu().tolist()
    about = {"neurons": len(values), "chosen": chosen.tolist(), "spikes": []}
    return {"name": INPUT, **about, "values": [round(share, 3) for share in shares]}


@torch.no_grad()
def scores(network: SpikingNetwork, image: Tensor, timesteps: int | None, label: int) -> dict[int, list[float]]:
    """Class to its score after each step, of the classes with the largest scores at the end, and of the label."""
    x, _ = time_first(network, image[None].to(device_of(network)))
    found_TK = torch.cat(list(network.unroll(x, timesteps)))[:, 0].flatten(1).cpu()
    best = found_TK[-1].argsort(descending=True)[:CURVES].tolist()
    return {k: found_TK[:, k].tolist() for k in sorted({*best, label})}


@torch.no_grad()
def potentials(network: SpikingNetwork, image: Tensor, timesteps: int | None) -> list[dict[str, Any]]:
    """The potential after each step, and the threshold, of the neuron of a layer that fires nearest to every other step.

    Returns:
        by layer: its name, the neuron's number, its potentials, the threshold above which it fires (the base one where it adapts;
        of a graded one k times it for a payload k), and its spikes as [step, payload]; empty for a network that cannot run step
        by step.
    """
    plain = evaluated(network)
    if needs_all_steps(plain) is not None or not plain.readout.trivial:
        return []
    x, _ = time_first(network, image[None].to(device_of(network)))
    trains: dict[str, list[Tensor]] = {}
    states, state = dict[str, list[Tensor]](), plain.init_state()
    for step_B in plain.encoded(x, timesteps):
        _, state = plain.run(
            step_B[None], state, observe=lambda name, sent: trains.setdefault(name, []).append(sent[0, 0].flatten())
        )
        for name in plain.neurons():
            states.setdefault(name, []).append(state.layers[name].v[0].expand(plain.shapes()[name]).flatten())
    found, names = [], [name for name in states if name in trains]
    for name in [names[i] for i in _even(len(names), TRACED).tolist()]:
        sent_TN, theta = torch.stack(trains[name]), plain.neurons()[name].spike_size
        neuron = int(((sent_TN != 0).sum(0) - len(sent_TN) / 2).abs().argmin())
        theta = float(theta.expand(plain.shapes()[name]).flatten()[neuron])
        values = torch.stack(states[name])[:, neuron].tolist()
        spikes = [[step, int(sent_TN[step, neuron])] for step in sent_TN[:, neuron].nonzero().flatten().tolist()]
        found.append({"name": name, "neuron": neuron, "values": values, "threshold": theta, "spikes": spikes})
    return found


def _even(count: int, wanted: int) -> Tensor:
    """At most ``wanted`` of the numbers below ``count``, at even distances."""
    if count <= wanted:
        return torch.arange(count)
    return torch.arange(wanted) * count // wanted


def _events(train_TN: Tensor) -> list[list[int]]:
    where = train_TN.T.nonzero()
    sent = train_TN.T[where[:, 0], where[:, 1]]
    payloads = torch.where(sent == sent.round(), sent, sent.sign()).long()  # an input may hold other numbers
    return torch.cat([where, payloads[:, None]], 1).tolist()
