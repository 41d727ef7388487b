"""Batch-norm of spiking networks: folded into weights it computes the same wherever it stands; or it is refused in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import IF, LIF, Direct, SpikingNetwork, TemporalBatchNorm, ThresholdBatchNorm, folded, spiking
from spikeprop.deploy import to_nir
from spikeprop.errors import SimulationError
from spikeprop.evaluate import ActivityMeter
from spikeprop.snn import Layer, Synapse
from spikeprop.snn.engine.support import supports
from spikeprop.snn.folding import evaluated, needs_folding


class Everywhere(nn.Module):
    """Batch-norm before and after all kinds of operations, sums with several readers, and max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(4), ThresholdBatchNorm(4), nn.BatchNorm2d(8)])
        self.convs = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1)])
        self.up, self.after_up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), nn.BatchNorm2d(4, affine=False)
        self.neurons = nn.ModuleList([LIF(), IF(), LIF(leak=0.5), IF()])
        self.pool, self.out = nn.MaxPool2d(2, padding=1), nn.Linear(4, 3)
        self.last = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.neurons[0](self.norms[1](self.convs[0](self.norms[0](x))))
        b = self.neurons[1](self.norms[2](self.convs[1](a)))
        c = self.neurons[2](self.norms[2](self.convs[1](a + b)))
        z = torch.cat([self.pool(b), self.pool(c)], 1)
        z = self.norms[3](self.convs[2](z)) + z  # read once more below, so it is kept
        d = self.neurons[3](self.after_up(self.up(z)))
        return self.last(self.out(d.mean((2, 3)) + z.mean((2, 3))[:, 4:]))


def randomised(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            state = norm.state_dict()
            for name, tensor in state.items():
                if tensor.is_floating_point() and name != "factors":
                    tensor.uniform_(0.5, 2.0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    found = spiking(Everywhere().double(), (2, 6, 6))
    randomised(found)
    return found.eval()


def test_folded_network_is_equal_wherever_batch_norm_stands(network) -> None:
    """The witness is the plain reference, which runs torch's batch-norm at every step."""
    x, without = torch.randn(3, 2, 6, 6).double(), folded(network)
    network.packed = False
    with torch.no_grad():
        wanted = network(x, 6)
        torch.testing.assert_close(without(x, 6), wanted, rtol=1e-12, atol=1e-12)
    network.packed = True
    assert needs_folding(network)
    assert not needs_folding(without)
    assert float(wanted.std()) > 0.1


def test_evaluation_runs_packed_and_gradients_run_plain(network, monkeypatch: pytest.MonkeyPatch) -> None:
    from spikeprop.snn.engine import batch

    seen = []
    infer = batch.infer
    monkeypatch.setattr(batch, "infer", lambda *args: seen.append(args[0]) or infer(*args))
    x = torch.randn(2, 2, 6, 6).double()
    with torch.no_grad():
        fast = network(x, 4)
    assert len(seen) == 1
    torch.testing.assert_close(network(x, 4).detach(), fast, rtol=1e-12, atol=1e-12)
    assert supports(folded(network), x)
    assert len(seen) == 1


def test_observed_module_is_called(network) -> None:
    """A hook is heard, so the network is not folded."""
    (norm, *_) = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    calls: list[int] = []
    handle = norm.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(torch.randn(2, 2, 6, 6).double(), 2)
    handle.remove()
    assert calls


def test_activity_is_that_of_the_folded_network(network) -> None:
    meter = ActivityMeter(network, 3)
    with torch.no_grad():
        network(torch.randn(2, 2, 6, 6).double(), 3, observe=meter.start(2))
    assert set(meter.rates()) == {"input", *folded(network).dynamics()}
    assert meter.energy() > 0


def test_folded_network_can_be_written() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), LIF(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    graph = to_nir(folded(spiking(net, (1, 6, 6))))
    assert "Conv2d" in {type(node).__name__ for node in graph.nodes.values()}


def test_threshold_batch_norm_starts_at_the_threshold() -> None:
    norm = ThresholdBatchNorm(3, v_threshold=0.5, alpha=1 / math.sqrt(2))
    assert torch.allclose(norm.weight, torch.full((3,), 0.5 / math.sqrt(2)))
    current = norm(torch.randn(4000, 3) * 7 + 2)
    assert torch.allclose(current.std(0), torch.full((3,), 0.5 / math.sqrt(2)), rtol=1e-3)
    with pytest.raises(ValueError, match="alpha is 0"):
        ThresholdBatchNorm(3, alpha=0.0)


def temporal(factors: list[float]):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), TemporalBatchNorm(4, 3), LIF(), nn.Linear(4, 2)).double()
    network = spiking(net, (5,))
    randomised(network)
    (norm,) = (m for m in network.modules() if isinstance(m, TemporalBatchNorm))
    norm.factors.data.copy_(torch.tensor(factors))
    return network, norm


