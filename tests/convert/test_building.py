"""``spiking``: modules with neurons in them become the network that a plain loop over the module is; what cannot is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from spikeprop import ALIF, IF, LIF, RLIF, Frames, Recurrent, SpikingNetwork, Triangle, spike, spiking
from spikeprop.convert import ConversionError, convert
from spikeprop.errors import SimulationError
from spikeprop.snn import LayerDynamics, NeuronState
from spikeprop.snn.in_place import PlainLoop


class Plain(nn.Module):
    """A CNN of several kinds of operations, with names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lif = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), LIF(leak=0.8)
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), IF(v_init=0.5), nn.Dropout(0.3))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(self.lif(self.norm(self.conv(x)))))


class Residual(nn.Module):
    """A sum of spikes that several layers read, and weights and neurons that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.again = LIF(), LIF(leak=0.9, trainable=("threshold", "leak"))
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(self.stem(x))
        b = a + self.again(self.norm(self.conv(a)))
        c = b + self.again(self.norm(self.conv(b)))
        return self.out(c.mean((2, 3)))


class Branches(nn.Module):
    """Concatenations, max pooling of spikes, functions, constants, and currents that two layers of neurons read."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.joined = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 5, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm, self.neurons = nn.BatchNorm2d(8), nn.ModuleList([LIF(), IF(), LIF(reset="zero"), IF(v_threshold=0.3)])
        self.weight = nn.Parameter(torch.randn(3, 36) / 6)

    def forward(self, x: Tensor) -> Tensor:
        both = self.norm(torch.cat([self.left(x), self.right(0.5 * x + 0.1)], 1))
        a, b = self.neurons[0](both), self.neurons[1](-both)
        y = self.neurons[2](self.joined(F.max_pool2d(a, 2)) + F.avg_pool2d(b, 2)[:, :4])
        return F.linear(y.flatten(1), self.weight)


class Signal(nn.Module):
    """Of signals in time; ends in neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), LIF(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), IF()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Leaky(LayerDynamics):
    """A user's own neuron, with a weight that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        u = 0.5 * state.v + self.gain * current
        spikes = (u > 1).to(u) + u - u.detach()  # straight through
        return spikes, NeuronState(u * (1 - spikes.detach()), None)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.neuron = nn.Linear(4, 6), nn.Linear(6, 2), Leaky()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.neuron(self.one(x)))


class Loops(nn.Module):
    """A recurrent layer, one layer after it, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.first = nn.Linear(4, 6), nn.BatchNorm1d(6), RLIF(6, leak=0.8)
        self.two, self.second = nn.Linear(6, 5), Recurrent(ALIF(adaptation=0.3), nn.Linear(5, 5))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.two(self.first(self.norm(self.one(x))))))


KINDS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (Loops, (4,)), (Plain, (2, 6, 6)), (Residual, (2, 5, 5)), (Branches, (2, 6, 6)), (Signal, (3, 8)), (Own, (4,)),
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind[0].__name__)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, SpikingNetwork, Tensor]:
    """A module in float64, its network, and an input at which neurons fire."""
    kind, shape = request.param
    torch.manual_seed(0)
    module = kind().double()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    return module, spiking(module, shape), 2 * torch.randn(4, *shape).double()


def plain_sum(module: nn.Module, x: Tensor, steps: int = 5) -> Tensor:
    loop = PlainLoop(module)
    return torch.stack([loop.step(x) for _ in range(steps)]).sum(0)


def without_dropout(network: SpikingNetwork, train: bool) -> SpikingNetwork:
    own = copy.deepcopy(network).train(train)
    own.set_dropout(0.0)
    return own


def test_network_is_the_plain_loop(pair: tuple[nn.Module, SpikingNetwork, Tensor]) -> None:
    module, network, x = pair
    with torch.no_grad():
        wanted = plain_sum(copy.deepcopy(module).eval(), x)
        torch.testing.assert_close(copy.deepcopy(network).eval()(x, 5), wanted, rtol=1e-12, atol=1e-12)
    assert bool(wanted.any())


def test_gradients_are_those_of_the_plain_loop(pair: tuple[nn.Module, SpikingNetwork, Tensor]) -> None:
    """In evaluation mode, in which a loop and all steps at once give batch-norm the same statistics."""
    module, network, x = pair
    module, network = copy.deepcopy(module).eval(), without_dropout(network, train=False)
    weight = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for result in (plain_sum(module, x), network(x, 5)):
        (result.flatten(1).sum(1) * weight).sum().backward()
    mine = sorted(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None)
    theirs = sorted(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-9, atol=1e-9)
    assert len(mine) == sum(p.requires_grad for p in network.parameters())


def test_network_has_copies_with_the_same_values(pair: tuple[nn.Module, SpikingNetwork, Tensor]) -> None:
    module, network, _ = pair
    mine, theirs = [p for p in network.parameters() if p.requires_grad], list(module.parameters())
    assert len(mine) == len(theirs)
    assert {p.data_ptr() for p in mine}.isdisjoint(p.data_ptr() for p in theirs)
    assert sorted(float(p.detach().sum()) for p in mine) == sorted(float(p.detach().sum()) for p in theirs)
    assert network.training
    assert module.training


def test_statistics_are_over_batch_and_time() -> None:
    """The witness repeats the sample's steps along the batch."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), LIF(leak=0.7, surrogate=Triangle()), nn.Linear(6, 4), nn.BatchNorm1d(4), IF())
    network, x = spiking(module.double(), (3,)), torch.randn(5, 3).double() * 3
    network(x, 6)
    loop = PlainLoop(module[:2])
    current = torch.cat([module[2](loop.step(x)) for _ in range(6)])
    (norm,) = (m for m in network.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * current.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * current.var(0))
    assert int(norm.num_batches_tracked) == 1


