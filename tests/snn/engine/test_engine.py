"""The packed engine against the plain reference: same spikes, same gradients, whatever the chunk, the layer, the kernel."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import CNN, IF, LIF, MLP, Direct, MaxActivation, Poisson, ResNet, ThresholdBalancing, convert
from spikeprop.convert import to_spiking
from spikeprop.snn import STDB, ATan, Encoder, FastSigmoid, Neuron, SpikingNetwork, Synapse, Triangle
from spikeprop.snn.engine import batch, weighted_run
from spikeprop.snn.engine.layer_run import IntegrateFireRun
from spikeprop.snn.engine.layout import DenseLayout, LinearLayout, SmallConvLayout, make_layout
from spikeprop.snn.engine.sizes import PIECE_BYTES, even_steps, piece_steps
from spikeprop.snn.engine.weighted_run import Limits
from spikeprop.snn.layer import Layer
from spikeprop.snn.timed_input import TimedInput
from tests.convert.test_calibrate import Skips

NETWORKS = {
    "skips": (Skips, (1, 4, 4)),
    "cnn with dropout": (
        lambda: CNN(
            input_shape=(3, 16, 16), classes=5, plan=[32, "A", 48, 40, "A"], hidden=[70], dropout=0.2, hidden_dropout=0.3
        ),
        (3, 16, 16),
    ),
    "batch norm": (
        lambda: CNN(input_shape=(1, 8, 8), classes=4, plan=[4, "A", 6, "A"], hidden=[8], batch_norm=True),
        (1, 8, 8),
    ),
    "mlp": (lambda: MLP(input_shape=(1, 8, 8), classes=4, hidden=[50, 33]), (1, 8, 8)),
    "resnet": (lambda: ResNet(depth=8, input_shape=(2, 8, 8), classes=3), (2, 8, 8)),
    "odd layers": (lambda: Odd(), (4, 12, 9)),
}
NEURONS = [
    IF(v_init=0.3),
    LIF(leak=0.9, reset="zero"),
    IF(surrogate=STDB(alpha=0.5, beta=0.8)),
    IF(surrogate=Triangle()),
    LIF(surrogate=ATan(), reset="zero"),
    LIF(leak=0.8, surrogate=FastSigmoid()),
]


class Odd(nn.Module):
    """What the fast paths do not know: groups, strides, dilation, overlapping pooling, a border that pooling leaves over."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 6, 3, groups=2),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, padding=1),
            nn.Conv2d(6, 8, (3, 1), dilation=(2, 1), padding=(2, 0)),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 5, 2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def given(network: SpikingNetwork, x: Tensor, timesteps: int) -> TimedInput:
    return TimedInput.of(x, timesteps, None, network.input_shape)


def spiking(name: str, neuron: Neuron, encoder: Encoder | None = None) -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    x = torch.rand(5, *shape)
    network = convert(make(), [x], neuron, ThresholdBalancing(timesteps=20, scale=0.5), encoder=encoder or Direct())
    return network.double().train(), x.double()


def output_and_gradient(network: SpikingNetwork, x: Tensor, timesteps: int, **how: int) -> tuple[Tensor, Tensor]:
    network.zero_grad()
    torch.manual_seed(5)
    output = network(x, timesteps, **how)
    F.cross_entropy(output, torch.arange(len(x)) % output.shape[1]).backward()
    return output.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.fixture(params=["as measured", "by event", "dense"])
