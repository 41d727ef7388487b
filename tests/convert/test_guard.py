"""What an ANN does outside its layers' parameters is in the spiking network, or the conversion is refused and names the place."""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from spikeprop import BPTT, IF, Direct, MaxActivation, SpikingNetwork, convert, fit
from spikeprop.ann.activation import QCFS
from spikeprop.convert import ConversionError, relu_activations, to_spiking
from spikeprop.runtime.tracing import OwnTracer

X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def converted(ann: nn.Module) -> SpikingNetwork:
    return convert(ann, [X], IF(), MaxActivation())


def assert_same_function(ann: nn.Module) -> SpikingNetwork:
    """A network of the ANN's weights, run as an ANN, has the module's outputs; and its weights are parameters."""
    with torch.no_grad():
        expected = copy.copy(ann).eval()(X)
    network = to_spiking(ann, IF, Direct(), (1, 8, 8), images=X)
    torch.testing.assert_close(list(relu_activations(network, X).values())[-1].detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    return network


# made permanent ---------------------------------------------------------------------------------------------------------------


def pruned_then_loaded(m: Any) -> None:
    prune.l1_unstructured(m[1], "weight", amount=0.3)
    prune.random_unstructured(m[1], "bias", amount=0.3)
    m(X)
    m.load_state_dict({name: value if "mask" in name else value * 0.5 for name, value in m.state_dict().items()})


def pruned_twice(m: Any) -> None:
    prune.l1_unstructured(m[1], "weight", amount=0.3)
    prune.ln_structured(m[1], "weight", amount=0.2, n=2, dim=0)


def old_weight_norm(m: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(m[1])
    m(X).sum().backward()  # the weight now has a gradient function, with which PyTorch copies no module
    m[1].weight_g.data.mul_(1.5)


def old_spectral_norm(m: Any) -> None:
    nn.utils.spectral_norm(m[1])
    m.train()(X).sum().backward()


def new_weight_norm(m: Any) -> None:
    parametrizations.weight_norm(m[3])


def weight_in_a_buffer(m: Any) -> None:
    weight = m[1].weight.detach() * 0.5
    del m[1].weight
    m[1].register_buffer("weight", weight)


def weight_in_an_attribute(m: Any) -> None:
    weight = m[1].weight.detach() * 0.5
    del m[1].weight
    m[1].weight = weight


CHANGES: list[Callable[[Any], None]] = [
    pruned_then_loaded, pruned_twice, old_weight_norm, old_spectral_norm, new_weight_norm,
    weight_in_a_buffer, weight_in_an_attribute,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_computed_weights_become_the_parameters_of_the_spiking_network(change: Callable[[Any], None]) -> None:
    ann = mlp()
    change(ann)
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    network = assert_same_function(ann)
    assert [p.dim() for p in network.parameters()].count(2) == 2
    assert {name.rsplit(".", 1)[1] for name, _ in network.named_parameters()} == {"weight", "bias"}
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items())


def test_weights_of_a_pruned_and_normed_ann_are_trained_and_saved() -> None:
    ann = mlp()
    old_weight_norm(ann)
    network = converted(ann)
    other = to_spiking(ann, IF, Direct(), (1, 8, 8))
    other.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
    before = [p.detach().clone() for p in network.parameters()]
    assert all(torch.equal(p, q + 1) for p, q in zip(other.parameters(), before))

    class Once:
        def __len__(self) -> int:
            return 1

        def epoch(self, epoch: int, start: int = 0) -> Any:
            yield X, torch.arange(8)

    fit(network, BPTT(timesteps=8), Once(), torch.optim.SGD(network.parameters(), lr=0.1), epochs=1)  # type: ignore[arg-type]
    assert all(not torch.equal(p, q) for p, q in zip(network.parameters(), before) if p.dim() == 2)


# refused ----------------------------------------------------------------------------------------------------------------------


def hook(m: Any) -> None:
    m[1].register_forward_hook(lambda module, args, output: output * 2)


def pre_hook(m: Any) -> None:
    m[3].register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def hook_of_all(m: Any) -> None:
    m.register_forward_hook(lambda module, args, output: output - 1)


def hook_on_weights(m: Any) -> None:
    def clamp(module: Any, args: Any) -> None:
        module.weight.data.clamp_(-0.01, 0.01)

    m[1].register_forward_pre_hook(clamp)


def patched_layer(m: Any) -> None:
    before = m[2].forward
    m[2].forward = lambda z: before(z) + 1


def patched_whole(m: Any) -> None:
    before = m.forward
    m.forward = lambda z: before(z) * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (hook, r"output of '1' \(Linear\) differs.*50 %.*hooks of '1'"),
        (pre_hook, r"input of '3' \(Linear\) differs.*hooks of '3'"),
        (hook_of_all, "after the last layer; it has hooks of the ANN itself"),
        (patched_layer, r"output of '2' \(ReLU\) differs.*a forward of '2' that was replaced"),
        (patched_whole, "a forward of the ANN itself that was replaced"),
    ],
)
def test_what_a_trace_does_not_show_is_refused_by_name(change: Callable[[Any], None], says: str) -> None:
    ann = mlp()
    change(ann)
    with pytest.raises(ConversionError, match=says):
        converted(ann)


