"""From ANN to graph: same function, batch-norm folded, both kinds of ReLU, refusals that name the node."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from spikeprop import CNN, IF, MLP, VGG, Direct, ResNet, convert, snn_accuracy
from spikeprop.convert import ConversionError, MaxActivation, relu_activations, to_spiking
from spikeprop.deploy import export, from_nir, read_nir, to_nir
from spikeprop.errors import NirError
from spikeprop.snn import Layer, SpikingNetwork, Synapse


class Functional(nn.Module):
    """Functional ReLU, pooling, dropout, flatten, an addition and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.skip = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(F.relu(self.a(x)), 0.2, self.training)
        y = torch.relu(self.b(y) + self.skip(x))
        return self.head(F.avg_pool2d(y, 2).flatten(1))


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def networks() -> list[tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [
        (Functional(), (2, 6, 6)),
        (WithBatchNorm(), (2, 6, 6)),
        (MLP(input_shape=(1, 4, 4), classes=3, hidden=[8, 8]), (1, 4, 4)),
        (CNN(input_shape=(1, 8, 8), classes=3, plan=[4, "A", 8], hidden=[6], batch_norm=True), (1, 8, 8)),
        (VGG(depth=5, input_shape=(3, 8, 8)), (3, 8, 8)),
        (ResNet(depth=20, input_shape=(3, 16, 16)), (3, 16, 16)),
    ]


@pytest.mark.parametrize(("ann", "shape"), networks(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_the_graph_computes_what_the_ann_computes(ann: nn.Module, shape: tuple[int, ...]) -> None:
    ann, x = ann.double(), torch.randn(6, *shape, dtype=torch.float64)
    for module in ann.modules():  # give batch-norm something to fold
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    network = to_spiking(ann, IF, Direct(), shape).double()
    with torch.no_grad():
        expected = ann.eval()(x)
        output = list(relu_activations(network, x).values())[-1]
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.ReLU) for m in network.modules())


@pytest.mark.parametrize(("ann", "shape"), networks(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_the_ann_is_left_as_it_was(ann: nn.Module, shape: tuple[int, ...]) -> None:
    ann.train()
    before = copy.deepcopy(ann.state_dict())
    network = convert(ann, [torch.rand(16, *shape)], IF(), MaxActivation())
    assert ann.training
    assert all(m.training for m in ann.modules())
    assert all(torch.equal(before[k], v) for k, v in ann.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ann.modules())
    own = {p.data_ptr() for p in ann.parameters()}
    assert not own & {p.data_ptr() for p in network.parameters()}


def refused(*layers: nn.Module) -> str:
    with pytest.raises(ConversionError) as caught:
        to_spiking(nn.Sequential(*layers), IF, Direct(), (1, 8, 8))
    return str(caught.value)


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(x)


def test_refusals_name_the_node_the_operation_and_the_way_out() -> None:
    conv = nn.Conv2d(1, 2, 3)
    text = refused(conv, Rounded())
    assert "floor" in text
    assert "function with jumps" in text
    assert "a continuous function" in text
    assert "track_running_stats" in refused(conv, nn.BatchNorm2d(2, track_running_stats=False))
    assert "return_indices" in refused(conv, nn.ReLU(), nn.MaxPool2d(2, return_indices=True))


def parametrised() -> nn.Sequential:
    torch.manual_seed(0)
    conv = parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
    twice = parametrizations.weight_norm(parametrizations.spectral_norm(nn.Linear(36, 6)), "bias")
    head = parametrizations.orthogonal(nn.Linear(6, 3))
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), twice, nn.ReLU(), head).double()


@pytest.mark.parametrize("grad", [True, False])
def test_parametrised_layers_become_plain_ones(grad: bool) -> None:
    ann, x = parametrised().eval(), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    before, expected, kinds = copy.deepcopy(ann.state_dict()), ann(x).detach(), [type(m) for m in ann.modules()]
    with torch.set_grad_enabled(grad):
        network = to_spiking(ann, lambda: IF(v_threshold=0.05), Direct(), (2, 8, 8)).double()
    torch.testing.assert_close(list(relu_activations(network, x).values())[-1].detach(), expected, rtol=1e-9, atol=1e-9)
    assert [type(m) for m in ann.modules()] == kinds
    assert torch.equal(ann(x), expected)  # the class that does it for the caller's module was not taken apart
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items())
    assert {type(m) for m in network.modules() if hasattr(m, "weight")} == {nn.Conv2d, nn.Linear}
    assert {name.rsplit(".", 1)[1] for name, _ in network.named_parameters()} == {"weight", "bias"}
    network.train()(x.clamp(-1, 1), 8).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert all(p.grad is None for p in ann.parameters())


def test_a_folded_bias_is_trained_like_its_weight() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    network = convert(ann.eval(), [torch.rand(4, 1, 4, 4)], IF(), MaxActivation())
    assert all(p.requires_grad for p in network.parameters())
    assert sum(p.dim() == 1 for p in network.parameters()) == 2


NAMES = ["keys", "items", "values", "pop", "update", "clear", "__len__", "input", "output", "a/0", "my layer", "a-b", "weight"]


@pytest.mark.parametrize("name", NAMES)
def test_modules_may_have_any_name_that_torch_allows(name: str, tmp_path: Path) -> None:
    """Also those of methods of what holds the layers, and of nodes of a file."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(12, 9)
            self.add_module(name, nn.Linear(9, 8))
            self.last = nn.Sequential(OrderedDict({"relu": nn.ReLU(), f"{name}_2" if name != "a/0" else "a_0": nn.Linear(8, 3)}))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self._modules[name](self.first(x.flatten(1)).relu()))  # type: ignore[misc]

    torch.manual_seed(0)
    ann, x = Named(), torch.rand(6, 3, 2, 2)
    network = convert(ann, x, IF(), MaxActivation())
    assert len(network.layers) == 3
    assert snn_accuracy(network, (x, ann(x).argmax(1)), [256]) == {256: 100}
    export(network, tmp_path / "network.nir")
    torch.testing.assert_close(from_nir(read_nir(tmp_path / "network.nir"))(x, 5), network(x, 5))


@pytest.mark.parametrize("name", ["lambda", "class", "None"])
def test_words_of_python_are_refused_as_names_of_modules(name: str) -> None:
    ann = nn.Sequential(OrderedDict({"a": nn.Flatten(), name: nn.Linear(12, 3)}))
    with pytest.raises(ConversionError, match=f"'{name}' has a name of Python's own.*rename it"):
        convert(ann, torch.rand(6, 3, 2, 2), IF(), MaxActivation())


@pytest.mark.parametrize("name", ["keys", "training", "a.b", "", "input"])
def test_layers_with_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a layer cannot be called '{name}'"):
        SpikingNetwork({name: Layer([("input", Synapse([nn.Flatten()]))], None)}, Direct(), (3,))


def test_a_layer_whose_name_a_file_cannot_hold_is_refused_there() -> None:
    network = SpikingNetwork({"a/b": Layer([("input", Synapse([nn.Linear(3, 2)]))], IF()),
                              "c": Layer([("a/b", Synapse([nn.Linear(2, 2)]))], None)}, Direct(), (3,))  # fmt: skip
    with pytest.raises(NirError, match="'a/b_synapse0_0', and a slash separates folders in HDF5"):
        to_nir(network)
