"""How many bits weights need: accuracy by weight format, which layer loses what, and the best mix that a number of cores holds.

A layer's loss at a format is the relative change of the network's output when that layer alone has it and all others 8 bits:

    e(l, b) = |output - output at 8 bits| / |output at 8 bits|

Rounding errors of different layers are independent, so their squares add up, and the best mix is the solution of

    minimise sum_l e(l, b_l)^2   where   sum_l cores(l, b_l) <= cores

a knapsack with one choice a layer, solved exactly over the numbers of cores (dynamic programming); then the mix is simulated.
Sensitivity measured by layer and precision chosen under a budget: HAWQ (Dong et al. 2019, arXiv:1905.03696) and later ones, which
take second derivatives for what is measured here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import spikeprop_hardware as hardware
import torch
from spikeprop_hardware.grids import FORMATS, Bits
from spikeprop_hardware.quantization import Widths, quantize_network
from torch import Tensor

from spikeprop.deploy.comparison import encoded, held, input_limit_of
from spikeprop.deploy.writing import to_nir
from spikeprop.errors import HardwareError
from spikeprop.snn import SpikingNetwork, time_first

BATCH = 500  # samples that are encoded at once
MIXED: tuple[Bits, ...] = (8, 6, 4, 2)


class _Integers:
    """A network and its encoded samples, simulated in any format."""

    def __init__(self, network: SpikingNetwork, images: Any, timesteps: int | None, per_channel: bool):
        self.plan = hardware.lay_out(to_nir(network))
        self.per_channel, self.limit = per_channel, input_limit_of(network, images)
        with torch.no_grad():
            parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
            self.inputs = [encoded(network, part, timesteps) for part in parts]
        self.lengths = [time_first(network, part)[1] for part in parts]
        self.steps = self.inputs[0].shape[1]
        self.layers = [p.name for p in self.plan.populations if not p.pools]
        self._known: dict[str, Any] = {}  # at 8 bits

    def run(self, bits: Bits | Mapping[str, Bits]) -> tuple[np.ndarray, list[Any]]:
        """Outputs (B, K) at each sample's last step, and the quantisation's report; of bits by layer the others have 8."""
        widths = Widths.of(None, bits, self.per_channel)
        known = {n: layer for n, layer in self._known.items() if n not in bits} if isinstance(bits, Mapping) else {}
        made, report = quantize_network(self.plan, self.limit, self.steps, widths, known)
        if bits == 8:
            self._known = {p.name: (p, layer) for p, layer in zip(made.populations, report)}
        simulator = hardware.Simulator(made)
        outputs = [hardware.simulate(simulator, x, backend="reference", precision="fixed", record=_NOTHING) for x in self.inputs]
        last = [held(o.output, lengths)[:, -1] for o, lengths in zip(outputs, self.lengths)]
        return np.concatenate(last), report


_NOTHING = hardware.Recording(spikes=False)


def bits_curve(
    network: SpikingNetwork,
    images: Any,
    labels: Tensor,
    timesteps: int | None = None,
    *,
    formats: Sequence[Bits] = FORMATS,
    per_channel: bool = False,
) -> list[dict[str, Any]]:
    """Accuracy in the chip's integers by weight format.

    Args:
        network: left as it is.
        images, labels: still samples (B, ...) or sequences, and (B,).
        timesteps: of still samples.
        formats: 2 to 8, or "ternary".
        per_channel: exponents by channel.

    Returns:
        for each format bits, samples, accuracy (percent; None where the integers cannot hold the network) with why, and
        weight_error, the layers' largest.
    """
    integers, found = _Integers(network, images, timesteps, per_channel), []
    for bits in formats:
        row: dict[str, Any] = {"bits": bits, "samples": len(labels), "accuracy": None, "weight_error": None}
        try:
            output, report = integers.run(bits)
        except HardwareError as error:
            row["why"] = str(error)
        else:
            row["accuracy"] = _percent(output, labels.numpy())
            row["weight_error"] = max(layer.weight_error for layer in report)
        found.append(row)
    return found


def sensitivity(
    network: SpikingNetwork,
    images: Any,
    labels: Tensor,
    timesteps: int | None = None,
    *,
    bits: Bits = 4,
    per_channel: bool = False,
) -> list[dict[str, Any]]:
    """What each layer alone loses at a weight format, all others at 8 bits; arguments as of ``bits_curve``.

    Returns:
        for each layer name, accuracy (percent), agreement (percent of predictions equal to those at 8 bits) and output_error, the
        relative change of the output.

    Raises:
        HardwareError: a layer that integers cannot hold.
    """
    integers = _Integers(network, images, timesteps, per_channel)
    wanted, _ = integers.run(8)
    found = []
    for name in integers.layers:
        output, _ = integers.run({name: bits})
        found.append(
            {
                "name": name,
                "accuracy": _percent(output, labels.numpy()),
                "agreement": _percent(output, wanted.argmax(1)),
                "output_error": _change(output, wanted),
            }
        )
    return found


def mixed_precision(
    network: SpikingNetwork,
    images: Any,
    labels: Tensor,
    timesteps: int | None = None,
    *,
    cores: int,
    formats: Sequence[int] = MIXED,  # type: ignore[assignment]
    per_channel: bool = False,
) -> dict[str, Any]:
    """The formats by layer with the least loss that ``cores`` cores of Loihi 2 hold, where a weight takes its bits.

    Args:
        network, images, labels, timesteps, per_channel: as of ``bits_curve``.
        cores: the most that the network may take.
        formats: bits that layers may have.

    Returns:
        bits (by layer), cores, accuracy (percent) of the mix and at 8 bits, and output_error.

    Raises:
        HardwareError: no mix of these formats fits, with the least number of cores.
    """
    integers = _Integers(network, images, timesteps, per_channel)
    wanted, _ = integers.run(8)
    losses: dict[str, dict[int, float]] = {}
    taken = {b: {layer.name: layer.cores for layer in _budget(integers.plan, b).layers} for b in formats}
    for name in integers.layers:
        losses[name] = {b: 0.0 if b == 8 else _change(integers.run({name: b})[0], wanted) ** 2 for b in formats}
    fixed = sum(count for name, count in taken[formats[0]].items() if name not in integers.layers)
    best: dict[int, tuple[float, dict[str, Any]]] = {fixed: (0.0, {})}
    for name in integers.layers:
        options: dict[int, tuple[float, dict[str, Any]]] = {}
        for used, (loss, chosen) in best.items():
            for b in formats:
                total, worse = used + taken[b][name], loss + losses[name][b]
                if total not in options or worse < options[total][0]:
                    options[total] = worse, {**chosen, name: b}
        best = options
    fitting = [used for used in best if used <= cores]
    if not fitting:
        raise HardwareError(
            f"no mix of {', '.join(map(str, formats))} bits fits in {cores} cores: the least is {min(best)}; give more cores, or "
            "make the network smaller"
        )
    used = min(fitting, key=lambda n: (best[n][0], n))
    bits = best[used][1]
    output, _ = integers.run(bits)
    right = labels.numpy()
    return {
        "bits": bits,
        "cores": used,
        "accuracy": _percent(output, right),
        "accuracy_8_bits": _percent(wanted, right),
        "output_error": _change(output, wanted),
    }


def _budget(network: hardware.ChipNetwork, bits: int) -> hardware.Budget:
    chip = dataclasses.replace(hardware.target("loihi2"), bytes_per_weight=bits / 8)  # type: ignore[arg-type]
    return hardware.budget(network, chip)


def _change(output: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(output - wanted) / (np.linalg.norm(wanted) or 1.0))


def _percent(output: np.ndarray, right: np.ndarray) -> float:
    return 100 * float((output.argmax(1) == right).mean())
