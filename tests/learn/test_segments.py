"""Segment graphs give the network's output and gradient for every way to cut it, or an error with the reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.ann import CNN, MLP, CIFARResNet, ResNet
from spikeprop.errors import SegmentError
from spikeprop.learn.segments import SegmentGraph, SegmentPass, segment_graph


def backprop(graph: SegmentGraph, x: Tensor, cotangent: Tensor) -> SegmentPass:
    """The chain rule over segments, last first."""
    run = SegmentPass(graph, x)
    cotangents = {graph.output: cotangent}
    for segment in reversed(graph.segments):
        c = cotangents.pop(segment.name)
        run.add_parameter_gradients(segment.name, c)
        for name, g in zip(segment.reads, run.vjp(segment.name, c)):
            if g is not None:
                cotangents[name] = cotangents[name] + g if name in cotangents else g
    return run


class Branchy(nn.Module):
    """Skips, a reshape that reads a size, in-place ReLU, batch-norm, dropout, and a parameter used directly."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.b = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = self.relu(self.a(h) + self.b(h) + h) * self.scale
        h = F.max_pool2d(h, 2)
        return self.head(h.view(h.size(0), -1))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    image = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    colour = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    return {
        "mlp": (MLP(input_shape=(1, 8, 8), classes=5, hidden=[9, 7]), image),
        "cnn": (CNN(input_shape=(1, 8, 8), classes=5, plan=[4, "A", 4], hidden=[8], batch_norm=True), image),
        "branchy": (Branchy(), image),
        "resnet": (ResNet(depth=8, input_shape=(3, 16, 16), classes=5), colour),
        "cifar resnet": (CIFARResNet(depth=20, classes=5), colour),
    }


@pytest.mark.parametrize("cuts", [None, 2, 3], ids=lambda c: f"cuts={c}")
@pytest.mark.parametrize("kind", list(networks()))
def test_segments_give_the_networks_output_gradient_and_statistics(kind: str, cuts: int | None) -> None:
    model, x = networks()[kind]
    if kind == "branchy" and cuts == 3:
        pytest.skip("one value passes at two places only")
    ours = model.double().train()
    plain = copy.deepcopy(ours)
    graph = segment_graph(ours, cuts)
    assert cuts is None or (len(graph.segments) == cuts and graph.is_chain)
    torch.manual_seed(5)
    scores = plain(x)
    cotangent = torch.randn(scores.shape, dtype=torch.float64)
    scores.backward(cotangent)
    torch.manual_seed(5)
    run = backprop(graph, x, cotangent)
    assert torch.equal(run.output, scores.detach())
    for (name, p), q in zip(ours.named_parameters(), plain.parameters()):
        assert p.grad is not None, name
        assert q.grad is not None
        assert (p.grad - q.grad).abs().max() <= 1e-12, name
    for a, b in zip(ours.buffers(), plain.buffers()):
        assert torch.equal(a, b)


def test_each_layer_and_join_starts_a_segment() -> None:
    graph = segment_graph(CNN(input_shape=(1, 8, 8), classes=5, plan=[4, "A", 4], hidden=[8], batch_norm=True))
    assert [s.name for s in graph.segments] == ["features.0", "features.4", "classifier.1", "classifier.4"]
    assert graph.is_chain
    assert graph.hops() == {"features.0": 3, "features.4": 2, "classifier.1": 1, "classifier.4": 0}
    branchy = segment_graph(Branchy())
    assert not branchy.is_chain
    assert branchy.hops()["first"] == 1 + branchy.hops()["a.0"]


def test_named_cuts_do_not_cut_inside_a_module() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if float(x.sum()) > 0 else x  # torch.fx cannot trace this

    model = nn.Sequential(nn.Linear(4, 4), Odd(), nn.Linear(4, 3))
    graph = segment_graph(model, ["1"])
    assert [len(list(s.module.parameters())) for s in graph.segments] == [4, 2]
    assert len(segment_graph(model).segments) == 3  # its children, because no trace succeeds

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.out = Odd(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.odd(x))

    assert len(segment_graph(Net(), ["odd"]).segments) == 2
    with pytest.raises(SegmentError, match=r"Net cannot be cut into segments: torch\.fx cannot trace it.*Name submodules"):
        segment_graph(Net())


def test_shared_parameters_are_found() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 2))
    assert segment_graph(model).shared() == {"0.weight": ["0", "0#2"], "0.bias": ["0", "0#2"]}
    assert not segment_graph(Branchy()).shared()


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(torch.relu(self.b(h)) + h)


class Functional(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.a(x), 0.5, training=self.training)


class Two(Skip):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return self.a(x) + y


class Pair(Skip):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        return self.a(x), 1


class Shared(nn.Module):
    """A parameter of the network's own that two layers use, the second time transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(torch.tanh(x @ self.w))) @ self.w.t()


@pytest.mark.parametrize("cuts", [None, ["b"]])
def test_segments_that_share_a_parameter_each_add_to_its_gradient(cuts: list[str] | None) -> None:
    torch.manual_seed(3)
    model, x = Shared().double(), torch.rand(5, 4).double()
    plain = copy.deepcopy(model)
    plain(x).square().sum().backward()
    graph = segment_graph(model, cuts)
    assert list(graph.shared()) == ["w"]
    backprop(graph, x, 2 * SegmentPass(graph, x).output)
    for p, q in zip(model.parameters(), plain.parameters()):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("model", "cuts", "says"),
    [
        (Skip(), ["d"], r"cannot cut after 'd', which the network calls 0 times; its modules: a, b, c"),
        (Skip(), ["c"], r"it is the network's end"),
        (Skip(), 4, "at 2 places, so into at most 3 segments, not 4"),
        (Skip(), 0, "use at least 1"),
        (Functional(), None, r"dropout\(training=...\), whose mode a trace fixes"),
        (Two(), None, "reads 2 inputs"),
        (Pair(), None, "segments need one tensor"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_uncuttable_networks_are_refused_with_a_reason(model: nn.Module, cuts: list[str] | int | None, says: str) -> None:
    with pytest.raises(SegmentError, match=says):
        segment_graph(model, cuts)
