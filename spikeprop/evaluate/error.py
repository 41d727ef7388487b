"""Errors of a conversion: each layer's firing rate against the ANN's activation that it represents.

A spike of a layer represents the activation ``scale``, the layer's activation scale. After T steps a neuron that fired n times
represents n/T * scale, which should be the ANN's activation a. The relative error of a layer is |n/T * scale - a| / |a|, norms
over images and neurons. It has three parts (Bu et al. 2022, "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency
spiking neural networks"), which are given separately, also relative to |a|:

    clipping      min(a, p scale) - a                 a neuron fires at most once a step, with a payload of p = 1 or more
    quantisation  m/T * scale - min(a, p scale)       the number of spikes is an integer; m is that of a constant current
    unevenness    (n - m)/T * scale                   more or fewer spikes, since they do not arrive evenly

With the neurons' strict threshold m = ceil(a T/scale + v_init) - 1, between 0 and p T; of graded spikes n and m are sums. The
parts add up as vectors, not as norms.

Suffix legend: B images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprop.evaluate.activity import device_of
from spikeprop.snn import INPUT, Neuron, SpikingNetwork
from spikeprop.snn.activity import payloads, segments
from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.output_form import leaves
from spikeprop.snn.watching import watched_chunk


@dataclass(frozen=True)
class LayerError:
    """Relative errors of one layer after some number of steps."""

    total: float
    clipping: float
    quantisation: float
    unevenness: float


@torch.no_grad()
def conversion_error(
    network: SpikingNetwork,
    x: Tensor,
    activations: Mapping[str, Tensor],
    scales: Mapping[str, Tensor | float],
    timesteps: Sequence[int],
) -> dict[str, dict[int, LayerError]]:
    """Relative error of each layer of neurons after each number of steps: layer name to number of steps to errors.

    Args:
        network: the converted network.
        x: images (B, ...).
        activations: the ANN's, by layer name, (B, ...), for these images.
        scales: activation that a spike represents, by layer name; a number, or a tensor that broadcasts to one sample's shape.
        timesteps: numbers of steps of the simulation, each at least 1. Where a layer starts later than the one
            before it, its first steps are silent and count as error.

    Raises:
        ValueError: a layer without activations or activation scale, or numbers of steps below 1.
    """
    absent = [name for name in network.dynamics() if name not in activations or name not in scales]
    if absent:
        raise ValueError(f"no activation or no activation scale for {', '.join(absent)}")
    means, _ = mean_sent(network, x.to(device_of(network)), timesteps)
    found: dict[str, dict[int, LayerError]] = {}
    carried = payloads(network)
    for name, dynamics in network.dynamics().items():
        a_B = activations[name].to(x.device)
        scale = torch.as_tensor(scales[name]).to(a_B)
        most = 2 ** carried[name].bits - 1
        found[name] = {t: _compare(mean[name].to(a_B), t, a_B, scale, dynamics, most) for t, mean in means.items()}
    return found


@torch.no_grad()
def output_error(
    network: SpikingNetwork, x: Tensor, outputs: Any, timesteps: Sequence[int], *, chunk: int | None = None
) -> dict[str, dict[int, float]]:
    """Relative error |z_T - z| / |z| of each output's estimate z_T: name of the output ("" of a single one) to T to error.

    Args:
        network: the converted network.
        x: images (B, ...).
        outputs: the ANN's for these images, in its own structure.
        timesteps: numbers of steps, each at least 1.
        chunk: as of ``SpikingNetwork.forward``.
    """
    marks, wanted = set(timesteps), {name: z for name, z in leaves(outputs) if isinstance(z, Tensor)}
    found: dict[str, dict[int, float]] = {name: {} for name in wanted}
    steps = (step for some in network.eval().unroll(x.to(device_of(network)), max(marks), chunk=chunk) for step in some)
    for t, output in enumerate(steps, 1):
        if t in marks:
            estimates = dict(leaves(network.structured(network.estimate(output, t))))
            for name, z in wanted.items():
                norm = z.norm().clamp(min=torch.finfo(z.dtype).tiny)
                found[name][t] = float((estimates[name].to(z) - z).norm() / norm)
    return found


def mean_sent(
    network: SpikingNetwork, x_B: Tensor, timesteps: Sequence[int]
) -> tuple[dict[int, dict[str, Tensor]], dict[int, Tensor]]:
    """What the input and every layer send, in the mean of the first T steps, for several T; and the accumulated output.

    Of differential neurons it is what their readers decode.

    Returns:
        number of steps to source to mean (B, ...); number of steps to output (B, K).

    Raises:
        ValueError: no numbers of steps, or one below 1.
    """
    marks = sorted(set(timesteps))
    if not marks or marks[0] < 1:
        raise ValueError(f"timesteps {list(timesteps)}: give at least one number, each at least 1")
    total: dict[str, Tensor] = {}
    seen = dict.fromkeys((INPUT, *network.dynamics()), 0)
    found: dict[int, dict[str, Tensor]] = {t: {} for t in marks}
    corrections = {name for name, dynamics in network.dynamics().items() if dynamics.differential}

    def observe(name: str, spikes_TB: Tensor) -> None:
        for i, part in segments(marks, seen[name], len(spikes_TB)):
            some_TB, stop = spikes_TB[part].to(x_B.dtype), seen[name] + part.stop
            if name in corrections:
                number_T = torch.arange(stop - len(some_TB) + 1, stop + 1).to(some_TB)
                some_TB = some_TB / number_T.reshape(-1, *(1,) * (some_TB.dim() - 1))
            total[name] = total.get(name, 0) + some_TB.sum(0)
            if stop == marks[i]:
                found[marks[i]][name] = total[name] / (1 if name in corrections else stop)
        seen[name] += len(spikes_TB)

    chunk = watched_chunk(network, len(x_B), marks[-1])
    outputs = torch.cat(list(network.eval().unroll(x_B, marks[-1], chunk=chunk, observe=observe)))
    return found, {t: outputs[t - 1] for t in marks}


def ideal(values_B: Tensor, scale: Tensor, steps: int, dynamics: LayerDynamics, most: int) -> tuple[Tensor, Tensor]:
    """Values as a layer's range clips them, and as it would then send them of a constant current, (B, ...).

    What has no threshold, pooling and functions, sends them as they are.

    Args:
        values_B: activations to be sent.
        scale: that a spike of 1 stands for.
        steps: T.
        dynamics: of the layer.
        most: its largest payload.
    """
    if not isinstance(dynamics, Neuron):
        return values_B, values_B
    least = 0 if dynamics.rectify else -most
    clipped_B = torch.maximum(torch.minimum(values_B, scale * most), scale * least)
    counts_B = (torch.ceil(clipped_B * steps / scale + dynamics.head_start) - 1).clamp(steps * least, steps * most)
    return clipped_B, counts_B * scale / steps


def _compare(mean_B: Tensor, steps: int, a_B: Tensor, scale: Tensor, dynamics: LayerDynamics, most: int) -> LayerError:
    """Errors of one layer whose largest spike is ``most``."""
    spiked_B = mean_B * scale
    clipped_B, quantised_B = ideal(a_B, scale, steps, dynamics, most)
    norm = a_B.norm().clamp(min=torch.finfo(a_B.dtype).tiny)

    def relative(difference_B: Tensor) -> float:
        return float(difference_B.norm() / norm)

    return LayerError(
        total=relative(spiked_B - a_B),
        clipping=relative(clipped_B - a_B),
        quantisation=relative(quantised_B - clipped_B),
        unevenness=relative(spiked_B - quantised_B),
    )
