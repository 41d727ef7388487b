"""Intervals against published ones, and figures made of predictions by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from spikeprop.evaluate import (
    BatchPredictions,
    Predictions,
    Predictor,
    Proportion,
    class_table,
    evaluation_rows,
    summarise,
    wilson,
)
from tests.evaluate.test_evaluate import two_neurons


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_against_newcombe_1998(count: int, total: int, low: float, high: float) -> None:
    """Table I, method 3, of Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17."""
    assert wilson(count, total) == pytest.approx((low, high), abs=5e-5)
    exact = binomtest(count, total).proportion_ci(0.95, "wilson")
    assert wilson(count, total) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_proportions() -> None:
    assert str(Proportion.of(1, 2)) == "50.00 % (9.45 to 90.55)"
    assert Proportion.of(7, 7).high == 100
    for count, total in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="is no proportion"):
            wilson(count, total)


def batch() -> BatchPredictions:
    """Three images of classes 0, 1, 1; best classes after two numbers of steps."""
    best = [[[1, 0], [0, 1]], [[1, 2], [2, 1]], [[2, 0], [1, 0]]]
    return BatchPredictions(number=0, labels=torch.tensor([0, 1, 1]), best=torch.tensor(best, dtype=torch.int16))


def test_top_k_classes_and_confusions() -> None:
    predictions = Predictions.of([batch()])
    assert [found.percent for found in predictions.top(1)] == pytest.approx([100 / 3, 200 / 3])
    assert [found.percent for found in predictions.top(2)] == pytest.approx([200 / 3, 100])
    assert predictions.images(4).tolist() == [1, 2, 0, 0]
    assert predictions.correct(4).tolist() == [[0, 1], [1, 1], [0, 0], [0, 0]]
    assert predictions.confusion(3, 0).tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_the_table_by_class_leaves_out_classes_without_images() -> None:
    table = class_table(Predictor(timesteps=(3, 9)), Predictions.of([batch()]), ["cat", "dog, small", "newt"])
    assert table.splitlines() == [
        "class,name,images,correct_T3,top1_T3,correct_T9,top1_T9",
        "0,cat,1,0,0.00,1,100.00",
        '1,"dog, small",2,1,50.00,1,50.00',
    ]


def test_equal_scores_go_to_the_first_class_as_argmax_has_it() -> None:
    scores = torch.tensor([[0.0, 0, 0, 0], [1, 3, 3, 0]])
    best = Predictor(top=3)._best(scores)
    assert best.tolist() == [[0, 1, 2], [1, 2, 0]]
    assert best[:, 0].tolist() == scores.argmax(1).tolist()


def test_a_summary_has_accuracy_and_interval_at_every_number_of_steps() -> None:
    network, x, y = two_neurons(), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    one, several = Predictor(timesteps=(3,), top=2), Predictor(timesteps=(1, 3, 5), top=2)
    found = several.predict(network, 0, x, y)
    assert torch.equal(found.best[:, 1], one.predict(network, 0, x, y).best[:, 0])
    values = summarise(network, several, [found])
    assert list(values["accuracy"]) == ["1", "3", "5"]
    assert values["accuracy"]["5"]["top1"] in (0, 100)
    assert math.isfinite(values["accuracy"]["5"]["top1_interval"][0])
    assert [label for label, _ in evaluation_rows(values)] == ["T = 1", "T = 3", "T = 5"]
    assert several.meter(nn.Identity()) is None


def test_timesteps_that_are_not_positive_and_ascending_are_refused() -> None:
    for timesteps in ((0, 3), (4, 2), (2, 2)):
        with pytest.raises(ValueError, match="at least 1, in ascending order"):
            Predictor(timesteps=timesteps)
