"""Random networks that do something outside their modules' parameters: what converts is right, the rest is refused in words.

Masks of pruning, old reparametrisations, hooks that change what they see, patched forwards, weights that are no parameters, half
precision, one buffer for all batches, an input overwritten before backward, outputs with positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.witness.networks import DISTURBANCES, draw, examine

SHORT, LONG = 40, 300


@pytest.mark.parametrize("seed", [*range(SHORT), *(pytest.param(s, marks=pytest.mark.slow) for s in range(SHORT, LONG))])
def test_a_disturbed_network_is_right_or_refused(seed: int, counted: Callable[[Counter[str]], None]) -> None:
    counted(examine(seed, hostile=True))


def test_every_disturbance_is_drawn() -> None:
    seen = Counter(trait for seed in range(120) for trait in draw(seed, hostile=True).traits)
    assert set(DISTURBANCES) <= seen.keys()
