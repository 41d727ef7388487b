"""sinabs in its own environment: each layer of speck.py is a convolution of size 1 and IAF neurons, quantised by sinabs.

A convolution of another size is such a matrix, written out: the largest and smallest weights, which set the scale, are the same.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from spikeprop_hardware.vendors.running import Arrays, serve


def quantiser() -> Any:
    """sinabs' module of quantisation, alone: the package around it imports samna, which no package index has."""
    import sinabs  # pyright: ignore[reportMissingImports]

    path = Path(str(sinabs.__file__)).parent / "backend" / "dynapcnn" / "discretize.py"
    spec = spec_from_file_location("discretize", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["discretize"] = module
    spec.loader.exec_module(module)
    return module


def simulate(job: Arrays) -> Arrays:
    """Spikes of each layer, (samples, steps, neurons), and its integers."""
    import sinabs.layers as sl  # pyright: ignore[reportMissingImports]
    import torch

    trains, integers = {-1: torch.from_numpy(job["inputs"]).float()}, {}
    discretize = quantiser()
    for number in range(int(job["count"])):
        weight, bias, start = (torch.from_numpy(job[f"{what}{number}"]).float() for what in ("weight", "bias", "v"))
        arriving = torch.cat([trains[int(source)] for source in job[f"sources{number}"]], -1)
        conv = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        conv.weight, conv.bias = torch.nn.Parameter(weight[:, :, None, None]), torch.nn.Parameter(bias)
        neurons = sl.IAF(spike_threshold=torch.tensor(1.0), min_v_mem=torch.tensor(float(job[f"low{number}"])))
        neurons.init_state_with_shape((1, len(bias), 1, 1))
        neurons.v_mem.data = start[None, :, None, None].clone()
        discretize.discretize_conv_spike_(conv, neurons)
        integers |= {
            f"weight{number}": conv.weight.data[:, :, 0, 0], f"bias{number}": conv.bias.data, f"v{number}": neurons.v_mem.data,
            f"bounds{number}": torch.stack([neurons.spike_threshold.data, neurons.min_v_mem.data]),
        }  # fmt: skip
        rest, outputs = neurons.v_mem.data.clone(), []
        for sample in arriving:
            neurons.v_mem = rest.clone()
            with torch.no_grad():
                outputs.append(neurons(conv(sample[:, :, None, None])[None])[0, :, :, 0, 0])
        trains[number] = torch.stack(outputs)
    spikes = {f"spikes{number}": train for number, train in trains.items() if number >= 0}
    return {name: values.long().numpy() for name, values in (spikes | integers).items()}


if __name__ == "__main__":
    serve(simulate)
