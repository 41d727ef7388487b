"""A NIR file run on Lava or in the reference simulator, and every spike compared with PyTorch's.

PyTorch runs in float64 on the same encoded inputs as the other: the encoder draws once.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import spikeprop_hardware as hardware  # its simulator, and Numba with it, is imported when it is used
import torch
from torch import Tensor

from spikeprop.deploy.reading import layer_names
from spikeprop.deploy.writing import without_norms
from spikeprop.errors import HardwareError
from spikeprop.evaluate.summary import levels
from spikeprop.runtime.progress import bar
from spikeprop.snn import INPUT, SpikingNetwork, time_first

REFERENCE_BATCH = 100  # samples whose spikes are compared at once
VENDORS = ("loihi1", "speck", "xylo")  # chips whose arithmetic is not that of integer.py: ``simulate_on_chip`` has it


@torch.no_grad()
def record(network: SpikingNetwork, x: Any, timesteps: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every spike of a simulation in float64.

    Args:
        network: left as it is; a float64 copy runs, whose batch-norm is part of its weights, as in its NIR file.
        x: still samples (B, ...), or sequences (B, T, ...) or ``Sequences``.
        timesteps: of still samples.

    Returns:
        by layer, and "input" for what the encoder made: (B, T, ...) float64; and the output (B, T, K).
    """
    trains: dict[str, list[Tensor]] = {}

    def observe(name: str, spikes_TB: Tensor) -> None:
        trains.setdefault(name, []).append(spikes_TB.clone())

    exact = copy.deepcopy(without_norms(network)).cpu().double().eval()
    given, lengths = time_first(network, x)
    outputs = list(exact.unroll(given.cpu().double(), timesteps, lengths=lengths, chunk=1, observe=observe))
    spikes = {name: torch.cat(steps).transpose(0, 1).numpy() for name, steps in trains.items()}
    return spikes, torch.cat(outputs).transpose(0, 1).numpy()


@torch.no_grad()
def encoded(network: SpikingNetwork, x: Any, timesteps: int | None = None) -> np.ndarray:
    """What the encoder makes of still samples or sequences, as of ``record``: (B, T, ...) float64, a constant input without
    taking memory for its steps."""
    return network.encoded(time_first(network, x)[0].cpu().double(), timesteps).numpy().swapaxes(0, 1)


@dataclass(frozen=True, kw_only=True)
class RunOn:
    """Where and how a NIR file runs: on Lava or in spikeprop-hardware's batched reference simulator, in float64 or in the
    integers of a chip: Loihi 2's, or generic ones that ``target`` names."""

    backend: Literal["lava", "reference"] = "lava"
    precision: Literal["float", "fixed"] = "float"
    target: str | None = None


def compare(
    network: SpikingNetwork,
    file: Path,
    images: Any,
    labels: Tensor,
    timesteps: int | None,
    notify: Callable[[str], None],
    where: RunOn = RunOn(),
) -> dict[str, Any]:
    """Run a NIR file and compare with the network that it holds, as it was written or read.

    Args:
        network, file: of equal weights.
        images: still samples (B, ...), or sequences (B, T, ...) or ``Sequences``, whose outputs count up to their own last steps.
        labels: (B,).
        timesteps: of still samples; of sequences their own.
        notify: called with a message when Lava's environment is made.
        where: it runs, and how.

    Returns:
        samples, agreement (percent of equal predictions), spikes_equal (every train of every layer), spikes (how many were
        compared), mismatches by layer, first_difference (sample, layer, neuron, step) or None, layers (spikes of both), levels
        (of graded spikes; 1 of others), output_error (largest absolute difference), accuracy of both on these images, clipped
        (potentials that stopped at the limits of 24 bits, by layer), and with fixed precision the quantisation's report by
        layer.

    Raises:
        NirError: a file that is damaged.
        HardwareError: a chip of other arithmetic, Python 3.10 is missing, or the simulation failed.
    """
    if where.target is not None and (chip := hardware.target(where.target).name) in VENDORS:
        raise HardwareError(f"the arithmetic of {chip} is its own: simulate_on_chip simulates it")
    size = len(images) if where.backend == "lava" else REFERENCE_BATCH  # Lava takes seconds to start
    graph = hardware.read_nir(file)
    names = layer_names(graph)
    steps = steps_of(network, images, timesteps)
    source, report = _source(graph, network, file, images, steps, where)
    parts, clipped = [], Counter[str]()
    with bar(f"simulate on {where.backend}", unit="step") as shown:
        shown.total = len(images) * steps
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            ours, output = record(network, images[rows], timesteps)
            inputs = ours.pop(INPUT)
            progress = _progress(shown, start * steps)
            theirs = hardware.simulate(
                source, inputs, backend=where.backend, precision=where.precision, notify=notify, progress=progress
            )
            spikes = {str(names.get(node, node)): train for node, train in theirs.spikes.items()}
            clipped.update({str(names.get(node, node)): count for node, count in theirs.clipped.items()})
            lengths = time_first(network, images[rows])[1]
            outputs = held(theirs.output, lengths)
            for trains in (ours, spikes):
                _end(trains, lengths)
            parts.append(_compare(ours, output, spikes, outputs, labels[rows].numpy(), start))
    return _merged(parts, where.backend) | {"levels": levels(network), "clipped": dict(clipped)} | report


