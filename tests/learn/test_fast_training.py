"""The fast training of an ANN: whitening, lookahead, rates of biases and a triangular schedule against a loop written by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeprop.ann import FastCNN
from spikeprop.data import InMemorySplit
from spikeprop.errors import DataError
from spikeprop.learn import (
    EMA,
    Backprop,
    BiasRate,
    Callback,
    CrossEntropy,
    Lookahead,
    OneCycle,
    TrainingState,
    Triangular,
    Whitening,
    fit,
    with_rates,
)
from spikeprop.runtime.batches import CompleteBatches

EPOCHS, BATCH = 3, 16
EVERY, DECAY, POWER = 2, 0.95, 1.0


def split(size: int = 70) -> InMemorySplit:
    """Random images of 3 x 12 x 12 with labels, shuffled and augmented."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 3, 12, 12), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, 10, (size,), generator=rng)
    return InMemorySplit(images, labels, BATCH, 0.5, 0.25, seed=3, crop=2, flip="alternating", padding="reflect")


def network() -> FastCNN:
    torch.manual_seed(0)
    return FastCNN(input_shape=(3, 12, 12), widths=[8, 12])


def callbacks() -> list[Callback]:
    return [
        Lookahead(decay=DECAY, every=EVERY, power=POWER),
        Whitening(images=40, bias_epochs=1),
        BiasRate(lr=8, weight_decay=1 / 8),
    ]


def optimizer(model: nn.Module, hooks: list[Callback]) -> torch.optim.SGD:
    rule = Backprop(label_smoothing=0.2)
    groups = rule.param_groups(model)
    for hook in hooks:
        groups = hook.param_groups(model, groups)
    rates = {"lr": 0.05, "weight_decay": 1e-2}
    return torch.optim.SGD(with_rates(groups, **rates), lr=0.05, momentum=0.85, weight_decay=1e-2, nesterov=True)


def train(model: nn.Module, **options) -> list:
    hooks = [*callbacks(), *options.pop("more", [])]
    batches = CompleteBatches(split(), BATCH)
    schedule = Triangular(start=0.2, peak=0.25, end=0.07)
    rule = Backprop(label_smoothing=0.2)
    return fit(model, rule, batches, optimizer(model, hooks), epochs=EPOCHS, schedule=schedule, callbacks=hooks, **options)


def by_hand(model: FastCNN) -> None:
    """The same training, with nothing of ``learn``."""
    data = split()
    first = torch.cat([x for x, _ in data.epoch(0)][:3])[:40]
    patches = F.unfold(first, 2).transpose(1, 2).reshape(-1, 12).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).reshape(12, 3, 2, 2).float()
    model.whitening.weight.data.copy_(torch.cat([filters, -filters]))
    model.whitening.weight.requires_grad = False
    trained = [p for p in model.parameters() if p.requires_grad]
    biases, weights = [p for p in trained if p.ndim == 1], [p for p in trained if p.ndim > 1]
    groups = [{"params": biases, "lr": 0.4, "weight_decay": 1e-2 / 8}, {"params": weights}]
    sgd = torch.optim.SGD(groups, lr=0.05, weight_decay=1e-2, momentum=0.85, nesterov=True)
    base = [group["lr"] for group in sgd.param_groups]
    slow = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    per_epoch, done = 70 // BATCH, 0
    total = per_epoch * EPOCHS
    for epoch in range(EPOCHS):
        model.train()
        bias = model.whitening.bias
        assert bias is not None
        bias.requires_grad_(epoch < 1)
        for x, y in list(data.epoch(epoch))[:per_epoch]:
            at = done / total
            for group, lr in zip(sgd.param_groups, base):
                group["lr"] = lr * (0.2 + 0.8 * at / 0.25 if at < 0.25 else 1 + (0.07 - 1) * (at - 0.25) / 0.75)
            loss = F.cross_entropy(model(x), y, label_smoothing=0.2)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            done += 1
            if done % EVERY == 0:
                kept = DECAY**EVERY * (done / total) ** POWER
                for name, value in model.state_dict().items():
                    if value.is_floating_point():
                        slow[name] = kept * slow[name] + (1 - kept) * value
                        value.copy_(slow[name])
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(slow[name])


