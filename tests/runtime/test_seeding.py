"""Seeds of a run's parts: different seeds and positions draw different numbers."""

from __future__ import annotations

from itertools import product

import torch

from spikeprop.runtime.seeding import generator, mix_seed


def test_seeds_and_positions_draw_different_numbers() -> None:
    """Neighbours too: a seed without a position was once halved, so that 0 and 1 drew the same."""
    positions = [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
    mixed = [mix_seed(seed, *position) for seed, position in product([0, 1, 2, 3, 2**63 - 1], positions)]
    assert len(set(mixed)) == len(mixed)
    assert all(0 <= m < 2**63 for m in mixed)
    drawn = [torch.rand(2, generator=generator(seed)).tolist() for seed in range(6)]
    assert len({tuple(d) for d in drawn}) == 6
