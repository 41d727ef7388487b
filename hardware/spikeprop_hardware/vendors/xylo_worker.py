"""xylosim in its own environment: networks of xylo.py, one sample after another from rest."""

from __future__ import annotations

import numpy as np

from spikeprop_hardware.vendors.running import Arrays, serve


def simulate(job: Arrays) -> Arrays:
    """Spikes (samples, steps, hidden and output neurons)."""
    from xylosim.v2 import XyloLayer, XyloSynapse  # pyright: ignore[reportMissingImports]

    def synapses(weights: np.ndarray) -> list[list[object]]:
        return [[XyloSynapse(int(to), 0, int(row[to])) for to in np.flatnonzero(row)] for row in weights]

    hidden = len(job["among"])
    halves = {name: (job[name][:hidden].tolist(), job[name][hidden:].tolist()) for name in ("theta", "bias", "mem", "syn")}
    held = [synapses(job[name]) for name in ("into", "among", "out")]  # xylosim keeps pointers to them, and no references
    layer = XyloLayer(
        synapses_in=held[0], synapses_rec=held[1], synapses_out=held[2],
        aliases=[[] for _ in range(hidden)], threshold=halves["theta"][0], threshold_out=halves["theta"][1],
        has_bias=bool(job["bias"].any()), bias=halves["bias"][0], bias_out=halves["bias"][1],
        weight_shift_inp=int(job["shifts"][0]), weight_shift_rec=int(job["shifts"][1]), weight_shift_out=int(job["shifts"][2]),
        dash_mem=halves["mem"][0], dash_mem_out=halves["mem"][1], dash_syns=[[k] for k in halves["syn"][0]],
        dash_syns_out=[[k] for k in halves["syn"][1]], name="network",
    )  # fmt: skip
    trains = []
    for sample in job["inputs"]:
        layer.reset_all()
        out = np.array(layer.evolve(sample.tolist()), np.uint8)
        trains.append(np.hstack([np.array(layer.rec_recurrent_spikes, np.uint8), out]))
    return {"spikes": np.stack(trains)}


if __name__ == "__main__":
    serve(simulate)
