"""The room that the readout's potential needs in 24 bits, where it never fires and sums every step.

With T steps it holds T times the largest sum of one sign, so that no spikes can make it stop at the limits, and at least
ROOM_READOUT of the largest currents. Room costs resolution: a current has at most 2^17 / room units. MOST_ROOM ends it, since
real sums (rates well below 1, weights of both signs) are far smaller than the bound: beyond about T = 2000 to 4000 a potential
could stop in principle, and simulations count it and warn where it does. A readout that leaks needs room for no more of its
largest currents than they charge it to, 1 + leak + leak^2 + ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spikeprop_hardware.acceptance import STEPS, charge
from spikeprop_hardware.network import Population

ROOM_READOUT = 16  # where the number of steps is not known
LEAST_ROOM = 2  # of a readout that keeps nothing
ROUNDING = 1.01  # rounded weights may sum to more than real ones, and the limit itself is out of reach
MOST_ROOM = 2048  # the largest current then still has 64 units


def readout_room(population: Population, limits: Sequence[float], signs: Sequence[bool], steps: int | None) -> float:
    """How many of its largest currents the readout has room for; ``signs``: which connections deliver both signs."""
    if population.leak is not None:
        return max(LEAST_ROOM, ROUNDING * float(charge(population.leak, min(steps or STEPS, MOST_ROOM)).max()))
    if steps is None:
        return ROOM_READOUT
    above = below = whole = np.zeros(len(population.bias))
    for c, limit, graded in zip(population.connections, limits, signs):
        size, total = abs(c.matrix).sum(axis=1).A1, c.matrix.sum(axis=1).A1
        whole = whole + size * limit
        above = above + (size * limit if graded else (size + total) / 2)
        below = below + (size * limit if graded else (size - total) / 2)
    most = float(np.maximum(above + population.bias, below - population.bias).max(initial=0.0))
    largest = float((whole + np.abs(population.bias)).max(initial=0.0))
    return max(ROOM_READOUT, min(ROUNDING * steps * most / largest if largest else 0.0, MOST_ROOM))
