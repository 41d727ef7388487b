"""Early exit: an image leaves the simulation once its prediction is certain, or confident enough, and the batch shrinks.

Certain: in R further steps the output of class c gains at most R * G(a, c) on that of the best class a, where

    G(a, c) = max over spikes s of (W_c - W_a) s + b_c - b_a = sum_n max(0, W_cn - W_an) + b_c - b_a   (signed: sum |W_cn - W_an|)

with W the weights of the readout, times the largest payload of graded spikes, and b its biases. While every margin is larger
than that, the prediction after all steps is known: it is that of the complete simulation. The bound holds for the largest spikes
of every neuron in every step, so it is loose: it releases images in the last steps only, unless few neurons feed the readout.

Confident: the largest softmax probability of the mean output, in units of the ANN's scores, reaches a limit. Predictions may
differ.

Suffix legend: B images that are left, C classes, N neurons that feed the readout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import EvaluationError
from spikeprop.runtime.labels import by_example
from spikeprop.snn import INPUT, Layer, SpikingNetwork
from spikeprop.snn.folding import evaluated
from spikeprop.snn.leaving import Leaving
from spikeprop.snn.neuron import is_integrate_and_fire
from spikeprop.snn.signed import takes_back
from spikeprop.snn.timed_input import time_first

PAIRS = 1 << 31  # multiplications that the bounds of all pairs of classes may take; beyond, each class has one of its own


@dataclass(frozen=True, kw_only=True)
class EarlyExit:
    """When an image leaves the simulation.

    Attributes:
        confidence: probability at which it leaves; None: only when its prediction is certain.
        every: steps between two looks. Few steps at once are slower to simulate; many let images leave late.
    """

    confidence: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence is {self.confidence}; give a probability between 0 and 1, or leave it out to be certain"
            )
        if isinstance(self.every, bool) or not hasattr(self.every, "__index__") or self.every < 1:
            raise ValueError(f"every is {self.every!r}; images leave after a whole number of steps, at least 1")


@dataclass(frozen=True)
class Exits:
    """What became of a batch.

    Attributes:
        predicted: class (B,).
        steps: number of steps after which each image left (B,).
    """

    predicted: Tensor
    steps: Tensor


@torch.no_grad()
def leave_early(network: SpikingNetwork, x: Any, timesteps: int | None, rule: EarlyExit) -> Exits:
    """Predict the classes of images (B, ...) in at most ``timesteps`` steps, or of sequences (B, T, ...) in at most their own.

    A sequence leaves after its last step; with ``timesteps``, its first ones are all that is read. Still samples need them.

    Raises:
        EvaluationError: the rule wants certainty, and the readout reads something whose spikes are not bounded.
        ValueError: the network is in training mode.
    """
    network = evaluated(network)
    name, _ = _readout(network)
    if network.output_form is not None or len(network.shapes()[name]) != 1:
        raise EvaluationError("early exit needs one prediction an image; this network has several outputs or positions")
    images, (x, lengths) = len(x), time_first(network, x)
    if x.dim() == len(network.input_shape) + 2:
        x = x[:timesteps]
        timesteps = len(x)
        lengths = None if lengths is None else lengths.clamp(max=timesteps)
    if timesteps is None:
        raise EvaluationError("still samples need a number of steps, after which all have left")
    begin = max(int(network.readout.delay), int(network.readout.pre_run))  # the output counts from there
    certain = None if rule.confidence is not None else CertainMargin(network, timesteps)
    limit = rule.confidence or 1.0
    left, leaving = torch.arange(images, device=x.device), Leaving()
    predicted, t = left.clone(), 0
    steps = torch.full_like(left, timesteps) if lengths is None else lengths.clone()
    for outputs in network.unroll(x, timesteps, lengths=lengths, chunk=rule.every, leaving=leaving):
        t, output_BC = t + len(outputs), by_example(outputs[-1])
        predicted[left] = output_BC.argmax(1)
        if t <= begin or t == timesteps:
            continue
        if certain is not None:
            done_B = certain(output_BC, timesteps - t)
        else:
            done_B = by_example(network.estimate(outputs[-1], t)).softmax(1).amax(1) >= limit
        done_B |= steps[left] <= t
        if done_B.any():
            steps[left[done_B]] = steps[left[done_B]].clamp(max=t)
            left = left[~done_B]
            leaving.keep((~done_B).nonzero().flatten())
    return Exits(predicted, steps)


class CertainMargin:
    """Whether no class can overtake the best one in the steps that are left.

    Args:
        network: calibrated.
        timesteps: of the complete simulation.
    """

    def __init__(self, network: SpikingNetwork, timesteps: int):
        weight_CN, signed_N, bias_C = _linear_readout(network)
        if len(bias_C) == 1:  # one logit is compared with 0: see ``by_example``
            weight_CN, bias_C = torch.cat([torch.zeros_like(weight_CN), weight_CN]), torch.cat([torch.zeros_like(bias_C), bias_C])
        plain_CN, both_CN = weight_CN[:, ~signed_N], weight_CN[:, signed_N]
        classes, neurons = weight_CN.shape
        if classes**2 * neurons <= PAIRS:
            total_C = plain_CN.sum(1)
            gain_CC = (torch.cdist(plain_CN, plain_CN, p=1) + total_C[None, :] - total_C[:, None]) / 2
            gain_CC += torch.cdist(both_CN, both_CN, p=1)
        else:
            most_C = plain_CN.clamp(min=0).sum(1) + both_CN.abs().sum(1)
            least_C = plain_CN.clamp(max=0).sum(1) - both_CN.abs().sum(1)
            gain_CC = most_C[None, :] - least_C[:, None]
        self.gain_CC = (gain_CC + bias_C[None, :] - bias_C[:, None]).clamp(min=0)
        largest = float((weight_CN.abs().sum(1) + bias_C.abs()).max())
        self.slack = torch.finfo(next(network.parameters()).dtype).eps * (neurons + timesteps) * timesteps * largest  # of sums

    def __call__(self, output_BC: Tensor, remaining: int) -> Tensor:
        """For each image, (B,)."""
        output_BC = output_BC.double()
        best_B = output_BC.argmax(1, keepdim=True)
        margin_BC = output_BC.gather(1, best_B) - output_BC
        margin_BC.scatter_(1, best_B, torch.inf)
        return (margin_BC > remaining * self.gain_CC[best_B.squeeze(1)] + self.slack).all(1)


def _linear_readout(network: SpikingNetwork) -> tuple[Tensor, Tensor, Tensor]:
    """The readout's weights for the largest spike (C, N), which neurons may send its negative (N,), biases (C,); float64."""
    name, layer = _readout(network)
    if network.read != "sum" or layer.neuron is not None or layer.feedback_sources:
        raise EvaluationError(
            f"an exit that is certain needs an output that sums up the current of {name!r}, with no Integrator, no feedback and "
            f"no other read than 'sum' (it is {network.read!r}): give early exit a confidence"
        )
    dynamics, shapes = network.dynamics(), network.shapes()
    like = next(network.parameters())
    weights, signs, bias_C = [], [], torch.zeros(shapes[name][0], dtype=torch.float64, device=like.device)
    for _, source, synapse in layer.branches():
        if source == INPUT or not (is_integrate_and_fire(dynamics[source]) or takes_back(dynamics[source])):
            kind = "the input" if source == INPUT else f"layer {source!r} ({type(dynamics[source]).__name__})"
            raise EvaluationError(
                f"an exit that is certain needs a readout that reads IF, LIF, SignedIF or GradedIF neurons; {name!r} reads "
                f"{kind}, whose spikes have no known bound: give early exit a confidence"
            )
        with torch.enable_grad():
            silent = torch.zeros(1, 1, *shapes[source], dtype=like.dtype, device=like.device, requires_grad=True)
            current_C = synapse(silent).flatten()
            each = torch.eye(len(current_C), dtype=like.dtype, device=like.device)
            (weight,) = torch.autograd.grad(current_C, silent, each, is_grads_batched=True)
        weights.append(weight.flatten(1).double() * dynamics[source].payload)
        signs.append(torch.full(weights[-1].shape[1:], dynamics[source].signed, device=like.device))
        bias_C += current_C.detach().double()
    return torch.cat(weights, 1), torch.cat(signs), bias_C


def _readout(network: SpikingNetwork) -> tuple[str, Layer]:
    *_, last = network.named_layers()
    return last