def test_layers_are_named_by_their_neurons_and_calls_have_states_of_their_own() -> None:
    network = spiking(Residual(), (2, 5, 5))
    assert [name for name in network.layers if "sum" not in name] == ["first", "again", "again_2", "out"]
    assert network._layer("again").neuron is network._layer("again_2").neuron


def test_module_that_ends_in_neurons_counts_their_spikes() -> None:
    network = spiking(nn.Sequential(nn.Linear(3, 4), IF()), (3,))
    counts = network(torch.rand(2, 3) * 5, 7)
    assert torch.equal(counts, counts.round())
    assert "count of their spikes" in network.notes[0]


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.neuron, self.function = nn.Linear(4, 4), LIF(), function
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.neuron(self.linear(x)))


class Scaled(Called):
    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.linear(x) * self.scale)


class Noisy(Called):
    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.linear(x), 0.1, self.training)
        if self.training:
            y = y + 1
        return self.neuron(y)


class Listed(Called):
    def __init__(self) -> None:
        super().__init__(torch.relu)
        self.listed = [LIF()]

    def forward(self, x: Tensor) -> Tensor:
        return self.listed[0](self.linear(x))


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), LIF())

    def shifted(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return out + 1

    module[0].register_forward_hook(shifted)
    return module


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), LIF()), "ReLU .*put neurons in its place"),
    (lambda: Called(torch.relu), "relu .*put neurons in its place"),
    (lambda: Called(torch.sigmoid), "neither linear nor a neuron"),
    (lambda: Called(lambda x: x.softmax(1)), "neither linear nor a neuron; .*loss"),
    (lambda: Called(lambda x: x * x), "neither linear nor a neuron"),
    (lambda: Scaled(torch.relu), "parameter 'scale' outside of a layer"),
    (lambda: nn.Sequential(nn.Linear(4, 4)), "holds no neurons"),
    (lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), LIF()), "would be trained as plain numbers"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), LIF()), "running statistics"),
    (lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Dropout1d(), LIF()), "dropout of complete channels"),
    (lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.MaxPool1d(2), LIF()), "pool the spikes"),
    (hooked, "hooks"),
    (lambda: Noisy(torch.relu), "y = y \\+ 1.*which its network would not do"),
    (Listed, "nn.ModuleList"),
    (lambda: nn.Sequential(nn.GRU(4, 4), LIF()), "a neuron reads one tensor"),
]


