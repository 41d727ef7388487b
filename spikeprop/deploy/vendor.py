"""A network in the arithmetic of a chip that is not Loihi 2's: our model of the chip, and its vendor's simulator beside it.

``spikeprop_hardware.vendors`` has one module a chip. Where the chip's output is spikes, the host sums those of the last layer of
neurons with the weights of the readout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import spikeprop_hardware as hardware
from spikeprop_hardware.recording import read_out
from torch import Tensor

from spikeprop.deploy.comparison import REFERENCE_BATCH, VENDORS, input_limit_of, record, steps_of
from spikeprop.deploy.reading import layer_names
from spikeprop.deploy.writing import to_nir
from spikeprop.errors import HardwareError
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import INPUT, SpikingNetwork


def simulate_on_chip(
    network: SpikingNetwork,
    file: Path,
    images: Any,
    labels: Tensor,
    timesteps: int | None,
    notify: Callable[[str], None],
    target: str,
    *,
    vendor: bool = False,
) -> dict[str, Any]:
    """Run a NIR file in a chip's integers.

    Args:
        network, file, images, labels, timesteps, notify: as of ``compare``; sequences have one length.
        target: one of ``VENDORS``.
        vendor: run the vendor's simulator too, in an environment of its own, and compare every spike.

    Returns:
        samples, timesteps, layers (spikes in PyTorch and on the chip), accuracy (percent, of both); with ``vendor`` mismatches by
        layer (spikes in which our model and the vendor's differ) and spikes_equal.

    Raises:
        HardwareError: a network or inputs that the chip does not take, or its vendor's simulator cannot be had.
    """
    if isinstance(images, Sequences):
        raise HardwareError("sequences of unequal length are not simulated on a chip: give those of one length")
    target = hardware.target(target).name
    if target not in VENDORS:
        own = ", ".join(VENDORS)
        raise HardwareError(
            f"{target} is simulated by compare, with precision fixed; chips of an arithmetic of their own are {own}"
        )
    module, graph = import_module(f"spikeprop_hardware.vendors.{target}"), hardware.read_nir(file)
    plan, names = hardware.lay_out(graph), layer_names(graph)
    late = module.late(plan)  # as many empty steps follow, in which what was sent arrives
    steps = steps_of(network, images, timesteps)
    lowered = module.lower(plan, max(1.0, input_limit_of(network, images)), steps + late)
    sent, mismatches = Counter[str](), Counter[str]()
    floats, correct = Counter[str](), Counter[str]()
    for start in range(0, len(images), REFERENCE_BATCH):
        rows = slice(start, start + REFERENCE_BATCH)
        ours, output = record(network, images[rows], timesteps)
        inputs, right = ours.pop(INPUT), labels[rows].numpy()
        given = np.concatenate([inputs, np.zeros((len(inputs), late, *inputs.shape[2:]))], axis=1)
        trains = module.simulate(lowered, given)
        said = {"pytorch": output[:, -1], target: _readout(plan, trains, given, late)}
        correct.update({name: int((scores.argmax(1) == right).sum()) for name, scores in said.items()})
        theirs = module.run(lowered, given, notify) if vendor else {}
        for node, train in trains.items():
            name = str(names.get(node, node))
            if node != plan.readout.name:
                sent[name] += int(np.count_nonzero(train))
                floats[name] += int(np.count_nonzero(ours[name]))
            mismatches[name] += int((train != theirs[node]).sum()) if vendor else 0
    found: dict[str, Any] = {
        "samples": len(labels),
        "timesteps": steps,
        "layers": {name: [floats[name], count] for name, count in sent.items()},
        "accuracy": {name: 100 * count / len(labels) for name, count in correct.items()},
    }
    return found | ({"mismatches": dict(mismatches), "spikes_equal": not any(mismatches.values())} if vendor else {})


def rounded_on_chip(network: SpikingNetwork, target: str, timesteps: int | None = None) -> list[dict[str, Any]]:
    """What a chip's integers do to each layer: name, weights, weight_error, saturated and bits.

    Args:
        network: left as it is.
        target: name of any chip.
        timesteps: of a simulation.

    Raises:
        NirError: what NIR cannot express.
        HardwareError: a network that the chip's integers cannot hold, or a target that is none.
    """
    chip, graph = hardware.target(target), to_nir(network)
    names = layer_names(graph)
    if chip.name in VENDORS:
        module = import_module(f"spikeprop_hardware.vendors.{chip.name}")
        found = module.rounded(hardware.lay_out(graph), network.encoder.limit or 1.0, timesteps)
    else:
        found = hardware.quantize(graph, timesteps=timesteps, target=chip).report
    return [asdict(layer) | {"name": str(names.get(layer.name, layer.name))} for layer in found]


def _readout(plan: hardware.ChipNetwork, trains: dict[str, np.ndarray], given: np.ndarray, late: int) -> np.ndarray:
    """The output at the end (samples, classes): of the chip's potentials, or of the host's, by spikes and the input ``given``."""
    readout, steps = plan.readout, given.shape[1] - late
    if readout.name in trains:
        potentials = trains[readout.name].astype(np.int64)
        before = potentials[:, late - 1 : late] if late and plan.accumulates else 0  # biases, before the first input has arrived
        return read_out(potentials[:, late:] - before, plan)[:, -1]
    if readout.synaptic_leak is not None:
        raise HardwareError("the output is an integrator of a current that outlives its step, which the host does not compute")
    sent = {name: train[:, late:] for name, train in trains.items()} | {plan.input: given.reshape(*given.shape[:2], -1)}
    potentials = np.zeros((len(given), steps, len(readout.bias)))
    v, leak = np.zeros_like(potentials[:, 0]), 1.0 if readout.leak is None else readout.leak
    for t in range(steps):
        v = leak * v + sum((c.matrix @ sent[c.source][:, t].T).T for c in readout.connections) + readout.bias
        potentials[:, t] = v
    return read_out(potentials, plan)[:, -1]
