"""A stream decides as a simulation of the same steps does, and says when the chip would have the decision."""

from __future__ import annotations

import numpy as np
import pytest
from spikeprop_hardware import HardwareError, Stream, binned, lay_out, quantize, simulate

from spikeprop.deploy import to_nir
from tests.hardware.random_graphs import random_graph
from tests.hardware.random_networks import random_network


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fixed", [False, True])
def test_decisions_are_those_of_a_simulation(seed: int, fixed: bool) -> None:
    """Graphs with loops, every way of reading the output; and a network with a delayed readout."""
    for graph, inputs in (random_graph(seed, real=True), (to_nir((found := random_network(seed, real=True))[0]), found[1])):
        limit, steps = float(np.abs(inputs).max()), inputs.shape[1]
        network = quantize(graph, input_limit=limit, timesteps=steps).network if fixed else lay_out(graph)
        stream = Stream(network, dt_ms=1.0, step_ms=0.1)
        output = np.stack([stream.push(frame).output for frame in inputs[0]])
        if fixed:
            wanted = simulate(network, inputs[:1], backend="reference", precision="fixed").output[0]  # type: ignore[arg-type]
        else:
            from spikeprop_hardware import Simulator

            wanted = simulate(Simulator(network), inputs[:1], backend="reference").output[0]
        np.testing.assert_allclose(output, wanted, rtol=1e-12, atol=1e-12)


def small() -> tuple[Stream, np.ndarray]:
    network, _ = random_network(1, real=True)
    plan = lay_out(to_nir(network))
    rng = np.random.default_rng(0)
    events = np.zeros(300, [("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "i1")])
    events["t"] = np.sort(rng.integers(5_000, 25_000, 300))
    for name, size in zip(("p", "y", "x"), plan.input_shape):
        events[name] = rng.integers(0, size, 300)
    return Stream(plan, dt_ms=2.0, step_ms=0.5), events


def test_events_in_pieces_are_the_frames_of_the_whole_recording() -> None:
    stream, events = small()
    shape, first = stream.network.input_shape, float(events["t"][0])
    frames = binned(events, shape, steps=10, dt=2000.0, start=first)
    wanted = [stream.push(frame).output for frame in frames]
    for pieces in (1, 7, 100):
        stream.reset()
        found = [d for part in np.array_split(events, pieces) for d in stream.feed(part)] + stream.end()
        assert [d.step for d in found] == list(range(len(found)))
        assert len(found) == int((events["t"][-1] - first) // 2000) + 1
        np.testing.assert_allclose(np.stack([d.output for d in found]), np.stack(wanted)[: len(found)], rtol=1e-12, atol=1e-12)


def test_latency_is_the_depth_in_the_chips_steps_and_grows_where_it_is_too_slow() -> None:
    stream, _ = small()
    frame, depth = np.ones(stream.network.input_shape), stream.network.depth
    assert depth == 3
    made = [stream.push(frame) for _ in range(5)]
    assert [d.latency_steps for d in made] == [depth] * 5
    assert [d.latency_ms for d in made] == [depth * 2.0] * 5  # the chip waits for the stream
    assert made[2].ready_ms == 3 * 2.0 + depth * 2.0
    slow = Stream(stream.simulator, dt_ms=2.0, step_ms=3.0)
    assert [slow.push(frame).latency_ms for _ in range(4)] == [depth * 3.0 + i for i in range(4)]


def test_a_window_forgets_and_a_lead_makes_sure() -> None:
    stream, _ = small()
    rng = np.random.default_rng(1)
    frames = rng.standard_normal((9, *stream.network.input_shape))
    whole = [stream.push(frame).output for frame in frames]
    short = Stream(stream.simulator, dt_ms=1.0, step_ms=1.0, window=3)
    found = [short.push(frame).output for frame in frames]
    np.testing.assert_allclose(found[2], whole[2])
    np.testing.assert_allclose(found[8], whole[8] - whole[5], atol=1e-12)
    leads = [float(np.diff(np.sort(output))[-1]) for output in whole]
    asked = Stream(stream.simulator, dt_ms=1.0, step_ms=1.0, margin=sorted(leads)[3], patience=2)
    sure = [asked.push(frame).sure for frame in frames]
    above = [lead >= sorted(leads)[3] for lead in leads]
    assert sure == [i > 0 and above[i] and above[i - 1] for i in range(9)]


def test_what_a_stream_cannot_be_is_refused() -> None:
    stream, events = small()
    stream.feed(events[:200])
    with pytest.raises(HardwareError, match="in a step that ended at"):
        stream.feed(events[:1])
    with pytest.raises(HardwareError, match=r"a step has shape \(2,\)"):
        stream.push(np.zeros(2))
    with pytest.raises(HardwareError, match="are positive"):
        Stream(stream.simulator, dt_ms=0.0, step_ms=1.0)
    made = quantize(to_nir(random_network(1, real=True)[0]), input_limit=3.0, timesteps=4).network
    endless, frame = Stream(made, dt_ms=1.0, step_ms=1.0), np.full(made.input_shape, 3.0)

    def run() -> None:
        for _ in range(5000):
            endless.push(frame)

    with pytest.raises(HardwareError, match="the output stopped at the limits of its bits"):
        run()