def test_a_hook_that_changes_weights_is_refused_and_undone() -> None:
    ann = mlp()
    hook_on_weights(ann)
    before = ann[1].weight.detach().clone()
    with pytest.raises(ConversionError, match="hooks of '1'"):
        converted(ann)
    assert torch.equal(ann[1].weight, before)


def test_a_hook_on_a_layer_without_effect_on_the_result_is_refused() -> None:
    ann = mlp()
    nn.init.zeros_(ann[3].weight)
    hook(ann)
    with pytest.raises(ConversionError, match="output of '1'"):
        converted(ann)


class Calls(nn.Sequential):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x))  # active in evaluation mode too


class SoftCeiling(nn.Module):
    """Has a ceiling, as clipped activations have, and is none."""

    ceiling = torch.tensor(1.0)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)


def test_siblings_of_hooks_are_refused() -> None:
    with pytest.raises(ConversionError, match="a __call__ of the ANN itself"):
        converted(Calls(*mlp()))
    with pytest.raises(ConversionError, match="random numbers in evaluation mode"):
        converted(Drops())
    with pytest.raises(ConversionError, match=r"'2' \(SoftCeiling\) has a ceiling, but"):
        converted(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), SoftCeiling(), nn.Linear(5, 2)))


# left alone -------------------------------------------------------------------------------------------------------------------


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = mlp(), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        return self.inner(x)


def test_modes_random_numbers_hooks_and_buffers_are_left_as_they_were() -> None:
    ann, looked = Counts().train(), []
    ann.inner[2] = nn.ReLU(inplace=True)
    ann.inner[1].eval()
    ann.inner[1].register_forward_hook(lambda module, args, output: looked.append(1))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    converted(ann)
    assert torch.equal(torch.get_rng_state(), state)
    assert (ann.calls, float(ann.seen)) == (0, 0.0)
    assert ann.training
    assert not ann.inner[1].training
    assert looked, "a hook that only looks is called by the proof, and does not hinder it"
    assert [len(m._forward_hooks) for m in ann.modules()] == [0, 0, 0, 1, 0, 0]


def test_activations_with_steps_and_deep_rounding_pass() -> None:
    ann = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), QCFS(levels=4, ceiling=1.0), nn.Linear(32, 10))
    converted(ann)
    narrow = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    norm: Any = narrow[1]
    norm.running_var.fill_(1e-9)  # folding it multiplies rounding
    norm.running_mean.copy_(narrow[0](X).mean((0, 2, 3)).detach())
    converted(narrow)


def test_one_image_is_enough_for_a_squeeze() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = ann, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x).squeeze())

    assert convert(Squeezed(), [X[:1]], IF(), MaxActivation())(X, 4).shape == (8, 3)


# kinds of modules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.Sequential(nn.DataParallel(m))])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], Any]) -> None:
    plain, wrapped = converted(mlp()), converted(wrap(mlp()))
    assert torch.equal(plain(X, 4), wrapped(X, 4))


def with_nan(m: Any) -> Any:
    m[3].weight.data[0, 0] = float("nan")
    return m


def with_infinite_bias(m: Any) -> Any:
    m[1].bias.data[2] = -float("inf")
    return m


def with_negative_variance(m: Any) -> Any:
    m.insert(2, nn.BatchNorm1d(64))
    m[2].running_var.fill_(-1)
    return m


