"""Networks written to files, atomically: NIR for the hardware and for other libraries, HDF5 for lava-dl's netx."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
from spikeprop_hardware import quantize_for_netx, step_model, write_netx
from spikeprop_hardware import target as found_target
from spikeprop_hardware.quantization import Widths

from spikeprop.deploy.comparison import VENDORS
from spikeprop.deploy.interchange import portable
from spikeprop.deploy.writing import to_nir
from spikeprop.errors import HardwareError, NirError
from spikeprop.runtime.files import write_atomically
from spikeprop.snn import SpikingNetwork


def export(
    network: SpikingNetwork,
    path: Path | str,
    about: Mapping[str, Any] | None = None,
    library: str | None = None,
    *,
    timesteps: int | None = None,
    data: Any = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> None:
    """Write the network to a NIR file, atomically.

    A file that says its steps, its data and their normalisation can be simulated on its own; ``about`` (of a checkpoint) or the
    keywords, which come first, give them. A file that does not say them is simulated with options that do.

    Args:
        network: left as it is.
        path: NIR file.
        about: the description of its checkpoint; the file keeps its number of steps, its data with their normalisation and its
            seed, so that it can be simulated on its own.
        library: "norse", "snntorch", "sinabs", "rockpool" or "spyx": as that library's own importer understands it.
        timesteps: of a simulation, which the chip's readout gets room for.
        data: the data set: an object such as ``CIFAR10(mean=0.5, std=0.25)``, or its name.
        mean, std: normalisation, (pixel / 255 - mean) / std; one number, or one for each channel; default those of ``data``.

    Raises:
        NirError: what cannot be written, naming the layer; nothing is.
    """
    kept: dict[str, Any] = {key: about[key] for key in ("timesteps", "seed") if key in about} if about else {}
    if timesteps is not None:
        kept["timesteps"] = timesteps
    if kept.get("timesteps", 1) < 1:
        raise NirError(f"timesteps is {kept['timesteps']}; a simulation has at least 1 step")
    described = {**((about or {}).get("data") or {}), **_description(network, data, mean, std)}
    graph = to_nir(network, kept | ({"data": json.dumps(described)} if described else {}))
    written = graph if library is None else portable(graph, library)
    write_atomically(Path(path), lambda temporary: nir.write(str(temporary), written))


def _description(network: SpikingNetwork, data: Any, mean: Any, std: Any) -> dict[str, Any]:
    """The data set and its normalisation in JSON values, as far as they are given."""
    own = {key: getattr(data, key) for key in ("mean", "std") if hasattr(data, key)}  # events have none
    given = own | {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    numbers = {key: [float(v) for v in np.ravel(np.asarray(value))] for key, value in given.items()}
    channels = network.input_shape[0]
    for key, values in numbers.items():
        if len(values) not in (1, channels) or not np.isfinite(values).all() or (key == "std" and min(values) <= 0):
            raise NirError(f"{key} is {given[key]!r}; give one number, or one for each of {channels} channels; std is positive")
    found: dict[str, Any] = {key: values[0] if len(values) == 1 else values for key, values in numbers.items()}
    return found if data is None else {"use": data if isinstance(data, str) else _name(data), **found}


def _name(data: Any) -> str:
    kind = type(data)
    return kind.__name__ if kind.__module__.startswith("spikeprop.") else f"{kind.__module__}.{kind.__qualname__}"


def export_netx(network: SpikingNetwork, path: Path | str) -> list[dict[str, Any]]:
    """Write the network for lava-dl's netx, in integers, atomically; returns the quantisation's report by layer.

    Raises:
        NirError: what NIR, on the way there, cannot hold.
        HardwareError: what netx does not have, naming the layer; nothing is written.
    """
    made, report = quantize_for_netx(to_nir(network))
    write_atomically(Path(path), lambda temporary: write_netx(made, temporary))
    return [asdict(layer) for layer in report]


def export_onnx(
    network: SpikingNetwork,
    path: Path | str,
    *,
    precision: Literal["float", "fixed"] = "float",
    input_limit: float | None = None,
    timesteps: int | None = None,
    target: str | None = None,
) -> None:
    """Write one time step of the network as an ONNX model with its state in and out, atomically; ``step_model`` says what it is.

    Args:
        network: left as it is.
        path: ONNX file.
        precision: "float", or "fixed" for the chip's integers.
        input_limit: largest absolute input of integers; default what the encoder can represent, else as of ``quantize``.
        timesteps: of a simulation, which the integers' output gets room for.
        target: name of the chip whose integers are written, loihi2 (default) or generic ones: the others' arithmetic differs.

    Raises:
        NirError: what NIR, on the way there, cannot hold.
        HardwareError: onnx is missing; a chip of another arithmetic; what integers cannot hold, or ONNX cannot say; nothing is
            written.
    """
    limit = input_limit if input_limit is not None else network.encoder.limit
    if precision == "fixed" and target in VENDORS:
        raise HardwareError(
            f"the arithmetic of {target} is not that of integers in ONNX, which are Loihi 2's or generic: leave precision out, "
            f"use target generic-8, or simulate with target {target}"
        )
    widths = Widths.of(None if target is None else found_target(target))
    model = step_model(to_nir(network), precision=precision, input_limit=limit, timesteps=timesteps, widths=widths)

    def write(temporary: Path) -> None:
        temporary.write_bytes(model.SerializeToString())

    write_atomically(Path(path), write)
