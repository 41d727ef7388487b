"""Networks with feedback, every neuron and every reading of the output: PyTorch, NIR round trip and simulator, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import lay_out, read_nir, simulate
from torch import Tensor, nn

from spikeprop import IF, LIF
from spikeprop.deploy import compare, export, from_nir, to_nir
from spikeprop.deploy.comparison import RunOn
from spikeprop.errors import NirError
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import ALIF, PLIF, CubaLIF, Direct, Frames, Integrator, Layer, Neuron, SpikingNetwork, Synapse
from tests.hardware.test_lava import lava_or_skip

STEPS = 12


class Maker:
    """Numbers are short binary fractions unless ``real``: sums are exact, and nothing may differ."""

    def __init__(self, seed: int, real: bool = False):
        self.rng, self.real = np.random.default_rng(seed), real

    def network(self) -> tuple[SpikingNetwork, Tensor]:
        signal = self.chance(0.5)
        shape: tuple[int, ...] = (2, 9) if signal else (5,)
        layers, shapes = dict[str, Layer](), dict[str, tuple[int, ...]](input=shape)
        before, count = "input", int(self.rng.integers(2, 5))
        sizes = [int(self.rng.integers(3, 7)) for _ in range(count)]
        for i in range(count):
            ops: list[nn.Module] = [self.filled(nn.Linear(shapes[before][0], sizes[i], bias=self.chance(0.5)))]
            if i == 0 and signal:
                conv = self.filled(nn.Conv1d(2, 4, 3, stride=self.pick([1, 2]), padding=1, groups=self.pick([1, 2])))
                length = 4 * ((9 if conv.stride == (1,) else 5) // 2)
                ops = [conv, nn.AvgPool1d(2), nn.Flatten(), self.filled(nn.Linear(length, sizes[i]))]
            name = f"n{i}"
            layers[name] = Layer([(before, Synapse(ops))], self.neuron(sizes[i]), feedback=self.feedback(i, sizes))
            shapes[name], before = (sizes[i],), name
        reads_potential = self.chance(0.5)
        integrator = Integrator(leak=self.pick([1.0, self.leak()])) if reads_potential else None
        layers["head"] = Layer([(before, Synapse([self.filled(nn.Linear(sizes[-1], 3))]))], integrator)
        network = SpikingNetwork(layers, Frames(), shape).double().eval()
        network.read = self.pick(["sum", "mean", "last", "max"])
        full = (STEPS, 2, *shape)
        x = self.rng.standard_normal(full) if self.real else self.rng.integers(-8, 17, full) / 8
        return network, torch.tensor(x)

    def feedback(self, i: int, sizes: list[int]) -> list[tuple[str, Synapse]]:
        """Of itself, of a later and of an earlier layer, now and then without weights."""
        sources = [j for j in range(len(sizes)) if self.chance(0.7 if j == i else 0.25)]
        return [
            (f"n{j}", Synapse([] if sizes[j] == sizes[i] and self.chance(0.3) else [self.filled(nn.Linear(sizes[j], sizes[i]))]))
            for j in sources
        ]

    def neuron(self, size: int) -> Neuron:
        common: dict[str, Any] = {"reset": self.pick(["subtract", "zero"]), "v_init": self.pick([0.0, 0.5])}
        neuron: Any = self.pick([IF, LIF, PLIF, CubaLIF, CubaLIF, ALIF, ALIF])(**common)
        neuron.set_threshold(self.numbers(self.pick([(), (size,)]), 8, 33))
        for name in neuron.factors:
            if type(neuron) is not IF:
                neuron.set_factor(name, torch.full(self.pick([(), (size,)]), self.leak()))
        if isinstance(neuron, ALIF):
            neuron.adaptation = self.numbers(self.pick([(), (size,)]), 0, 17)
        return neuron

    def filled(self, op: Any) -> Any:
        op.double()
        op.weight.data = self.numbers(tuple(op.weight.shape), -12, 16)
        if op.bias is not None:
            op.bias.data = self.numbers(tuple(op.bias.shape), -4, 6)
        return op

    def numbers(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        drawn = self.rng.uniform(low, high, shape) if self.real else self.rng.integers(low, high, shape)
        return torch.tensor(np.asarray(drawn) / 16, dtype=torch.float64)

    def leak(self) -> float:
        return self.pick([0.9, 0.77] if self.real else [0.5, 0.75])

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)


@torch.no_grad()
def trains(network: SpikingNetwork, x_TB: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    found: dict[str, list[Tensor]] = {}
    outputs = network.unroll(x_TB, chunk=1, observe=lambda name, s_TB: found.setdefault(name, []).append(s_TB.clone()))
    output = torch.cat(list(outputs)).transpose(0, 1).numpy()
    del found["input"]
    return {name: torch.cat(parts).transpose(0, 1).numpy() for name, parts in found.items()}, output


@pytest.mark.parametrize("seeds", [range(14), pytest.param(range(14, 60), marks=pytest.mark.slow)], ids=["few", "many"])
def test_networks_are_the_same_in_pytorch_after_a_round_trip_and_in_the_simulator(tmp_path: Path, seeds: range) -> None:
    fired, delays = 0, 0
    for seed in seeds:
        network, x_TB = Maker(seed).network()
        export(network, tmp_path / "n.nir")
        graph = read_nir(tmp_path / "n.nir")
        spikes, output = trains(network, x_TB)
        again, output_again = trains(from_nir(graph), x_TB)
        theirs = simulate(tmp_path / "n.nir", x_TB.transpose(0, 1).numpy(), backend="reference")
        assert spikes.keys() == again.keys() == theirs.spikes.keys()
        for name, train in spikes.items():
            np.testing.assert_array_equal(again[name], train, f"seed {seed}, {name}")
            np.testing.assert_array_equal(theirs.spikes[name], train, f"seed {seed}, {name}")
            fired += int(train.sum())
        np.testing.assert_array_equal(output_again, output, f"seed {seed}")
        np.testing.assert_allclose(theirs.output, output, rtol=0, atol=1e-12, err_msg=f"seed {seed}")
        delays += sum(isinstance(node, nir.Delay) for node in graph.nodes.values())
    assert fired > 80 * len(seeds)
    assert delays > len(seeds) / 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 12))
def test_sequences_run_on_lava_as_in_pytorch(tmp_path: Path, seed: int) -> None:
    """Of unequal length, in both precisions."""
    lava_or_skip()
    network, x_TB = Maker(seed, real=True).network()
    export(network, tmp_path / "n.nir")
    x, labels = Sequences(x_TB.transpose(0, 1), torch.tensor([STEPS, STEPS - 3])), torch.zeros(2, dtype=torch.int64)
    exact = compare(network, tmp_path / "n.nir", x, labels, None, print, RunOn())
    assert exact["spikes_equal"], exact["first_difference"]
    assert exact["output_error"] < 1e-9
    assert (exact["timesteps"], exact["samples"], exact["agreement"]) == (STEPS, 2, 100)
    assert exact["spikes"] > 10
    given = x.values.numpy()
    fixed = [simulate(tmp_path / "n.nir", given, precision="fixed", backend=backend) for backend in ("lava", "reference")]
    for name, train in fixed[0].spikes.items():
        np.testing.assert_array_equal(fixed[1].spikes[name], train)
    np.testing.assert_array_equal(fixed[1].output, fixed[0].output)


def test_batch_norm_becomes_part_of_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = {
        "a": Layer(
            [("input", Synapse([nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4)]))], CubaLIF(synaptic_leak=0.5, leak=0.8)
        ),
        "b": Layer([("a", Synapse([nn.Flatten(), nn.Linear(28, 6)]))], ALIF(), feedback=[("b", Synapse([nn.Linear(6, 6)]))]),
        "out": Layer([("b", Synapse([nn.Linear(6, 3)]))], Integrator(leak=0.9)),
    }
    network = SpikingNetwork(layers, Direct(), (2, 7)).train()
    network.read = "max"
    network(torch.randn(20, 16, 2, 7) * 3)  # running statistics
    network.eval()
    export(network, tmp_path / "n.nir")
    x = torch.randn(8, 20, 2, 7) * 3
    result = compare(network, tmp_path / "n.nir", x, torch.zeros(8, dtype=torch.int64), None, print, RunOn(backend="reference"))
    assert result["spikes_equal"]
    assert result["output_error"] < 1e-9
    assert result["spikes"] > 200
    fixed = RunOn(backend="reference", precision="fixed")
    report = compare(network, tmp_path / "n.nir", x, torch.zeros(8, dtype=torch.int64), None, print, fixed)
    assert report["agreement"] >= 75
    assert [layer["name"] for layer in report["quantization"]] == ["a", "b", "out"]


def test_a_trained_leak_is_written_as_a_leak() -> None:
    """PLIF divides its current by tau = 4: a leak of 3/4 with a threshold of 4."""
    layers = {"a": Layer([("input", Synapse([nn.Linear(3, 2)]))], PLIF(tau=4.0)), "o": Layer([("a", Synapse([]))], None)}
    network = SpikingNetwork(layers, Direct(), (3,))
    node: Any = to_nir(network).nodes["a"]
    np.testing.assert_allclose(node.v_threshold, [4, 4])
    assert node.leak == pytest.approx(0.75)
    read: Any = from_nir(to_nir(network)).layers["a"].neuron
    assert (type(read), float(read.leak), float(read.v_threshold)) == (LIF, 0.75, 4.0)


def test_what_cannot_be_read_or_written_is_named() -> None:
    network, _ = Maker(0).network()
    graph = to_nir(network)
    late = nir.Delay(delay=np.full(len(graph.nodes["n0"].v_threshold), 2.0), metadata={"dt": 1.0})  # type: ignore[attr-defined]
    graph.nodes |= {"late": late, "w": nir.Linear(np.ones((len(graph.nodes["n1"].v_threshold), len(late.delay))))}  # type: ignore[attr-defined]
    graph.edges += [("n0", "late"), ("late", "w"), ("w", "n1")]
    with pytest.raises(NirError, match="node 'n1' reads 'n0' 2 steps late; feedback of one step can be expressed"):
        from_nir(graph)
    assert max(c.lag for c in lay_out(graph).populations[1].connections) == 2  # the simulator runs it
    network.readout.set(delay=2)
    network.read = "last"
    with pytest.raises(
        NirError, match="counts from step 2 on and is the last of its values, and only a delayed sum can be written"
    ):
        to_nir(network)


def test_spikes_past_the_end_of_a_sequence_are_not_compared(tmp_path: Path) -> None:
    """Biases make neurons fire on, which PyTorch does not record; the simulator runs all of them to the end."""
    torch.manual_seed(0)
    first = nn.Linear(3, 4)
    nn.init.constant_(first.bias, 0.7)
    layers = {"a": Layer([("input", Synapse([first]))], LIF(leak=0.9)), "o": Layer([("a", Synapse([nn.Linear(4, 2)]))], None)}
    network = SpikingNetwork(layers, Frames(), (3,)).eval()
    export(network, tmp_path / "net.nir", {})
    x = Sequences.of([torch.rand(length, 3) for length in (2, 7, 1)])
    target = RunOn(backend="reference")
    result = compare(network, tmp_path / "net.nir", x, torch.zeros(3, dtype=torch.int64), None, print, target)
    assert result["spikes_equal"]
    assert result["spikes"] > 0
    ours, theirs = result["layers"]["a"]
    assert ours == theirs
