"""``Regulariser``: a term of the objective that reads how often neurons fire (Zenke & Vogels 2021, Neural Computation 33(4)).

With r_i the spikes a step of neuron i of N in a layer, for one sample,

    UpperRate:  strength [ mean_i r_i - limit ]_+ ^ power       the layer as a population fires too much
    LowerRate:  strength 1/N sum_i [ limit - r_i ]_+ ^ 2        single neurons fire too little

summed over the layers, mean over the batch. The paper counts spikes in a trial; here a rate does not change with T. A term of the
objective and no callback, because its gradient goes back through time together with the loss's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.runtime.checks import positive
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.timed_input import TimedInput


@dataclass(frozen=True, kw_only=True)
class Regulariser(ABC):
    """A scalar of the firing rates of a network's layers."""

    @abstractmethod
    def __call__(self, rates: Mapping[str, Tensor]) -> Tensor:
        """Mean penalty () over the batch; rates are spikes a step (B, ...) by layer."""

    def check(self, network: SpikingNetwork) -> None:  # noqa: B027 - most have nothing to check
        """Refuse a network in which the term could not do what it promises.

        Raises:
            ValueError: names the layer.
        """


@dataclass(frozen=True, kw_only=True)
class UpperRate(Regulariser):
    """Penalty where the mean rate of a layer exceeds ``limit``.

    Attributes:
        limit: spikes a neuron a step.
        strength: factor on the penalty.
        power: 1 or 2.
    """

    limit: float
    strength: float = 1.0
    power: int = 2

    def __post_init__(self) -> None:
        positive(self, "strength")
        if self.limit < 0 or self.power not in (1, 2):
            raise ValueError(f"limit is {self.limit} and power {self.power}; a rate is not negative, and the power is 1 or 2")

    def __call__(self, rates: Mapping[str, Tensor]) -> Tensor:
        over = torch.stack([(rate.flatten(1).mean(1) - self.limit).clamp(min=0) ** self.power for rate in rates.values()])
        return self.strength * over.sum(0).mean()


@dataclass(frozen=True, kw_only=True)
class LowerRate(Regulariser):
    """Penalty for each neuron whose rate is below ``limit``.

    Attributes:
        limit: spikes a step.
        strength: factor on the penalty.
    """

    limit: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "limit", "strength")

    def __call__(self, rates: Mapping[str, Tensor]) -> Tensor:
        below = torch.stack([(self.limit - rate).clamp(min=0).square().flatten(1).mean(1) for rate in rates.values()])
        return self.strength * below.sum(0).mean()

    def check(self, network: SpikingNetwork) -> None:
        for name, neuron in network.neurons().items():
            if not (neuron.signed or neuron.surrogate.needs_potential):  # of signed ones says ``Rates`` more
                raise ValueError(
                    f"layer {name!r} has the surrogate {type(neuron.surrogate).__name__}, whose derivative is 0 until a neuron "
                    "fires, so LowerRate cannot make a silent neuron fire: use one that reads the potential, such as Triangle"
                )


class Rates:
    """Collects the firing rates of a network's neurons in a simulation, which calls it as an observer.

    Args:
        network, given: what is simulated.
        start: steps that are done already.

    Raises:
        ValueError: neurons that send negative spikes, whose sum is no rate.
    """

    def __init__(self, network: SpikingNetwork, given: TimedInput, start: int = 0):
        self._given, self._done, self.device = given, dict.fromkeys(network.neurons(), start), given.x_TB.device
        self._counts: dict[str, Tensor] = {}
        self._signed = {name for name, neuron in network.neurons().items() if neuron.signed}

    def __call__(self, name: str, spikes_tB: Tensor) -> None:
        """Count the next steps' spikes, each sample's own."""
        if name not in self._done:
            return
        if name in self._signed:
            raise ValueError(f"layer {name!r} sends spikes of both signs, so it has no firing rate to regularise: use IF or LIF")
        first, self._done[name] = self._done[name], self._done[name] + len(spikes_tB)
        if self._given.lengths is not None:
            counts_tB = torch.arange(first, self._done[name], device=self.device)[:, None] < self._given.lengths
            spikes_tB = spikes_tB * counts_tB.view(*counts_tB.shape, *(1,) * (spikes_tB.dim() - 2))
        count = spikes_tB.sum(0)
        self._counts[name] = self._counts[name] + count if name in self._counts else count

    def rates(self) -> dict[str, Tensor]:
        """Spikes a step (B, ...) by layer, of the steps so far, over all of a sample's steps."""
        lengths = self._given.lengths
        return {
            name: count / (self._given.timesteps if lengths is None else lengths.to(count).view(-1, *(1,) * (count.dim() - 1)))
            for name, count in self._counts.items()
        }
