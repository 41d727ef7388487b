"""RIFLE and L2-SP: effects on head, rate and momentum; without resets training is unchanged."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, vgg11

from spikeprop import Backprop, Digits, fit
from spikeprop.ann import MLP, ResNet
from spikeprop.errors import CheckpointError, RecipeError, SegmentError, TrainingCollapsed
from spikeprop.learn import Callback, CollapseGuard, Constant, Cosine, LearningRule, OneCycle, Schedule, TrainingState, Triangular
from spikeprop.plugins import L2SP, RIFLE, ActivationRelaxation, BasicResNet, Interlocking
from spikeprop.plugins.rifle.callbacks import find_head
from spikeprop.plugins.rifle.transfer import few, only
from tests.learn.test_fit import Interrupt, small_ann, weights


class Watch(Callback):
    """Rates of all groups, and the head's weights, at every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.heads: list[torch.Tensor] = []
        self.momenta: list[bool] = []

    def on_step(self, training: TrainingState) -> None:
        head = training.model.get_submodule(find_head(training.model))
        assert isinstance(head, nn.Linear)
        self.rates.append([g["lr"] for g in training.optimizer.param_groups])
        self.heads.append(head.weight.detach().clone())

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        head = training.model.get_submodule(find_head(training.model))
        self.momenta.append(all(p in training.optimizer.state for p in head.parameters()))


def train(
    *callbacks: Callback,
    rule: LearningRule | None = None,
    epochs: int = 4,
    checkpoint: Path | None = None,
    lr: float = 0.05,
    schedule: Schedule | None = None,
) -> nn.Module:
    model, rule = small_ann(), rule or Backprop()
    rule.prepare(model, torch.zeros(2, 1, 8, 8))
    groups = rule.param_groups(model)
    for callback in callbacks:
        groups = callback.param_groups(model, groups)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    data = Digits(train_limit=96).train(32, seed=4)
    with contextlib.suppress(KeyboardInterrupt):
        fit(
            model, rule, data, optimizer,
            epochs=epochs, schedule=schedule or Cosine(), callbacks=callbacks, checkpoint=checkpoint, checkpoint_seconds=0,
        )  # fmt: skip
    return model


RULES: dict[str, Any] = {
    "backprop": Backprop,
    "activation relaxation": lambda: ActivationRelaxation(step_size=0.5, backward_weights="learnt"),
    "interlocking": lambda: Interlocking(cuts=3, reach=1),
}


@pytest.mark.parametrize("kind", list(RULES))
def test_zero_resets_equal_plain_training_for_any_rule(kind: str) -> None:
    torch.manual_seed(0)
    plain = train(rule=RULES[kind]())
    torch.manual_seed(0)
    assert torch.equal(weights(plain), weights(train(RIFLE(resets=0), rule=RULES[kind]())))
    torch.manual_seed(0)
    assert torch.equal(weights(plain), weights(train(RIFLE(resets=0, cyclic=False), rule=RULES[kind]())))
    torch.manual_seed(0)
    assert not torch.equal(weights(plain), weights(train(RIFLE(resets=1), rule=RULES[kind]())))


def test_zero_resets_keep_any_schedule() -> None:
    torch.manual_seed(0)
    plain = train(schedule=Constant())
    torch.manual_seed(0)
    assert torch.equal(weights(plain), weights(train(RIFLE(resets=0), schedule=Constant())))


def test_l2sp_uses_the_initial_weights_of_each_training() -> None:
    callback = L2SP(alpha=1.0)
    first = train(callback)
    again = {name: value.clone() for name, value in callback.start.items()}
    other = small_ann()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    callback.on_start(TrainingState(other, torch.optim.SGD(other.parameters(), lr=0.1), 1, 1))
    assert first is not other
    assert any(not torch.equal(again[name], value) for name, value in callback.start.items())


def test_state_of_other_callbacks_is_refused(tmp_path: Path) -> None:
    train(Watch(), L2SP(alpha=1.0), checkpoint=tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"callbacks that this run does not have in this order \(1.L2SP\)"):
        train(L2SP(alpha=1.0), checkpoint=tmp_path / "c.safetensors")


def test_only_the_head_is_reset_without_momentum_and_never_at_the_end() -> None:
    watch = Watch()
    model = train(RIFLE(resets=1, cyclic=False), watch, lr=1e-9)
    head = watch.heads
    steps = [float((a - b).norm()) for a, b in zip(head[1:], head)]
    assert [i for i, step in enumerate(steps) if step > 1e-3] == [5]  # three steps an epoch; after the second of four
    assert watch.momenta == [True, False, True, True]
    last = model.get_submodule(find_head(model))
    assert isinstance(last, nn.Linear)
    assert torch.equal(last.weight, head[-1])
    start, end = small_ann(), model
    moved = [float((a - b).detach().norm()) for a, b in zip(start.parameters(), end.parameters())]
    assert max(moved[:-1]) < 1e-5 < 0.1 < moved[-1]


def test_the_heads_rate_starts_anew_while_the_others_follow_the_schedule() -> None:
    watch = Watch()
    train(RIFLE(resets=1), watch)
    rest, head = zip(*watch.rates)
    assert rest == pytest.approx([0.025 * (1 + math.cos(math.pi * t / 12)) for t in range(12)])
    assert head == pytest.approx([0.025 * (1 + math.cos(math.pi * (t % 6) / 6)) for t in range(12)])


