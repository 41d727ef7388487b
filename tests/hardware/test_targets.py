"""Targets: every number has its source, names find chips; fits tells all that is wrong at once; budgets from shapes alone."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from spikeprop_hardware import HardwareError, quantize
from spikeprop_hardware.chip import Activity, activity, budget
from spikeprop_hardware.network import lay_out
from spikeprop_hardware.targets import TARGETS, Generic, Loihi2, Speck, Target, target
from spikeprop_hardware.targets.energy import access_joules, energy_table
from spikeprop_hardware.targets.fitting import fits
from spikeprop_hardware.targets.target import LAYERS, NEURONS, POOLINGS, RESETS
from spikeprop_hardware.vendors import loihi1, speck, xylo
from torch import nn

from spikeprop.ann import VGG
from spikeprop.convert import spiking as from_module
from spikeprop.convert.graph import to_spiking
from spikeprop.deploy import VENDORS, RunOn, chip_budget, compare, export, from_nir, rounded_on_chip, simulate_on_chip, to_nir
from spikeprop.deploy.vendor import _readout as chip_output
from spikeprop.errors import NirError
from spikeprop.evaluate import count_macs
from spikeprop.snn import (
    IF,
    LIF,
    CubaLIF,
    Delta,
    Direct,
    Encoder,
    Frames,
    Layer,
    Poisson,
    SpikingMaxPool,
    SpikingNetwork,
    Synapse,
)
from spikeprop.snn.outline import outline
from tests.hardware import counting
from tests.hardware.random_chains import KINDS as CHAINS
from tests.hardware.random_chains import drawn
from tests.hardware.random_networks import KINDS, random_network
from tests.hardware.test_vendors import in_pytorch


@pytest.mark.parametrize("chip", TARGETS.values(), ids=TARGETS)
def test_what_is_said_of_a_chip_has_its_source_and_what_has_none_is_not_said(chip: Target) -> None:
    values = {field.name: getattr(chip, field.name) for field in fields(chip)}
    said = {name for name, value in values.items() if value is not None} - {"name", "simulator", "unsimulated"}
    assert said == chip.sources.keys()
    assert all(chip.sources.values())
    for own, known in ((chip.neurons, NEURONS), (chip.resets, RESETS), (chip.layers, LAYERS), (chip.poolings, POOLINGS)):
        assert set(own) <= set(known)


def test_a_target_is_found_by_name() -> None:
    assert target("Speck") is TARGETS["speck"] is target(TARGETS["speck"])
    assert target("generic-4") == Generic(name="generic-4", weight_bits=4)
    with pytest.raises(HardwareError, match=r"no target 'spek'; did you mean 'speck'\? Known: loihi2, .*generic-8"):
        target("spek")
    with pytest.raises(HardwareError, match="no target 'generic-9'"):
        target("generic-9")


def spiking(*modules: nn.Module, shape: tuple[int, ...], encoder: Encoder | None = None, neuron: Any = IF) -> SpikingNetwork:
    """The network of a chain of modules, with weights as they start."""
    return to_spiking(nn.Sequential(*modules), neuron, encoder or Poisson(), shape)


def with_currents(*sizes: int) -> SpikingNetwork:
    """Dense layers of CubaLIF neurons without biases, and a readout."""
    layers, source = {}, "input"
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        neuron = None if last else CubaLIF(v_threshold=0.25, leak=0.75, synaptic_leak=0.5)
        layers[f"l{i}"] = Layer([(source, Synapse([nn.Linear(inputs, outputs, bias=last)]))], neuron)
        source = f"l{i}"
    return SpikingNetwork(layers, Poisson(), (sizes[0],))


def wrong(network: SpikingNetwork, chip: str | Target) -> list[tuple[str, str]]:
    """Layer and what of each finding that stops a network."""
    return [(finding.layer, finding.what) for finding in network.fits(chip).findings if finding.stops]  # type: ignore[arg-type]


def test_a_convolutional_network_fits_speck_and_the_output_is_noted() -> None:
    conv, linear = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8 * 8 * 8, 10)
    fit = spiking(conv, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), linear, shape=(2, 16, 16)).fits("speck")
    assert fit
    assert [(f.layer, f.stops) for f in fit.findings] == [("4", False), ("", False)]
    assert fit.budget is not None
    assert fit.budget.cores == 1
    assert fit.findings[1].why == "those of speck send as many as their potential holds thresholds"
    assert fit.findings[1].change.endswith("compare accuracies with simulate --target speck")
    assert str(fit).startswith("fits speck, 1 core on 1 chip\n  note: layer '4': the output is a sum of currents")


def test_all_that_does_not_fit_is_told_at_once_by_layer_with_a_remedy() -> None:
    network = spiking(
        nn.Conv2d(2, 8, (3, 5), padding=(9, 2)), nn.ReLU(), nn.AvgPool2d(3, 2), nn.Conv2d(8, 1500, 3, stride=3, dilation=2),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9000, 10), shape=(2, 32, 32), encoder=Direct(),
        neuron=lambda: LIF(leak=0.9, reset="zero"),
    )  # fmt: skip
    fit = network.fits("speck")
    assert [(f.layer, f.what) for f in fit.findings if f.stops] == [
        ("input", "the input is numbers (Direct)"),
        ("0", "LIF neurons"),
        ("0", "a kernel of 3x5"),
        ("0", "a padding of 9x2"),
        ("3", "LIF neurons"),
        ("3", "pooling of windows of 3x3, stride 2x2"),
        ("3", "a stride of 3x3"),
        ("3", "a dilation of 2x2"),
        ("3", "1,500 channels"),
        ("3", "262,144 numbers for weights and 42,000 for neurons"),
        ("_5", "max pooling of spikes"),
    ]
    assert all(f.why and f.change for f in fit.findings)
    assert fit.findings[1].change == "use IF (convert.neuron=IF; trained from scratch: model.neuron=IF)"
    assert not fit
    assert "does not fit speck\n  layer 'input': the input is numbers (Direct); speck reads spikes alone: use" in str(fit)


def test_what_the_makers_documentation_says_cannot_be_deployed_is_refused() -> None:
    """16 to 32 channels of 3x3 at 64x64: 8 Ki numbers of weights, 128 Ki neurons (docs/speck/overview.md of sinabs)."""
    layers = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32 * 256, 1)]
    assert wrong(spiking(*layers, shape=(16, 64, 64)), "speck") == [("0", "8,192 numbers for weights and 131,072 for neurons")]


def test_layers_that_fit_alone_but_not_together_are_told() -> None:
    """Three cores of Speck hold 64 Ki neurons; four such layers do not fit, whatever their weights."""
    layers = [module for _ in range(4) for module in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    network = spiking(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * 22 * 22, 2), shape=(8, 88, 88))
    sizes = replace(Speck(), output_size=128)
    assert wrong(network, sizes) == [("", "4 layers fit a core each, but only 3 of them at once")]


def test_neurons_resets_leaks_and_counts_of_other_chips() -> None:
    dense = [nn.Linear(20, 70), nn.ReLU(), nn.Linear(70, 9)]
    network = spiking(*dense, shape=(20,), neuron=lambda: LIF(leak=0.9))
    assert wrong(network, "xylo") == [
        ("0", "LIF neurons"),
        ("0", "a leak of 0.9"),
        ("0", "a bias"),
        ("0", "the last neurons read the input"),
        ("", "20 inputs"),
        ("", "70 outputs"),
    ]
    assert wrong(network, "loihi1") == [("0", "a reset by subtract")]
    small = with_currents(16, 40, 8, 10)
    assert small.fits("xylo")
    assert network.fits("loihi2")
    fit = network.fits("generic-4")
    assert fit
    assert str(fit).splitlines()[0] == "fits generic-4"
    assert fit.budget is not None
    assert {layer.cores for layer in fit.budget.layers} == {fit.budget.cores} == {0}
    assert wrong(network, Loihi2(bytes_per_core=40)) == [("2", "has neurons with 70 synapses, 82 bytes")]


def test_the_limits_of_a_chip_are_not_those_of_the_host_that_computes_its_output(tmp_path: Path) -> None:
    pooled = spiking(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(8, 3), shape=(2, 8, 8))
    first = Layer([("input", Synapse([nn.Linear(6, 5)]))], IF())
    last = Layer([("a", Synapse([nn.Linear(5, 3)])), ("input", Synapse([nn.Linear(6, 3)]))], None)
    around = SpikingNetwork({"a": first, "o": last}, Poisson(), (6,))
    for network, shape in ((pooled, (2, 8, 8)), (around, (6,))):
        assert wrong(network, "speck") == []
        export(network.eval(), tmp_path / "n.nir")
        given = network, tmp_path / "n.nir", torch.rand(40, *shape), torch.zeros(40, dtype=torch.int64), 40, print
        found = simulate_on_chip(*given, "speck")
        assert found["accuracy"]["speck"] == pytest.approx(found["accuracy"]["pytorch"], abs=20)


def currents(source: str, inputs: int, outputs: int, bias: bool = False, **given: Any) -> Layer:
    settings: dict[str, Any] = {"v_threshold": 0.25, "leak": 0.75, "synaptic_leak": 0.5} | given
    return Layer([(source, Synapse([nn.Linear(inputs, outputs, bias=bias)]))], CubaLIF(**settings))


def test_what_a_chip_s_own_arithmetic_refuses_is_found_before() -> None:
    """``lower`` refuses each of these networks, so that no ``fits`` may say that they fit."""
    read, last = currents("input", 6, 5), Layer([("b", Synapse([nn.Linear(4, 3)]))], None)
    two = Layer([("b", Synapse([nn.Linear(4, 3)])), ("a", Synapse([nn.Linear(5, 3)]))], None)
    one = Layer([("a", Synapse([nn.Linear(5, 3)]))], None)
    itself: Any = currents("a", 5, 4)
    itself = Layer([("a", itself.synapses[0])], itself.neuron, feedback=[("b", Synapse([nn.Linear(4, 4, bias=False)]))])
    xylo_s = {
        "a start at 0.5 thresholds": {"a": read, "b": currents("a", 5, 4, v_init=0.5), "o": last},
        "a synaptic leak of 0": {"a": read, "b": currents("a", 5, 4, synaptic_leak=0.0), "o": last},
        "the last neurons read the input": {"a": read, "o": one},
        "it reads the last neurons (b)": {"a": read, "b": itself, "o": last},
        "the output reads a": {"a": read, "b": currents("a", 5, 4), "o": two},
    }
    for what, layers in xylo_s.items():
        network = SpikingNetwork(layers, Poisson(), (6,))
        assert [found for _, found in wrong(network, "xylo")] == [what]
        with pytest.raises(HardwareError, match=r"layer|readout"):
            xylo.lower(lay_out(to_nir(network)))
    biased = SpikingNetwork({"a": currents("input", 6, 5, bias=True, reset="zero"), "o": one}, Poisson(), (6,))
    assert wrong(biased, "loihi1") == [("a", "a bias")]
    for read in ("last", "max"):
        network = spiking(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), shape=(6,), neuron=lambda: IF(reset="zero"))
        network.read = read
        assert wrong(network, "loihi1") == [("2", "the output is the last or the largest of its values")]
        assert wrong(network, "speck") == []  # the host reads it
        with pytest.raises(HardwareError, match="forgets its potential at once"):
            loihi1.lower(lay_out(to_nir(network)))
    with pytest.raises(HardwareError, match="bias beside a synaptic current"):
        loihi1.lower(lay_out(to_nir(biased)))
    assert not wrong(spiking(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), shape=(6,), neuron=lambda: IF(reset="zero")), "loihi1")


@pytest.mark.parametrize("chip", VENDORS)
def test_events_counted_in_frames_run_on_a_chip_of_spikes_and_falls_do_not(chip: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reset = "zero" if chip == "loihi1" else "subtract"
    plain = spiking(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), shape=(6,), neuron=lambda: IF(reset=reset))
    network = with_currents(6, 8, 8, 3) if chip == "xylo" else plain
    network.encoder = Frames()
    fit = network.fits(chip)
    assert [f.what for f in fit.findings if f.layer == "input"] == ["the input is frames (Frames)"]
    assert fit
    export(network.eval(), tmp_path / "n.nir")
    labels = torch.zeros(5, dtype=torch.int64)
    events = torch.randint(0, 4, (5, 12, 6)).float()
    found = simulate_on_chip(network, tmp_path / "n.nir", events, labels, None, print, chip)
    assert all(count > 0 for _, count in found["layers"].values())
    with pytest.raises(HardwareError, match=r"spikes|events"):
        simulate_on_chip(network, tmp_path / "n.nir", events / 2, labels, None, print, chip)
    network.encoder = Delta()
    assert wrong(network, chip) == [("input", "the input is spikes of both signs (Delta)")]
    network.encoder = Delta(signed=False)
    assert wrong(network, chip) == []


@pytest.mark.parametrize("chip", VENDORS)
def test_whatever_a_chip_s_own_arithmetic_refuses_is_found_or_noted_before(chip: str) -> None:
    """Random networks of all kinds: where ``fits`` finds and notes nothing, ``lower`` makes integers."""
    lower, least = {"loihi1": loihi1.lower, "speck": speck.lower, "xylo": xylo.lower}[chip], replace(target(chip), inputs=None)
    fitting = 0
    for seed in range(4 * len(CHAINS)):
        graph, _, _ = drawn(seed)
        if in_pytorch(graph):
            network = from_nir(graph, encoder=Poisson())
            fit = network.fits(least)  # type: ignore[arg-type]
            noted = any("simulators here do not" in finding.why for finding in fit.findings)
            if fit and not noted:
                lower(lay_out(graph))
                fitting += 1
    assert fitting >= 2


def test_a_dense_layer_on_speck_is_a_kernel_over_the_map_before_it() -> None:
    for size, shape, found in (
        (784, (1, 28, 28), ["a dense layer over maps of 28x28"]),
        (15, (1, 3, 5), ["a dense layer over maps of 3x5"]),
        (256, (1, 16, 16), []),
        (784, (784,), []),
    ):
        network = spiking(nn.Flatten(), nn.Linear(size, 10), nn.ReLU(), nn.Linear(10, 2), shape=shape)
        assert [what for _, what in wrong(network, "speck")] == found


def test_poolings_that_no_file_holds_do_not_fit() -> None:
    for pool, size, name in (
        (nn.AvgPool2d(3, ceil_mode=True), 16, "AvgPool2d with ceil_mode"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), 64, "AvgPool2d with count_include_pad"),
        (nn.AvgPool2d(2, divisor_override=3), 36, "AvgPool2d with divisor_override"),
    ):
        network = spiking(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(size, 2), shape=(1, 8, 8))
        with pytest.raises(NirError):
            to_nir(network)
        ((_, what),) = wrong(network, "loihi2")
        assert what.startswith(name)
    plain = nn.AvgPool2d(2, count_include_pad=False)
    assert spiking(nn.Conv2d(1, 4, 3), nn.ReLU(), plain, nn.Flatten(), nn.Linear(36, 2), shape=(1, 8, 8)).fits("loihi2")


def test_a_network_without_neurons_is_told() -> None:
    network = spiking(nn.Linear(6, 3), shape=(6,))
    assert wrong(network, "speck") == wrong(network, "xylo") == [("", "no layer of neurons")]


def test_a_layer_that_no_chip_computes_does_not_hide_the_others() -> None:
    first = Layer([("input", Synapse([nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 3)]))], IF())
    pool = Layer([("a", Synapse([]))], SpikingMaxPool(2))
    last = Layer([("b", Synapse([nn.Flatten(), nn.Linear(64, 2)]))], None)
    network = SpikingNetwork({"a": first, "b": pool, "c": last}, Poisson(), (1, 8, 8))
    fit = network.fits("loihi1")
    assert fit.budget is None
    assert [(f.layer, f.what) for f in fit.findings] == [
        ("a", "a reset by subtract"),
        ("a", "ConvTranspose2d from 4x6x6 to 4x8x8"),
        ("b", "max pooling of spikes"),
    ]


def test_what_export_folds_is_folded_and_arithmetic_is_told_by_name() -> None:
    block = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), IF(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )
    made = from_module(block, (1, 8, 8))
    fit = made.fits("loihi2")
    assert fit, fit
    conv = outline(made).populations[0].connections[0]
    assert [(op.kind, op.bias) for op in conv.operations] == [("Conv2d", True)]  # type: ignore[attr-defined]
    computing = spiking(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2), shape=(6,))
    told = {f.what.lower() for f in computing.fits("loihi2").findings if f.stops}
    assert {"computes gelu", "computes layernorm"} <= told


@pytest.mark.parametrize("seed", range(len(KINDS)), ids=KINDS)
def test_shapes_alone_give_the_budget_that_the_matrices_give(seed: int) -> None:
    network, inputs = random_network(seed)
    for parameter in network.parameters():
        parameter.data.abs_().add_(0.125)  # a matrix keeps no weights of 0, nor sums of paths that are 0
    plan = lay_out(to_nir(network))
    for chip in (Loihi2(), Loihi2(neurons_per_core=7), Loihi2(bytes_per_core=600)):
        ours, theirs = budget(outline(network), chip), budget(plan, chip)
        assert [replace(layer, name="") for layer in ours.layers] == [replace(layer, name="") for layer in theirs.layers]
        assert (ours.cores, ours.chips, ours.needs) == (theirs.cores, theirs.chips, theirs.needs)
    assert chip_budget(network, inputs)["activity"] == [asdict(layer) for layer in sorted_as(activity(plan, inputs), network)]


def sorted_as(active: list[Activity], network: SpikingNetwork) -> list[Activity]:
    """In the order in which the network computes."""
    order = ["input", *dict(network.named_layers())]
    return sorted(active, key=lambda layer: order.index(layer.name))


@pytest.mark.parametrize(
    ("name", "size"), [("vgg16", 32), ("mobilenet_v2", 64), pytest.param("mobilenet_v2", 224, marks=pytest.mark.slow)]
)
def test_the_budget_of_large_networks_equals_an_independent_count(name: str, size: int) -> None:
    chip, shape = Loihi2(), (3, size, size)
    with torch.device("meta" if name == "vgg16" else "cpu"):
        made = VGG(depth=16) if name == "vgg16" else torchvision.models.mobilenet_v2()
    counted, macs = counting.vgg16() if name == "vgg16" else counting.mobilenet_v2(size, 1000)
    drawn = outline(to_spiking(made.eval(), IF, Direct(), shape))
    found = budget(drawn, chip)
    assert [(layer.neurons, layer.synapses, layer.fan_in, layer.bytes) for layer in found.layers] == [
        (layer.neurons, layer.synapses, layer.fan_in, layer.bytes_in_all()) for layer in counted
    ]
    assert chip.bytes_per_core is not None
    assert chip.neurons_per_core is not None
    if name == "vgg16":
        limits = chip.bytes_per_core, chip.neurons_per_core
        assert [layer.cores for layer in found.layers] == [counting.cores(layer.bytes_of_neurons(), *limits) for layer in counted]
    else:
        for layer, own in zip(found.layers, counted):
            least, most = counting.least_and_most_cores(own, chip.bytes_per_core)
            assert max(least, -(-own.neurons // chip.neurons_per_core)) <= layer.cores <= most, layer.name
    assert found.cores == sum(layer.cores for layer in found.layers)
    quiet = [Activity(name=p.name, spikes=0, payload_bits=1, events=0, synops=0) for p in drawn.populations[:-1]]
    still = Activity(name="input", spikes=0, payload_bits=1, events=0, synops=0)
    assert energy_table(drawn, [still, *quiet], 4).macs == macs


def test_a_network_that_fits_is_simulated_in_the_chip_s_own_widths(tmp_path: Path) -> None:
    network = spiking(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3), shape=(1, 8, 8)).eval()
    report = quantize(to_nir(network), timesteps=6, target=target("speck")).report
    assert [(layer.exponents, layer.bits <= 8, layer.load < 1) for layer in report] == [((-1,), True, True)] * 2
    export(network, tmp_path / "n.nir")
    given = network, tmp_path / "n.nir", torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), 6, print
    with pytest.raises(HardwareError, match="the arithmetic of speck is its own: simulate_on_chip simulates it"):
        compare(*given, RunOn(backend="reference", precision="fixed", target="speck"))


@pytest.mark.parametrize("chip", VENDORS)
def test_a_network_runs_in_the_chip_s_own_arithmetic(chip: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules, reset = (nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3)), "zero"
    network = (
        with_currents(12, 10, 6, 3)
        if chip == "xylo"
        else spiking(*modules, shape=(12,), neuron=(lambda: IF(reset=reset)) if chip == "loihi1" else IF)
    )  # fmt: skip
    assert network.fits(chip), network.fits(chip)
    for parameter in network.parameters():
        parameter.data.abs_() if chip == "loihi1" else None  # else its potentials fall beyond 24 bits, which is refused
    export(network.eval(), tmp_path / "n.nir")
    images, labels = torch.rand(20, 12), torch.zeros(20, dtype=torch.int64)
    of_weights = {layer["name"]: layer for layer in rounded_on_chip(network, chip, 30)}
    assert {layer["bits"] for layer in of_weights.values()} == {8}
    assert all(1e-4 < layer["weight_error"] < 0.02 for layer in of_weights.values())
    counts = {"loihi1": [120, 60, 18], "speck": [120, 60], "xylo": [120, 60]}[chip]
    assert [layer["weights"] for layer in of_weights.values()] == counts
    found = simulate_on_chip(network, tmp_path / "n.nir", images, labels, 30, print, chip)
    (first, ours), *_ = found["layers"].items()
    assert found["layers"].keys() == {first, {"0": "2", "l0": "l1"}[first]}
    assert ours[0] > 50
    for name, (floats, whole) in found["layers"].items():
        assert abs(whole - floats) <= 0.25 * floats + 20, name
    assert found["accuracy"]["pytorch"] == pytest.approx(found["accuracy"][chip], abs=25)


def test_the_output_of_a_late_chip_counts_the_steps_of_the_network(tmp_path: Path) -> None:
    """Inputs of 0 leave the biases of the readout, 0.5 and 0.25, T times; of a delayed readout without those of the delay. Where
    class 1 leads by its spikes before the delay, class 0 by those after it, the later ones decide."""
    layers = [nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)]
    network = spiking(*layers, shape=(2,), neuron=lambda: IF(v_threshold=0.5, reset="zero")).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.tensor([0.5, 0.25]) if parameter.ndim == 1 else torch.eye(2))
    plan = lay_out(to_nir(network))
    for delay, wanted in ((0, [4.0, 2.0]), (3, [2.5, 1.25])):
        plan.readout_from = delay
        late = loihi1.late(plan)
        assert late == 3
        given = np.zeros((1, 8 + late, 2))
        lowered = loihi1.lower(plan, timesteps=given.shape[1])
        output = chip_output(plan, loihi1.simulate(lowered, given), given, late) * lowered.readout.unit
        np.testing.assert_allclose(output, [wanted], rtol=0.01)
    given[0, :3, 1], given[0, 3:5, 0] = 1, 1
    trains = loihi1.simulate(lowered, given)
    output = chip_output(plan, trains, given, late) * lowered.readout.unit
    np.testing.assert_allclose(output, [[4.5, 1.25]], rtol=0.01)


def test_the_host_reads_an_output_as_the_network_does() -> None:
    """By hand, with weights 1, 1 and -1 of one neuron and biases 0, -0.5 and 2.5, of spikes 1, 3, 0, 1."""
    network = spiking(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 3), shape=(1,))
    plan = lay_out(to_nir(network))
    plan.readout.connections[0].matrix.data[:] = 1, 1, -1
    plan.readout.bias[:] = 0, -0.5, 2.5
    trains, given = {plan.populations[0].name: np.array([[[9], [1], [3], [0], [1]]])}, np.zeros((1, 5, 1))
    for read, delay, leak, wanted in (
        ("sum", 0, None, [5, 3, 5]), ("sum", 2, None, [1, 0, 4]), ("sum", 4, None, [5, 3, 5]), ("mean", 2, None, [0.5, 0, 2]),
        ("last", 0, 0.0, [1, 0.5, 1.5]), ("max", 0, 0.0, [3, 2.5, 2.5]), ("last", 0, 0.5, [1.875, 0.9375, 2.8125]),
    ):  # fmt: skip
        plan.read, plan.readout_from, plan.accumulates = read, delay, leak is None
        plan.readout.leak = None if leak is None else np.full(3, leak)
        np.testing.assert_allclose(chip_output(plan, trains, given, late=1), [wanted], err_msg=read)


def test_energies_by_hand_and_the_network_that_loses_is_told() -> None:
    network = spiking(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False), shape=(4,))
    sent = [
        Activity(name="input", spikes=2, payload_bits=1, events=6, synops=6),
        Activity(name="0", spikes=5, payload_bits=1, events=10, synops=10),
    ]
    table = energy_table(outline(network), sent, 8, "loihi2")
    arithmetic, memory, both, chip = table.rows
    assert (table.synops, table.macs) == (16, 18)
    assert arithmetic.snn == pytest.approx((16 * 0.03e-12, 16 * 0.9e-12))
    assert arithmetic.ann == pytest.approx((18 * 0.23e-12, 18 * 4.6e-12))
    word = lambda count: access_joules(count * 4)  # noqa: E731
    queue = word(1000)
    first = 6 * word(12) + 2 * 6 * word(3) + 2 * queue
    second = 10 * word(6) + 2 * 10 * word(2) + 5 * queue
    assert arithmetic.snn is not None
    assert memory.snn is not None
    assert memory.ann is not None
    assert memory.snn.most == pytest.approx(first + second + 5 * queue)
    assert memory.ann.most == pytest.approx(12 * (word(12) + word(4)) + 3 * word(3) + 6 * (word(6) + word(3)) + 2 * word(2))
    assert both.snn == pytest.approx(tuple(a + b for a, b in zip(arithmetic.snn, memory.snn)))
    assert chip.snn == pytest.approx((16 * 23.6e-12 + 40 * 52e-12, 16 * 27.1e-12 + 40 * 81e-12))
    assert chip.ann is None
    assert "of loihi1, since none of loihi2 is published" in chip.source
    assert energy_table(outline(network), sent, 8, "speck").rows[3].snn is None
    many = [replace(layer, spikes=1e3, events=1e4, synops=1e4) for layer in sent]
    assert energy_table(outline(network), many, 100).advice.startswith("the spiking network loses: ")
    none = [replace(layer, spikes=0, events=0, synops=0) for layer in sent]
    assert energy_table(outline(network), none, 1).advice.startswith("the spiking network wins: 0 to 0 times")


def test_a_module_that_the_ann_applies_twice_is_counted_twice_and_one_around_a_sum_once() -> None:
    class Network(nn.Module):
        def __init__(self, around: bool):
            super().__init__()
            self.first, self.shared, self.last, self.around = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2), around

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.first(x).relu()
            b = self.shared(a).relu()
            return self.last((self.shared(b) if not self.around else a + b).relu())

    for around, macs in ((False, 3 * 36 + 12), (True, 2 * 36 + 12)):
        ann = Network(around)
        drawn_ = outline(to_spiking(ann, IF, Poisson(), (6,)))
        quiet = [Activity(name=p.name, spikes=0, payload_bits=1, events=0, synops=0) for p in drawn_.populations[:-1]]
        still = Activity(name="input", spikes=0, payload_bits=1, events=0, synops=0)
        assert energy_table(drawn_, [still, *quiet], 4).macs == macs == count_macs(ann, (6,))


def test_memory_costs_what_the_published_points_say() -> None:
    assert [access_joules(1024 * kilobytes) for kilobytes in (0, 8, 20, 32, 1024, 4096)] == pytest.approx(
        [0.0, 10e-12, 15e-12, 20e-12, 100e-12, 100e-12]
    )


def test_an_outline_of_a_layer_reads_no_weights() -> None:
    with torch.device("meta"):
        made = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert fits(outline(to_spiking(made, IF, Poisson(), (4,))), "loihi2")
