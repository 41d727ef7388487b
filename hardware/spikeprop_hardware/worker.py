"""``python -m spikeprop_hardware.worker NETWORK.nir INPUTS.npz RESULT.npz``: the part that runs inside Lava's Python
3.10.

Progress goes to standard output, one "done total" line at a time.
"""

from __future__ import annotations

import sys
from typing import Any

import nir
import numpy as np

from spikeprop_hardware.build import run_on_lava
from spikeprop_hardware.plan import make_plan


def _tell(done: int, total: int) -> None:
    sys.stdout.write(f"progress {done} {total}\n")
    sys.stdout.flush()


def main(network: str, inputs: str, result: str) -> None:
    """Read a network and its inputs, run them, write every spike (as bits) and output."""
    plan = make_plan(nir.read(network))
    with np.load(inputs) as file:
        data = file["inputs"].astype(np.float64)
    spikes, output = run_on_lava(plan, data.reshape(*data.shape[:2], -1), _tell)
    arrays: Any = {f"spikes/{name}": np.packbits(train, axis=-1) for name, train in spikes.items()}
    np.savez_compressed(result, output=output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
