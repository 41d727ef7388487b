"""Intervals against published ones, and figures made of predictions by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from spikeprop.errors import EvaluationError
from spikeprop.evaluate import (
    BatchPredictions,
    EarlyExit,
    Predictions,
    Predictor,
    Proportion,
    class_table,
    evaluation_rows,
    fan_out,
    leave_early,
    snn_mean_iou,
    summarise,
    wilson,
)
from spikeprop.snn import INPUT, Direct, Layer, SpikingNetwork, Synapse
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
    return BatchPredictions(number=0, labels=torch.tensor([0, 1, 1]), best=torch.tensor(best, dtype=torch.int16), images=3)


def test_top_k_classes_and_confusions() -> None:
    predictions = Predictions.of([batch()])
    assert [found.percent for found in predictions.top(1)] == pytest.approx([100 / 3, 200 / 3])
    assert [found.percent for found in predictions.top(2)] == pytest.approx([200 / 3, 100])
    assert predictions.images(4).tolist() == [1, 2, 0, 0]
    assert predictions.correct(4).tolist() == [[0, 1], [1, 1], [0, 0], [0, 0]]
    assert predictions.confusion(3, 0).tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_mean_intersection_over_union_by_hand() -> None:
    """Two images of three pixels; class 2 is nowhere true and once predicted, class 3 does not occur."""
    labels, best = torch.tensor([0, 0, 1, 1, 1, 0]), torch.tensor([[[0]], [[1]], [[1]], [[1]], [[2]], [[0]]])
    found = Predictions.of([BatchPredictions(number=0, labels=labels, best=best, images=2)])
    assert found.dense
    assert found.mean_iou() == [pytest.approx(100 * (2 / 3 + 2 / 4 + 0) / 3)]
    assert not Predictions.of([batch()]).dense


def test_positions_are_evaluated_with_mean_intersection_over_union() -> None:
    """Two pixels of two scores each, which are the pixel's values themselves."""
    network = SpikingNetwork({"out": Layer([(INPUT, Synapse([nn.Conv2d(2, 2, 1, bias=False)]))], None)}, Direct(), (2, 1, 2))
    next(network.parameters()).data.copy_(torch.eye(2).reshape(2, 2, 1, 1))
    x, y = torch.tensor([[[[3.0, 1.0]], [[1.0, 2.0]]]]), torch.tensor([[[0, 0]]])
    assert snn_mean_iou(network, [(x, y)], [1, 2]) == {1: 25.0, 2: 25.0}  # class 0: 1 of 2; class 1: 0 of 1
    predictor = Predictor(timesteps=(2,))
    batches = [predictor.predict(network.eval(), 0, x, y)]
    values = summarise(network, predictor, batches)
    assert (values["images"], values["positions"], values["accuracy"]["2"]["mean_iou"]) == (1, 2, 25.0)
    assert "mean IoU 25.00 %" in evaluation_rows(values)[0][1]
    with pytest.raises(EvaluationError, match="one prediction an image"):
        leave_early(network, x, 2, EarlyExit(confidence=0.9))


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (1, 3, 4)),
        (nn.Upsample(size=(2, 7), mode="bicubic"), (1, 3, 4)),
        (nn.Upsample(scale_factor=1.5, mode="nearest"), (1, 5)),
        (nn.Upsample(size=(3, 2, 5), mode="trilinear"), (1, 2, 3, 3)),
        (nn.AvgPool1d(3, 2, padding=1), (1, 6)),
        (nn.AvgPool3d(2), (1, 4, 2, 4)),
        (nn.AdaptiveAvgPool1d(2), (1, 6)),
        (nn.ConvTranspose2d(1, 2, 3, stride=2), (1, 3, 3)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_the_fan_out_is_the_number_of_connections(op: nn.Module, shape: tuple[int, ...]) -> None:
    """A neuron's synapses are the numbers of the current that depend on it."""
    network = SpikingNetwork({"out": Layer([(INPUT, Synapse([op]))], None)}, Direct(), shape)
    with torch.random.fork_rng(devices=[]):
        jacobian = torch.autograd.functional.jacobian(lambda x: op(x.unsqueeze(0)).flatten(), torch.randn(shape))
    assert torch.equal(fan_out(network)[INPUT], (jacobian != 0).sum(0).float())


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
