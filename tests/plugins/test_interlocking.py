"""Interlocking compared with its definition by autograd for every loss, and many processes with one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn import CrossEntropy, SquaredError
from spikeprop.plugins import BasicResNet, ConvHead, Interlocking, PooledHead, TokenHead
from spikeprop.plugins.interlocking import SegmentProcess
from spikeprop.plugins.interlocking.work import Place
from spikeprop.runtime.processes import group
from tests.forked import spawn
from tests.learn.test_fit import small_ann, uninterrupted_and_resumed, weights
from tests.learn.test_segments import Shared
from tests.plugins.test_activation_relaxation import TwoOutputs


def resnet(seed: int = 0) -> BasicResNet:
    torch.manual_seed(seed)
    return BasicResNet(input_shape=(1, 8, 8), classes=5, width=4, blocks=(1, 1, 1, 1))


def prepared(model: nn.Module, **settings: Any) -> Interlocking:
    rule = Interlocking(**{"cuts": 4, "head": ConvHead(widths=[6, 4]), **settings})
    torch.manual_seed(7)
    rule.prepare(model, torch.rand(2, 1, 8, 8).to(next(model.parameters())))
    return rule


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(size, 1, 8, 8, dtype=torch.float64), torch.arange(size) % 5


def by_definition(model: nn.Module, rule: Interlocking, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of each parameter: that of the losses that its segment follows, through the complete graph."""
    graph = rule.graph(model)
    outputs, h = [], x
    for segment in graph.segments:
        h = segment.module(h)
        outputs.append(h)
    count = len(outputs)
    found: dict[int, Tensor] = {}
    for i, segment in enumerate(graph.segments):
        furthest = min(i + (rule.reach or count) - 1, count - 1)
        seen = [furthest] if rule.combine == "furthest" or rule.reach is None else range(i, furthest + 1)
        losses = [rule.loss(outputs[j] if j == count - 1 else rule.own[str(j)](outputs[j]), y) for j in seen]
        loss = torch.stack(losses).sum() / (len(losses) if rule.combine == "mean" else 1)
        parameters = segment.parameters()
        grads = torch.autograd.grad(loss, parameters, retain_graph=True)
        found |= {id(p): g for p, g in zip(parameters, grads)}
    return [found[id(p)] for p in model.parameters()]


@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("reach", [1, 2, 3, 4, None])
@pytest.mark.parametrize("combine", ["furthest", "mean", "sum"])
def test_each_segment_follows_its_losses(combine: Any, reach: int | None, loss: Any) -> None:
    model = resnet().double().train()
    x, y = batch()
    rule = prepared(model, reach=reach, combine=combine, loss=loss)
    expected = by_definition(copy.deepcopy(model), _same(rule, copy.deepcopy(model)), x, y)
    plain = copy.deepcopy(model)
    told = rule.step(model, x, y)
    grads = [p.grad for p in model.parameters()]
    for got, want in zip(grads, expected):
        assert got is not None
        assert (got - want).abs().max() <= 1e-10
    scores = plain(x)
    assert torch.equal(told["scores"], scores)
    for a, b in zip(model.buffers(), plain.buffers()):
        assert torch.equal(a, b)  # batch statistics: once
    if reach is None or (reach == 4 and combine == "furthest"):
        loss(scores, y).backward()
        assert all((p.grad - q.grad).abs().max() <= 1e-10 for p, q in zip(model.parameters(), plain.parameters()))  # type: ignore[operator]
        assert not rule.own


def _same(rule: Interlocking, model: nn.Module) -> Interlocking:
    other = Interlocking(cuts=rule.cuts, reach=rule.reach, combine=rule.combine, head=rule.head, loss=rule.loss)
    other.own.update({name: copy.deepcopy(head) for name, head in rule.own.items()})
    other.graph(model)
    return other


def test_local_learning_trains_each_segment_with_its_head() -> None:
    model = resnet().double().train()
    x, y = batch()
    rule = prepared(model, reach=1)
    graph = rule.graph(model)
    alone, heads = copy.deepcopy(model), copy.deepcopy(rule.own)
    rule.step(model, x, y)
    h = x
    for i, segment in enumerate(_same(rule, alone).graph(alone).segments):
        h = segment.module(h.detach())
        scores = h if i == 3 else heads[str(i)](h)
        nn.functional.cross_entropy(scores, y).backward()
    trained = [*model.parameters(), *rule.parameters()]
    for p, q in zip(trained, [*alone.parameters(), *heads.parameters()], strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).abs().max() <= 1e-10
    assert len(graph.segments) == 4