@pytest.mark.parametrize(("module", "words"), REFUSED)
def test_what_is_no_spiking_network_is_refused_with_the_remedy(module: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        spiking(module(), (4,))


def test_network_without_weights_runs() -> None:
    assert spiking(nn.Sequential(nn.Flatten(), IF()), (2, 2))(torch.ones(3, 2, 2), 4).shape == (3, 4)
    assert spiking(IF(), 3)(torch.ones(2, 3), 4).shape == (2, 3)


def test_module_with_neurons_called_by_itself_says_what_to_do() -> None:
    with pytest.raises(SimulationError, match=r"spikeprop\.spiking\(module, input_shape\)"):
        Plain()(torch.rand(1, 2, 6, 6))
    with pytest.raises(ConversionError, match="LIF"):
        convert(Plain(), torch.rand(2, 2, 6, 6), timesteps=4)


def test_wrong_wiring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch-norm with the channels in another order, which the initial statistics do not show."""
    from spikeprop.convert.operations import standing

    append = standing.values.append

    def turned(value: object, op: nn.Module) -> object:
        if isinstance(op, nn.BatchNorm2d):
            vars(op)["_buffers"]["running_mean"] = op.state_dict()["running_mean"].flip(0)
        return append(value, op)  # type: ignore[arg-type]

    monkeypatch.setattr(standing.values, "append", turned)
    with pytest.raises(ConversionError, match="does not send what neuron 'lif' sends"):
        spiking(Plain(), (2, 6, 6))


def test_feedback_is_that_of_the_plain_loop() -> None:
    """Of a layer to itself and to others, before and after it, with gradients; the witness is the loop written out."""
    torch.manual_seed(0)
    module, back, skip = Loops().double(), nn.Linear(5, 6).double(), nn.Linear(6, 5, bias=False).double()
    network = spiking(module, (4,), feedback={"first": ("second", back), "second": [("first", skip)]})
    x, module = 3 * torch.randn(7, 4).double(), module.eval()
    states: dict[str, object] = {}
    a, b, total = torch.zeros(7, 6).double(), torch.zeros(7, 5).double(), torch.zeros(7, 3).double()
    for _ in range(5):
        current = module.norm(module.one(x)) + module.first.synapse(a) + back(b)
        neuron = module.first.neuron
        a_now, states["a"] = neuron.step(current, states["a"] if "a" in states else neuron.initial_state(current))  # type: ignore[operator]
        current = module.two(a_now) + module.second.synapse(b) + skip(a)
        neuron = module.second.neuron
        b, states["b"] = neuron.step(current, states["b"] if "b" in states else neuron.initial_state(current))  # type: ignore[operator]
        a, total = a_now, total + module.out(b)
    found = network.eval()(x, 5)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-12)
    assert bool(a.any())
    assert bool(b.any())
    mine = torch.autograd.grad(found.square().sum(), list(network.parameters()))
    theirs = torch.autograd.grad(total.square().sum(), [*module.parameters(), *back.parameters(), *skip.parameters()])
    for one, other in zip(*(sorted(float(g.abs().sum()) for g in grads) for grads in (mine, theirs)), strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    streamed, state = torch.zeros(0), network.init_state()
    for _ in range(5):
        streamed, state = network.step(x, state)
    torch.testing.assert_close(streamed, found)


def test_feedback_names_layers_and_has_no_batch_norm() -> None:
    with pytest.raises(ConversionError, match="no layer of neurons; these are first, second"):
        spiking(Loops(), (4,), feedback={"frist": ("second", nn.Linear(5, 6))})
    with pytest.raises(ConversionError, match="name of the source"):
        spiking(Loops(), (4,), feedback={"first": nn.Linear(5, 6)})
    with pytest.raises(ConversionError, match="batch-norm of what comes back"):
        spiking(Loops(), (4,), feedback={"first": ("first", nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))})
    with pytest.raises(ValueError, match="current of"):
        spiking(Loops(), (4,), feedback={"first": ("second", nn.Linear(5, 5))})


def test_a_class_and_a_number_in_place_of_modules_are_named() -> None:
    with pytest.raises(ConversionError, match=r"encoder is the class Frames; pass an instance, Frames\(\)"):
        spiking(nn.Sequential(nn.Linear(3, 4), LIF()), 3, encoder=Frames)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"synapse is 32; give a module, for n neurons nn.Linear\(32, 32\)"):
        Recurrent(LIF(), 32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cannot read feedback of '1' .*; give nn.Linear\(4, 4\)"):
        spiking(nn.Sequential(nn.Linear(3, 4), Recurrent(LIF(), nn.Linear(5, 5))), 3)


class KeepsOnItself(LIF):
    """A neuron in the habit of other libraries."""

    mem: Any = 0.0

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.mem = self.mem + current
        spikes = spike(self.mem, self.v_threshold, self.surrogate)
        self.mem = (self.mem - spikes).detach()
        return spikes, state


def test_a_neuron_that_keeps_its_state_on_itself_is_refused() -> None:
    with pytest.raises(ConversionError, match="KeepsOnItself keeps 'mem' on itself"):
        spiking(nn.Sequential(nn.Linear(3, 4), KeepsOnItself(surrogate=Triangle()), nn.Linear(4, 2)), (3,))
