"""nengo-loihi's emulator in its own environment: blocks, axons and synapses of loihi1.py, one sample after another from rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from spikeprop_hardware.vendors.running import Arrays, serve

LIMIT = 2**23 - 1


def _block(job: Arrays, number: int) -> Any:
    from nengo_loihi.block import LoihiBlock  # pyright: ignore[reportMissingImports]

    block = LoihiBlock(len(job[f"bias{number}"]))
    compartment = block.compartment
    compartment.decay_u, compartment.decay_v, compartment.bias, compartment.vth = (
        job[f"{what}{number}"].astype(np.int32) for what in ("decay_u", "decay_v", "bias", "vth")
    )
    compartment.refract_delay = np.ones(block.n_neurons, np.int32)
    compartment.vmin, compartment.vmax = -LIMIT, LIMIT
    compartment.scale_u = compartment.scale_v = False
    return block


def _connect(source: Any, block: Any, weights: np.ndarray) -> None:
    from nengo_loihi.block import Axon, Synapse  # pyright: ignore[reportMissingImports]

    synapse, axon = Synapse(len(weights)), Axon(len(weights))
    synapse._set_weights_indices(list(weights), weight_dtype=np.int32)
    axon.target = synapse
    block.add_synapse(synapse)
    source.add_axon(axon)


def simulate(job: Arrays) -> Arrays:
    """Spikes and potentials of each block, (samples, steps, neurons)."""
    from nengo_loihi.emulator.interface import EmulatorInterface  # pyright: ignore[reportMissingImports]
    from nengo_loihi.inputs import SpikeInput  # pyright: ignore[reportMissingImports]

    class Strict(EmulatorInterface):
        strict = True  # an overflow is an error

    count = int(job["count"])
    blocks = [_block(job, number) for number in range(count)]
    given = SpikeInput(job["inputs"].shape[2])
    for number, block in enumerate(blocks):
        for j, source in enumerate(job[f"sources{number}"]):
            _connect(given if source < 0 else blocks[source], block, job[f"weight{number}_{j}"])
    starts = np.concatenate([job[f"start{number}"] for number in range(count)])
    edges = np.cumsum([block.n_neurons for block in blocks])[:-1]
    spikes, potentials = [], []
    for sample in job["inputs"]:
        given.spikes.clear()
        for t, numbers in enumerate(sample, 1):
            given.add_spikes(t, np.repeat(np.arange(len(numbers)), numbers).tolist())
        emulator = Strict(SimpleNamespace(blocks=blocks, inputs=[given], probes=[], dt=1e-3), seed=0)
        emulator.compartment.voltage[:] = starts
        fired, left = [], []
        for _ in sample:
            emulator.step()
            fired.append(emulator.compartment.spiked.copy())
            left.append(emulator.compartment.voltage.copy())
        spikes.append(fired)
        potentials.append(left)
    parts = {"spikes": np.array(spikes), "v": np.array(potentials)}
    return {f"{what}{i}": part for what, all_ in parts.items() for i, part in enumerate(np.split(all_, edges, axis=-1))}


if __name__ == "__main__":
    serve(simulate)
