"""Losses of what a network outputs over time, and of how often its neurons fire, against closed forms and snnTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.errors import LabelError
from spikeprop.learn import EachStep, LowerRate, SpikeCount, SquaredError, TemporalLoss, UpperRate, VanRossum
from spikeprop.learn.temporal import LocalLoss, ReadOut

T, B, K = 10, 4, 3
Y = torch.tensor([0, 2, 1, 2])
LENGTHS = torch.tensor([10, 3, 7, 3])


def values(seed: int = 0) -> Tensor:
    return torch.randn(T, B, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spikes(seed: int = 0) -> Tensor:
    return (values(seed) > 0).double()


def test_each_step_is_the_mean_of_each_samples_own_steps() -> None:
    v = values()
    expected = torch.stack([F.cross_entropy(v[:n, b], Y[b].expand(int(n))) for b, n in enumerate(LENGTHS)]).mean()
    torch.testing.assert_close(EachStep()(v, Y, LENGTHS), expected)


def test_parts_of_windows_sum_to_the_loss() -> None:
    loss, v = EachStep(weight=0.1), values()
    parts = [loss.part(v[first : first + 4], Y, LENGTHS, first, T) for first in range(0, T, 4)]
    torch.testing.assert_close(sum(parts), loss(v, Y, LENGTHS))


def test_tet_adds_the_squared_distance_to_its_level() -> None:
    v = values()
    expected = 0.95 * F.cross_entropy(v.flatten(0, 1), Y.repeat(T)) + 0.05 * ((v - 1) ** 2).mean()
    torch.testing.assert_close(EachStep(weight=0.05)(v, Y), expected)


def test_labels_that_change_are_each_steps_own() -> None:
    v, targets = values(), values(1).transpose(0, 1)
    loss = EachStep(loss=SquaredError(), changing=True)
    torch.testing.assert_close(loss(v, targets), ((v - targets.transpose(0, 1)) ** 2).sum(2).mean())
    classes = torch.randint(0, K, (B, T))
    expected = F.cross_entropy(v.flatten(0, 1), classes.T.flatten())
    torch.testing.assert_close(EachStep(changing=True)(v, classes), expected)
    assert EachStep(changing=True).scores(v, None, "sum").shape == (B, K, T)
    with pytest.raises(LabelError, match=r"\(batch, 10 steps, ...\), and these are \(4,\)"):
        EachStep(changing=True)(v, Y)


def test_counts_and_rates_are_those_of_snntorch() -> None:
    functional = pytest.importorskip("snntorch.functional")
    s = spikes().float()
    count = functional.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    torch.testing.assert_close(SpikeCount(correct=0.8, incorrect=0.2)(s, Y), count(s, Y))
    torch.testing.assert_close(EachStep()(s, Y), functional.ce_rate_loss()(s, Y).squeeze())


def test_count_targets_grow_with_each_samples_own_steps() -> None:
    reached = torch.zeros(T, B, K)
    for b, n in enumerate(LENGTHS):
        reached[:n, b, Y[b]] = 1
    reached[7:, 2] = 1  # steps past the end
    assert float(SpikeCount(correct=1.0, incorrect=0.0)(reached, Y, LENGTHS)) == 0


@pytest.mark.parametrize("tau", [2.0, 20.0])
def test_van_rossum_distance_of_one_and_of_two_spikes(tau: float) -> None:
    one, two = torch.zeros(T, 1, 1, dtype=torch.float64), torch.zeros(1, T, 1, dtype=torch.float64)
    one[1] = 1
    lone = 1 / tau / (1 - math.exp(-2 / tau))  # close to the continuous 1/2
    assert float(VanRossum(tau=tau)(one, two)) == pytest.approx(lone)
    two[0, 5] = 1
    assert float(VanRossum(tau=tau)(one, two)) == pytest.approx(2 * lone * (1 - math.exp(-4 / tau)))


def test_van_rossum_distance_does_not_depend_on_padding() -> None:
    s, target = spikes(), spikes(1).transpose(0, 1)
    alone = torch.stack([VanRossum()(s[:n, b : b + 1], target[b : b + 1, :n]) for b, n in enumerate(LENGTHS)])
    torch.testing.assert_close(VanRossum()(s, target, LENGTHS), alone.mean())
    with pytest.raises(LabelError, match=r"give target trains \(4, 10, 3\)"):
        VanRossum()(s, Y)


@pytest.mark.parametrize("loss", [EachStep(weight=0.2), SpikeCount(), ReadOut(loss=SquaredError(), how="max")])
def test_steps_that_do_not_count_get_no_gradient(loss: TemporalLoss) -> None:
    v = values().requires_grad_()
    loss(v, Y, LENGTHS).backward()
    assert v.grad is not None
    past = torch.arange(T)[:, None] >= LENGTHS
    assert not v.grad[past].any()
    assert v.grad[~past].any()
    assert isinstance(loss, LocalLoss) == isinstance(loss, EachStep)


def test_firing_rates_outside_their_limits_are_penalised() -> None:
    rates = {"a": torch.tensor([[0.2, 0.6], [0.0, 0.0]]), "b": torch.tensor([[0.1], [0.3]])}
    assert float(UpperRate(limit=0.1, strength=2.0, power=1)(rates)) == pytest.approx(2 * (0.3 + 0.2) / 2)
    assert float(UpperRate(limit=0.1)(rates)) == pytest.approx((0.3**2 + 0.2**2) / 2)
    assert float(LowerRate(limit=0.3)(rates)) == pytest.approx((0.1**2 / 2 + 0.3**2 + 0.2**2) / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EachStep(weight=1.0), "weight is 1.0"),
        (lambda: SpikeCount(correct=0.1, incorrect=0.2), "correct is 0.1"),
        (lambda: VanRossum(tau=0), "tau is 0"),
        (lambda: UpperRate(limit=0.1, power=3), "power 3"),
        (lambda: LowerRate(limit=0.0), "limit is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
