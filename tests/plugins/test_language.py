"""Interlocking on a Transformer and real text: its definition holds there too, and every reach learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from spikeprop import fit
from spikeprop.learn import Backprop, LearningRule
from spikeprop.plugins import ActivationRelaxation, CharTransformer, Interlocking, TokenHead
from spikeprop.plugins.interlocking.language import TextBatches, source_text
from tests.plugins.test_interlocking import _same, by_definition


def small() -> CharTransformer:
    torch.manual_seed(0)
    return CharTransformer(context=16, width=16, depth=3, heads=2)


def text() -> tuple[Tensor, Tensor]:
    return next(TextBatches(source_text()[0], batch_size=4, context=16, steps=1).epoch(0))


@pytest.mark.parametrize("reach", [1, 2, None])
def test_each_stage_of_a_transformer_follows_one_loss(reach: int | None) -> None:
    model, (x, y) = small().double(), text()
    rule = Interlocking(cuts=4, reach=reach, head=TokenHead())
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
def test_it_learns_pythons_own_source(reach: int) -> None:
    model = small()
    rule: LearningRule = Interlocking(cuts=3, reach=reach, head=TokenHead())
    batches = TextBatches(source_text()[0], batch_size=16, context=16, steps=40)
    rule.prepare(model, next(batches.epoch(0))[0])
    history = fit(model, rule, batches, torch.optim.Adam(rule.param_groups(model), lr=5e-3), epochs=2)
    assert history[0]["loss"] < 4.6 < 4.852  # ln 128: knowing nothing
    assert history[1]["loss"] < history[0]["loss"] - 0.3
    assert history[1]["accuracy"] > 20


def test_no_character_sees_a_later_one() -> None:
    model, (x, _) = small().eval(), text()
    changed = x.clone()
    changed[:, 9:] = 7
    assert torch.equal(model(x)[:, :, :9], model(changed)[:, :, :9])
    assert not torch.equal(model(x)[:, :, 9:], model(changed)[:, :, 9:])
    with pytest.raises(ValueError, match="width is 10, which does not divide into 4 heads"):
        CharTransformer(width=10)


def test_the_text_is_real_and_split() -> None:
    train, test = source_text()
    assert len(train) > 200_000
    assert len(test) == pytest.approx(len(train) / 9, rel=1e-3)
    assert "def " in "".join(map(chr, train[:5000].tolist()))