def steps_of(network: SpikingNetwork, x: Any, timesteps: int | None) -> int:
    """Steps of a simulation of samples: ``timesteps`` of still ones, of sequences those of the first."""
    in_time = len(x.shape) == len(network.input_shape) + 2
    return int(time_first(network, x[:1])[0].shape[0]) if in_time else timesteps or 0


def held(outputs: np.ndarray, lengths: Tensor | None) -> np.ndarray:
    """Outputs (B, T, K) that stay as they are after each sample's last step."""
    if lengths is None:
        return outputs
    step = np.minimum(np.arange(outputs.shape[1]), lengths.cpu().numpy()[:, None] - 1)
    return np.take_along_axis(outputs, step[..., None], 1)


def _end(trains: dict[str, np.ndarray], lengths: Tensor | None) -> None:
    """Spikes after each sample's last step are left out, in place."""
    for train in trains.values() if lengths is not None else ():
        for sample, length in zip(train, lengths.tolist() if lengths is not None else ()):
            sample[length:] = 0


def input_limit_of(network: SpikingNetwork, images: Any) -> float:
    """The largest absolute input that an integer network is made for: what the encoder can represent or makes, or the images'
    largest."""
    if network.encoder.limit is not None or network.encoder.spikes:
        return network.encoder.limit or 1.0
    return float((images if isinstance(images, Tensor) else images.values).abs().max())


def _source(
    graph: nir.NIRGraph, network: SpikingNetwork, file: Path, images: Any, timesteps: int, where: RunOn
) -> tuple[Path | hardware.IntegerNetwork | hardware.Simulator, dict[str, list[dict[str, Any]]]]:
    """What is to be simulated, prepared once for all batches, and the report of its quantisation."""
    on_lava = where.backend == "lava"
    if where.precision == "float":
        return file if on_lava else hardware.Simulator(hardware.lay_out(graph)), {}
    chip = None if where.target is None else hardware.target(where.target)
    made, report = hardware.quantize(graph, input_limit=input_limit_of(network, images), timesteps=timesteps, target=chip)
    return made if on_lava else hardware.Simulator(made), {"quantization": [asdict(layer) for layer in report]}


def _progress(shown: Any, before: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        shown.total = max(shown.total, before + total)  # Lava runs a few steps more, until the last spike has passed
        shown.update(before + done - shown.n)

    return progress


def _compare(
    ours: dict[str, np.ndarray],
    our_output: np.ndarray,
    theirs: dict[str, np.ndarray],
    their_output: np.ndarray,
    labels: np.ndarray,
    start: int,
) -> dict[str, Any]:
    """One batch, whose first sample is number ``start``; "ours" is PyTorch's."""
    our_predictions, their_predictions = our_output[:, -1].argmax(1), their_output[:, -1].argmax(1)
    differing = {name: train != theirs[name] for name, train in ours.items()}
    return {
        "samples": len(labels),
        "timesteps": our_output.shape[1],
        "agree": int((our_predictions == their_predictions).sum()),
        "layers": {name: np.array([np.count_nonzero(train), np.count_nonzero(theirs[name])]) for name, train in ours.items()},
        "mismatches": {name: int(wrong.sum()) for name, wrong in differing.items()},
        "first_difference": _first(differing, start),
        "output_error": float(np.abs(our_output - their_output).max()),
        "correct": np.array([(our_predictions == labels).sum(), (their_predictions == labels).sum()]),
    }


def _first(differing: dict[str, np.ndarray], start: int) -> dict[str, Any] | None:
    """The first spike that differs, by sample, then step, then layer."""
    found = []
    for order, (name, wrong) in enumerate(differing.items()):
        if wrong.any():
            sample, step, *neuron = (int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
            where = {"sample": start + sample, "layer": name, "neuron": neuron, "step": step}
            found.append((sample, step, order, where))
    return min(found, key=lambda f: f[:3])[3] if found else None


def _merged(parts: list[dict[str, Any]], backend: str) -> dict[str, Any]:
    samples = sum(part["samples"] for part in parts)
    layers = {name: np.sum([part["layers"][name] for part in parts], axis=0) for name in parts[0]["layers"]}
    mismatches = {name: sum(part["mismatches"][name] for part in parts) for name in layers}
    correct = np.sum([part["correct"] for part in parts], axis=0)
    return {
        "samples": samples,
        "timesteps": parts[0]["timesteps"],
        "agreement": 100 * sum(part["agree"] for part in parts) / samples,
        "spikes_equal": not any(mismatches.values()),
        "spikes": int(sum(counts[0] for counts in layers.values())),
        "mismatches": mismatches,
        "first_difference": next((p["first_difference"] for p in parts if p["first_difference"]), None),
        "layers": {name: counts.tolist() for name, counts in layers.items()},
        "output_error": max(part["output_error"] for part in parts),
        "accuracy": {"pytorch": 100 * float(correct[0]) / samples, backend: 100 * float(correct[1]) / samples},
    }
