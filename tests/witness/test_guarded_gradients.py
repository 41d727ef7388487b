"""What users do between forward and backward, and to a network's layers: the right gradient, or a refusal that names the thing.

Right is what torch's autograd gives through the loop of ``test_gradients``, for the network and the input as they were at forward
time. A refusal is an error that a line of the library raises, with a word about what was done.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from spikeprop import IF, Direct, MaxActivation, SpikingNetwork, ThresholdBalancing, Triangle, convert
from spikeprop.errors import SpikepropError
from spikeprop.snn import Layer, Synapse
from tests.witness.test_gradients import (
    STEPS,
    Gradients,
    convolutional,
    dense,
    gradients,
    loss_of,
    same,
    through_autograd,
    wanted,
)

REFUSALS = (RuntimeError, TypeError, ValueError, SpikepropError)
WORDS = {
    "in place": ("in place", "inplace", "changed", "overwritten"),
    "changed between": ("changed", "between forward and backward", "forward time"),
    "parametrised": ("parametri", "functional_call", "weight_norm", "orthogonal", "spectral"),
    "hook": ("hook",),
    "trac": ("trac", "jit", "export"),
    "precision": ("bfloat16", "half", "float32", "float64", "autocast", "precision", "dtype"),
    "shape": ("shape", "axes", "position"),
}


def right_or_refused(work: Callable[[], Any], right: Callable[[], Any], about: str, counted: Any) -> Any:
    """The result of ``work``, compared, or None where it was refused in words about the thing."""
    try:
        found = work()
    except REFUSALS as error:
        said = str(error).lower()
        if not is_refusal(error) or not any(word in said for word in WORDS[about]):
            raise AssertionError(f"{type(error).__name__} that is not the library's own, in words: {error}") from error
        counted({f"refused: {about}": 1})
        return None
    expected = right()
    same(found, expected) if isinstance(expected, dict) else torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    counted({f"right: {about}": 1})
    return found


def is_refusal(error: BaseException) -> bool:
    """Raised by a line of the library, or by autograd's own count of versions."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    by_us = "spikeprop" in last.filename and (last.line or "").startswith("raise")
    return by_us or isinstance(error, SpikepropError) or "inplace operation" in str(error)


def grads_of(network: SpikingNetwork) -> Gradients:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.fixture(params=["convolutional", "dense"])
def made(request: pytest.FixtureRequest) -> tuple[SpikingNetwork, Tensor]:
    return {"convolutional": convolutional, "dense": dense}[request.param](IF())


# the input --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fill_", "copy_", "view", "out"])
def test_an_input_changed_before_backward(made: Any, how: str, counted: Any) -> None:
    network, x = made
    right = wanted(network, x)

    def work() -> Gradients:
        network.zero_grad()
        given = x.clone()
        loss = loss_of(network(given, STEPS))
        if how == "fill_":
            given.fill_(0.2)
        elif how == "copy_":
            given.copy_(given.flip(0))
        elif how == "view":
            given[1:].mul_(0.5)
        else:
            torch.add(given, 0.3, out=given)
        loss.backward()
        return grads_of(network)

    right_or_refused(work, lambda: right, "in place", counted)


def test_two_forwards_through_one_buffer(made: Any, counted: Any) -> None:
    network, x = made
    one, other = wanted(network, x), wanted(network, x.flip(0) * 0.7)

    def work() -> Gradients:
        network.zero_grad()
        buffer = x.clone()
        first = loss_of(network(buffer, STEPS))
        buffer.copy_(x.flip(0) * 0.7)
        (first + loss_of(network(buffer, STEPS))).backward()
        return grads_of(network)

    right_or_refused(work, lambda: {name: one[name] + other[name] for name in one}, "in place", counted)


# the network between forward and backward -------------------------------------------------------------------------------------


