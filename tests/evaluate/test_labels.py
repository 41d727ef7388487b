"""Accuracies with every form of labels, and errors of regression, against numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import IF, Digits, MaxActivation, ann_accuracy, convert, fit, snn_accuracy
from spikeprop.errors import DataError, EvaluationError, LabelError
from spikeprop.evaluate import ann_error, evaluate, snn_error
from spikeprop.evaluate.predictor import Predictor
from spikeprop.learn import Backprop, CrossEntropy, SquaredError
from spikeprop.snn import INPUT, Direct, Layer, SpikingNetwork, Synapse

X = torch.eye(8)[:, :3] + torch.eye(8).roll(3, 1)[:, :3] * 0.5  # rows whose largest entry is known where there is one
TRUTH = X.argmax(1)


def readout(outputs: int, weight: Tensor) -> SpikingNetwork:
    linear = nn.Linear(weight.shape[1], outputs, bias=False)
    linear.weight.data = weight
    return SpikingNetwork({"out": Layer([(INPUT, Synapse([linear]))], None)}, Direct(), (weight.shape[1],))


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y,
        lambda y: y.unsqueeze(1),
        lambda y: nn.functional.one_hot(y, 3),
        lambda y: nn.functional.one_hot(y, 3) * 0.7 + 0.1,
    ],
)
def test_every_form_of_labels_gives_the_same_accuracy(form: Any) -> None:
    wrong = TRUTH.clone()
    wrong[:2] = (wrong[:2] + 1) % 3
    network, batches = readout(3, torch.eye(3)), [(X[:3], form(wrong[:3])), (X[3:], form(wrong[3:]))]  # the first: B = K
    assert ann_accuracy(nn.Sequential(*_identity()), batches) == 75.0
    assert snn_accuracy(network, batches, [1, 4]) == {1: 75.0, 4: 75.0}


def _identity() -> list[nn.Module]:
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data = torch.eye(3)
    return [linear]


def test_accuracy_of_one_logit_is_binary() -> None:
    network = readout(1, torch.tensor([[1.0, -1.0]]))
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.5]]), torch.tensor([1, 0, 1, 1])
    assert snn_accuracy(network, [(x, y)], [3]) == {3: 75.0}  # 1, -1, 0, .5: the third is class 0
    assert snn_accuracy(network, [(x, y.float().unsqueeze(1))], [3]) == {3: 75.0}


def test_accuracy_of_dense_labels_is_one_number_over_positions() -> None:
    model = nn.Conv2d(1, 2, 1)
    model.weight.data, model.bias.data = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.zeros(2)  # type: ignore[union-attr]
    x = torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]])  # classes 1, 0, 1, 1
    y = torch.tensor([[[1, 0], [0, -100]]])
    assert ann_accuracy(model, [(x, y)]) == pytest.approx(200 / 3)


def test_more_classes_than_int16_holds() -> None:
    model = nn.Linear(1, 40_000)
    model.weight.data.zero_()
    model.bias.data.zero_()
    model.bias.data[39_000] = 1
    assert ann_accuracy(model, [(torch.ones(2, 1), torch.tensor([39_000, 3]))]) == 50.0


def test_regression_has_its_own_metric() -> None:
    network = readout(1, torch.tensor([[1.0, 1.0]]))
    x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0], [2.0], [1.0], [3.0]])
    for targets in (y, y[:, 0]):  # outputs 1, 2, 0, 3: one squared error of 1; the targets' squared deviations sum to 2.75
        found = snn_error(network, [(x[:1], targets[:1]), (x[1:], targets[1:])], [5, 2])
        assert list(found) == [2, 5]
        assert found[5].mse == pytest.approx(0.25)
        assert found[5].r2 == pytest.approx(1 - 1 / 2.75)
        assert ann_error(network.layers["out"].synapses[0].ops[0], [(x, targets)]) == found[2]  # type: ignore[union-attr,index,arg-type]
    with pytest.raises(LabelError, match="ann_accuracy or snn_accuracy"):
        snn_error(network, [(x, y.long())], [2])
    with pytest.raises(LabelError, match="snn_error"):
        snn_accuracy(network, [(x, y)], [2])


def test_what_is_not_batches_is_named() -> None:
    data, network = (
        Digits(test_limit=40),
        convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), [torch.rand(8, 1, 8, 8)], IF(), MaxActivation()),
    )
    split = data.test(20)
    assert snn_accuracy(network, split, [2]) == snn_accuracy(network, split.epoch(0), [2])
    (x, y), *_ = split.epoch(0)
    assert snn_accuracy(network, (x, y), [2]) == snn_accuracy(network, [(x, y)], [2])  # type: ignore[arg-type]
    for same in ([x, y], [{"image": x, "label": y}], [(x, y, y)]):
        assert snn_accuracy(network, same, [2]) == snn_accuracy(network, [(x, y)], [2])
    given: list[tuple[Any, str]] = [
        (x, "batch 1 has no labels"),
        ([(x, y[:5])], "batch 1 has 20 examples and 5 labels"),
    ]
    for batches, message in given:
        with pytest.raises(LabelError, match=message):
            snn_accuracy(network, batches, [2])
    with pytest.raises(EvaluationError, match="use snn_accuracy"):
        ann_accuracy(network, split)
    with pytest.raises(EvaluationError, match="use ann_accuracy"):
        snn_accuracy(nn.Flatten(), split, [2])  # type: ignore[arg-type]
    assert len(evaluate(network, split, Predictor(timesteps=(2,)))) == 2


def test_losses_of_every_form_by_hand() -> None:
    scores, soft = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    expected = -(soft * scores.log_softmax(1)).sum(1).mean()
    assert CrossEntropy()(scores, soft) == pytest.approx(float(expected))
    hot = torch.tensor([[1, 0], [0, 1]])
    assert (
        CrossEntropy()(scores, hot)
        == CrossEntropy()(scores, torch.tensor([[0], [1]]))
        == CrossEntropy()(scores, torch.tensor([0, 1]))
    )
    logits = torch.tensor([[2.0], [-1.0]])
    binary = (torch.tensor(2.0).neg().exp().log1p() + torch.tensor(1.0).neg().exp().log1p()) / 2
    assert CrossEntropy()(logits, torch.tensor([1, 0])) == pytest.approx(float(binary))
    assert CrossEntropy(label_smoothing=0.5)(logits, torch.tensor([1, 0])) > CrossEntropy()(logits, torch.tensor([1, 0]))
    assert SquaredError()(scores, hot) == SquaredError()(scores, torch.tensor([0, 1]))
    assert SquaredError()(logits, torch.tensor([1.0, 0.0])) == 1.0  # not (2, 2) by broadcasting
    with pytest.raises(LabelError, match=r"labels\.float\(\)"):
        SquaredError()(logits, torch.tensor([1, 0]))


@pytest.mark.parametrize("form", ["column", "one-hot"])
def test_training_with_other_forms_of_labels_is_the_same(form: str) -> None:
    def trained(change: Any) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        batches = [(X, change(TRUTH))]
        history = fit(model, Backprop(), batches, torch.optim.SGD(model.parameters(), 0.5), epochs=20)
        return model.weight.detach(), history[-1]["accuracy"]

    weight, accuracy = trained(lambda y: y)
    other, also = trained((lambda y: y.unsqueeze(1)) if form == "column" else (lambda y: nn.functional.one_hot(y, 3)))
    torch.testing.assert_close(other, weight)
    assert accuracy == also > 50


def test_training_regression_has_no_accuracy_and_bad_labels_are_refused() -> None:
    model = nn.Linear(3, 1)
    history = fit(model, Backprop(loss=SquaredError()), [(X, X.sum(1))], torch.optim.SGD(model.parameters(), 0.3), epochs=200)
    assert history[-1]["accuracy"] is None
    assert ann_error(model, [(X, X.sum(1))]).mse < 1e-3
    model = nn.Linear(3, 3)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(LabelError, match="labels - 1"):
        fit(model, Backprop(), [(X, TRUTH + 1)], sgd, epochs=1)
    with pytest.raises(LabelError, match="8 images and 5 labels"):
        fit(model, Backprop(), [(X, TRUTH[:5])], sgd, epochs=1)
    with pytest.raises(LabelError, match="ann_error"):
        fit(model, Backprop(), [(X, torch.randn(8, 3))], sgd, epochs=1)


@pytest.mark.parametrize("timesteps", [8, [8.5], ["4"], [], [0]])
def test_numbers_of_steps_that_are_none_are_refused(timesteps: Any) -> None:
    network = convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), [torch.rand(8, 1, 8, 8)], IF(), MaxActivation())
    with pytest.raises(DataError, match="timesteps"):
        snn_accuracy(network, [(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))], timesteps)


class Returns(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]):
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(x.flatten(1)[:, :10])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Returns(lambda z: z / z.new_zeros(())), "outputs hold NaN for 8 of 8 examples"),
        (Returns(lambda z: (z, z)), "choose one with output=: the tensors that Returns returns are '0', '1'"),
        (Returns(lambda z: {"logits": [None]}), "the tensors that Returns returns are none"),
        (Returns(lambda z: z.sum()), "Returns returns one number"),
        (nn.Linear(7, 3), r"Linear cannot read a batch of shape \(8, 1, 8, 8\) in float32"),
        (torch.relu, "the model is a builtin_function_or_method; pass a torch module"),
    ],
)
def test_models_without_predictions_are_refused(model: Any, says: str) -> None:
    x = torch.zeros(8, 1, 8, 8)
    with pytest.raises(EvaluationError, match=says):
        ann_accuracy(model, (x, torch.arange(8)))


def test_empty_batches_are_left_out_and_targets_that_are_not_finite_refused() -> None:
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    model = Returns(lambda z: z)
    assert ann_accuracy(model, [(x, y), (x[:0], y[:0])]) == ann_accuracy(model, [(x, y)])
    with pytest.raises(ValueError, match="no images"):
        ann_accuracy(model, (x[:0], y[:0]))
    with pytest.raises(LabelError, match="targets hold NaN or infinity"):
        ann_error(model, (x, torch.full((8, 10), float("inf"))))
