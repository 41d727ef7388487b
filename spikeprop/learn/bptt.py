"""``BPTT``: backpropagation through time with a surrogate derivative; with ``STDB`` it is the paper's fine-tuning.

Rathi et al. 2020: the loss is the cross-entropy of the output accumulated over T steps; the gradient flows back through the leak
and the weights and, at each spike, through the neuron's surrogate; none flows through the reset. The neuron's settings decide
which surrogate is used, and whether its threshold and leak are trained too (DIET-SNN).

``truncate`` cuts the graph every so many steps: the state goes on, the gradient does not. The loss stays the same, so with
``truncate`` >= T nothing changes; memory is that of one window. Truncation and regularisers run on the plain reference, which
carries a state with a graph and shows spikes with theirs; the packed engine runs everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spikeprop.learn.loss import Loss
from spikeprop.learn.regulariser import Rates, Regulariser
from spikeprop.learn.simulating import (
    Signals,
    SimulatingRule,
    forward_in_time,
    refuse_coupled_steps,
    same_draws_again,
)
from spikeprop.learn.temporal import ReadOut, TemporalLoss
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.timed_input import RunningInput, TimedInput, time_first


@dataclass(frozen=True, kw_only=True)
class BPTT(SimulatingRule):
    """Gradient of the loss through all steps of a simulation.

    Attributes:
        chunk: steps that a layer computes at once; default what ``snn/engine/sizes.py`` says (at most 64 on the CPU).
        average: divide the output, a sum over the steps (the paper's), by their number; as ``network.read = "mean"``, in training
            alone.
        truncate: steps after which the gradient is cut, or None.
        regularisers: terms of the objective that read firing rates.
    """

    chunk: int | None = None
    average: bool = False
    truncate: int | None = None
    regularisers: list[Regulariser] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; use at least 1 step, or null for the default, at most 64 on the CPU")
        if self.truncate is not None and self.truncate < 1:
            raise ValueError(f"truncate is {self.truncate}; the gradient passes at least 1 step, or all of them with null")
        if self.average and (self.each_step or not isinstance(self.loss, Loss)):
            raise ValueError("average divides the output of a complete simulation, and this loss is of the values at each step")

    @property
    def _plain(self) -> bool:
        """Whether the loss is of the network's output alone, so that one call of the network serves."""
        return isinstance(self.loss, Loss) and not (self.each_step or self.truncate or self.regularisers)

    @property
    def single_backward(self) -> bool:
        return self._plain

    def objective(self, network: SpikingNetwork) -> TemporalLoss:
        found = super().objective(network)
        return replace(found, how="mean") if self.average and isinstance(found, ReadOut) else found

    def _unit(self, network: SpikingNetwork, x: Any) -> Tensor:
        unit = super()._unit(network, x)
        return unit * (self.timesteps or x.shape[1]) if self.average and isinstance(x, Tensor) else unit

    def step(self, model: Any, x: Any, y: Tensor) -> dict[str, Tensor]:
        network = self.network_in(model)
        return self.for_batch(network, x)._step(model, network, x, y)

    def _step(self, model: Any, network: SpikingNetwork, x: Any, y: Tensor) -> dict[str, Tensor]:
        if self.average and network.read != "sum":
            raise ValueError(f"average divides a sum over the steps, and network.read is {network.read!r}: leave average out")
        if self._plain:
            return self._by_output(model, network, x, y)
        given = self.given(network, x)
        if self.regularisers and not network.neurons():
            raise ValueError("this network has no neurons, whose firing rates the regularisers read: leave them out")
        for term in self.regularisers:
            term.check(network)
        if self.truncate is not None and self.truncate < given.timesteps:
            return self._truncated(network, given, y)
        rates = Rates(network, given)
        x, lengths = time_first(network, x)
        observe = rates if self.regularisers else None
        values_TBK = network.over_time(x, self.timesteps, lengths=lengths, chunk=self.chunk, observe=observe)
        loss, penalty = self.objective(network)(values_TBK, y, given.lengths), self._penalty(rates.rates())
        (loss + penalty.to(loss)).backward()
        scores = self.objective(network).scores(values_TBK.detach(), given.lengths, network.read)
        return self._result(loss, scores, penalty)

    def _by_output(self, model: Any, network: SpikingNetwork, x: Any, y: Tensor) -> dict[str, Tensor]:
        x, lengths = self.in_time(network, x)
        scores = model(x, self.timesteps, lengths=lengths, chunk=self.chunk)
        if self.average:
            steps = self.timesteps or len(x)
            scores = scores / (steps if lengths is None else lengths.to(scores).view(-1, *(1,) * (scores.dim() - 1)))
        assert isinstance(self.loss, Loss)
        loss = self.loss(scores, y)
        loss.backward()
        return {"loss": loss.detach(), "scores": scores.detach()}

    def _truncated(self, network: SpikingNetwork, given: TimedInput, y: Tensor) -> dict[str, Tensor]:
        refuse_coupled_steps(network, "BPTT(truncate=...)")
        by_rates, penalty = None, torch.zeros(())
        if self.regularisers:
            ahead = Rates(network, given)
            with torch.no_grad(), same_draws_again(given.x_TB):
                for _ in self._windows(network, given, None, ahead):
                    pass
            leaves = {name: rate.requires_grad_() for name, rate in ahead.rates().items()}
            penalty = self._penalty(leaves)
            found = torch.autograd.grad(penalty, [*leaves.values()], allow_unused=True, materialize_grads=True)
            by_rates = dict(zip(leaves, found))
        result = forward_in_time(self, network, given, y, lambda signals: self._windows(network, given, signals, None, by_rates))
        return self._result(result["loss"], result["scores"], penalty)

    def _windows(
        self,
        network: SpikingNetwork,
        given: TimedInput,
        signals: Signals | None,
        rates: Rates | None = None,
        by_rates: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Values window by window, and the gradient of each where there are signals."""
        assert self.truncate is not None
        state, encoded, left = network.init_state(given.lengths), RunningInput(network.encoder, given), given.timesteps
        while left > 0:
            steps = min(self.truncate, left)
            own = Rates(network, given, given.timesteps - left) if by_rates is not None else rates
            x_tB = encoded(steps)
            values_tBK, state = network.run(x_tB.expand(steps, *x_tB.shape[1:]), network.detached(state), observe=own)
            left -= steps
            if signals is not None:
                outputs, gradients = [values_tBK], [signals(values_tBK)]
                if by_rates is not None and own is not None:
                    outputs += own.rates().values()
                    gradients += [by_rates[name] for name in own.rates()]
                kept = [(o, g) for o, g in zip(outputs, gradients) if o.requires_grad]
                torch.autograd.backward([o for o, _ in kept], [g for _, g in kept])
            yield values_tBK

    def _penalty(self, rates: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([term(rates) for term in self.regularisers]).sum() if self.regularisers else torch.zeros(())

    def _result(self, loss: Tensor, scores: Tensor, penalty: Tensor) -> dict[str, Tensor]:
        extra = {"penalty": penalty.detach()} if self.regularisers else {}
        return {"loss": loss.detach(), "scores": scores, **extra}