def masked() -> tuple[SpikingNetwork, Tensor]:
    """Dropout before a grouped convolution, in training mode."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.4), nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(6 * 36, 4),
    )  # fmt: skip
    x = torch.rand(5, 2, 8, 8)
    return convert(ann, [x], IF(), ThresholdBalancing(timesteps=12, scale=0.5)).double().train(), x.double()


def _to_eval(network: SpikingNetwork) -> None:
    network.eval()


def _other_surrogate(network: SpikingNetwork) -> None:
    for neuron in network.neurons().values():
        neuron.surrogate = Triangle(height=1.0)


def _other_reset(network: SpikingNetwork) -> None:
    for neuron in network.neurons().values():
        neuron.reset = "zero"


def _other_dropout(network: SpikingNetwork) -> None:
    network.set_dropout(0.0)


def _other_threshold(network: SpikingNetwork) -> None:
    for neuron in network.neurons().values():
        neuron.set_threshold(neuron.v_threshold * 2)


def _threshold_in_place(network: SpikingNetwork) -> None:
    for neuron in network.neurons().values():
        neuron.v_threshold.mul_(2)


def _other_leak(network: SpikingNetwork) -> None:
    for neuron in network.neurons().values():
        neuron.leak.fill_(0.5)


def _other_encoder(network: SpikingNetwork) -> None:
    network.encoder = _Doubled()


def _in_float32(network: SpikingNetwork) -> None:
    network.packed = False


class _Doubled(Direct):
    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        return 2 * x_TB[first:last]


CHANGES = [
    _to_eval, _other_surrogate, _other_reset, _other_dropout, _other_threshold, _threshold_in_place, _other_leak, _other_encoder,
    _in_float32,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_a_network_changed_between_forward_and_backward(change: Any, counted: Any) -> None:
    network, x = masked()
    network.packed = False
    right = gradients(network, x)
    network.packed = True
    same(gradients(network, x), right)

    def work() -> Gradients:
        network.zero_grad()
        torch.manual_seed(3)
        loss = loss_of(network(x, STEPS))
        change(network)
        loss.backward()
        return grads_of(network)

    right_or_refused(work, lambda: right, "changed between", counted)


# layers that are more than their parameters -----------------------------------------------------------------------------------


def first_layer(network: SpikingNetwork) -> Any:
    layer: Any = next(iter(network.layers.values()))
    return layer.synapses[0].ops[0]


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_layers(made: Any, kind: str, counted: Any) -> None:
    network, x = made
    getattr(parametrizations, kind)(first_layer(network))
    network.eval()
    right = wanted(network, x)
    assert any("parametrizations" in name for name in right)

    right_or_refused(lambda: gradients(network, x), lambda: right, "parametrised", counted)


def test_functional_call(made: Any, counted: Any) -> None:
    network, x = made
    right = wanted(network, x)

    def work() -> Gradients:
        leaves = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
        loss_of(torch.func.functional_call(network, leaves, (x, STEPS))).backward()
        return {name: p.grad for name, p in leaves.items() if p.grad is not None}

    right_or_refused(work, lambda: right, "parametrised", counted)


def test_functional_call_with_other_weights(made: Any, counted: Any) -> None:
    """As in meta-learning: an inner step, whose result is run and differentiated."""
    network, x = made
    moved = {name: p.detach() * 1.2 for name, p in network.named_parameters()}
    other = copy.deepcopy(network)
    other.load_state_dict({**other.state_dict(), **moved})
    right = wanted(other, x)

    def work() -> Gradients:
        leaves = {name: p.clone().requires_grad_() for name, p in moved.items()}
        loss_of(torch.func.functional_call(network, leaves, (x, STEPS))).backward()
        return {name: p.grad for name, p in leaves.items() if p.grad is not None}

    right_or_refused(work, lambda: right, "parametrised", counted)


def test_a_forward_hook_that_changes_an_output(made: Any, counted: Any) -> None:
    network, x = made
    first = first_layer(network)
    handle = first.register_forward_hook(lambda module, args, output: output * 0.5)
    network.packed = False
    torch.manual_seed(3)
    with torch.no_grad():
        right = network(x, STEPS)
    plain = gradients(network, x)
    network.packed = True
    for work, expected in ((lambda: network(x, STEPS).detach(), right), (lambda: gradients(network, x), plain)):
        right_or_refused(work, lambda expected=expected: expected, "hook", counted)
    handle.remove()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # torch's own, where a layer reads the images
def test_hooks_run(made: Any, counted: Any) -> None:
    """Forward hooks and full backward hooks of a layer are called, by whichever path runs."""
    network, x = made
    seen: list[str] = []
    first_layer(network).register_forward_hook(lambda *_: seen.append("forward"))
    first_layer(network).register_full_backward_hook(lambda *_: seen.append("backward"))

    def work() -> Tensor:
        gradients(network, x)
        return torch.tensor([float("forward" in seen), float("backward" in seen)])

    right_or_refused(work, lambda: torch.ones(2), "hook", counted)


def test_hooks_on_layers_of_the_network(made: Any, counted: Any) -> None:
    """On the neurons, not on the synapses: for recording, as captum and others do."""
    network, x = made
    seen: list[int] = []
    next(iter(network.neurons().values())).register_forward_hook(lambda *_: seen.append(1))

    def work() -> Tensor:
        network(x, STEPS)
        return torch.tensor(float(len(seen) > 0))

    right_or_refused(work, lambda: torch.tensor(1.0), "hook", counted)


def test_a_patched_forward_of_a_layer(made: Any, counted: Any) -> None:
    network, x = made
    first = first_layer(network)
    original = first.forward
    first.forward = lambda given: original(given) * 0.5
    network.packed = False
    right = gradients(network, x)
    network.packed = True
    right_or_refused(lambda: gradients(network, x), lambda: right, "hook", counted)


def test_a_subclass_of_a_layer_with_a_forward_of_its_own(counted: Any) -> None:
    class Halved(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 0.5

    torch.manual_seed(0)
    layers = {
        "a": Layer([("input", Synapse([Halved(6, 8)]))], IF(v_threshold=0.2)),
        "out": Layer([("a", Synapse([nn.Linear(8, 3)]))], None),
    }
    network = SpikingNetwork(layers, Direct(), (6,)).double().eval()
    x = torch.rand(5, 6, dtype=torch.float64)
    right = wanted(network, x)
    right_or_refused(lambda: gradients(network, x), lambda: right, "hook", counted)


# precision and tracing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_autocast_of_the_cpu(made: Any, threads: int, counted: Any) -> None:
    """Ignored with any number of threads alike, or refused, or right to the precision of bfloat16."""
    network, x = made
    network, x = network.float(), x.float()
    with torch.no_grad():
        right = network(x, STEPS)
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)

        def work() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = network(x, STEPS)
            loss_of(output).backward()
            assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
            off = (output.detach().float() - right).abs().max() / right.abs().max()
            return (off < 0.3).float()

        right_or_refused(work, lambda: torch.tensor(1.0), "precision", counted)
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("steps", [64, 1024])
def test_half_precision_counts_as_well(kind: torch.dtype, steps: int, counted: Any) -> None:
    """A rate is a rate after 1024 steps, too: accumulated in eight bits, potentials and outputs would stand still."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(9, 14), nn.ReLU(), nn.Linear(14, 3))
    x = torch.rand(7, 9)
    network = convert(ann, [x], IF(), MaxActivation()).eval()

    @torch.no_grad()
    def work() -> Tensor:
        rounded = copy.deepcopy(network).to(kind)
        output = rounded(x.to(kind), steps).double() / steps
        exact = copy.deepcopy(rounded).double()(x.to(kind).double(), steps) / steps
        off = (output - exact).abs().max() / exact.abs().max()
        return (off < 0.05).float()

    right_or_refused(work, lambda: torch.tensor(1.0), "precision", counted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [True, False])