def orthogonal_in_half() -> nn.Module:
    """Torch's decompositions know no half precision."""
    return nn.Sequential(nn.Flatten(), parametrizations.orthogonal(nn.Linear(64, 16)), nn.ReLU(), nn.Linear(16, 3)).bfloat16()


@pytest.mark.parametrize(
    ("ann", "says"),
    [
        (lambda: with_nan(mlp()), "'3.weight' holds NaN"),
        (lambda: with_infinite_bias(mlp()), "'1.bias' holds infinity"),
        (lambda: with_negative_variance(mlp()), "outputs hold NaN or infinity.*first after node '_2'"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), r"'1' \(LazyLinear\) has no weight and bias yet"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3, dtype=torch.complex64)), "'1.weight' is complex"),
        (lambda: orthogonal_in_half(), r"weights of '1' \(.*\) cannot be computed: .*make them permanent first"),
        (lambda: setattr(m := mlp(), "lock", threading.Lock()) or m, "cannot be copied.*keep what is no weight"),
        (lambda: IF, "ann is the class IF"),
    ],
)
def test_weights_and_modules_that_cannot_be_converted_are_named(ann: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        converted(ann())


# other threads ----------------------------------------------------------------------------------------------------------------


def test_modules_run_in_other_threads_while_networks_are_converted() -> None:
    ann, beside, errors, runs, stop = mlp(), mlp(), [], [0], threading.Event()
    expected = beside(X).detach()

    def work() -> None:
        while not stop.is_set():
            try:
                assert torch.equal(beside(X), expected)
                runs[0] += 1
            except BaseException as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            converted(ann)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert runs[0] > 20


def test_several_threads_convert_at_once() -> None:
    found: list[Any] = []
    networks = [mlp() for _ in range(4)]  # before the threads: they draw from one generator
    threads = [threading.Thread(target=lambda ann=ann: found.append(converted(ann)(X, 4))) for ann in networks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(found[0], other) for other in found)


def test_tracing_restores_the_methods_of_modules_after_an_error_too() -> None:
    before = nn.Module.__call__, nn.Module.__getattr__

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        OwnTracer().trace(Fails())
    assert (nn.Module.__call__, nn.Module.__getattr__) == before


def test_a_network_converted_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        network = convert(
            nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), [torch.rand(5, 4)], IF(), MaxActivation()
        )
    assert not any(t.is_inference() for t in (*network.parameters(), *network.buffers()))
    network(torch.rand(5, 4), 4).sum().backward()


def test_several_threads_convert_one_module() -> None:
    ann = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    x = torch.rand(32, 4)
    with ThreadPoolExecutor(3) as pool:
        assert len(list(pool.map(lambda _: convert(ann, [x], IF(), MaxActivation()), range(12)))) == 12
    assert all(module.training for module in ann.modules())


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            (4, 1, 8, 8),
            "it reads (batch, 3, height, width), and is given (batch, 1, 8, 8); pass images (batch, 3",
        ),
        ((4, 8, 8), "is given (batch, 8, 8); pass images (batch, 3, height, width); one image has no batch axis"),
        (
            (4, 3, 9, 9),
            "it reads (batch, ..., 144), and is given (batch, 196); pass images of the shape that",
        ),
    ],
)
def test_images_of_another_shape_are_refused_with_both_shapes_and_the_remedy(shape: tuple[int, ...], said: str) -> None:
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(ConversionError, match=re.escape(said)):
        convert(ann, [torch.rand(shape)], timesteps=4)


def test_an_ann_on_the_meta_device_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"'1.weight' is on the meta device.*ann.load_state_dict"):
        convert(mlp().to("meta"), X, timesteps=4)


class AttendsByFunction(nn.Module):
    """The weights of its attention are arguments of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.last = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, a = x.flatten(1, 2).transpose(0, 1), self.held
        found, _ = F.multi_head_attention_forward(
            q, q, q, 8, 2, a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0, a.out_proj.weight, a.out_proj.bias, False
        )
        return self.last(found.mean(0))


def test_attention_whose_weights_are_arguments_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConversionError, match=r"weights are arguments of the function.*call an nn.MultiheadAttention"):
        convert(AttendsByFunction(), X, timesteps=4)
