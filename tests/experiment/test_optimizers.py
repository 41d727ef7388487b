"""The rates of a stage's optimiser: which of them a setting moves, and the note that names those it does not move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.optim import Optimizer

from spikeprop.cli import main
from spikeprop.experiment.optimizers import fixed_rates, optimizer_of, own_rates
from spikeprop.recipe import check_component, load_recipe
from spikeprop.sweep import SweepPlan

MUON = "optimizer={use: spikeprop.learn.MuonSGD, matrix_lr: 0.1}"


class TwoRates(torch.optim.SGD):
    """An optimiser from outside with a rate of its own, one that may be left out, and a switch."""

    def __init__(self, params: Any, lr: float = 0.1, *, weight_decay: float = 0.0, embedding_lr: float = 0.01,
                 head_lr: float | None = None, adapt_lr: bool = True):  # fmt: skip
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.embedding_lr, self.head_lr, self.adapt_lr = embedding_lr, head_lr, adapt_lr


def rates(optimizer: Optimizer) -> dict[bool, float]:
    """The rate of matrices (True) and that of everything else."""
    return {bool(group["orthogonal"]): group["lr"] for group in optimizer.param_groups}


def parameters() -> list[nn.Parameter]:
    return list(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).parameters())


def test_the_rate_of_an_arm_moves_matrices_too() -> None:
    experiment: Any = load_recipe("rules_compared", [MUON, "lr=0.5"]).experiment
    assert rates(experiment.build_optimizer(parameters())) == {True: 0.1, False: 0.5}
    assert rates(experiment.build_optimizer(parameters(), 0.25)) == pytest.approx({True: 0.05, False: 0.25})


def test_the_rate_of_pretraining_moves_matrices_too() -> None:
    experiment: Any = load_recipe("mnist_cnn_rifle", [MUON, "lr=0.01", "pretrain_lr=0.05"]).experiment
    assert rates(experiment._optimizer(parameters(), experiment.lr)) == {True: 0.1, False: 0.01}
    assert rates(experiment._optimizer(parameters(), experiment.pretrain_lr)) == pytest.approx({True: 0.5, False: 0.05})


def test_the_recipe_of_muon_has_the_rates_that_it_gives() -> None:
    experiment: Any = load_recipe("cifar10_fast_graded").experiment
    assert rates(experiment.train.build_optimizer(parameters())) == {True: 0.05, False: 0.75}


def test_an_optimiser_from_outside_has_its_rates_moved_by_their_names() -> None:
    found = check_component(Optimizer, {"use": f"{__name__}.TwoRates"}, "optimizer")
    assert own_rates(found) == {"embedding_lr": 0.01}
    moved: Any = optimizer_of(found, parameters(), lr=0.1, rate=0.3, weight_decay=0.0)
    assert (moved.param_groups[0]["lr"], moved.embedding_lr) == pytest.approx((0.3, 0.03))
    assert own_rates(check_component(Optimizer, "Adam", "optimizer")) == {}


def test_the_rates_that_a_stage_leaves_are_named() -> None:
    found = fixed_rates(load_recipe("cifar10_fast_graded").experiment)
    assert list(found) == ["train.lr"]  # nothing is fine-tuned
    assert found["train.lr"].startswith("train.lr does not move train.optimizer.matrix_lr = 0.05, which MuonSGD has")
    assert list(fixed_rates(load_recipe("rules_compared", [MUON]).experiment)) == ["lr"]
    assert fixed_rates(load_recipe("digits_cnn_stdb").experiment) == {}
    finetuned = fixed_rates(load_recipe("digits_cnn_stdb", ["finetune.optimizer=spikeprop.learn.MuonSGD"]).experiment)
    assert list(finetuned) == ["finetune.lr"]


def test_a_sweep_and_a_check_say_which_rates_stay() -> None:
    def notes(*axes: str) -> list[str]:
        return SweepPlan.of("cifar10_fast_graded", axes).notes()

    (note,) = notes("train.lr=0.5,1.0")
    assert "train.lr does not move train.optimizer.matrix_lr = 0.05" in note
    assert notes("train.lr=0.5,1.0", "train.optimizer.matrix_lr=0.05,0.1") == []
    assert notes("train.optimizer.matrix_lr=0.05,0.1") == notes("seed=0,1") == []
    overridden = SweepPlan.of("digits_cnn_stdb", ["train.lr=0.1,0.2", "train.optimizer=spikeprop.learn.MuonSGD"]).notes()
    assert "train.optimizer.matrix_lr = 0.02" in overridden[0]
    changed = ["digits_cnn_stdb", "train.optimizer=spikeprop.learn.MuonSGD", "train.lr=0.2"]
    assert "note: digits_cnn_stdb: train.lr does not move" in CliRunner().invoke(main, ["check", *changed]).output


def test_a_run_says_which_rates_stay_and_one_with_a_trained_ann_has_none(tmp_path: Path) -> None:
    few = ["ann={use: MLP, input_shape: [1, 8, 8], hidden: [4], classes: 10}", "finetune.epochs=0", "simulate.samples=0"]
    command = ["run", "digits_cnn_stdb", *few, "train.optimizer=spikeprop.learn.MuonSGD", "--smoke"]
    note = "note: train.lr does not move train.optimizer.matrix_lr = 0.02"
    first = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "one")])
    assert first.exit_code == 0, first.output
    assert note in first.output
    second = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "two"), "--ann", str(tmp_path / "one")])
    assert second.exit_code == 0, second.output
    assert note not in second.output
