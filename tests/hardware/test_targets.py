"""Targets: every number has its source, names find chips."""

from __future__ import annotations

from dataclasses import fields

import pytest
from spikeprop_hardware import HardwareError
from spikeprop_hardware.targets import TARGETS, Generic, Target, target
from spikeprop_hardware.targets.target import LAYERS, NEURONS, POOLINGS, RESETS


@pytest.mark.parametrize("chip", TARGETS.values(), ids=TARGETS)
def test_what_is_said_of_a_chip_has_its_source_and_what_has_none_is_not_said(chip: Target) -> None:
    values = {field.name: getattr(chip, field.name) for field in fields(chip)}
    said = {name for name, value in values.items() if value is not None} - {"name", "simulator"}
    assert said == chip.sources.keys()
    assert all(chip.sources.values())
    for own, known in ((chip.neurons, NEURONS), (chip.resets, RESETS), (chip.layers, LAYERS), (chip.poolings, POOLINGS)):
        assert set(own) <= set(known)


def test_a_target_is_found_by_name() -> None:
    assert target("Speck") is TARGETS["speck"] is target(TARGETS["speck"])
    assert target("generic-4") == Generic(weight_bits=4)
    with pytest.raises(HardwareError, match=r"no target 'spek'; did you mean 'speck'\? Known: loihi2, .*generic-8"):
        target("spek")
    with pytest.raises(HardwareError, match="no target 'generic-9'"):
        target("generic-9")
