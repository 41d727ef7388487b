"""``RTRL``: real-time recurrent learning (Williams & Zipser 1989), the exact gradient forward in time, for small networks.

The state s_t (all numbers of all layers, of the complete batch) follows s_t = F(s_{t-1}, W), and with S_t = ds_t/dW

    S_t = dF/ds S_{t-1} + dF/dW,      dL/dW = sum_t do_t/ds S_{t-1} + do_t/dW, each times dL/do_t

One row of both Jacobians is one backward pass through one step. It keeps n x P numbers for n of state and P parameters, and does
n backward passes a step: a witness of BPTT, of the same surrogates and the same reset without gradient, and no way to train.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.learn.simulating import Signals, SimulatingRule, add_gradient, forward_in_time, refuse_coupled_steps
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.dynamics import map_state
from spikeprop.snn.leaving import tensors_of
from spikeprop.snn.network import NetworkState
from spikeprop.snn.timed_input import RunningInput, TimedInput


@dataclass(frozen=True, kw_only=True)
class RTRL(SimulatingRule):
    """The gradient of BPTT, computed forward in time."""

    largest: ClassVar[int] = 10**8  # numbers of S

    def step(self, model: nn.Module, x: Any, y: Tensor) -> dict[str, Tensor]:
        network = self.network_in(model)
        refuse_coupled_steps(network, "RTRL")
        given = self.given(network, x)
        parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        total = torch.cat([torch.zeros_like(p).flatten() for p in parameters])
        rule = self.for_batch(network, x)
        result = forward_in_time(rule, network, given, y, lambda signals: self._run(network, given, signals, parameters, total))
        for parameter, gradient in zip(parameters, total.split([p.numel() for p in parameters])):
            add_gradient(parameter, gradient.reshape(parameter.shape))
        return result

    def _run(
        self, network: SpikingNetwork, given: TimedInput, signals: Signals | None, parameters: list[Tensor], total: Tensor
    ) -> Iterator[Tensor]:
        state, encoded = network.init_state(given.lengths), RunningInput(network.encoder, given)
        S = total.new_zeros(0, len(total))
        for _ in range(given.timesteps):
            state, before = _leaves(network.detached(state))
            values_1BK, state = network.run(encoded(1), state)
            if signals is not None:
                error_1BK = signals(values_1BK)
                by_state, by_weight = _vjp(values_1BK, error_1BK, before, parameters)
                total += by_state @ S + by_weight
                S = self._advanced(S, _numbers(state), before, parameters)
            yield values_1BK

    def _advanced(self, S: Tensor, after: list[Tensor], before: list[Tensor], parameters: list[Tensor]) -> Tensor:
        """S_t for S_{t-1}."""
        size = sum(tensor.numel() for tensor in after)
        if size * S.shape[1] > self.largest:
            raise ValueError(
                f"RTRL would keep {size} numbers of state times {S.shape[1]} parameters: it is for small networks; use BPTT"
            )
        rows = []
        for tensor in after:
            for place in range(tensor.numel()):
                one = torch.zeros_like(tensor)
                one.view(-1)[place] = 1
                by_state, by_weight = _vjp(tensor, one, before, parameters)
                rows.append(by_state @ S + by_weight)
        return torch.stack(rows) if rows else S


def _leaves(state: NetworkState) -> tuple[NetworkState, list[Tensor]]:
    """The state with tensors of its own, of which gradients are asked."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.clone().requires_grad_(torch.is_grad_enabled())

    state = replace(state, layers=map_state(leaf, state.layers), previous=map_state(leaf, state.previous))
    return state, _numbers(state)


def _numbers(state: NetworkState) -> list[Tensor]:
    """All tensors of the state that a step hands to the next."""
    return [tensor for held in (state.layers, state.previous) for name in sorted(held) for tensor in tensors_of(held[name])]


def _vjp(value: Tensor, by_value: Tensor, before: list[Tensor], parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients, flat, by the earlier state and by the parameters."""
    inputs = [*before, *parameters]
    found: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if value.requires_grad:
        found = torch.autograd.grad(value, inputs, by_value, retain_graph=True, allow_unused=True)
    flat = [(torch.zeros_like(t) if g is None else g).flatten() for g, t in zip(found, inputs)]
    sides = flat[: len(before)], flat[len(before) :]
    return tuple(torch.cat(side) if side else value.new_zeros(0) for side in sides)  # type: ignore[return-value]
