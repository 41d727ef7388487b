"""What a stage's settings make of a training: batches, precision and memory layout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from spikeprop.data import Digits
from spikeprop.errors import RecipeError
from spikeprop.experiment.stages import finetuning, training
from spikeprop.learn import CrossEntropy
from spikeprop.recipe import load_recipe


def run(precision: str, notes: list[str]) -> Any:
    settings = SimpleNamespace(precision=precision)
    context = SimpleNamespace(notify=notes.append)
    return SimpleNamespace(settings=settings, device=torch.device("cpu"), context=context, data=Digits(train_limit=70))


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_on_the_cpu_is_taken_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(training, "cpu_multiplies_bfloat16", lambda: fast)
    notes: list[str] = []
    assert training._autocast(run("bfloat16", notes)) == (torch.bfloat16 if fast else None)
    assert [("neither AVX-512 BF16 nor AMX; training in float32" in note) for note in notes] == [True] * (not fast)
    assert training._autocast(run("float32", notes)) is None


def test_incomplete_batches_are_left_out_where_the_recipe_says_so() -> None:
    experiment: Any = load_recipe(
        "digits_cnn_stdb", ["train.batch_size=32", "finetune.drop_last=true", "finetune.batch_size=32"]
    ).experiment
    assert len(training.training_batches(run("float32", []), experiment.train, 0)) == 3
    assert len(training.training_batches(run("float32", []), experiment.finetune, 0)) == 2


def test_memory_format_is_for_anns() -> None:
    with pytest.raises(RecipeError, match="memory_format is for ANNs"):
        load_recipe("digits_snn_direct", ["train.memory_format=channels_last"])


def test_the_ann_of_a_run_teaches_its_fine_tuning_where_the_loss_asks() -> None:
    def rule(*overrides: str) -> Any:
        experiment: Any = load_recipe("digits_cnn_stdb", overrides).experiment
        run: Any = SimpleNamespace(settings=experiment, device=torch.device("cpu"), load={"ann": ann}.__getitem__)
        return finetuning._rule(run)

    ann = nn.Conv2d(1, 2, 3)
    assert rule("finetune.rule={use: BPTT, loss: Distillation}").loss.teacher is ann
    assert isinstance(rule().loss, CrossEntropy)
