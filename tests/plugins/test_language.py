"""Interlocking on a Transformer and real text: the definition holds, and training works for every reach."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from spikeprop import fit
from spikeprop.learn import Backprop, LearningRule
from spikeprop.plugins import ActivationRelaxation, CharTransformer, Interlocking, TokenHead
from spikeprop.plugins.comparison import accuracy_and_loss
from spikeprop.plugins.interlocking.heads import TokensLast
from spikeprop.plugins.interlocking.language import PythonSource, TextBatches, source_text
from tests.plugins.test_interlocking import _same, by_definition


def small() -> CharTransformer:
    torch.manual_seed(0)
    return CharTransformer(context=16, width=16, depth=3, heads=2)


def text() -> tuple[Tensor, Tensor]:
    return next(TextBatches(source_text()[0], batch_size=4, context=16, windows=4).epoch(0))


@pytest.mark.parametrize("reach", [1, 2, None])
def test_each_segment_of_a_transformer_follows_one_loss(reach: int | None) -> None:
    model, (x, y) = small().double(), text()
    rule = Interlocking(cuts=4, reach=reach, combine="furthest", head=TokenHead())
    rule.prepare(model, x)
    assert len(rule.own) == (3 if reach == 1 else 2 if reach == 2 else 0)
    twin = copy.deepcopy(model)
    expected = by_definition(twin, _same(rule, twin), x, y)
    rule.step(model, x, y)
    for p, want in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None
        assert (p.grad - want).abs().max() <= 1e-10


def test_activation_relaxation_of_a_transformer_is_backprop() -> None:
    model, (x, y) = small().double(), text()
    twin = copy.deepcopy(model)
    ActivationRelaxation(step_size=1.0, sweep="gauss-seidel").step(model, x, y)
    Backprop().step(twin, x, y)
    assert all((p.grad - q.grad).abs().max() <= 1e-10 for p, q in zip(model.parameters(), twin.parameters()))  # type: ignore[operator]


@pytest.mark.parametrize("reach", [1, 2])
def test_interlocking_learns_python_source(reach: int) -> None:
    model = small()
    rule: LearningRule = Interlocking(cuts=3, reach=reach, head=TokenHead())
    batches = TextBatches(source_text()[0], batch_size=16, context=16, windows=640)
    rule.prepare(model, next(batches.epoch(0))[0])
    history = fit(model, rule, batches, torch.optim.Adam(rule.param_groups(model), lr=5e-3), epochs=2)
    assert history[0]["loss"] < 4.6 < 4.852  # ln 128: uniform predictions
    assert history[1]["loss"] < history[0]["loss"] - 0.3
    assert history[1]["accuracy"] > 20


def test_attention_is_causal() -> None:
    model, (x, _) = small().eval(), text()
    changed = x.clone()
    changed[:, 9:] = 7
    assert torch.equal(model(x)[:, :, :9], model(changed)[:, :, :9])
    assert not torch.equal(model(x)[:, :, 9:], model(changed)[:, :, 9:])
    with pytest.raises(ValueError, match="width is 10, which is not divisible by 4 heads"):
        CharTransformer(width=10)


def test_the_text_is_real_and_split() -> None:
    train, test = source_text()
    assert len(train) > 200_000
    assert len(test) == pytest.approx(len(train) / 9, rel=1e-3)
    assert "def " in "".join(map(chr, train[:5000].tolist()))


def test_the_test_text_is_read_once_from_end_to_end() -> None:
    batches = PythonSource(context=50, test_limit=7).test(3)
    found = list(batches.epoch(0))
    assert [len(x) for x, _ in found] == [3, 3, 1]
    assert len(batches) == 3
    expected = source_text()[1][: 7 * 50 + 1]
    assert torch.equal(torch.cat([x.flatten() for x, _ in found]), expected[:-1])
    assert torch.equal(torch.cat([y.flatten() for _, y in found]), expected[1:])


def test_training_windows_depend_on_seed_epoch_and_number() -> None:
    data = PythonSource(context=20, train_limit=8)
    first = torch.cat([x for x, _ in data.train(4, 0).epoch(0)])
    assert torch.equal(first, torch.cat([x for x, _ in data.train(4, 0).epoch(0)]))
    assert torch.equal(first[4:], next(data.train(4, 0).epoch(0, start=1))[0])
    for other in (data.train(4, 1).epoch(0), data.train(4, 0).epoch(1)):
        assert not torch.equal(first, torch.cat([x for x, _ in other]))


@pytest.mark.parametrize(("settings", "says"), [({"context": 0}, "context is 0"), ({"test_limit": 0}, "test_limit is 0")])
def test_text_shorter_than_the_context_is_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PythonSource(**settings)


def test_every_character_counts_for_accuracy_and_loss() -> None:
    model = nn.Sequential(nn.Embedding(3, 3), TokensLast())
    model[0].weight.data = torch.eye(3) * 2  # a character's score for itself is 2, for others 0
    x, y = torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[0, 1, 0], [0, 2, 2]])
    found = accuracy_and_loss(model, [(x, y)])
    sure = math.exp(2) / (math.exp(2) + 2)
    assert found["accuracy"] == pytest.approx(100 * 4 / 6)
    assert found["test_loss"] == pytest.approx(-(4 * math.log(sure) + 2 * math.log((1 - sure) / 2)) / 6)
