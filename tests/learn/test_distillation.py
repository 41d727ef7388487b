"""Distillation: the loss and its gradient in closed form, and the same objective whatever a rule reads of the output."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop.errors import DataError, LabelError, RecipeError
from spikeprop.learn import BPTT, OTTT, Backprop, CrossEntropy, Distillation, EachStep
from spikeprop.recipe import load_recipe
from spikeprop.runtime.batches import Sequences


class Says(nn.Module):
    """A teacher of fixed scores, which counts how often it is asked."""

    def __init__(self, scores_BK: Tensor):
        super().__init__()
        self.scores_BK, self.asked = scores_BK, 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked += 1
        return self.scores_BK


def test_loss_and_gradient_are_the_closed_form() -> None:
    torch.manual_seed(0)
    z, t, y, w, tau, u = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.arange(5) % 3, 0.3, 2.5, 0.7
    leaf = z.clone().requires_grad_()
    loss = Distillation(weight=w, temperature=tau, teacher=Says(t)).for_batch(torch.rand(5, 2), u)(leaf, y)
    loss.backward()
    p, q, hard = torch.softmax(u * z / tau, 1), torch.softmax(t / tau, 1), torch.softmax(z, 1)
    wanted = sum(
        -(1 - w) * math.log(hard[b, y[b]]) + w * tau**2 * sum(float(q[b, k] * (q[b, k] / p[b, k]).log()) for k in range(3))
        for b in range(5)
    )
    onehot = nn.functional.one_hot(y, 3)
    torch.testing.assert_close(loss.detach(), torch.tensor(wanted / 5).double())
    torch.testing.assert_close(leaf.grad, ((1 - w) * (hard - onehot) + w * tau * u * (p - q)) / 5)


def test_without_weight_it_is_the_loss_of_the_labels() -> None:
    z, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    smooth = CrossEntropy(label_smoothing=0.2)
    assert Distillation(weight=0.0, loss=smooth, teacher=Says(z)).for_batch(z)(z, y) == smooth(z, y)
    assert abs(float(Distillation(weight=1.0, teacher=Says(z)).for_batch(z)(z, y))) < 1e-6


def converted() -> tuple[nn.Module, sp.SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    x = torch.rand(7, 6)
    network = sp.convert(ann, [x], sp.IF(v_init=0.5, surrogate=sp.Triangle()), calibrator=sp.Percentile())
    return ann, network.eval(), x


def gradients(rule: Any, network: sp.SpikingNetwork, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    rule.step(network, x, torch.arange(7) % 3)
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("delay", [0, 1])
def test_scores_are_compared_in_the_teachers_units(delay: int) -> None:
    ann, network, x = converted()
    network.readout.set(delay=delay)
    loss = Distillation(weight=1.0, teacher=ann)
    summed, mean = (gradients(BPTT(timesteps=4, loss=loss, average=how), network, x) for how in (False, True))
    network.zero_grad()
    said = torch.softmax(ann.eval()(x).detach() / 2, 1)
    ours = network.estimate(network(x, 4), 4)
    (4 * (said * (said.log() - torch.log_softmax(ours / 2, 1))).sum(1).mean()).backward()
    witness = [p.grad for p in network.parameters() if p.grad is not None]
    for one, two, three in zip(summed, mean, witness, strict=True):
        torch.testing.assert_close(one, three)
        torch.testing.assert_close(two, three)


def test_the_loss_of_each_step_asks_once_and_online_rules_agree() -> None:
    _, network, x = converted()
    teacher = Says(torch.randn(7, 3)).train()
    loss = Distillation(teacher=teacher)
    found = [
        gradients(rule, network, x)
        for rule in (
            BPTT(timesteps=3, loss=loss, each_step=True),
            BPTT(timesteps=3, loss=EachStep(loss=loss)),
            OTTT(timesteps=3, loss=loss),
        )
    ]
    assert teacher.asked == 3
    assert teacher.training
    for one, two, three in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)  # one layer of neurons: exact


def test_backprop_distils() -> None:
    torch.manual_seed(0)
    ann, x = nn.Linear(4, 3), torch.rand(5, 4)
    Backprop(loss=Distillation(weight=1.0, teacher=ann)).step(ann, x, torch.zeros(5).long())
    assert ann.weight.grad is not None
    assert float(ann.weight.grad.abs().max()) < 1e-6  # its own teacher


def test_refusals_say_what_is_missing() -> None:
    ann, network, x = converted()
    y = torch.zeros(7).long()
    with pytest.raises(ValueError, match=r"has none: Distillation\(teacher=ann\)"):
        BPTT(timesteps=2, loss=Distillation()).step(network, x, y)
    with pytest.raises(LabelError, match=r"teacher's scores are \(7, 2\) and the network's \(7, 3\)"):
        BPTT(timesteps=2, loss=Distillation(teacher=Says(torch.zeros(7, 2)))).step(network, x, y)
    with pytest.raises(DataError, match="unequal length"):
        Distillation(teacher=ann).for_batch(Sequences(torch.rand(2, 3, 6), torch.tensor([1, 3])))
    wrong: Any
    for wrong in ({"weight": 1.5}, {"temperature": 0}, {"teacher": "ann"}, {"loss": Distillation()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Distillation(**wrong)
    assert not BPTT(timesteps=2, loss=Distillation()).taught_by(ann).needs_teacher


def test_a_recipe_distils_while_it_fine_tunes_and_not_before() -> None:
    rule = "{use: BPTT, loss: {use: Distillation, weight: 0.9, temperature: 4}}"
    built = load_recipe("digits_cnn_stdb", [f"finetune.rule={rule}"]).experiment.finetune.build_rule()
    assert built.needs_teacher
    assert (built.loss.weight, built.loss.temperature) == (0.9, 4)
    with pytest.raises(RecipeError, match=r"train\.rule.*no teacher"):
        load_recipe("digits_cnn_stdb", ["train.rule={use: Backprop, loss: Distillation}"]).experiment.check()
