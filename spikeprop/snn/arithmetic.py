"""Layers that compute: any function of what their sources send, exactly, and sums that are kept for several readers.

With S_t the sum of a layer's input over the steps up to t, and X_t = S_t / t its running mean,

    out_t = t f(X_t) - (t - 1) f(X_{t-1}),        so that  out_1 + .. + out_T = T f(X_T).

What is sent on the average is f of the mean input: of LayerNorm, softmax, GELU and the like as well as of products, for which it
is the running product of two streams, a_1 + .. + a_T and b_1 + .. + b_T giving S_A S_B / T (Huang et al. 2024, "Towards
High-performance Spiking Transformers from ANN to SNN Conversion"). These layers send real numbers and need arithmetic on the
chip; a neuron after them makes spikes of what they send. A function of several operands reads one current that holds all of them,
flattened, one after another. Suffix legend: T steps, B batch, N all numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, NeuronState

NUMBER_BITS = 31  # of the real numbers that are sent, without the sign


class Joined(nn.Module):
    """A function of several operands, as one of a vector that holds them.

    Args:
        function: of samples (B, *shape), one for each shape.
        shapes: of the operands' samples.
    """

    def __init__(self, function: nn.Module, shapes: Sequence[tuple[int, ...]]):
        super().__init__()
        self.function, self.shapes = function, tuple(tuple(shape) for shape in shapes)
        self.sizes = tuple(prod(shape) for shape in self.shapes)

    def forward(self, x_BN: Tensor) -> Tensor:
        """The function's result (B, ...)."""
        parts = x_BN.split(self.sizes, 1)
        return self.function(*(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes)))

    def extra_repr(self) -> str:
        return " x ".join(map(str, self.shapes))


class Running(LayerDynamics):
    """Sends what makes the sum over t steps equal to t f(mean of the input), for a function of each sample alone.

    Where f of the first steps' mean is not finite, as 1 / 0 is, nothing is sent until it is.

    Args:
        function: f, from samples (B, ...) to samples (B, ...); what it computes must not depend on the other samples.
    """

    arithmetic: ClassVar[bool] = True
    signed: ClassVar[bool] = True

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function

    def initial_state(self, current: Tensor) -> NeuronState:
        """The input's sum, the number of steps, and the sum of what was sent (made in the first step)."""
        return NeuronState(torch.zeros_like(current), current.new_zeros(()), None)

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        assert state.since is not None
        sum_TB = torch.cumsum(torch.cat([currents[:1] + state.v, currents[1:]]), 0)
        step_T = state.since + torch.arange(1, len(currents) + 1, device=sum_TB.device, dtype=sum_TB.dtype)
        mean_TB = sum_TB / step_T.reshape(-1, *(1,) * (sum_TB.dim() - 1))
        due_TB = self.function(mean_TB.flatten(0, 1).to(self._like(mean_TB))).to(mean_TB).unflatten(0, (len(currents), -1))
        due_TB = due_TB * step_T.reshape(-1, *(1,) * (due_TB.dim() - 1))
        before = torch.zeros_like(due_TB[0]) if state.sent is None else state.sent
        if not bool(torch.isfinite(due_TB.sum())):
            due_TB = _held(due_TB, before)
        sent_TB = due_TB - torch.cat([before.unsqueeze(0), due_TB[:-1]])
        return sent_TB, NeuronState(sum_TB[-1], step_T[-1], due_TB[-1])

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(self.function(self._like(torch.empty(0)).new_zeros(1, *shape)).shape[1:])

    def _like(self, x: Tensor) -> Tensor:
        """A tensor of the type that the function computes in: x itself, if it holds no numbers of its own."""
        return next((t for t in chain(self.parameters(), self.buffers()) if t.is_floating_point()), x)

    def activation(self, total: Tensor, ceiling: Tensor | None) -> Tensor:
        return self.function(total)

    @property
    def payload_bits(self) -> int:
        return NUMBER_BITS


class Relay(LayerDynamics):
    """Sends its current: a sum with weights that several layers read, such as a residual stream, is computed once."""

    arithmetic: ClassVar[bool] = True
    signed: ClassVar[bool] = True

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        return currents, state

    @property
    def payload_bits(self) -> int:
        return NUMBER_BITS


def _held(due_TB: Tensor, before: Tensor) -> Tensor:
    """What is not finite keeps the value of the step before."""
    steps = []
    for due in due_TB:
        before = torch.where(torch.isfinite(due), due, before)
        steps.append(before)
    return torch.stack(steps)
