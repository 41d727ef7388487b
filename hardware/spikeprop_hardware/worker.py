"""``python -m spikeprop_hardware.worker NETWORK INPUTS.npz RESULT.npz``: the part that runs inside Lava's Python 3.10.

NETWORK is a NIR file, or the NPZ of an integer network. Progress goes to standard output, one "progress DONE ALL" line at a time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from spikeprop_hardware.build import run_on_lava
from spikeprop_hardware.integer import load
from spikeprop_hardware.network import lay_out
from spikeprop_hardware.reading import read_nir


def _report(done: int, total: int) -> None:
    sys.stdout.write(f"progress {done} {total}\n")
    sys.stdout.flush()


def main(network: str, inputs: str, result: str) -> None:
    """Read a network and its inputs, run them, write every spike (ones as bits), output and, if asked for, potential."""
    made = load(Path(network)) if network.endswith(".npz") else lay_out(read_nir(network))
    with np.load(inputs) as file:
        data, membranes = file["inputs"], bool(file["membranes"])
    recorded = run_on_lava(made, data.reshape(*data.shape[:2], -1), _report, membranes=membranes)
    arrays: Any = {
        f"spikes/{name}": np.packbits(train, axis=-1) if train.dtype == bool else train for name, train in recorded.spikes.items()
    }
    arrays |= {"names": np.array(list(recorded.spikes), dtype=str), "sizes": [t.shape[-1] for t in recorded.spikes.values()]}
    arrays |= {f"membranes/{name}": trace for name, trace in recorded.membranes.items()}
    arrays |= {
        "clipped": np.array(list(recorded.clipped), dtype=str),
        "times": np.array(list(recorded.clipped.values()), np.int64),
    }
    np.savez_compressed(result, output=recorded.output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