def difference(a: nn.Module, b: nn.Module) -> float:
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_recipe_of_callbacks_equals_a_loop_written_by_hand():
    ours, theirs = network(), network()
    history = train(ours)
    by_hand(theirs)
    assert history[-1]["lr"] == pytest.approx(0.05 * (1 - 0.93 * (11 / 12 - 0.25) / 0.75))  # of the weights
    assert difference(ours, theirs) < 2e-5


def test_channels_last_trains_as_the_default_layout_and_leaves_it():
    plain, other = network(), network()
    train(plain)
    train(other, memory_format=torch.channels_last)
    assert difference(plain, other) < 1e-4
    assert all(p.is_contiguous() for p in other.parameters())


class StopAt(Callback):
    """Ends the training after so many steps, as a kill does."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step(self, training: TrainingState) -> None:
        if training.steps_done == self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("average", [[], [EMA(decay=0.9, every=2)]])
def test_killed_training_resumes_exactly(tmp_path, average):
    complete, killed, resumed = network(), network(), network()
    train(complete, more=average and [EMA(decay=0.9, every=2)])
    path = tmp_path / "progress.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(killed, more=[*average, StopAt(7)], checkpoint=path, checkpoint_seconds=0.0)
    with torch.no_grad():
        resumed.whitening.weight.zero_()  # a resumed training reads it, and does not make it again
    train(resumed, more=average and [EMA(decay=0.9, every=2)], checkpoint=path)
    assert difference(complete, resumed) == 0


def test_whitened_patches_are_uncorrelated_and_of_one_size():
    data, model = split(), network()
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    correlated = [(torch.einsum("ij,bjhw->bihw", noise, x), y) for x, y in data.epoch(0)]
    whitening = Whitening(images=70, epsilon=0.0)
    whitening.on_start(TrainingState(model, optimizer(model, []), 1, 5, batches=_Fixed(correlated)))
    with torch.no_grad():
        outputs = model.whitening(torch.cat([x for x, _ in correlated])).transpose(0, 1).flatten(1)
    moment = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(moment[:12, :12], torch.eye(12), atol=1e-3)
    assert torch.equal(model.whitening.weight[:12], -model.whitening.weight[12:])


@dataclass
class _Fixed:
    batches: list

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0):
        return iter(self.batches[start:])


def test_whitening_leaves_modes_and_trained_parameters_as_they_were():
    model = network()
    model.get_submodule("blocks.0.norm1").eval()
    before = [p.requires_grad for p in model.parameters()]
    training = TrainingState(model, optimizer(model, []), 1, 4, batches=split())
    whitening = Whitening(images=8)
    whitening.on_start(training)
    assert model.training
    assert not model.get_submodule("blocks.0.norm1").training
    assert not model.whitening.weight.requires_grad
    whitening.on_end(training)
    assert [p.requires_grad for p in model.parameters()] == before


def test_whitening_names_the_layers_there_are():
    model = network()
    training = TrainingState(model, optimizer(model, []), 1, 4)
    with pytest.raises(ValueError, match="no such convolution; its first ones: whitening"):
        Whitening(layer="first").on_start(training)
    wide = nn.Sequential(nn.Conv2d(3, 25, 2))
    training = TrainingState(wide, optimizer(wide, []), 1, 4)
    with pytest.raises(ValueError, match="at most 24 filters"):
        Whitening(layer="0").on_start(training)


def test_ema_is_the_average_of_all_steps_and_does_not_change_the_training():
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 3), []
    start = model.weight.detach().clone()
    plain = nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())

    class Watch(Callback):
        def on_step(self, training: TrainingState) -> None:
            seen.append(training.model.get_parameter("weight").detach().clone())

    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)]
    ema, other = EMA(decay=0.5), nn.Linear(4, 3)  # what it kept of another training is no part of this one's average
    for network_, hooks in ((other, [ema]), (model, [Watch(), ema]), (plain, [])):
        fit(network_, Backprop(), batches, torch.optim.SGD(network_.parameters(), lr=0.1), epochs=2, callbacks=hooks)
    average = start
    for number, weight in enumerate(seen, 1):
        kept = min(0.5, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * weight
    assert torch.allclose(model.weight, average, atol=1e-6)
    assert torch.equal(seen[-1], plain.weight)


def test_schedules_of_one_cycle_in_closed_form():
    triangle, cycle = Triangular(start=0.2, peak=0.25, end=0.1), OneCycle(start=0.1, peak=0.25, end=0.02)
    assert [triangle(at) for at in (0, 0.125, 0.25, 0.625)] == pytest.approx([0.2, 0.6, 1.0, 0.55])
    assert triangle(1 - 1e-9) == pytest.approx(0.1)
    assert [cycle(at) for at in (0, 0.125, 0.25, 0.625)] == pytest.approx([0.1, 0.55, 1.0, 0.51])
    assert cycle(1 - 1e-9) == pytest.approx(0.02)
    assert OneCycle(peak=0.5)(0.25) == pytest.approx(0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi / 2)))


@pytest.mark.parametrize("kind", [Triangular, OneCycle])
def test_schedules_of_one_cycle_refuse_what_is_no_fraction(kind):
    with pytest.raises(ValueError, match="peak is 1"):
        kind(peak=1.0)
    with pytest.raises(ValueError, match="start is -1"):
        kind(start=-1.0)


def test_bias_rate_multiplies_the_stage_settings_and_combines():
    model = network()
    groups = Backprop().param_groups(model)
    for hook in (BiasRate(lr=4), BiasRate(lr=2, weight_decay=0)):
        groups = hook.param_groups(model, groups)
    biases, weights = with_rates(groups, lr=0.1, weight_decay=1e-3)
    assert biases["lr"] == pytest.approx(0.8)
    assert biases["weight_decay"] == 0
    assert {p.ndim for p in biases["params"]} == {1}
    assert set(weights) == {"params"}
    assert len(biases["params"]) + len(weights["params"]) == sum(p.requires_grad for p in model.parameters())


def test_complete_batches_leave_out_the_last():
    complete = CompleteBatches(split(), BATCH)
    assert len(complete) == 4
    assert [len(y) for _, y in complete.epoch(1, 1)] == [16, 16, 16]
    assert len(CompleteBatches(split(64), BATCH)) == 4
    with pytest.raises(DataError, match="no complete batch of 16"):
        CompleteBatches(split(10), BATCH)


def test_mixup_is_the_loss_of_mixed_images(monkeypatch):
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    fraction, other = 0.75, torch.tensor([1, 2, 3, 4, 5, 0])
    monkeypatch.setattr(Backprop, "_partners", lambda self, x: (fraction, other))
    result = Backprop(mixup=0.2, label_smoothing=0.1).step(model, x, y)
    target = torch.zeros(6, 3)
    target[range(6), y] += fraction
    target[range(6), y[other]] += 1 - fraction
    expected = F.cross_entropy(model(fraction * x + (1 - fraction) * x[other]), target, label_smoothing=0.1)
    assert float(result["loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_mixup_draws_a_fraction_of_at_least_a_half_and_a_permutation():
    torch.manual_seed(0)
    fraction, other = Backprop(mixup=0.2)._partners(torch.zeros(9, 1))
    assert 0.5 <= fraction <= 1
    assert sorted(other.tolist()) == list(range(9))


def test_loss_of_half_precision_is_computed_in_single():
    scores, y = torch.randn(8, 10).bfloat16(), torch.arange(8)
    loss = CrossEntropy(label_smoothing=0.2)(scores, y)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(scores.float(), y, label_smoothing=0.2))
