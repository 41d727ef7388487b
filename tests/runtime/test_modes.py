"""What only looks at a network leaves every module of it in its own mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spikeprop as sp
from spikeprop.evaluate import count_macs
from spikeprop.runtime.modes import evaluating


def test_each_module_gets_its_own_mode_again_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Dropout())
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, True]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(ValueError, match="too"), evaluating(model):
        raise ValueError("inside too")
    assert [module.training for module in model.modules()] == before


def test_counting_and_recording_leave_a_frozen_part_frozen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.ReLU(), nn.Linear(2, 2))
    count_macs(model, (2,))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    network = sp.convert(model.eval(), torch.rand(4, 2), sp.IF(), sp.MaxActivation()).train()
    frozen = next(iter(network.layers.values())).eval()
    network.record(torch.rand(3, 2), 2)
    network.summary(torch.rand(3, 2), 2)
    assert network.training
    assert not frozen.training
