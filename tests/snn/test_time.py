"""Input in time and the output over time: encoders, sequences and their lengths, readings, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import IF, LIF, Delta, Direct, Frames, Integrator, Latency, Poisson, SpikingNetwork
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import INPUT, Encoder, Layer, Synapse, time_first
from spikeprop.snn.leaving import Leaving

STEPS, BATCH = 11, 5
LENGTHS = torch.tensor([1, 11, 4, 7, 9])


def vectors(encoder: Encoder, last: Any = None) -> SpikingNetwork:
    """A skip from the input, which is read at two depths."""
    layers = {
        "a": Layer([(INPUT, Synapse([nn.Linear(12, 20)]))], LIF(v_threshold=0.3, leak=0.9)),
        "b": Layer([("a", Synapse([nn.Linear(20, 20)])), (INPUT, Synapse([nn.Linear(12, 20)]))], IF(v_threshold=0.2)),
        "out": Layer([("b", Synapse([nn.Linear(20, 4)]))], last),
    }
    return SpikingNetwork(layers, encoder, (12,)).double().eval()


def images(encoder: Encoder, last: Any = None) -> SpikingNetwork:
    layers = {
        "a": Layer([(INPUT, Synapse([nn.Conv2d(2, 5, 3, padding=1)]))], LIF(v_threshold=0.4, leak=0.9)),
        "b": Layer([("a", Synapse([nn.AvgPool2d(2), nn.Conv2d(5, 6, 3)]))], IF(v_threshold=0.2)),
        "out": Layer([("b", Synapse([nn.Flatten(), nn.Linear(24, 4)]))], last),
    }
    return SpikingNetwork(layers, encoder, (2, 8, 8)).double().eval()


def sequence(network: SpikingNetwork) -> Tensor:
    return torch.rand(STEPS, BATCH, *network.input_shape, dtype=torch.float64)


# encoders ---------------------------------------------------------------------------------------------------------------------


def test_latency_is_a_spike_at_one_minus_x_of_the_time() -> None:
    x_TB = torch.tensor([[1.0, 0.5, 0.0, -0.25, 0.01]]).expand(5, 1, 5)
    wanted = torch.zeros(5, 1, 5)
    wanted[0, 0, 0] = wanted[2, 0, 1] = wanted[4, 0, 4] = 1
    wanted[3, 0, 3] = -1
    assert torch.equal(Latency()(x_TB, 0, 5), wanted)
    assert torch.equal(torch.cat([Latency()(x_TB, 0, 2), Latency()(x_TB, 2, 5)]), wanted)


def test_delta_is_a_spike_where_a_frame_differs_from_the_one_before() -> None:
    x_TB = torch.tensor([0.0, 0.3, 0.3, -0.2, -0.1]).view(5, 1, 1)
    assert Delta(threshold=0.2)(x_TB, 0, 5).flatten().tolist() == [0, 1, 0, -1, 0]
    assert Delta(threshold=0.2, signed=False)(x_TB, 2, 5).flatten().tolist() == [0, 0, 0]
    assert Delta(threshold=0.2)(x_TB, 3, 4).flatten().tolist() == [-1]
    with pytest.raises(ValueError, match="threshold is 0"):
        Delta(threshold=0)


def test_poisson_draws_a_number_for_each_value_at_each_step() -> None:
    x, network = torch.rand(3, 12, dtype=torch.float64) * 2 - 1, vectors(Poisson())
    torch.manual_seed(4)
    wanted = torch.stack([x.sign() * (torch.rand_like(x) < x.abs()) for _ in range(6)])
    torch.manual_seed(4)
    assert torch.equal(network.encoded(x, 6), wanted)
    torch.manual_seed(4)
    assert torch.equal(network.encoded(x.repeat(6, 1, 1)), wanted)


@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=lambda e: type(e).__name__)
def test_still_samples_are_a_sequence_of_equal_frames(encoder: Encoder) -> None:
    network, x = images(encoder), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    for packed in (True, False):
        network.packed, found = packed, []
        for given in ((x, 6), (x.repeat(6, 1, 1, 1, 1),)):
            torch.manual_seed(2)
            network.zero_grad()
            output = network(*given)
            output.square().sum().backward()
            found.append((output.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])))
        for still, moving in zip(*found):
            torch.testing.assert_close(still, moving, rtol=1e-10, atol=1e-10)


def test_an_encoder_that_does_not_know_the_step_is_refused() -> None:
    with pytest.raises(TypeError, match=r"an encoder defines __call__\(self, x_TB, first, last\)"):

        class Old(Encoder):
            def __call__(self, x: Tensor, timesteps: int) -> Tensor:  # type: ignore[override]
                return x

    class Short(Encoder):
        def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
            return x_TB[first : first + 1]

    with pytest.raises(ValueError, match=r"Short returned 1 steps for the steps 0\.\.11"):
        vectors(Short())(torch.rand(STEPS, 1, 12, dtype=torch.float64), chunk=STEPS)


# the output over time ---------------------------------------------------------------------------------------------------------


def test_an_integrator_leaks_and_does_not_fire() -> None:
    integrator = Integrator(leak=0.5)
    currents = torch.tensor([1.0, 2.0, -1.0]).view(3, 1, 1)
    values, state = integrator.run(currents, integrator.initial_state(currents[0]))
    assert values.flatten().tolist() == [1.0, 2.5, 0.25]
    assert float(state.v) == 0.25
    with pytest.raises(ValueError, match="leak is 2"):
        Integrator(leak=2)


@torch.no_grad()
@pytest.mark.parametrize("last", [None, 0.8])
def test_readings_are_those_of_the_values_over_time(last: float | None) -> None:
    network = vectors(Frames(), last if last is None else Integrator(leak=last))
    x_TB = sequence(network)
    values = network.over_time(x_TB)
    count = torch.arange(1, STEPS + 1).view(-1, 1, 1)
    wanted = {"sum": values.cumsum(0), "mean": values.cumsum(0) / count, "last": values, "max": values.cummax(0).values}
    for how, outputs in wanted.items():
        network.read = how  # type: ignore[assignment]
        for chunk in (None, 1, 4):
            torch.testing.assert_close(torch.cat(list(network.unroll(x_TB, chunk=chunk))), outputs, rtol=1e-12, atol=1e-12)
        held = outputs[LENGTHS - 1, torch.arange(BATCH)]
        torch.testing.assert_close(network(x_TB, lengths=LENGTHS, chunk=3), held, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(network(x_TB), outputs[-1], rtol=1e-12, atol=1e-12)
    wanted_values = values * (torch.arange(STEPS)[:, None] < LENGTHS).unsqueeze(2)
    torch.testing.assert_close(network.over_time(x_TB, lengths=LENGTHS), wanted_values, rtol=1e-12, atol=1e-12)


def gradients(network: SpikingNetwork, run: Any) -> tuple[Tensor, list[Tensor]]:
    network.zero_grad()
    torch.manual_seed(3)
    output = run()
    torch.manual_seed(5)
    (output * torch.rand_like(output)).sum().backward()
    return output.detach(), [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("seed", range(12))
def test_the_engine_gives_what_the_plain_reference_gives(seed: int) -> None:
    torch.manual_seed(seed)
    encoder: Encoder = (Frames(), Direct(), Poisson(), Delta(threshold=0.2))[seed % 4]
    last = Integrator(leak=0.8, trainable=["leak"]) if seed % 3 == 0 else None
    network = (images if seed % 2 else vectors)(encoder, last)
    network.read = ("last", "sum", "max", "mean", "sum")[seed % 5]  # type: ignore[assignment]
    lengths, x_TB = LENGTHS if seed % 5 != 1 else None, sequence(network)
    found = []
    for packed, chunk in ((False, None), (True, None), (True, 3)):
        network.packed = packed
        trains: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            torch.manual_seed(3)
            watch = lambda name, spikes, trains=trains: trains.setdefault(name, []).append(spikes.clone())  # noqa: E731
            outputs = torch.cat(list(network.unroll(x_TB, lengths=lengths, chunk=chunk, observe=watch)))
        one = gradients(network, lambda chunk=chunk: network(x_TB, lengths=lengths, chunk=chunk))
        each = gradients(network, lambda chunk=chunk: network.over_time(x_TB, lengths=lengths, chunk=chunk))
        torch.testing.assert_close(one[0], outputs[-1], rtol=1e-12, atol=1e-12)
        found.append((outputs, each[0], [*one[1], *each[1]], {name: torch.cat(train) for name, train in trains.items()}))
    for outputs, values, grads, seen in found[1:]:
        torch.testing.assert_close(outputs, found[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values, found[0][1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads, found[0][2], rtol=1e-9, atol=1e-9)
        assert all(torch.equal(train, found[0][3][name]) for name, train in seen.items())
    assert all(float(spikes.mean()) > 0.02 for name, spikes in found[0][3].items() if name != INPUT)


@torch.no_grad()
@pytest.mark.parametrize("how", ["sum", "mean", "last", "max"])
def test_a_padded_sequence_is_what_it_is_alone_and_in_a_stream(how: Any) -> None:
    network = vectors(Frames(), Integrator(leak=0.9) if how == "max" else None)
    network.read = how
    x_TB = sequence(network)
    together = torch.cat(list(network.unroll(x_TB, lengths=LENGTHS)))
    for i, length in enumerate(LENGTHS.tolist()):
        alone = network(x_TB[:length, i : i + 1])
        torch.testing.assert_close(together[-1, i : i + 1], alone, rtol=1e-12, atol=1e-12)
    state = network.init_state(LENGTHS)
    for x_B, outputs in zip(x_TB, together):
        output, state = network.step(x_B, state)
        torch.testing.assert_close(output, outputs, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_sequences_leave_like_images(packed: bool) -> None:
    network = images(Direct(), Integrator())
    network.packed, network.read, rows, leaving = packed, "max", torch.tensor([1, 4]), Leaving()
    x_TB = sequence(network)
    wanted = torch.cat(list(network.unroll(x_TB, lengths=LENGTHS)))
    outputs = network.unroll(x_TB, lengths=LENGTHS, chunk=2, leaving=leaving)
    next(outputs)
    leaving.keep(rows)
    torch.testing.assert_close(torch.cat(list(outputs)), wanted[2:, rows], rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_what_is_observed_ends_with_a_sample(packed: bool) -> None:
    network, rows, leaving = images(Direct()), torch.tensor([1, 4]), Leaving()
    network.packed, x_TB = packed, sequence(network)
    complete: dict[str, list[Tensor]] = {}
    own: dict[str, list[Tensor]] = {}
    network(x_TB, observe=lambda name, spikes: complete.setdefault(name, []).append(spikes.clone()))
    watch = lambda name, spikes: own.setdefault(name, []).append(spikes.clone())  # noqa: E731
    outputs = network.unroll(x_TB, lengths=LENGTHS, chunk=3, leaving=leaving, observe=watch)
    next(outputs)
    leaving.keep(rows)
    list(outputs)
    counts_TB = torch.arange(STEPS)[:, None] < LENGTHS
    for name in ("input", "a", "b"):
        wanted = torch.cat(complete[name])
        wanted = wanted * counts_TB.view(STEPS, BATCH, *(1,) * (wanted.dim() - 2))
        assert torch.equal(own[name][0], wanted[:3])
        assert torch.equal(torch.cat(own[name][1:]), wanted[3:, rows])


def test_the_reading_is_in_the_checkpoint() -> None:
    network, other = vectors(Frames()), vectors(Frames())
    assert "readout.read" not in network.state_dict()
    network.read = "max"
    other.load_state_dict(network.state_dict())
    assert other.read == "max"
    other.load_state_dict(vectors(Frames()).state_dict())
    assert other.read == "sum"
    weights = {name: value for name, value in network.state_dict().items() if name.startswith("layers.")}
    network.load_state_dict(weights, strict=False)
    assert network.read == "max"
    state = network.state_dict()
    state["readout.read"] = torch.tensor(9)
    with pytest.raises((ValueError, RuntimeError), match="read is 9"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="read is 'median'"):
        network.read = "median"  # type: ignore[assignment]


@torch.no_grad()
def test_a_delayed_readout_counts_later_frames_and_nothing_else_is_summed_with_it() -> None:
    network = vectors(Frames())
    x_TB = sequence(network)
    values = network.over_time(x_TB)
    network.readout.set(delay=3)
    torch.testing.assert_close(network(x_TB), values[3:].sum(0), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="use forward"):
        network.over_time(x_TB)
    with pytest.raises(ValueError, match="delayed readout or a run beforehand, which sum up"):
        network(x_TB, lengths=LENGTHS)
    network.readout.set(pre_run=3)
    with pytest.raises(ValueError, match="so its input must stay the same"):
        network(x_TB)
    network.encoder = Latency()
    with pytest.raises(ValueError, match="so its input must stay the same"):
        network(x_TB[0], 8)


# what is given ----------------------------------------------------------------------------------------------------------------


def test_batches_of_data_become_time_first() -> None:
    network, x_BT = vectors(Frames()), torch.rand(4, 6, 12)
    still, lengths = time_first(network, x_BT[:, 0])
    assert still.shape == (4, 12)
    assert lengths is None
    moving, lengths = time_first(network, x_BT)
    assert torch.equal(moving, x_BT.transpose(0, 1))
    assert lengths is None
    moving, lengths = time_first(network, Sequences(x_BT, torch.tensor([6, 2, 3, 1])))
    assert torch.equal(moving, x_BT.transpose(0, 1))
    assert lengths is not None
    assert lengths.tolist() == [6, 2, 3, 1]


def _bad(network: SpikingNetwork) -> dict[str, tuple[dict[str, Any], str]]:
    x_TB = sequence(network)
    holed = x_TB.clone()
    holed[7, 2, 3] = torch.nan
    holed[9, 1] = torch.inf
    both = r"\(batch, \*\(12,\)\), still samples for a number of timesteps, or \(time, batch, \*\(12,\)\), sequences"
    return {
        "shape": ({"x": x_TB[..., :5]}, r"has shape \(11, 5, 5\); this network reads " + both),
        "axes": ({"x": x_TB[0, 0]}, r"has shape \(12,\); this network reads " + both),
        "no steps": ({"x": x_TB[:0]}, "a sequence without steps; a simulation needs at least 1 step"),
        "no samples": ({"x": x_TB[:, :0]}, "holds no sample"),
        "contradiction": ({"x": x_TB, "timesteps": 9}, r"timesteps is 9, but .* is a sequence of 11 steps: leave timesteps out"),
        "missing": ({"x": x_TB[0]}, "still samples, so the simulation needs timesteps="),
        "still": ({"x": x_TB[0], "timesteps": 4}, "Frames reads sequences alone: pass a tensor"),
        "NaN": ({"x": holed}, "NaN or infinity in 2 of 5 sequences, first at step 7 of sample 2"),
        "number": ({"x": x_TB, "lengths": LENGTHS[:4]}, r"lengths has shape \(4,\); give one number for each of the 5"),
        "type": ({"x": x_TB, "lengths": LENGTHS.float()}, "lengths is torch.float32; give torch.tensor"),
        "list": ({"x": x_TB, "lengths": [1] * 5}, "lengths is list; give torch.tensor"),
        "zero": ({"x": x_TB, "lengths": LENGTHS - 1}, "lengths holds 0; a sequence of this input has 1 to 11 steps"),
        "long": ({"x": x_TB, "lengths": LENGTHS + 1}, "lengths holds 12; a sequence of this input has 1 to 11 steps"),
    }


@pytest.mark.parametrize("packed", [True, False])
def test_input_that_does_not_fit_is_named(packed: bool) -> None:
    network = vectors(Frames())
    network.packed = packed
    for given, says in _bad(network).values():
        for simulate in (network, network.over_time, lambda **given: list(network.unroll(**given))):
            with pytest.raises(ValueError, match=says):
                simulate(**given)
    network.encoder = Latency()
    with pytest.raises(ValueError, match="Latency reads still samples alone"):
        network(sequence(network))


def test_padding_does_not_enter_the_statistics_of_a_batch_norm() -> None:
    network = images(Frames())
    network.layers["a"].synapses[0].ops.append(nn.BatchNorm2d(5).double())  # type: ignore[index, union-attr]
    x_TB = sequence(network)
    network.train()
    with pytest.raises(
        ValueError, match=r"would count the padding of shorter sequences: .* \(set the data's duration or frames\)"
    ):
        network(x_TB, lengths=LENGTHS)
    assert torch.isfinite(network(x_TB, lengths=torch.full((BATCH,), STEPS))).all()
    assert torch.isfinite(network.eval()(x_TB, lengths=LENGTHS)).all()


@torch.no_grad()
def test_a_stream_is_refused_what_does_not_fit() -> None:
    network = vectors(Frames())
    x_TB = sequence(network)
    begin, (_, after) = network.init_state(), network.step(x_TB[0], network.init_state())
    hollow_TB = x_TB.clone()
    hollow_TB[1, 2] = torch.nan
    refusals: list[tuple[Any, str]] = [
        (lambda: network.step(x_TB[0, 0], begin), r"step reads \(batch, .* one sample needs a batch axis: x\[None\]"),
        (lambda: network.step(x_TB, begin), r"several steps: network\.run\(x, state\), or network\(x\)"),
        (lambda: network.step(x_TB[0, :, :-1], begin), r"input has shape .*; step reads \(batch, "),
        (lambda: network.run(x_TB[0], begin), r"run reads \(time, batch, .* needs an axis of time: x\[None\]"),
        (lambda: network.run(x_TB[:0], begin), "is empty"),
        (lambda: network.run(x_TB.half(), begin), "this network computes in torch.float64"),
        (lambda: network.run(hollow_TB, begin), "NaN or infinity in 1 of .* sequences, first at step 1 of sample 2"),
        (lambda: network.step(hollow_TB[1], begin), "NaN or infinity in 1 of"),
        (lambda: network.step(x_TB[0], None), r"state is None: begin with network.init_state\(\)"),  # type: ignore[arg-type]
        (lambda: network.step(x_TB[0], (begin,)), "state is a tuple: begin with"),  # type: ignore[arg-type]
        (lambda: network.step(x_TB[0, :1], after), "the state is of . samples, and the input of 1: begin with"),
        (lambda: network.run(x_TB[:, :1], network.init_state(LENGTHS)), "the state is of . samples"),
    ]
    for refused, words in refusals:
        with pytest.raises(ValueError, match=words):
            refused()


def test_sequences_given_to_a_network_are_named_with_their_tensors() -> None:
    network = vectors(Frames())
    x_TB = sequence(network)
    s = Sequences(x_TB.transpose(0, 1), LENGTHS)
    with pytest.raises(ValueError, match=r"network\(s.values.transpose\(0, 1\), lengths=s.lengths\)"):
        network(s)
    assert network(s.values.transpose(0, 1), lengths=s.lengths).shape[0] == len(LENGTHS)