def test_micro_batches_accumulate_to_the_batch_gradient() -> None:
    model = small_ann().double().eval()  # no batch-norm, no dropout: samples of a batch are independent
    x, y = batch(7)
    whole, parts = (copy.deepcopy(model) for _ in range(2))
    for m, count in ((whole, 1), (parts, 3)):
        rule = prepared(m, cuts=3, reach=2, microbatches=count, head=PooledHead(size=2))
        told = rule.step(m, x, y)
        assert told["scores"].shape == (7, 10)
    for p, q in zip(whole.parameters(), parts.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-12  # type: ignore[operator]


def test_messages_between_segments() -> None:
    places = [Place(i, 5, 3, "furthest") for i in range(5)]
    assert [p.target for p in places] == [2, 3, 4, 4, 4]
    assert [p.has_loss for p in places] == [False, False, True, True, True]
    assert [p.received() for p in places] == [[2], [2, 3], [3, 4], [4], []]
    assert [p.sent() for p in places] == [[], [2], [2, 3], [3, 4], [4]]
    assert [p.others() for p in places] == [[2], [2, 3], [3, 4], [4], []]
    mean = [Place(i, 5, 3, "mean") for i in range(5)]
    assert [p.weights for p in mean[2:]] == [dict.fromkeys((2, 3, 4), 1 / 3), {3: 0.5, 4: 0.5}, {4: 1.0}]
    assert [p.received() for p in mean] == [[1, 2], [2, 3], [3, 4], [4], []]
    assert [p.sent() for p in mean] == [[], [1, 2], [2, 3], [3, 4], [4]]
    for place in (*places, *mean):
        done = place.order(3)
        assert sorted(m for kind, m, _ in done if kind == "F") == [0, 1, 2]
        assert {(m, j) for kind, m, j in done if kind == "V"} >= {(m, j) for m in range(3) for j in place.others()}
        assert all(done.index(("F", m, -1)) < done.index((kind, m, j)) for kind, m, j in done if kind == "V")


def test_heads_resume_exactly(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, Interlocking, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = BasicResNet(input_shape=(1, 8, 8), width=4, blocks=(1, 1, 0, 0))
        rule = prepared(model, cuts=2, reach=1)
        return model, rule, torch.optim.SGD(rule.param_groups(model), lr=0.05, momentum=0.9)

    (whole, rule), (resumed, again) = uninterrupted_and_resumed(make, tmp_path / "progress.safetensors")
    assert torch.equal(weights(whole), weights(resumed))
    assert len(rule.state_dict()) == 14  # batch statistics of heads among them
    assert all(torch.equal(rule.state_dict()[name], value) for name, value in again.state_dict().items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 64)
        self.b = nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.flatten(1))))


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        (Tied(), {"cuts": ["a"]}, r"a\.weight is used in the segments a and b, which follow different losses: do not share"),
        (Shared(), {"cuts": ["b"]}, r"weight sharing: w is used in the segments b and matmul.*, which follow different losses"),
        (TwoOutputs(), {"cuts": ["a"]}, "the network returns 2 tensors, .*; one is needed"),
        (resnet(), {"cuts": 99}, "at most"),
        (resnet(), {"cuts": ["features.3.residual.0"]}, "more than one value leaves|reads"),
        (resnet(), {"cuts": 4, "reach": 1, "head": TokenHead()}, r"TokenHead reads tokens"),
    ],
)
def test_unsupported_networks_are_refused(model: nn.Module, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SegmentError, match=says):
        prepared(model, **settings)


def test_invalid_settings_and_missing_prepare_are_refused() -> None:
    with pytest.raises(ValueError, match="reach is 0"):
        Interlocking(cuts=2, reach=0)
    with pytest.raises(ValueError, match="combine is 'furtest'; use furthest, mean, sum"):
        Interlocking(cuts=2, combine="furtest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"call rule\.prepare"):
        Interlocking(cuts=4, reach=1).step(resnet(), torch.rand(2, 1, 8, 8), torch.arange(2))


# processes --------------------------------------------------------------------------------------------------------------------


def _one_of_many(rank: int, world: int, kinds: list[tuple[int | None, Any]], folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    with group(dist.FileStore(f"{folder}/store", world), rank, world):
        for reach, combine in kinds:
            model = resnet().double().train()
            rule = prepared(model, cuts=world, reach=reach, combine=combine, microbatches=2)
            x, y = batch(8)
            process = SegmentProcess(model, rule, x)
            losses = process.train([(x, y), (x.flip(0), y.flip(0))], torch.optim.SGD(process.parameters(), lr=0.1))
            names = {id(p): n for n, p in model.named_parameters()}
            own = {names[id(p)]: [p.detach(), p.grad] for p in process.segment.parameters()}
            torch.save((own, losses, process.clock.idle, process.clock.busy), f"{folder}/{reach}.{combine}.{rank}.pt")


KINDS: list[tuple[int | None, Any]] = [(2, "furthest"), (2, "mean"), (3, "sum"), (None, "mean")]


@pytest.mark.parametrize(("world", "kinds"), [(2, [(1, "mean")]), (4, KINDS)], ids=["2", "4"])
def test_processes_give_the_gradients_of_one_process(world: int, kinds: list[tuple[int | None, Any]], tmp_path: Path) -> None:
    spawn(_one_of_many, (world, kinds, str(tmp_path)), nprocs=world)
    for reach, combine in kinds:
        model = resnet().double().train()
        rule = prepared(model, cuts=world, reach=reach, combine=combine, microbatches=2)
        optimizer = torch.optim.SGD(rule.param_groups(model), lr=0.1)
        x, y = batch(8)
        told = {}
        for a, b in ((x, y), (x.flip(0), y.flip(0))):
            optimizer.zero_grad()
            told = rule.step(model, a, b)
            optimizer.step()
        seen = set()
        for rank in range(world):
            own, losses, idle, busy = torch.load(tmp_path / f"{reach}.{combine}.{rank}.pt", weights_only=True)
            for name, (value, grad) in own.items():
                p = model.get_parameter(name)
                assert p.grad is not None
                assert (grad - p.grad).abs().max() <= 1e-10
                assert (value - p).abs().max() <= 1e-10
                seen.add(name)
            assert idle >= 0
            assert busy > 0
            if rank == world - 1:
                assert losses[-1] == pytest.approx(float(told["loss"]), abs=1e-12)
        assert seen == {name for name, _ in model.named_parameters()}