def test_each_step_has_its_own_factor() -> None:
    """Against a loop written out."""
    network, norm = temporal([0.5, 1.0, 2.0])
    x = 3 * torch.randn(6, 5).double()
    layers = dict(network.eval().named_layers())
    first, last = (synapse.ops[0] for layer in layers.values() for _, _, synapse in layer.branches())
    neuron: Any = layers["2"].neuron
    v, wanted = torch.zeros(6, 4).double(), torch.zeros(6, 2).double()
    normal = nn.functional.batch_norm(first(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
    for factor in norm.factors:
        u = neuron.leak * v + factor * normal
        spikes = (u > 1).double()
        v, wanted = u - spikes, wanted + last(spikes)
    with torch.no_grad():
        torch.testing.assert_close(network(x, 3), wanted.detach())
        torch.testing.assert_close(network(x, 3, chunk=2), wanted.detach())
        streamed, state = wanted, network.init_state()
        for _ in range(3):
            streamed, state = network.step(x, state)
        torch.testing.assert_close(streamed, wanted.detach())
    network.train()(x, 3).sum().backward()
    assert norm.factors.grad is not None
    assert norm.factors.grad.abs().min() > 0


def test_factors_fold_only_where_they_are_equal() -> None:
    network, _ = temporal([1.5, 1.5, 1.5])
    x = 3 * torch.randn(6, 5).double()
    network.eval().packed = False
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(x, 3), network(x, 3), rtol=1e-12, atol=1e-12)
    with pytest.raises(SimulationError, match="another factor at each step"):
        folded(temporal([1.5, 1.5, 1.0])[0])


def test_batch_norm_in_training_takes_all_steps_at_once(network) -> None:
    x = torch.randn(2, 2, 6, 6).double()
    network.train()
    before = [b.clone() for b in network.buffers()]
    with pytest.raises(ValueError, match="leave chunk=2 out"):
        network(x, 4, chunk=2)
    with pytest.raises(ValueError, match="one after another"):
        network.step(x, network.init_state())
    assert all(torch.equal(b, kept) for b, kept in zip(network.buffers(), before))
    with torch.no_grad():
        network(x, 4)
    assert not all(torch.equal(b, kept) for b, kept in zip(network.buffers(), before))
    network.eval()


def test_wrong_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="3 factors was given 4 steps"):
        temporal([1.0, 1.0, 1.0])[0](torch.randn(2, 5).double(), 4)


def test_a_batch_norm_in_training_mode_is_not_folded() -> None:
    """It takes the statistics of its batch with and without gradients."""
    network = spiking(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), LIF(), nn.Linear(8, 3)), 5).eval()
    (norm,) = (m for m in network.modules() if isinstance(m, nn.BatchNorm1d))
    norm.train()
    x = 2 * torch.rand(6, 5)
    with torch.no_grad():
        without = network(x, 4)
    torch.testing.assert_close(without, network(x, 4).detach())


def test_batch_norm_of_feedback_is_folded_too() -> None:
    module = nn.Sequential(nn.Linear(5, 8), LIF(), nn.Linear(8, 6), LIF(), nn.Linear(6, 3))
    back = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))  # of a layer before it, so it is in no loop
    network = spiking(module, 5, feedback={"3": ("1", back)}).double().eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    found, x = folded(network), 2 * torch.rand(6, 5).double()
    network.packed = False
    assert not needs_folding(found)
    with torch.no_grad():
        torch.testing.assert_close(found(x, 5), network(x, 5), rtol=1e-12, atol=1e-12)
    to_nir(network)


def test_half_precision_is_not_folded_for_speed() -> None:
    """Its weights would be rounded once more, and spikes would move."""
    network = spiking(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), LIF(), nn.Linear(8, 3)), 5).eval()
    assert evaluated(network) is not network
    network.bfloat16()
    assert evaluated(network) is network


def test_batch_norm_inside_a_loop_is_refused() -> None:
    back = Synapse([nn.Linear(4, 4), nn.BatchNorm1d(4)])
    layers = {
        "a": Layer([("input", Synapse([nn.Linear(3, 4)]))], LIF(), feedback=[("a", back)]),
        "out": Layer([("a", Synapse([nn.Linear(4, 2)]))], None),
    }
    with pytest.raises(ValueError, match="batch-norm of what comes back"):
        SpikingNetwork(layers, Direct(), (3,))
