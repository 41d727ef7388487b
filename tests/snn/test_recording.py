"""What is observed of a simulation: potentials obey the neuron's equation, spikes stay what they are, summaries count right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikeprop import BPTT, IF, LIF, GradedIF, MaxActivation, SpikeRecording, SpikingNetwork, convert, spiking
from spikeprop.errors import DataError
from spikeprop.evaluate import ActivityMeter, snn_accuracy
from spikeprop.runtime.batches import Sequences


@pytest.fixture(scope="module")
def converted() -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip
    x = torch.rand(5, 1, 4, 4)
    return convert(ann.eval(), x, IF(v_init=0.5), MaxActivation()), x


def test_potentials_obey_the_neurons_equation(converted: tuple[SpikingNetwork, Tensor]) -> None:
    """v(t) = v(t - 1) + I(t) - threshold where it fires, I being the synapses' current of what the sources sent."""
    network, x = converted
    seen = network.record(x, 6, membranes=True)
    assert list(seen.membranes) == list(network.neurons())
    for name, neuron in network.neurons().items():
        v_TB, spikes_TB, theta = seen.membranes[name], seen.spikes[name], neuron.v_threshold
        with torch.no_grad():
            current_TB = network._layer(name).current({source: seen.spikes[source] for source in network._layer(name).sources})
        before_TB = torch.cat([(neuron.v_init * theta).expand_as(v_TB[:1]), v_TB[:-1]])
        torch.testing.assert_close(v_TB, before_TB + current_TB - theta * spikes_TB, rtol=0, atol=1e-5)
        assert torch.equal(spikes_TB, (before_TB + current_TB > theta).float())


def test_a_printed_network_is_one_line_and_its_notes(converted: tuple[SpikingNetwork, Tensor]) -> None:
    network, _ = converted
    assert str(network) == "SpikingNetwork(input (1, 4, 4); 3 layers; IF; 163 parameters; layers: .summary())"
    assert len(network.summary().layers) == 4  # the input too


def test_recording_changes_nothing(converted: tuple[SpikingNetwork, Tensor]) -> None:
    network, x = converted
    network.train()
    spikes, both = network.record(x, 6), network.record(x, 6, membranes=True)
    assert network.training
    network.eval()
    assert spikes.membranes == {}
    assert all(torch.equal(train, both.spikes[name]) for name, train in spikes.spikes.items())
    (last,) = list(network.layers)[-1:]
    (source,) = network._layer(last).sources
    total = network._layer(last).current({source: spikes.spikes[source]}).sum(0)
    torch.testing.assert_close(total, network(x, 6))


def test_potentials_are_seen_in_streams_chunks_and_with_gradients(converted: tuple[SpikingNetwork, Tensor]) -> None:
    network, x = converted
    wanted = network.record(x, 4, membranes=True).membranes
    for run in (
        lambda seen: network(x, 4, chunk=3, observe=seen),
        lambda seen: list(network.unroll(x, 4, observe=seen)),
        lambda seen: network.run(network.encoded(x, 4), network.init_state(), observe=seen),
    ):
        seen = SpikeRecording(membranes=True)
        run(seen)
        assert all(torch.allclose(v, seen.membranes[name], atol=1e-6) for name, v in wanted.items())


def test_potentials_of_batch_norm_in_training_are_refused() -> None:
    network = spiking(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), IF(), nn.Linear(4, 2)), (3,)).train()
    with pytest.raises(ValueError, match="potentials are observed step by step"):
        network(torch.rand(4, 3), 3, observe=SpikeRecording(membranes=True))


def test_potentials_of_sequences_end_with_them() -> None:
    torch.manual_seed(0)
    network = spiking(nn.Sequential(nn.Linear(3, 4), LIF(leak=0.9), nn.Linear(4, 2)), (3,))
    x = Sequences(1 + torch.rand(2, 5, 3), torch.tensor([5, 2]))
    v_TB = network.record(x, membranes=True).membranes["1"]
    assert v_TB.shape == (5, 2, 4)
    assert bool((v_TB[:2, 1] != 0).any())
    assert not bool(v_TB[2:, 1].any())


def test_recording_names_unknown_layers_and_is_bounded(
    converted: tuple[SpikingNetwork, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = converted
    name = list(network.neurons())[-1]
    assert list(network.record(x, 2, layers=[name]).spikes) == [name]
    with pytest.raises(DataError, match="samples are a list; pass a tensor"):
        network.record([x], 2)
    with pytest.raises(DataError, match=f"no layer 'none' that sends spikes; it has input, .*{name}"):
        network.record(x, 2, layers=["none"])
    monkeypatch.setattr("spikeprop.snn.recording.LARGEST", 100)
    with pytest.raises(DataError, match="record fewer samples or steps"):
        network.record(x, 2)


def test_summary_has_every_parameter_and_the_counts_of_an_evaluation(converted: tuple[SpikingNetwork, Tensor]) -> None:
    network, x = converted
    plain = network.summary()
    assert plain.parameters == sum(p.numel() for p in network.parameters())
    assert plain.timesteps is plain.synops is None
    assert {row.name: row.shape for row in plain.layers} == network.shapes()
    meter = ActivityMeter(network, 6)
    snn_accuracy(network, (x, torch.zeros(5, dtype=torch.long)), [6], meter=meter)
    counted = network.summary(x, 6)
    assert {row.name: row.rate for row in counted.layers if row.rate is not None} == meter.rates()
    assert counted.synops == pytest.approx(sum(meter.synops().values()))
    assert {row.name: row.rate for row in counted.layers}["input"] == pytest.approx(float((x != 0).float().mean()))
    text, shown = str(counted), counted._repr_html_()
    assert "T = 6, 5 samples" in text
    assert all(name in text and f">{name}</td>" in shown for name in network.layers)
    assert "rate" not in str(plain)


def test_summary_tells_settings_that_matter_and_escapes_notes() -> None:
    network = spiking(
        nn.Sequential(nn.Linear(3, 4), LIF(leak=0.5, reset="zero"), nn.Linear(4, 4), GradedIF(levels=3), nn.Linear(4, 2)), (3,)
    )
    network.notes = ["a <b> note"]
    text = str(network.summary())
    assert "LIF(leak=0.5, reset=zero)" in text
    assert "GradedIF(levels=3)" in text
    assert "Linear 3 to 4" in text
    assert "a &lt;b&gt; note" in network._repr_html_()


def test_training_after_a_summary_is_possible(converted: tuple[SpikingNetwork, Tensor]) -> None:
    network, x = converted
    network.summary(x, 2)
    BPTT(timesteps=2).step(network, x, torch.zeros(5, dtype=torch.long))
    assert any(p.grad is not None for p in network.parameters())
