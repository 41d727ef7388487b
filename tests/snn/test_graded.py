"""Graded neurons: the definition by hand and in its fast form, the sum they send, and networks of them in the engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikeprop import CNN, IF, Digits, GradedIF, LeastError, LightCalibration, MaxActivation, SignedIF, convert, snn_accuracy
from spikeprop.convert import activation_scales, relu_activations, to_spiking
from spikeprop.errors import ConversionError, RecipeError
from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.error import conversion_error
from spikeprop.evaluate.report import steps_text
from spikeprop.recipe import load_recipe
from spikeprop.snn import INPUT
from spikeprop.snn.activity import payloads
from spikeprop.snn.dynamics import NeuronState
from spikeprop.snn.engine.layerwise import LayerwiseRun
from spikeprop.snn.engine.support import supports
from spikeprop.snn.interop import rebuild
from spikeprop.snn.signed import _scan, _scan_on_cpu


def by_hand(currents: list[float], levels: int, theta: float) -> tuple[list[int], float]:
    """One neuron, as the issue defines it: levels theta / 2^(i-1), greedy from the largest, start at half the smallest."""
    sizes = [theta / 2**i for i in range(levels)]
    v, sent, payloads = sizes[-1] / 2, 0.0, []
    for current in currents:
        v += current
        rest, payload = v, 0
        if v > 0:
            for i, size in enumerate(sizes):
                if rest > size:
                    rest, payload = rest - size, payload + 2 ** (levels - 1 - i)
        else:
            for i, size in enumerate(sizes):  # a level is taken back where what is left would still lie below 0
                count = 2 ** (levels - 1 - i)
                if rest + size < sizes[-1] and sent + payload - count >= 0:
                    rest, payload = rest + size, payload - count
        v -= payload * sizes[-1]
        sent += payload
        payloads.append(payload)
    return payloads, v


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 7])
def test_payloads_are_those_of_the_greedy_definition(levels: int) -> None:
    draws = torch.Generator().manual_seed(levels)
    currents_TB = torch.randn(12, 60, generator=draws, dtype=torch.float64) * 1.3
    neuron = GradedIF(levels=levels, v_threshold=0.75).double()
    spikes, state = neuron.run(currents_TB, neuron.initial_state(currents_TB[0]))
    for b in range(60):
        payloads, v = by_hand(currents_TB[:, b].tolist(), levels, 0.75)
        assert spikes[:, b].tolist() == payloads
        assert float(state.v[b]) == pytest.approx(v, abs=1e-12)
    assert spikes.max() == 2**levels - 1
    assert (spikes < 0).any()
    assert (spikes.cumsum(0) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 2, 4, 7])
def test_the_fast_loop_is_the_definition_to_the_bit(levels: int, dtype: torch.dtype) -> None:
    """Also exactly on the levels, beside them, far beyond them, and where numbers are not finite."""
    draws = torch.Generator().manual_seed(levels)
    unit = torch.rand(3, 1, 1, generator=draws, dtype=dtype) + 0.1
    payload = 2**levels - 1
    steps = torch.randint(-2 * payload, 2 * payload + 1, (7, 40, 3, 8, 9), generator=draws).to(dtype)
    exact = steps * unit
    noise = torch.randn(exact.shape, generator=draws, dtype=dtype)
    currents = torch.cat([exact, exact.nextafter(exact + 1), exact.nextafter(exact - 1), noise])
    currents[5, 0, 0, 0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30], dtype=dtype)
    found = []
    for kind in (dtype, torch.int8):
        for run in (_scan, _scan_on_cpu):
            v, sent = torch.zeros(40, 3, 8, 9, dtype=dtype), torch.zeros(40, 3, 8, 9, dtype=dtype)
            spikes = torch.empty(28, 40, 3, 8, 9, dtype=kind)
            run(currents, unit, payload, v, sent, spikes)
            found.append((v, sent, spikes.to(dtype)))
    for other in found[1:]:
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(found[0], other))
    assert found[0][2].abs().max() == payload


@pytest.mark.parametrize("levels", [1, 3])
def test_what_was_sent_is_the_summed_input_within_half_the_smallest_level(levels: int) -> None:
    draws = torch.Generator().manual_seed(0)
    neuron = GradedIF(levels=levels, v_threshold=2.0).double()
    unit = float(neuron.spike_size)
    most = unit * neuron.payload
    currents_TB = most * (2 * torch.rand(30, 500, generator=draws, dtype=torch.float64) - 1)  # no step is due more
    spikes, state = neuron.run(currents_TB, neuron.initial_state(currents_TB[0]))
    sent_TB, input_TB = unit * spikes.cumsum(0), currents_TB.cumsum(0)
    error_TB = sent_TB - input_TB.clamp(min=0)
    assert error_TB.abs().max() <= unit / 2 + 1e-9  # after every step, though far below 0 before
    assert (input_TB < -most).any()
    assert isinstance(state, NeuronState)


def test_one_level_is_the_signed_neuron() -> None:
    draws = torch.Generator().manual_seed(3)
    currents = torch.randn(20, 50, 4, generator=draws)
    found = []
    for neuron in (GradedIF(levels=1, v_threshold=0.7), SignedIF(v_threshold=0.7)):
        spikes, state = neuron.run(currents, neuron.initial_state(currents[0]))
        found.append((spikes, state.v, state.sent))
    assert all(torch.equal(a, b) for a, b in zip(*found))  # type: ignore[arg-type]
    assert set(found[0][0].unique().tolist()) == {-1.0, 0.0, 1.0}


def test_full_scale_is_what_a_step_can_send() -> None:
    for levels in (1, 2, 5):
        neuron = GradedIF(levels=levels)
        neuron.set_full_scale(torch.tensor(3.1))
        assert float(neuron.full_scale) == pytest.approx(3.1)
        assert float(neuron.v_threshold) == pytest.approx(3.1 * 2 ** (levels - 1) / (2**levels - 1))
        assert float(neuron.spike_size) * 2 ** (levels - 1) == pytest.approx(float(neuron.v_threshold))
    assert float(IF(v_threshold=2.0).full_scale) == 2.0


@pytest.mark.parametrize("levels", [0, 8, 2.0, True, "3"])
def test_levels_that_are_none_are_refused(levels: object) -> None:
    with pytest.raises(ValueError, match="1 to 7 levels"):
        GradedIF(levels=levels)  # type: ignore[arg-type]


def pooled() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    ).eval()


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_engine_sends_what_the_plain_reference_sends(chunk: int) -> None:
    x = torch.rand(9, 1, 8, 8)
    network = convert(pooled(), [x], GradedIF(levels=3), LeastError(timesteps=3))
    heard: list[dict[str, Tensor]] = []
    for plain in (False, True):
        fired: dict[str, list[Tensor]] = {}
        handle = next(iter(network.neurons().values())).register_forward_hook(lambda *_: None) if plain else None
        with torch.no_grad():
            assert supports(network, x) != plain
            output = network(x, 7, chunk=chunk, observe=lambda n, s, f=fired: f.setdefault(n, []).append(s.clone()))
        if handle is not None:
            handle.remove()
        heard.append({name: torch.cat(parts) for name, parts in fired.items()} | {"output": output})
    for name, spikes in heard[0].items():
        torch.testing.assert_close(spikes, heard[1][name], rtol=1e-5, atol=1e-4)
        if name in network.neurons():
            assert torch.equal(spikes, heard[1][name])
    assert max(float(s.max()) for n, s in heard[0].items() if n in network.neurons()) > 3


def test_calibration_sees_the_payloads_that_the_network_sends() -> None:
    x = torch.rand(9, 1, 8, 8)
    network = convert(pooled(), [x], GradedIF(levels=4), LightCalibration(timesteps=2, potential=True))
    fired: dict[str, Tensor] = {}
    with torch.no_grad():
        network(x, 2, observe=lambda n, s: fired.__setitem__(n, fired.get(n, 0) + s.sum(0)))
    layers = LayerwiseRun(network, x, 2, lambda first, steps: network.encoded(x, 1))
    for name in network.dynamics():
        layers.fire(name)
        assert torch.equal(layers.rate(name) * 2, fired[name])


def test_one_step_of_four_levels_keeps_the_accuracy(digits_cnn: CNN) -> None:
    x = next(iter(Digits().train(512, seed=0).epoch(0)))[0]
    test = list(Digits().test(360).epoch(0))
    graded = convert(digits_cnn, [x], GradedIF(levels=4), LightCalibration(timesteps=1))
    signed = convert(digits_cnn, [x], SignedIF(), LightCalibration(timesteps=1))
    assert snn_accuracy(graded, test, [1])[1] > max(96, snn_accuracy(signed, test, [1])[1])


def test_other_libraries_do_not_take_graded_neurons(digits_cnn: CNN) -> None:
    for neuron in (GradedIF(levels=2, v_init=0.0), SignedIF(v_init=0.0)):
        other = convert(digits_cnn, [torch.rand(4, 1, 8, 8)], neuron, LeastError(timesteps=2))
        with pytest.raises(ConversionError, match="takes spikes back"):
            rebuild(other, "snntorch")


@pytest.mark.parametrize("neuron", [IF(v_init=0.5), SignedIF(), GradedIF(levels=2)], ids=str)
def test_a_search_on_spikes_sends_closer_to_the_activations(digits_cnn: CNN, neuron: IF | GradedIF) -> None:
    """Of the first two layers: mean squared error of what is sent, against the search on constant currents."""
    x = next(iter(Digits().train(256, seed=0).epoch(0)))[0][:128]
    errors = []
    for search in ("rate", "spikes"):
        network = convert(digits_cnn, [x], neuron, LightCalibration(timesteps=2, search=search, bias=False))  # type: ignore[arg-type]
        plain = to_spiking(digits_cnn, IF, network.encoder, (1, 8, 8), images=x)
        wanted, scales = relu_activations(plain, x), activation_scales(network)
        sent: dict[str, Tensor] = {}
        with torch.no_grad():
            network(x, 2, observe=lambda n, s, found=sent: found.__setitem__(n, found.get(n, 0) + s.sum(0)))
        first, second, *_ = network.neurons()
        errors.append([float((sent[n] / 2 * scales[n] - wanted[n]).square().mean().detach()) for n in (first, second)])
    assert errors[1][0] <= errors[0][0] * 1.0001  # the same currents for both
    assert errors[1][1] < errors[0][1] * 1.02


def test_bits_and_operations_count_the_payload(digits_cnn: CNN) -> None:
    x = torch.rand(6, 1, 8, 8)
    for levels in (1, 3):
        network = convert(digits_cnn, [x], GradedIF(levels=levels), LeastError(timesteps=2))
        meter = ActivityMeter(network, 2)
        count: dict[str, float] = {}
        see = meter.start(len(x))

        def observe(name: str, spikes_TB: Tensor) -> None:
            see(name, spikes_TB)  # noqa: B023
            count[name] = count.get(name, 0) + float((spikes_TB != 0).sum())  # noqa: B023

        with torch.no_grad():
            network(x, 2, observe=observe)
        neurons = sum(maps.numel() for name, maps in meter.fan_out.items() if name != INPUT)
        sent = sum(number for name, number in count.items() if name != INPUT)
        assert meter.bits() == pytest.approx(sent * (levels + 1) / neurons / len(x))
        assert payloads(network)[INPUT] == (1, False)
        last = list(network.neurons())[-1]
        assert payloads(network)[last] == (levels, True)
        assert meter.synops()[last] == pytest.approx(levels * count[last] * float(meter.fan_out[last].mean()) / len(x), rel=1e-6)
    assert steps_text(2, 3) == "T = 2 x 3 levels"
    assert steps_text(2, 1) == "T = 2"
    pooled_network = convert(pooled(), [x], GradedIF(levels=3), LeastError(timesteps=2))
    assert all(payload == (3, True) for name, payload in payloads(pooled_network).items() if name != INPUT)


def test_a_graded_conversion_has_no_error_of_clipping_where_payloads_reach(digits_cnn: CNN) -> None:
    x = torch.rand(16, 1, 8, 8)
    network = convert(digits_cnn, [x], GradedIF(levels=5), MaxActivation(per="channel"))
    plain = to_spiking(digits_cnn, IF, network.encoder, (1, 8, 8), images=x)
    errors = conversion_error(network, x, relu_activations(plain, x), activation_scales(network), [1, 2])
    first = next(iter(errors.values()))
    assert first[1].clipping < 1e-6
    assert first[1].unevenness < 1e-6  # a constant current
    assert first[2].quantisation < 0.7 * first[1].quantisation


def test_check_lets_fine_tune() -> None:
    load_recipe("digits_cnn_stdb", ["convert.neuron={use: GradedIF, levels: 4}"]).experiment.check()
    recipe = load_recipe("digits_cnn_stdb", ["convert.neuron={use: DifferentialIF, levels: 4}"]).experiment
    with pytest.raises(RecipeError, match=r"DifferentialIF passes no gradient; .* convert\.neuron=GradedIF"):
        recipe.check()
