"""The choice of neuron and calibrator: what it depends on, that it is told, and that the result is the one of the same call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop.convert import LeastSquares
from spikeprop.convert.choice import choose
from spikeprop.convert.compared import MOST, Compared
from spikeprop.convert.shard import UNSHARDED, CalibrationShard
from spikeprop.errors import ConversionError
from spikeprop.runtime.processes import Processes
from spikeprop.snn import DifferentialIF, GradedIF, SignedIF


def ann_and_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval(), torch.randn(40, 6)


def test_fewer_steps_get_more_levels_and_one_bit_where_asked() -> None:
    found = [choose(None, None, timesteps).neuron.payload_bits for timesteps in (1, 2, 4, 8, 32)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] > 1
    for timesteps in (1, 4, 64):
        assert type(choose(None, None, timesteps, binary=True).neuron) is SignedIF


def test_one_bit_in_few_steps_gets_thresholds_on_spikes() -> None:
    """At one step nothing is uneven; beyond, half of the error of one-bit spikes is."""
    chosen = [choose(None, None, timesteps, binary=True).calibrator for timesteps in (1, 2, 8)]
    assert all(isinstance(c, LeastSquares) for c in chosen)
    assert [getattr(c, "search", None) for c in chosen] == ["rate", "spikes", "spikes"]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("timesteps", [1, 32])
def test_the_call_with_steps_alone_is_that_with_what_it_chose(timesteps: int, binary: bool) -> None:
    ann, images = ann_and_images()
    chosen = choose(None, None, timesteps, binary=binary)
    network = sp.convert(ann, images, timesteps=timesteps, binary=binary)
    same = sp.convert(ann, images, chosen.neuron, chosen.calibrator)
    with torch.no_grad():
        assert torch.equal(network(images, timesteps), same(images, timesteps))
    assert same.notes == []
    kind = type(chosen.neuron).__name__
    assert kind in network.notes[0]
    assert type(chosen.calibrator).__name__ in network.notes[0]
    assert f"T = {timesteps}" in repr(network)
    assert kind in repr(network)


def test_either_may_be_given_and_the_steps_may_come_from_the_calibrator() -> None:
    ann, images = ann_and_images()
    one = sp.convert(ann, images, calibrator=sp.LightCalibration(timesteps=1))
    assert all(isinstance(n, GradedIF) for n in one.neurons().values())
    assert "GradedIF" in one.notes[0]
    assert "Calibration" not in one.notes[0]
    two = sp.convert(ann, images, sp.IF(v_init=0.5), timesteps=16)
    assert all(type(n) is sp.IF for n in two.neurons().values())
    assert "LightCalibration" in two.notes[0]
    assert "GradedIF" not in two.notes[0]


def test_a_call_that_cannot_be_completed_is_refused() -> None:
    ann, images = ann_and_images()
    wrong: list[tuple[dict[str, object], str]] = [
        ({}, "for how many time steps"),
        ({"neuron": sp.IF()}, "for how many time steps"),
        ({"calibrator": sp.MaxActivation()}, "for how many time steps"),
        ({"timesteps": 0}, "timesteps is 0"),
        ({"timesteps": True}, "timesteps is True"),
        ({"timesteps": 2.0}, "timesteps is 2.0"),
        ({"timesteps": 8, "calibrator": sp.LightCalibration(timesteps=4)}, "LightCalibration calibrates for 4"),
        ({"timesteps": 8, "binary": True, "neuron": sp.IF()}, "neuron is IF; give one of the two"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ConversionError, match=message):
            sp.convert(ann, images, **arguments)  # type: ignore[arg-type]


def test_where_predictions_differ_more_levels_are_taken_and_the_share_is_told() -> None:
    """Two hundred classes of random weights lie close together; the share in the note is counted again, from the outside."""
    torch.manual_seed(0)
    layers = [nn.Linear(24, width, bias=False) for width in (24, 24, 200)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    ann, images = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval(), torch.randn(60, 24)
    least = choose(None, None, 2).neuron.payload_bits
    with torch.no_grad():
        wanted = ann(images).argmax(1)
        before = sp.convert(ann, images, GradedIF(levels=least), timesteps=2)
        network = sp.convert(ann, images, timesteps=2)
        one_bit = sp.convert(ann, images, timesteps=2, binary=True)
        own = sp.convert(ann, images, calibrator=sp.Percentile(), timesteps=2)
        share = {n: 100 * float((n(images, 2).argmax(1) == wanted).double().mean()) for n in (before, network, one_bit)}
    (levels,) = {neuron.payload_bits for neuron in network.neurons().values()}
    assert share[before] < 95 <= share[network]
    assert levels > least
    assert network.notes[-2].startswith(f"then {levels} levels: LightCalibration")  # no longer the calibrator of the first choice
    first, last = f"predicts as the ANN for {share[before]:.1f} %, and for ", f"{share[network]:.1f} % with {levels} levels"
    assert network.notes[-1].startswith(first)
    assert network.notes[-1].endswith(f"{last}, of 60 calibration images")
    assert f"{share[one_bit]:.1f} %, of 60" in one_bit.notes[-1]
    assert one_bit.notes[-1].endswith("take more steps")
    assert {type(neuron) for neuron in one_bit.neurons().values()} == {SignedIF}
    assert before.notes[-1].startswith("predicts as the ANN for")
    assert {neuron.payload_bits for neuron in before.neurons().values()} == {least}
    assert "levels, of 60" in own.notes[-1]


def test_what_has_no_classes_is_not_compared() -> None:
    ann, images = ann_and_images()
    assert "predicts" not in "".join(sp.convert(ann, images[:15], timesteps=1).notes)
    one = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1)).eval()
    assert "predicts" not in "".join(sp.convert(one, images, timesteps=1).notes)


def test_the_share_is_that_of_differential_neurons_where_they_are_asked_for() -> None:
    ann, images = ann_and_images()
    network = sp.convert(ann, images, DifferentialIF(levels=2), timesteps=2)
    with torch.no_grad():
        share = 100 * float((network(images, 2).argmax(1) == ann(images).argmax(1)).double().mean())
    assert f"predicts as the ANN for {share:.1f} %, of 40" in network.notes[-1]


class _OneOfSeveral(CalibrationShard):
    def total(self, sums: Tensor) -> Tensor:
        return sums


def test_the_images_compared_do_not_depend_on_the_number_of_processes() -> None:
    """Shards of unequal size; the last one has no image that is compared."""
    ann, _ = ann_and_images()
    images = torch.randn(200, 6)
    network = sp.convert(ann, images, GradedIF(levels=1), sp.MaxActivation())
    drawn = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shards = [drawn[:40].sort().values, drawn[40:150].sort().values, drawn[150:].sort().values]
    found = 0.0
    for rank, at in enumerate(shards):
        shard = _OneOfSeveral(Processes(rank=rank, count=3), at.tolist(), 200)
        compared = Compared.of(network, images[at], shard)
        assert compared is not None
        assert compared.count == MOST
        found += compared.agreement(network, 2, shard)
    alone = Compared.of(network, images, UNSHARDED)
    assert alone is not None
    assert found == pytest.approx(alone.agreement(network, 2, UNSHARDED), abs=1e-12)
    assert 0 < found < 1
