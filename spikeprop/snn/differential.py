"""Differential coding: what is sent corrects the running mean of what was sent before, instead of repeating it.

A receiver keeps the running mean of its current, and so knows what ordinary coding would have sent it in step t:

    x_t the current of what was sent, without biases;   I_t = b + x_t + r(t-1);   r(t) = r(t-1) + x_t/t,   r(0) = 0

So sum_t I_t = T (b + r(T)): the linear operations in between may be any, and a layer may read both codings. A neuron integrates
I_t, and sends what its ordinary output lacks to the mean of its outputs so far, in whole numbers k of q = theta / 2^(n-1):

    u = v + I_t;   k = the nearest to (u - R(t-1))/q;   v = u - R(t-1) - k q;   R(t) = R(t-1) + k q/t,   R(0) = 0

With payloads that are large enough its total T R(T) is that of ``GradedIF``'s rule, the rectified sum of I_t up to q/2: the same
accuracy, and fewer spikes, since a mean that is right needs no correction. What it costs: a running mean more for each neuron, at
the sender and the receiver, updated in every step. (Huang et al. 2025, "Differential Coding for Training-Free ANN-to-SNN
Conversion", ICML. Their r_in is b + r, their m is v; b is the current of no spikes, which they learn in a step beforehand.)
Suffix legend: T steps, B batch.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from spikeprop.snn.signed import GradedIF, SignedIF

Kind = TypeVar("Kind", bound=GradedIF)


class DifferentialState(NamedTuple):
    """State of differential neurons.

    Attributes:
        v: summed input less summed output.
        mean: R, of the outputs, in units of q.
        steps: done so far.
    """

    v: Tensor
    mean: Tensor
    steps: int


class DifferentialIF(GradedIF):
    """``GradedIF`` in differential coding: a spike corrects the mean of what was sent. No gradient passes.

    For studies of what spikes cost: about an eighth fewer bits than ``GradedIF``, no export. A network is converted with
    thresholds for ``GradedIF``, which suit it as they are. Networks of such neurons run on the plain reference, not on the packed
    engine.

    Args:
        levels: n; payloads reach from -(2^n - 1) to 2^n - 1, n at most 7.
        v_threshold: the largest level, positive.
        v_init: potential before the first step, as a fraction of the smallest level; 0.5 rounds.
        rectify: the total is never negative, as a ReLU's; without, it may be.
    """

    differential: ClassVar[bool] = True

    def initial_state(self, current: Tensor) -> Any:
        return DifferentialState(torch.zeros_like(current) + self.v_init * self.spike_size, torch.zeros_like(current), 0)

    def run(self, currents: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.training and torch.is_grad_enabled() and currents.requires_grad:
            raise ValueError(
                "DifferentialIF passes no gradient: fine-tune a network of GradedIF neurons, and let these send differences then"
            )
        v, mean, steps = state
        unit, most, sent = self.spike_size.to(currents), self.payload, []
        for current in currents.detach():
            due = (v + current) / unit - mean
            out = torch.where(due > 0, torch.ceil(due) - 1, torch.floor(due))
            if self.rectify:  # the total, (t-1) R + R + k, is that of a ReLU
                out = torch.maximum(out, torch.ceil(-(steps + 1) * mean - 0.5))
            out = out.clamp(-most, most)
            v = (due - out) * unit
            steps += 1
            mean = mean + out / steps
            sent.append(out)
        return torch.stack(sent), DifferentialState(v, mean, steps)

    @classmethod
    def like(cls, neuron: GradedIF) -> DifferentialIF:
        """With the levels and thresholds of an ordinary neuron."""
        return _as(cls, neuron)

    def plain(self) -> GradedIF:
        """The ordinary neuron with the same levels and thresholds."""
        return _as(GradedIF, self)


def _as(kind: type[Kind], neuron: GradedIF) -> Kind:
    made = kind(levels=neuron.levels, rectify=neuron.rectify).to(neuron.v_threshold)
    made.set_threshold(neuron.v_threshold)
    made.v_init = neuron.v_init.clone()
    return made.train(neuron.training)


def send_differences(network: Any) -> None:
    """Let the graded neurons of a calibrated ``SpikingNetwork`` send corrections; thresholds and weights stay as they are.

    Raises:
        ValueError: max pooling of graded spikes, which compares counts.
    """
    for _, layer in network.named_layers():
        if type(layer.neuron) in (GradedIF, SignedIF):
            layer.neuron = DifferentialIF.like(layer.neuron)
    network.shapes()  # checks the layers


class RunningMean(NamedTuple):
    """What a layer knows of its differential sources.

    Attributes:
        bias: its current where they send nothing, (1, 1, ...).
        mean: r, (B, ...), of the current of what they sent, without it.
    """

    bias: Tensor
    mean: Tensor

    def decoded(self, current_TB: Tensor, steps: int) -> tuple[Tensor, RunningMean]:
        """The current that ordinary coding would have given, (T, B, ...).

        Args:
            current_TB: of what was sent, with bias.
            steps: that were done before these.
        """
        change_TB = current_TB - self.bias
        number_T = torch.arange(steps + 1, steps + len(change_TB) + 1).to(change_TB).reshape(-1, *(1,) * self.mean.dim())
        mean_TB = self.mean + torch.cumsum(change_TB / number_T, 0)
        before_TB = torch.cat([self.mean.unsqueeze(0), mean_TB[:-1]])
        return current_TB + before_TB, RunningMean(self.bias, mean_TB[-1])