def how_events(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice between spike by spike and dense, as it is and forced either way."""
    if request.param != "as measured":
        limit = 1e9 if request.param == "by event" else 0.0
        monkeypatch.setattr(weighted_run, "LIMITS", Limits(**dict.fromkeys(Limits.__dataclass_fields__, limit)))


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_the_references(name: str, neuron: Neuron, how_events: None) -> None:
    for encoder in (Direct(), Poisson()):
        network, x = spiking(name, neuron, encoder)
        assert batch.supports(network, x)
        network.packed = False
        wanted, wanted_gradient = output_and_gradient(network, x, 13)
        network.packed = True
        for chunk in (13, 4, 1):
            output, gradient = output_and_gradient(network, x, 13, chunk=chunk)
            torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-11)
        assert float(wanted_gradient.abs().max()) > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_spikes_equal_the_references(name: str, how_events: None) -> None:
    """Weights that are multiples of 1/64 make every sum exact, so the order of additions cannot matter: equal to the bit."""
    network, x = spiking(name, LIF(leak=0.5))
    network.float().eval()
    x = (x.float() * 16).round() / 16
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((parameter * 64).round() / 64)
        for neuron in network.neurons().values():
            neuron.v_threshold.fill_(0.5)
    for buffer_name, buffer in network.named_buffers():
        if buffer_name.endswith("gain"):
            buffer.fill_(1.0)
    trains: list[dict[str, list[Tensor]]] = []
    for packed in (True, False):
        network.packed = packed
        seen: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            network(x, 9, chunk=4, observe=lambda layer, spikes, seen=seen: seen.setdefault(layer, []).append(spikes))
        trains.append(seen)
    ours, theirs = ({layer: torch.cat(parts) for layer, parts in seen.items()} for seen in trains)
    assert ours.keys() == theirs.keys()
    assert sum(int(train.sum()) for layer, train in theirs.items() if layer != "input") > 50
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)


def test_single_precision_gradients_are_within_a_hundred_thousandth() -> None:
    for chunk in (7, 40):
        network, x = spiking("cnn with dropout", IF(), Poisson())
        network.float()
        network.packed = False
        _, wanted = output_and_gradient(network, x.float(), 40)
        network.packed = True
        _, gradient = output_and_gradient(network, x.float(), 40, chunk=chunk)
        assert float((gradient - wanted).norm() / wanted.norm()) < 1e-5


def test_thresholds_and_leaks_of_channels_and_of_neurons() -> None:
    for shape, reset in itertools.product(((8, 1, 1), (8, 8, 8)), ("subtract", "zero")):
        torch.manual_seed(0)
        ann = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3))
        network = convert(ann, [torch.rand(4, 1, 8, 8)], LIF(leak=0.9, reset=reset), MaxActivation()).double().train()  # type: ignore[arg-type]
        (neuron,) = network.neurons().values()
        neuron.v_threshold = torch.rand(shape, dtype=torch.float64) * 0.3 + 0.05
        neuron.leak = torch.rand(shape, dtype=torch.float64)
        x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
        network.packed = False
        wanted = output_and_gradient(network, x, 8)
        network.packed = True
        for ours, theirs in zip(output_and_gradient(network, x, 8, chunk=3), wanted):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_what_is_kept_for_backward_is_one_bit_a_neuron_a_step() -> None:
    """The memory that grows with T, against the number of neurons: packed words and a word a chunk more."""
    network, x = spiking("cnn with dropout", IF())
    neurons = sum(torch.Size(shape).numel() for name, shape in network.shapes().items() if name in network.neurons())
    held = []
    for timesteps in (40, 80):
        run = batch.BatchRun(network, given(network, x, timesteps), 8, keep=True)
        for _ in run.currents():
            pass
        layers = [layer for slices in run.slices for some in slices for layer in some.layers.values()]
        neuron_runs = [layer for layer in layers if isinstance(layer, IntegrateFireRun)]
        kept = [layer.words for layer in neuron_runs if layer.words is not None]
        kept += [summary for layer in neuron_runs for summary in layer.summary]
        held.append(sum(8 * tensor.numel() * tensor.element_size() for tensor in kept))
        assert not any(layer.borders or layer.potentials for layer in neuron_runs)
    bits = (held[1] - held[0]) / (40 * len(x) * neurons)
    assert 1.0 <= bits < 1.5  # layers whose channels are no multiple of 32 leave bits unused


def test_a_second_backward_says_what_to_do() -> None:
    network, x = spiking("mlp", IF())
    output = network(x, 5)
    output.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run forward again"):
        output.sum().backward()


def test_what_the_engine_cannot_do_goes_to_the_reference() -> None:
    network, x = spiking("mlp", IF())
    assert not batch.supports(network, x.requires_grad_())
    network(x, 5).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())
    next(iter(network.neurons().values())).v_threshold.requires_grad_()
    assert not batch.supports(network, x.detach())


def test_shared_and_frozen_parameters() -> None:
    network, x = spiking("cnn with dropout", IF())
    first = next(network.parameters())
    first.requires_grad_(False)
    output_and_gradient(network, x, 6)
    assert first.grad is None
    shared = nn.Linear(6, 6)
    ann = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 2))
    torch.manual_seed(0)
    tied = convert(ann, [torch.rand(8, 6)], IF(), MaxActivation()).double().train()
    results = []
    for packed in (False, True):
        tied.packed = packed
        results.append(output_and_gradient(tied, torch.ones(2, 6, dtype=torch.float64), 9))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cnn with dropout", "skips"])
def test_threads_change_nothing_but_the_order_of_sums(name: str) -> None:
    """A batch of 5 on 1, 2 and 3 threads: uneven shares, the same masks, and torch's own setting left as it was."""
    network, x = spiking(name, IF(), Poisson())
    usual, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(output_and_gradient(network, x, 70))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
    for output, gradient in results[1:]:
        torch.testing.assert_close(output, results[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-10, atol=1e-13)


def test_each_thread_of_the_engine_runs_torch_alone() -> None:
    """Else every kernel of each of them would be cut up once more, for as many threads again."""
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert list(batch._threads(3).map(lambda _: torch.get_num_threads(), range(6))) == [1] * 6
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)


def test_the_same_threads_give_the_same_bits() -> None:
    network, x = spiking("cnn with dropout", IF(), Poisson())
    network.float()
    first, second = (output_and_gradient(network, x.float(), 33) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_wide_convolutions_are_within_a_hundred_thousandth_too() -> None:
    """128 channels: the gradient of the input goes by Winograd's algorithm."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5),
    )  # fmt: skip
    network = convert(ann, [torch.rand(4, 3, 8, 8)], IF(), ThresholdBalancing(timesteps=20, scale=0.5)).train()
    x = torch.rand(2, 3, 8, 8)
    assert any(
        getattr(layout, "winograd", False)
        for layout in batch.BatchRun(network, given(network, x, 2), None, keep=False).layouts.values()
    )
    with torch.no_grad():
        for parameter in network.parameters():  # sums of spikes are exact, so all spikes are equal
            parameter.copy_((parameter * 64).round() / 64)
        for neuron in network.neurons().values():
            neuron.v_threshold.fill_(float((neuron.v_threshold * 64).round().clamp(min=1) / 64))
    x = (x * 16).round() / 16
    network.packed = False
    _, wanted = output_and_gradient(network, x, 12)
    network.packed = True
    _, gradient = output_and_gradient(network, x, 12)
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-5
    assert float(wanted.norm()) > 1e-3


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(5, 32, 3, padding=1), (4, 4)),
        (nn.Conv2d(5, 33, 3, padding=1, bias=False), (4, 4)),
        (nn.Conv2d(5, 64, 5, stride=2, padding=(2, 3)), (8, 8)),
        (nn.Conv2d(5, 7, 3, dilation=2, padding=2), (2, 4)),
    ],
    ids=str,
)
def test_convolutions_of_very_small_images_are_fully_connected_layers(
    conv: nn.Conv2d, size: tuple[int, int], how_events: None
) -> None:
    torch.manual_seed(0)
    height, width = (side // 2 for side in size)
    outputs = conv(torch.zeros(1, 5, height, width)).numel()
    layers = {
        "first": Layer([("input", Synapse([nn.Conv2d(1, 5, 1)]))], IF(v_threshold=0.3)),
        "small": Layer([("first", Synapse([nn.AvgPool2d(2), copy.deepcopy(conv)]))], IF(v_threshold=0.2)),
        "out": Layer([("small", Synapse([nn.Flatten(), nn.Linear(outputs, 3)]))], None),
    }
    network, x = SpikingNetwork(layers, Direct(), (1, *size)).double().train(), torch.rand(3, 1, *size).double()
    ((_, _, synapse),) = dict(network.named_layers())["small"].branches()
    assert isinstance(make_layout(synapse, (5, *size)), SmallConvLayout)
    network.packed = False
    wanted = output_and_gradient(network, x, 6)
    network.packed = True
    for ours, theirs in zip(output_and_gradient(network, x, 6), wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert float(wanted[1].norm()) > 1e-3


def test_inference_holds_one_chunk_however_many_steps() -> None:
    network, x = spiking("cnn with dropout", IF())
    network.eval()
    held = []
    for timesteps in (128, 640):
        run = batch.BatchRun(network, given(network, x, timesteps), None, keep=False)
        with torch.no_grad():
            for _ in run.currents():
                pass
        layers = [layer for slices in run.slices for some in slices for layer in some.layers.values()]
        layers = [layer for layer in layers if isinstance(layer, IntegrateFireRun)]
        assert not any(layer.summary or layer.borders or layer.counts for layer in layers)
        held.append(sum(layer.words.numel() for layer in layers if layer.words is not None))
        assert run.inputs == []
    assert held[0] == held[1]


def count(seen: dict[str, int], name: str, spikes_TB: Tensor) -> None:
    seen[name] = seen.get(name, 0) + len(spikes_TB)


def test_only_the_steps_asked_for_are_observed() -> None:
    network, x = spiking("mlp", IF())
    for packed in (True, False):
        network.packed = packed
        seen: dict[str, int] = {}
        with torch.no_grad():
            for _ in network.unroll(x, 12, chunk=4, observe=partial(count, seen), observed_steps=4):
                pass
        assert set(seen.values()) == {4}


def test_compiled_networks_run_the_engine() -> None:
    network, x = spiking("cnn with dropout", IF())
    wanted, wanted_gradient = output_and_gradient(network, x, 9)
    compiled = torch.compile(network, backend="eager")
    network.zero_grad()
    torch.manual_seed(5)
    output = compiled(x, 9)
    F.cross_entropy(output, torch.arange(len(x)) % output.shape[1]).backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert torch.equal(output, wanted)
    assert torch.equal(gradient, wanted_gradient)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_autocast_multiplies_in_half_precision_and_integrates_in_single() -> None:
    network, x = spiking("cnn with dropout", IF())
    network, x = network.float().cuda(), x.float().cuda()
    _, wanted_gradient = output_and_gradient(network, x, 20)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output, gradient = output_and_gradient(network, x, 20)
    assert output.dtype is torch.float32
    assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) < 0.2


class Identities(nn.Module):
    """Skip connections without any layer on them, from the input too, two of them into one stage."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(4))
        self.last = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(x + self.first(x))
        b = torch.relu(self.second(a) + a)
        c = torch.relu(self.third(b) + a + b)
        return self.last(torch.flatten(torch.relu(self.fourth(c) + x), 1))


def identities(neuron: Neuron, encoder: Encoder) -> tuple[SpikingNetwork, Tensor]:
    """Straight from ``to_spiking``: calibration would put a gain on every skip."""
    torch.manual_seed(0)
    network = to_spiking(Identities(), lambda: copy.deepcopy(neuron), encoder, (3, 4, 4)).double().train()
    for own in network.neurons().values():
        own.v_threshold.fill_(0.7)
    return network, torch.rand(5, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("neuron", [IF(), IF(surrogate=Triangle())], ids=str)
def test_identities_return_what_may_be_written_over(neuron: Neuron, threads: int, how_events: None) -> None:
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for encoder in (Poisson(), Direct()):
            network, x = identities(neuron, encoder)
            network.packed = False
            wanted, wanted_gradient = output_and_gradient(network, x, 9)
            network.packed = True
            for chunk in (9, 4, None):
                output, gradient = output_and_gradient(network, x, 9, **({"chunk": chunk} if chunk else {}))
                torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-11)
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize(
    ("kernel", "padding"), [(1, 0), (1, 1), (3, 0), (3, 2), (3, 3), (2, 1), ((1, 3), (0, 1)), ((3, 1), (1, 0))]
)
def test_any_padding(kernel: Any, padding: Any, how_events: None) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, kernel, padding=padding), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    network = convert(ann, [torch.rand(4, 2, 6, 6)], IF(), MaxActivation()).double().train()
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    network.packed = False
    wanted = output_and_gradient(network, x, 11)
    network.packed = True
    for ours, theirs in zip(output_and_gradient(network, x, 11), wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_linear_layer_that_does_not_see_the_whole_image_is_no_chain() -> None:
    """Applied to the last axis only, or after a partial flatten: torch's own operations run it."""
    shape = (4, 6, 6)
    assert type(make_layout(Synapse([nn.Flatten(), nn.Linear(144, 3)]), shape)) is LinearLayout
    for ops in ([nn.Linear(6, 3)], [nn.Flatten(2), nn.Linear(36, 3)]):
        assert type(make_layout(Synapse(ops), shape)) is DenseLayout


def test_memory_that_is_taken_does_not_grow_with_time_where_branches_meet() -> None:
    held = []
    for timesteps in (16, 64):
        torch.manual_seed(0)
        ann = ResNet(depth=8, input_shape=(2, 8, 8), classes=3)
        network = convert(ann, [torch.rand(2, 2, 8, 8)], IF(), ThresholdBalancing(timesteps=20, scale=0.5)).train()
        run = batch.BatchRun(network, given(network, torch.rand(2, 2, 8, 8), timesteps), 4, keep=True)
        pools = [some.context.buffers for slices in run.slices for some in slices]
        last = [current_KBO[-1] for current_KBO in run.currents()][-1]
        run.backward(torch.ones_like(last).expand(timesteps, *last.shape))
        held.append(max(len(buffers._taken) for buffers in pools))
    assert held[0] == held[1] == 0


def test_a_weight_changed_before_backward_is_noticed() -> None:
    network, x = spiking("mlp", IF())
    output = network(x, 5)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        output.sum().backward()


def test_bad_input_is_named() -> None:
    network, x = spiking("mlp", IF())
    for packed in (True, False):
        network.packed = packed
        with pytest.raises(ValueError, match="holds no sample"):
            network(x[:0], 3)
        with pytest.raises(ValueError, match="this network computes in"):
            network(x.float(), 3)
        with pytest.raises(ValueError, match="chunk is 0"):
            network(x, 3, chunk=0)
    with pytest.raises(ValueError, match="dropout probability is"):
        network.set_dropout(1.5)


def test_the_input_is_kept_in_two_bits_a_value() -> None:
    x = torch.randint(-1, 2, (6, 4, 3, 5)).double()
    kept = batch.SignedBits(x)
    assert torch.equal(kept[:, 1:3], x[:, 1:3])
    assert torch.equal(kept[2:5, :], x[2:5])
    assert sum(plane.nbytes for plane in kept._planes) == 2 * 6 * 4 * 2  # 15 values in 2 bytes, twice


def test_a_forked_child_has_threads_of_its_own() -> None:
    network, x = spiking("mlp", IF())
    network.eval()(x, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads; that is what is tried here
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        with torch.no_grad():
            os._exit(0 if torch.equal(network(x, 5), network(x, 5)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("timesteps", [1, 7, 59, 64, 65, 100, 118, 175, 250])
def test_pieces_are_of_use_whatever_the_number_of_steps(timesteps: int) -> None:
    """A prime number of steps a chunk would leave pieces of one step."""
    chunk = even_steps(timesteps, 64)
    assert chunk <= 64
    assert -(-timesteps // chunk) == -(-timesteps // 64)
    piece = piece_steps(chunk, 64 * 32 * 32 * 4, torch.device("cpu"), only=timesteps <= chunk)
    assert piece >= min(8, timesteps)
    assert timesteps <= chunk or chunk % piece == 0


def test_a_prime_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIECE_BYTES, "cpu", 100_000)
    network, x = spiking("cnn with dropout", IF(), Poisson())
    network.packed = False
    wanted = output_and_gradient(network, x, 13)
    network.packed = True
    for ours, theirs in zip(output_and_gradient(network, x, 13), wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("full", ["threshold", "leak"])
def test_threshold_and_leak_may_vary_over_different_axes(full: str, reset: Any) -> None:
    """One by neuron, the other a number or one a channel: kernels read both at the same place."""
    torch.manual_seed(0)
    for other in ((), (6, 1, 1)):
        conv, head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6 * 36, 3)
        neuron = LIF(reset=reset)
        shapes = {"threshold": (6, 6, 6) if full == "threshold" else other, "leak": (6, 6, 6) if full == "leak" else other}
        neuron.v_threshold, neuron.leak = torch.rand(shapes["threshold"]) * 0.3 + 0.1, torch.rand(shapes["leak"]) * 0.5 + 0.5
        stages = {
            "hidden": Layer([("input", Synapse([conv]))], neuron),
            "out": Layer([("hidden", Synapse([nn.Flatten(), head]))], None),
        }
        network = SpikingNetwork(stages, Direct(), (2, 6, 6)).double()
        x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
        grads = []
        for packed in (True, False):
            network.packed = packed
            network.zero_grad()
            network(x, 20).square().sum().backward()
            grads.append([network(x, 20).detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
        for ours, plain in zip(*grads):
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
