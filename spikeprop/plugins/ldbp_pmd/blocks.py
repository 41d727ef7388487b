"""Blocks of symbols and their samples after the link, simulated in batches from seeds, so that every data set can be
reproduced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.fibre import Fibre, check_count, check_steps, logarithmic_steps
from spikeprop.plugins.ldbp_pmd.link import Sections, propagate
from spikeprop.plugins.ldbp_pmd.signals import Signal
from spikeprop.runtime.seeding import generator
from spikeprop.runtime.signals import stop_if_requested

MOST_STEPS = 10_000  # steps per span
SIMULATED = 50  # blocks per call of the simulation


@dataclass(frozen=True)
class Blocks:
    """Sent symbols and received samples.

    Attributes:
        symbols: (B, P, K) complex64.
        samples: (B, P, 2 K) complex64 at the receiver, sqrt(W).
        power: launch power of all polarisations, W.

    """

    symbols: Tensor
    samples: Tensor
    power: float

    def __len__(self) -> int:
        return len(self.symbols)


@dataclass(frozen=True)
class Link:
    """A fibre, its signal and the number of simulation steps per span."""

    fibre: Fibre
    signal: Signal
    steps: int
    polarisations: int

    def edges(self) -> list[float]:
        """Edges of the simulation steps of a span, m."""
        return logarithmic_steps(self.fibre, self.steps)

    def check(self, power: float) -> None:
        """Refuse a simulation that is unstable or too coarse at ``power`` (W) per channel, see ``check_steps``."""
        check_count("forward_steps", self.steps, MOST_STEPS)
        check_steps(self.fibre, self.edges(), self.signal.rate, self.signal.channels * power)

    def blocks(self, count: int, power: float, seed: Sequence[int], sections: Sections | None = None) -> Blocks:
        """Simulate ``count`` random blocks; the same seed gives the same blocks."""
        draws = generator(*seed)
        symbols, samples = [], []
        for start in range(0, count, SIMULATED):
            stop_if_requested()
            sent = self.signal.draw(min(SIMULATED, count - start), self.polarisations, draws)
            field = self.signal.transmit(sent, power, draws)
            received = propagate(field, self.fibre, self.edges(), self.signal.rate, sections, draws)
            symbols.append(sent)
            samples.append(self.signal.receive(received, draws))
        return Blocks(torch.cat(symbols), torch.cat(samples), power)


def watts(dbm: float) -> float:
    """Power in W."""
    return 10 ** (dbm / 10 - 3)
