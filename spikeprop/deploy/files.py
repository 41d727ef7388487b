"""Networks written to files, atomically: NIR for the hardware and for other libraries, HDF5 for lava-dl's netx."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nir
from spikeprop_hardware import quantize_for_netx, write_netx

from spikeprop.deploy.interchange import portable
from spikeprop.deploy.writing import to_nir
from spikeprop.runtime.files import write_atomically
from spikeprop.snn import SpikingNetwork


def export(network: SpikingNetwork, path: Path, about: Mapping[str, Any] | None = None, target: str | None = None) -> None:
    """Write the network to a NIR file, atomically.

    Args:
        network: left as it is.
        path: NIR file.
        about: the description of its checkpoint; the file keeps its number of steps, its data with their normalisation and its
            seed, so that it can be simulated on its own.
        target: "norse" or "snntorch": as that library's own importer understands it.

    Raises:
        NirError: what cannot be written, naming the layer; nothing is.
    """
    kept = {key: about[key] for key in ("timesteps", "seed")} if about else {}
    graph = to_nir(network, kept | ({"data": json.dumps(about["data"])} if about else {}))
    written = graph if target is None else portable(graph, target)
    write_atomically(path, lambda temporary: nir.write(str(temporary), written))


def export_netx(network: SpikingNetwork, path: Path) -> list[dict[str, Any]]:
    """Write the network for lava-dl's netx, in integers, atomically; returns the quantisation's report by layer.

    Raises:
        NirError: what NIR, on the way there, cannot hold.
        HardwareError: what netx does not have, naming the layer; nothing is written.
    """
    made, report = quantize_for_netx(to_nir(network))
    write_atomically(path, lambda temporary: write_netx(made, temporary))
    return [asdict(layer) for layer in report]
