"""What users do to a network that the packed engine does not see: the plain path runs, or it is refused; never another result."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from spikeprop import IF, LIF, Direct, Poisson, spiking
from spikeprop.errors import SilentNetworkWarning, SimulationError
from spikeprop.learn import BPTT, fit
from spikeprop.snn import DropoutMasks, Encoder, Gain, Layer, NeuronState, SampleDropout, SpikingNetwork, Synapse
from spikeprop.snn.engine.support import supports

STEPS = 7


def network_of(*, groups: int = 1, dropout: float = 0.0, theta: Any = 0.3) -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    first, second = IF(), LIF(leak=0.9)
    first.set_threshold(torch.as_tensor(theta))
    second.set_threshold(torch.full((4, 1, 1), 0.2))
    layers = {
        "a": Layer([("input", Synapse([nn.Conv2d(2, 6, 3, padding=1)]))], first),
        "b": Layer([("a", Synapse([SampleDropout(dropout), nn.Conv2d(6, 4, 3, groups=groups)]))], second),
        "out": Layer([("b", Synapse([nn.Flatten(), nn.Linear(4 * 16, 3)]))], None),
    }
    return SpikingNetwork(layers, Direct(), (2, 6, 6)).double(), torch.rand(5, 2, 6, 6, dtype=torch.float64)


def first_op(network: SpikingNetwork) -> Any:
    return next(iter(next(network.named_layers())[1].synapses[0]))  # type: ignore[call-overload, arg-type]


def gradients(
    network: SpikingNetwork, x: Tensor, between: Callable[[], object] = lambda: None, packed: bool = True
) -> dict[str, Tensor]:
    network.zero_grad()
    network.packed = packed
    torch.manual_seed(3)
    loss = network(x, STEPS).square().sum()
    between()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert sum(float(g.abs().sum()) for g in wanted.values()) > 1e-3
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-9)


# between forward and backward -------------------------------------------------------------------------------------------------


def _set(network: SpikingNetwork, name: str, value: Any) -> None:
    for neuron in network.neurons().values():
        setattr(neuron, name, value)


def _replace_weights(network: SpikingNetwork) -> None:
    for layer in network.layers.values():
        for op in layer.synapses[0].weighted():  # type: ignore[union-attr, index, operator]
            op.weight.data = torch.zeros_like(op.weight)


CHANGES: dict[str, Callable[[SpikingNetwork], object]] = {
    "threshold by channel in place": lambda network: [n.v_threshold.mul_(3) for n in network.neurons().values()],
    "start in place": lambda network: [n.v_init.add_(0.5) for n in network.neurons().values()],
    "dropout": lambda network: network.set_dropout(0.9),
    "evaluation of one synapse": lambda network: [s.eval() for s in network.modules() if isinstance(s, Synapse)],
    "other neurons": lambda network: [setattr(layer, "neuron", IF()) for _, layer in network.named_layers() if layer.neuron],
    "memory of weights replaced": _replace_weights,
    "leak": lambda network: _set(network, "leak", torch.tensor(0.1, dtype=torch.float64)),
}


@pytest.mark.parametrize("groups", [1, 2], ids=["own kernels", "torch's operations"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_backward_pass_uses_what_was_at_forward_time(change: str, groups: int) -> None:
    network, x = network_of(groups=groups, dropout=0.3)
    wanted = gradients(copy.deepcopy(network), x, packed=False)
    same(gradients(network, x, lambda: CHANGES[change](network)), wanted)


def test_a_factor_changed_after_forward_does_not_count() -> None:
    network, x = network_of()
    gain = Gain(torch.tensor(0.7)).double()
    network.layers["a"].synapses[0].ops.append(gain)  # type: ignore[union-attr, index, operator]
    wanted = gradients(copy.deepcopy(network), x, packed=False)
    same(gradients(network, x, lambda: gain.gain.mul_(9)), wanted)


@pytest.mark.parametrize("how", ["index", "out", "chunked", "kept by the encoder"])
def test_an_input_changed_in_place_is_refused(how: str) -> None:
    network, x = network_of()
    given = x.clone()
    buffer = torch.zeros(1, *x.shape, dtype=x.dtype)
    changes: dict[str, Callable[[], object]] = {
        "index": lambda: given[0].zero_(),
        "out": lambda: torch.mul(given, 2, out=given),
        "chunked": lambda: given.detach().add_(1),
        "kept by the encoder": lambda: buffer.zero_(),
    }
    if how == "kept by the encoder":
        network.encoder = _Buffered(buffer=buffer)
    output = network(given, STEPS, chunk=3 if how == "chunked" else None)
    changes[how]()
    with pytest.raises(RuntimeError, match=r"input was changed in place.*x\.clone"):
        output.sum().backward()


class _Buffered(Encoder):
    constant = True
    buffer: Tensor

    def __init__(self, buffer: Tensor):
        object.__setattr__(self, "buffer", buffer)

    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        return self.buffer.copy_(x_TB[0])


def test_an_input_that_is_not_needed_may_be_changed() -> None:
    """Poisson spikes are tensors of their own; so is the copy of a tensor made in inference mode, which counts no versions."""
    network, x = network_of()
    network.encoder = Poisson()
    given = x.clone()
    same(gradients(network, given, lambda: given.zero_()), gradients(network, x))
    network.encoder = Direct()
    with torch.inference_mode():
        given = x.clone()

    def change() -> None:
        with torch.inference_mode():
            given.zero_()

    same(gradients(network, given, change), gradients(network, x, packed=False))


# what the engine does not see -------------------------------------------------------------------------------------------------


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _own_parametrisation(network: SpikingNetwork) -> None:
    parametrize.register_parametrization(first_op(network), "weight", _Doubled())


def _own_class_of_synapse(network: SpikingNetwork) -> None:
    class Halved(Synapse):
        def forward(self, spikes_TB: Tensor, masks: DropoutMasks | None = None, name: str = "") -> Tensor:
            return super().forward(spikes_TB, masks, name) * 0.5

    network.layers["b"].synapses[0].__class__ = Halved  # type: ignore[union-attr, index]


def _patched_neuron(network: SpikingNetwork) -> None:
    neuron: Any = network.layers["a"].neuron
    run = neuron.run
    neuron.run = lambda currents, state: run(currents * 0.5, state)


def _hook_on_a_neuron(network: SpikingNetwork) -> None:
    def halved(module: Any, given: Any, result: Any) -> tuple[Tensor, NeuronState]:
        return result[0] * 0.5, result[1]

    network.layers["a"].neuron.register_forward_hook(halved)  # type: ignore[union-attr, operator]


def _computed_weight(network: SpikingNetwork) -> None:
    op = first_op(network)
    weight = op.weight
    del op.weight
    op.register_parameter("original", weight)
    op.weight = 0.5 * op.original


DIFFERENT: dict[str, Callable[[SpikingNetwork], object]] = {
    "parametrisation": _own_parametrisation,
    "pruned": lambda network: prune.l1_unstructured(first_op(network), "weight", amount=0.5),
    "class of synapse": _own_class_of_synapse,
    "patched neuron": _patched_neuron,
    "hook on a neuron": _hook_on_a_neuron,
    "hook on dropout": lambda network: next(iter(network.layers["b"].synapses[0].ops)).register_forward_hook(  # type: ignore[union-attr, index, arg-type]
        lambda module, given, result: result * 0.5
    ),
    "computed weight": _computed_weight,
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_the_engine_does_not_see_runs_on_the_plain_path(change: str) -> None:
    network, x = network_of(dropout=0.3)
    before = gradients(network, x, packed=False)
    assert supports(network, x)
    DIFFERENT[change](network)
    assert not supports(network, x)
    with torch.no_grad():
        network.packed = True
        torch.manual_seed(3)
        packed = network(x, STEPS)
        network.packed = False
        torch.manual_seed(3)
        torch.testing.assert_close(packed, network(x, STEPS), rtol=0, atol=0)
    if change == "computed weight":
        first_op(network).weight = 0.5 * first_op(network).original  # a graph serves one backward pass
    after = gradients(network, x)
    assert any(name not in before or not torch.equal(before[name], after[name]) for name in after)


def test_modules_are_heard_when_hooks_are_global() -> None:
    network, x = network_of()
    seen: set[str] = set()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(type(module).__name__))
    try:
        network(x, STEPS)
    finally:
        handle.remove()
    assert seen >= {"Conv2d", "Linear", "Synapse", "IF", "LIF"}


def test_operations_are_counted_by_dispatch_modes() -> None:
    network, x = network_of()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, STEPS)
    assert counter.get_total_flops() > 2 * STEPS * 5 * 4 * 16 * 6 * 9


@pytest.mark.parametrize("path", ["layers", "layers.a", "layers.a.synapses", "layers.a.synapses.0.ops", "readout"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_hook_that_nothing_calls_is_refused(path: str, packed: bool) -> None:
    network, x = network_of()
    network.packed = packed
    handle = network.get_submodule(path).register_forward_hook(lambda *_: None)
    with pytest.raises(SimulationError, match=f"'{path}' .* is never called: register the hook on"):
        network(x, STEPS)
    with pytest.raises(SimulationError, match="is never called"):
        network.step(x, network.init_state())
    handle.remove()
    network(x, STEPS)


def test_an_encoder_with_parameters_is_trained() -> None:
    class Scaled(Encoder):
        factor: Tensor

        def __init__(self, factor: Tensor):
            object.__setattr__(self, "factor", factor)

        def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
            return self.factor * x_TB[first:last]

    network, x = network_of()
    factor = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    network.encoder = Scaled(factor)
    network(x, STEPS).sum().backward()
    assert factor.grad is not None
    assert float(factor.grad) != 0


# transformed, not run ---------------------------------------------------------------------------------------------------------


class _Simulation(nn.Module):
    def __init__(self, network: SpikingNetwork):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, STEPS)  # type: ignore[no-any-return]


def _forward_mode(model: nn.Module, x: Tensor) -> object:
    with forward_ad.dual_level():
        return model(forward_ad.make_dual(x, torch.ones_like(x)))


TRANSFORMS: dict[str, tuple[Callable[[nn.Module, Tensor], object], str]] = {
    "jit": (lambda model, x: torch.jit.trace(model, (x,)), "cannot be traced"),
    "fx": (lambda model, x: _Leafless().trace(model), "cannot be traced"),
    "export": (lambda model, x: torch.export.export(model, (x,)), "cannot be exported"),
    "vmap": (lambda model, x: torch.func.vmap(model)(x.unsqueeze(0)), "transforms"),
    "grad": (lambda model, x: torch.func.grad(lambda given: model(given).sum())(x), "transforms"),
    "forward mode": (_forward_mode, "forward-mode"),
}


class _Leafless(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("how", TRANSFORMS)
def test_a_transformed_simulation_is_refused(how: str, packed: bool) -> None:
    network, x = network_of()
    network.packed = packed
    transform, told = TRANSFORMS[how]
    with pytest.raises(SimulationError, match=told):
        transform(_Simulation(network), x)


def test_activation_checkpointing_gives_the_same_gradient() -> None:
    network, x = network_of()
    wanted = gradients(network, x)
    network.zero_grad()
    checkpoint(network, x, STEPS, use_reentrant=False).square().sum().backward()  # type: ignore[union-attr]
    same({name: p.grad for name, p in network.named_parameters() if p.grad is not None}, wanted)


# precision --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_potentials_of_half_precision_are_float32(kind: torch.dtype) -> None:
    """Weights and inputs that half precision holds exactly: every spike is equal, and the output counts 600 of them."""
    weight = nn.Linear(1, 1, bias=False)
    layers = {
        "a": Layer([("input", Synapse([weight]))], LIF(leak=1.0, v_threshold=1.0)),
        "out": Layer([("a", Synapse([nn.Linear(1, 1, bias=False)]))], None),
    }
    network = SpikingNetwork(layers, Direct(), (1,)).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(1.0)
        x = torch.tensor([[1.5]])
        wanted = network(x, 600)
        found = network.to(kind)(x.to(kind), 600)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    network(x.to(kind), 20).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == kind for p in network.parameters())


@pytest.mark.parametrize("packed", [True, False])
def test_autocast_of_the_cpu_keeps_potentials(packed: bool) -> None:
    network, x = network_of()
    network, x = network.float().eval(), x.float()
    network.packed = packed
    with torch.no_grad():
        wanted = network(x, 200)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(x, 200)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1 * float(wanted.abs().max()))


# silence ----------------------------------------------------------------------------------------------------------------------


def _fit(network: SpikingNetwork, x: Tensor) -> list[str]:
    batches = [(x, torch.arange(len(x)) % 3)] * 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SilentNetworkWarning)
        fit(network, BPTT(timesteps=STEPS), batches, torch.optim.SGD(network.parameters(), 0.01), epochs=2)
    return [str(w.message) for w in caught if w.category is SilentNetworkWarning]


@pytest.mark.parametrize("silent", [["a"], ["b"], ["a", "b"]])
def test_layers_that_stay_silent_are_named_once(silent: list[str]) -> None:
    network, x = network_of()
    for name in silent:
        network.neurons()[name].set_threshold(torch.tensor(1e6))
    if silent == ["a"]:
        with torch.no_grad():  # so that b fires by its bias alone
            network.layers["b"].synapses[0].weighted()[0].bias.fill_(0.5)  # type: ignore[union-attr, index, operator]
    (told,) = _fit(network, x)
    assert f"no neuron of {', '.join(silent)} fires" in told
    assert "raise the rule's timesteps" in told
    assert not network.training


def test_a_network_that_fires_is_not_warned_of() -> None:
    assert _fit(*network_of()) == []


# inference mode ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["forward", "unroll", "step"])
@pytest.mark.parametrize("packed", [True, False])
def test_an_input_made_in_inference_mode_gives_the_same_gradient(how: str, packed: bool) -> None:
    network, x = network_of()
    network.packed = packed

    def found(x: Tensor) -> dict[str, Tensor]:
        network.zero_grad()
        if how == "forward":
            output = network(x, STEPS)
        elif how == "unroll":
            output = [part[-1] for part in network.unroll(x, STEPS)][-1]
        else:
            output, state = network.step(x, network.init_state())
            for _ in range(STEPS - 1):
                output, state = network.step(x, state)
        output.square().sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    with torch.inference_mode():
        made_there = x.clone()
    same(found(made_there), found(x))


@pytest.mark.parametrize("packed", [True, False])
def test_a_network_made_in_inference_mode_is_refused_where_gradients_are_wanted(packed: bool) -> None:
    network, x = network_of()
    with torch.inference_mode():
        made_there = copy.deepcopy(network)
    made_there.packed = packed
    with pytest.raises(ValueError, match="made in inference mode, so it has no gradients: use copy"):
        made_there(x, STEPS)
    with pytest.raises(ValueError, match="made in inference mode, so it cannot be trained"):
        fit(made_there, BPTT(timesteps=2), [(x, torch.zeros(5).long())], torch.optim.SGD(network.parameters(), lr=0.1), epochs=1)
    with torch.no_grad():
        torch.testing.assert_close(made_there(x, STEPS), network(x, STEPS))
    copy.deepcopy(made_there)(x, STEPS).sum().backward()


@pytest.mark.parametrize("how", ["forward", "unroll", "step"])
def test_a_network_on_the_meta_device_is_refused_in_words(how: str) -> None:
    network, x = network_of()
    empty = copy.deepcopy(network).to("meta")
    runs = {
        "forward": lambda: empty(x, STEPS),
        "unroll": lambda: next(iter(empty.unroll(x, STEPS))),
        "step": lambda: empty.step(x, network.init_state()),
    }
    with pytest.raises(SimulationError, match="is on the meta device, which holds shapes without values; make the network"):
        runs[how]()


def test_one_sample_without_a_batch_axis_is_refused_with_the_remedy() -> None:
    network, x = network_of()
    with pytest.raises(ValueError, match=r"one sample needs a batch axis: x\[None\]"):
        network(x[0], STEPS)


class WithoutDerivative(LIF):
    """A neuron whose step autograd cannot pass."""

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        u = self.leak * state.v + current
        spikes = (u > self.v_threshold).to(u)
        return spikes, state._replace(v=u - spikes * self.v_threshold)


def test_neurons_without_a_derivative_are_told() -> None:
    torch.manual_seed(0)
    network = spiking(nn.Sequential(nn.Linear(6, 8), WithoutDerivative(v_threshold=0.1), nn.Linear(8, 3)), (6,))
    told = _fit(network, torch.rand(8, 6))
    assert len(told) == 1
    assert "no gradient reaches 1" in told[0]
    assert "spikeprop.spike" in told[0]


def test_an_optimiser_of_another_network_is_refused() -> None:
    network, x = network_of()
    other, _ = network_of()
    with pytest.raises(ValueError, match="holds none of this SpikingNetwork's parameters"):
        fit(network, BPTT(timesteps=2), [(x, torch.arange(len(x)) % 3)], torch.optim.SGD(other.parameters(), 0.01), epochs=1)
