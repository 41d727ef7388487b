"""Signed integrate-and-fire: a neuron that takes back spikes which later input has proved wrong.

    u = v + I;   o = 1 if u > theta;  -1 if u < 0 and more spikes were sent than taken back;  else 0;   v = u - theta * o

A converted ReLU fires too often where positive input comes before negative, and an ordinary neuron cannot undo that: the error of
uneven arrival, which few time steps leave no time to even out. With negative spikes the count sent after T steps is that of the
summed input, floor(sum I / theta + v_init), as long as no more than one spike a step is due. Remembering the count keeps it from
falling below 0, as a ReLU's output does. (Wang et al. 2022, "Signed Neuron with Memory: Towards Simple, Accurate and
High-Efficient ANN-SNN Conversion"; here a neuron takes back at once below 0, which rounds exactly, theirs a threshold lower.)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from spikeprop.snn.dynamics import NeuronState
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.surrogate import Surrogate


class SignedIF(Neuron):
    """Integrate-and-fire without leak, whose spikes are 1 and -1. For conversion without training: no gradient passes.

    A spike either way is an event of the same cost, and hardware needs events that carry a sign. The packed engine runs it where
    gradients are off (``torch.no_grad``).

    Args:
        v_threshold: positive; a number here, one a neuron or a channel after calibration.
        v_init: potential before the first step, as a fraction of the threshold; 0.5 rounds.
    """

    signed: ClassVar[bool] = True

    def __init__(self, *, v_threshold: float = 1.0, v_init: float = 0.5, surrogate: Surrogate | None = None):
        super().__init__(v_threshold, 1.0, "subtract", v_init, surrogate)

    def initial_state(self, current: Tensor) -> NeuronState:
        return NeuronState(torch.zeros_like(current) + self.v_init * self.v_threshold, None, torch.zeros_like(current))

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        if self.training and torch.is_grad_enabled() and currents.requires_grad:
            raise ValueError(
                "SignedIF passes no gradient: fine-tune a network of IF neurons instead, or leave fine-tuning out (epochs: 0)"
            )
        currents = currents.detach()
        assert state.sent is not None
        v, sent = (t.clone(memory_format=torch.contiguous_format) for t in (state.v, state.sent))
        spikes = torch.empty_like(currents, memory_format=torch.contiguous_format)
        scan(currents, self.v_threshold.to(v), v, sent, spikes)
        return spikes, NeuronState(v, None, sent)

    def extra_repr(self) -> str:
        theta = self.v_threshold.detach()
        return f"v_threshold={float(theta):.4g}" if theta.numel() == 1 else f"v_threshold={tuple(theta.shape)}"


def scan(currents: Tensor, theta: Tensor, v: Tensor, sent: Tensor, spikes: Tensor) -> None:
    """Advance over the steps of ``spikes`` (K, B, ...); ``v`` and ``sent`` (B, ...) go on from what they are.

    Args:
        currents: (K, B, ...), or (1, B, ...) for a current that stays the same.
        theta: thresholds, broadcastable to a sample.
        spikes: contiguous, overwritten; of the currents' type or int8.
    """
    on_cpu = currents.device.type == "cpu" and currents.dtype in (torch.float32, torch.float64)
    (_scan_on_cpu if on_cpu else _scan)(currents, theta, v, sent, spikes)


def _scan(currents: Tensor, theta: Tensor, v: Tensor, sent: Tensor, spikes: Tensor) -> None:
    """The definition, step by step."""
    for current, out in zip(currents.expand(len(spikes), *v.shape), spikes):
        v += current
        torch.gt(v, theta, out=out)
        out -= ((v < 0) & (sent > 0)).to(out)
        sent += out
        v -= out * theta


def _scan_on_cpu(currents: Tensor, theta: Tensor, v: Tensor, sent: Tensor, spikes: Tensor) -> None:
    """The same in one pass over memory."""
    from spikeprop.snn.engine.kernels import neuron_loops  # here, since it brings Numba
    from spikeprop.snn.engine.kernels.cpu import in_ranges

    theta_N = theta.detach().to(v).expand(v.shape[1:]).reshape(-1).numpy()
    tensors = (currents.contiguous(), v, sent, spikes)
    flat = [t.detach().reshape(*t.shape[: t.dim() - v.dim() + 1], -1).numpy() for t in tensors]
    current_KBN, v_BN, sent_BN, spikes_KBN = flat
    in_ranges(len(v), lambda first, last: neuron_loops.scan(current_KBN, theta_N, v_BN, sent_BN, spikes_KBN, first, last))
