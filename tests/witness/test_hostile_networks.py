"""Random networks that do something outside their modules' parameters: what converts is right, the rest is refused in words.

Masks of pruning, old reparametrisations, hooks that change what they see, patched forwards, weights that are no parameters, half
precision, one buffer for all batches, an input overwritten before backward, outputs with positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from spikeprop import IF, MaxActivation, convert
from tests.witness.disturbances import DISTURBANCES
from tests.witness.networks import as_ann, draw, evaluated, examine

SHORT, LONG = 40, 300


@pytest.mark.parametrize("seed", [*range(SHORT), *(pytest.param(s, marks=pytest.mark.slow) for s in range(SHORT, LONG))])
def test_a_disturbed_network_is_right_or_refused(seed: int, counted: Callable[[Counter[str]], None]) -> None:
    counted(examine(seed, hostile=True))


def test_every_disturbance_is_drawn() -> None:
    seen = Counter(trait for seed in range(120) for trait in draw(seed, hostile=True).traits)
    assert set(DISTURBANCES) <= seen.keys()


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_tied_weight_that_one_of_its_two_layers_reparametrises(kind: str) -> None:
    """The other layer keeps the weight as it is; making the parametrisation permanent must not write through to it."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    getattr(parametrizations, kind)(first)
    ann = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(20, 6)
    wanted = evaluated(ann, x)
    network = convert(ann, [x], IF(), MaxActivation())
    torch.testing.assert_close(as_ann(network, x), wanted, rtol=1e-4, atol=1e-4)
