"""What a stage's settings make of a training: batches, precision and memory layout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from spikeprop.data import Digits
from spikeprop.errors import RecipeError
from spikeprop.evaluate import ann_accuracy
from spikeprop.experiment.stages import finetuning, training
from spikeprop.experiment.stages.validation import BATCH, Validation
from spikeprop.learn import CrossEntropy, TrainingState
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


def test_validation_is_the_accuracy_of_its_images_and_changes_nothing() -> None:
    data, first, kept = Digits(), nn.Linear(64, 32), nn.Dropout().eval()  # a module that stays in evaluation mode
    ann = nn.Sequential(nn.Flatten(), first, kept, nn.Linear(32, 10))
    split, state = data.test(BATCH), TrainingState(ann, torch.optim.SGD(ann.parameters(), 0.1), 1, 1)
    before, modes = torch.get_rng_state(), [m.training for m in ann.modules()]
    found = Validation(split, 1437, None, 0)(state)
    assert torch.equal(before, torch.get_rng_state())
    assert modes == [m.training for m in ann.modules()]
    batches = [next(split.epoch(0, number)) for number in (0, 2, 4, 6)]  # 4 of 8, at even distances
    assert found["validation_images"] == sum(len(y) for _, y in batches) == 200
    assert found["validation"] == pytest.approx(ann_accuracy(ann, batches))
    with torch.no_grad():
        first.weight[0, 0] = torch.nan
    assert Validation(split, 1437, None, 0)(state) == {}  # the training ends with an error of its own
    state.correct = None
    assert Validation(split, 1437, None, 0)(state) == {}


@pytest.mark.parametrize(("trained_on", "batches"), [(70, 4), (3000, 6), (10**6, 8)])
def test_validation_takes_a_tenth_of_an_epoch_within_bounds(trained_on: int, batches: int) -> None:
    assert len(Validation(Digits().test(BATCH), trained_on, None, 0).numbers) == batches


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