def test_jit_trace(packed: bool, counted: Any) -> None:
    network, x = dense(IF())
    network.packed = packed

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x, STEPS)

    other = torch.rand_like(x)

    @torch.no_grad()
    def work() -> Tensor:
        return torch.jit.trace(Fixed(), (x,))(other)  # type: ignore[no-any-return, operator]

    def right() -> Tensor:
        with torch.no_grad():
            return through_autograd(network, other, STEPS)

    right_or_refused(work, right, "trac", counted)


# shapes -----------------------------------------------------------------------------------------------------------------------


def shaped(kind: str) -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    ends = {
        "outputs with positions": [nn.Conv2d(4, 3, 1)],
        "outputs of one position": [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1)],
        "one channel with positions": [nn.Conv2d(4, 1, 3)],
    }
    if kind in ends:
        x = torch.rand(5, 2, 6, 7)
        ann = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *ends[kind])
        return convert(ann, [x], IF(), MaxActivation()).double().eval(), x.double()
    last = {"features of two axes": 6, "features of three axes": 4}[kind]
    shape = {"features of two axes": (5, 6), "features of three axes": (2, 3, 4)}[kind]
    layers = {
        "a": Layer([("input", Synapse([nn.Linear(last, 5)]))], IF(v_threshold=0.2)),
        "b": Layer([("a", Synapse([nn.Linear(5, 4)]))], IF(v_threshold=0.2)),
        "out": Layer([("b", Synapse([nn.Flatten(), nn.Linear(4 * int(torch.Size(shape[:-1]).numel()), 3)]))], None),
    }
    return SpikingNetwork(layers, Direct(), shape).double().eval(), torch.rand(5, *shape, dtype=torch.float64)


SHAPES = [
    "outputs with positions", "outputs of one position", "one channel with positions", "features of two axes",
    "features of three axes",
]  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_odd_shapes(kind: str, packed: bool, counted: Any) -> None:
    network, x = shaped(kind)
    network.packed = packed
    with torch.no_grad():
        output = through_autograd(network, x, STEPS)
    right = wanted(network, x)
    assert output.abs().max() > 0

    @torch.no_grad()
    def work() -> Tensor:
        return network(x, STEPS)

    right_or_refused(work, lambda: output, "shape", counted)
    right_or_refused(lambda: gradients(network, x), lambda: right, "shape", counted)