@pytest.mark.parametrize("schedule", [Cosine(warmup=0.4), Triangular(peak=0.4, start=0.1), OneCycle(peak=0.4)])
def test_the_head_warms_up_with_the_schedule_even_beyond_its_first_period(schedule: Schedule) -> None:
    watch = Watch()
    train(RIFLE(resets=3), watch, schedule=schedule)
    rest, head = zip(*watch.rates)
    cyclic = [0.025 * (1 + math.cos(math.pi * (t % 3) / 3)) for t in range(12)]
    warming = [min(1.0, schedule(t / 12)) if t / 12 < 0.4 else 1.0 for t in range(12)]
    assert head == pytest.approx([a * b for a, b in zip(cyclic, warming)])
    assert rest == pytest.approx([0.05 * schedule(t / 12) for t in range(12)])
    assert head[0] == pytest.approx(rest[0])


@pytest.mark.parametrize(
    ("epochs", "resets", "after"), [(6, 3, [2, 3, 4]), (8, 3, [2, 4, 6]), (7, 2, [2, 5]), (9, 5, [2, 3, 4, 6, 8])]
)
def test_periods_differ_by_at_most_one_epoch(epochs: int, resets: int, after: list[int]) -> None:
    ends = RIFLE(resets=resets)._ends(epochs)
    assert ends == after
    lengths = [b - a for a, b in pairwise([0, *ends, epochs])]
    assert max(lengths) - min(lengths) <= 1


class LateGuard(CollapseGuard):
    """Judges from the second epoch on."""

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        if training.epoch:
            super().on_epoch(training, metrics)


class AlwaysWrong(Backprop):
    """Reports scores that are wrong."""

    def step(self, model: Any, x: Any, y: Any) -> dict[str, torch.Tensor]:
        return super().step(model, x, y) | {"scores": nn.functional.one_hot((y + 1) % 10, 10).float()}


def test_an_announced_reset_is_no_collapse_for_one_epoch(tmp_path: Path) -> None:
    guard = LateGuard(10, least=1)
    with pytest.raises(TrainingCollapsed, match="in epoch 2 "):
        train(guard, rule=AlwaysWrong(), epochs=2)
    train(guard, RIFLE(resets=1), rule=AlwaysWrong(), epochs=2)
    train(RIFLE(resets=2), guard, rule=AlwaysWrong(), epochs=3)  # the other order: a reset before the guard judges
    for stop in (4, 99):  # resumed within the epoch after the reset
        train(guard, RIFLE(resets=1), Interrupt(stop), rule=AlwaysWrong(), epochs=2, checkpoint=tmp_path / "p.safetensors")
    with pytest.raises(TrainingCollapsed, match="in epoch 3 "):
        train(guard, RIFLE(resets=2), rule=AlwaysWrong(), epochs=4)  # resets after epochs 1 and 3


def test_l2sp_equals_hand_computed_values() -> None:
    model = small_ann()
    start = [p.detach().clone() for p in model.parameters()]
    training = TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0), 1, 1)
    penalty = L2SP(alpha=0.3, beta=0.2)
    penalty.on_start(training)
    for p in model.parameters():
        p.data += 1
        p.grad = torch.zeros_like(p)
    penalty.on_gradient(training)
    *backbone, head = model.parameters()
    assert all(torch.allclose(p.grad, torch.full_like(p, 0.3)) for p in backbone if p.grad is not None)
    assert head.grad is not None
    assert torch.allclose(head.grad, 0.2 * (start[-1] + 1))


@pytest.mark.parametrize("after", [4, 7, 11])
def test_combined_callbacks_resume_exactly(after: int, tmp_path: Path) -> None:
    def callbacks(*more: Callback) -> list[Callback]:
        return [L2SP(), RIFLE(resets=2), *more]

    whole = train(*callbacks())
    train(*callbacks(Interrupt(after)), checkpoint=tmp_path / "p.safetensors")
    assert torch.equal(weights(whole), weights(train(*callbacks(), checkpoint=tmp_path / "p.safetensors")))


def test_heads_are_found() -> None:
    heads = {
        "fc": resnet18(),
        "classifier.6": vgg11(),
        "classifier.1": mobilenet_v2(),
        "head": ResNet(depth=8, input_shape=(1, 16, 16)),
        "head.2": BasicResNet(width=4, blocks=(1, 1, 1, 1)),
        "layers.4": MLP(input_shape=(4,), classes=2, hidden=[3]),
        "1": nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.LogSoftmax(1)),
    }
    assert {name: find_head(model) for name, model in heads.items()} == {name: name for name in heads}
    with pytest.raises(SegmentError, match="no layer with weights"):
        find_head(nn.ReLU())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RIFLE(resets=-1), "resets is -1"),
        (lambda: L2SP(alpha=-1.0), "alpha is -1"),
        (lambda: train(RIFLE(resets=4), epochs=4), "resets is 4, which needs more than 4 epochs"),
        (lambda: train(RIFLE(head="fc")), r"head is 'fc', but the network has no such module; its last modules:.*classifier\.4"),
        (lambda: train(RIFLE(head="classifier")), "is a Sequential, which has no reset_parameters"),
    ],
)
def test_invalid_settings_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_head_without_own_parameter_group_is_refused() -> None:
    model = small_ann()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"rifle\.param_groups"):
        fit(model, Backprop(), Digits(train_limit=32).train(32, seed=0), optimizer, epochs=2, callbacks=[RIFLE()])


def test_few_images_of_some_classes() -> None:
    split = few(only(Digits().train(32, seed=1), [7, 3]), 4, seed=5)
    assert sorted(split.labels.tolist()) == [0] * 4 + [1] * 4
    sevens = Digits().read(True)[0][Digits().read(True)[1] == 7]
    assert all((sevens == image).flatten(1).all(1).any() for image, y in zip(split.images, split.labels) if y == 0)
    assert not torch.equal(split.images, few(only(Digits().train(32, seed=1), [7, 3]), 4, seed=6).images)
    with pytest.raises(RecipeError, match="not in memory"):
        only([], [1])
