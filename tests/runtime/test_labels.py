"""What labels mean, by shape and dtype: each form's true classes by hand, and what is refused with its remedy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spikeprop.errors import LabelError
from spikeprop.runtime.labels import IGNORED, by_example, known_on_host, read_labels

SCORES = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 5.0, 2.0]])  # B = K = 3; predictions 0, 2, 1
MAPS = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)

FORMS = {
    "class indices": torch.tensor([0, 2, 1]),
    "uint8": torch.tensor([0, 2, 1], dtype=torch.uint8),
    "column": torch.tensor([[0], [2], [1]]),
    "one-hot integers, B = K": torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]]),
    "one-hot bool, B = K": torch.tensor([[True, False, False], [False, False, True], [False, True, False]]),
    "soft, B = K": torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.0, 0.9, 0.1]]),
    "list": [0, 2, 1],
}


@pytest.mark.parametrize("name", FORMS)
def test_true_classes_of_each_form(name: str) -> None:
    labels = read_labels(SCORES, FORMS[name])
    assert labels.classes().tolist() == [0, 2, 1]
    assert [int(n) for n in labels.correct(SCORES)] == [3, 3]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("labels_shape", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.long, torch.float32, torch.bool])
def test_one_logit_is_binary_with_its_threshold_at_zero(
    shape: tuple[int, ...], labels_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    scores = torch.tensor([-1.0, 0.0, 0.1, 2.0]).view(shape)  # predictions 0, 0, 1, 1
    labels = read_labels(scores, torch.tensor([0, 1, 1, 0]).to(dtype).view(labels_shape))
    assert labels.kind == "binary"
    assert labels.values.shape == shape
    assert [int(n) for n in labels.correct(scores)] == [2, 4]
    assert by_example(scores).argmax(1).tolist() == [0, 0, 1, 1]


def test_dense_labels_have_a_class_for_each_position_and_may_leave_some_out() -> None:
    truth = torch.full((2, 4, 5), 2)  # the last channel has the largest scores
    assert [int(n) for n in read_labels(MAPS, truth).correct(MAPS)] == [40, 40]
    truth[0, 0, :3], truth[1, 3, 4] = IGNORED, 0
    for given in (truth, truth.unsqueeze(1)):
        assert [int(n) for n in read_labels(MAPS, given).correct(MAPS)] == [36, 37]
    binary = MAPS[:, :1] - 50
    assert read_labels(binary, (binary[:, 0] > 0).float()).correct(binary)[0] == 40


def test_outputs_with_positions_of_size_one_take_a_label_an_example() -> None:
    assert read_labels(SCORES.view(3, 3, 1, 1), torch.tensor([0, 2, 1])).classes().shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("scores", "y", "message"),
    [
        (SCORES, torch.tensor([1, 3, 2]), r"from 1 to 3, .* 3 outputs for classes 0 to 2: .* use labels - 1"),
        (SCORES, torch.tensor([0, 5, 2]), r"from 0 to 5, .* more outputs"),
        (SCORES, torch.tensor([-1, 1, 2]), r"from -1 to 2, .* no class is negative"),
        (SCORES, torch.tensor([0.0, 2.0, 1.0]), r"use labels\.long\(\)"),
        (SCORES, torch.tensor([0, 1]), r"scores \(3, 3\), the labels are \(2,\)"),
        (SCORES, torch.randn(3, 3), r"ann_error or snn_error"),
        (SCORES, torch.full((3, 3), float("nan")), "not negative and sum to 1"),
        (SCORES, torch.ones(3, 3, dtype=torch.long), "several true classes"),
        (SCORES, torch.zeros(3, 2, dtype=torch.long), r"labels \(3, 2\) do not fit scores \(3, 3\)"),
        (SCORES, torch.tensor(1), "one label for each example"),
        (SCORES, ["cat", "dog", "owl"], "labels are list"),
        (SCORES[:, :1], torch.tensor([1, 2, 3]), "from 1 to 3 .*: classes of one logit are 0 and 1"),
        (SCORES[:, :1], torch.tensor([0.5, 0.2, 0.1]), "ann_error"),
        (SCORES[:, 0], torch.tensor([0, 1, IGNORED]), "classes of one logit are 0 and 1"),
        (MAPS, torch.zeros(2, 5, 4, dtype=torch.long), r"\(2, 5, 4\) do not fit"),
        (MAPS, torch.zeros(2, dtype=torch.long), r"\(2,\) do not fit"),
    ],
)
def test_what_is_refused_names_the_remedy(scores: Tensor, y: object, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read_labels(scores, y)


def test_a_loss_without_ignored_positions_refuses_them() -> None:
    with pytest.raises(LabelError, match="use CrossEntropy"):
        read_labels(SCORES, torch.tensor([0, IGNORED, 1]), ignorable=False)


def test_values_known_on_the_host_are_only_for_labels_on_a_gpu() -> None:
    with known_on_host(torch.tensor([0, 1])), pytest.raises(LabelError, match="from 0 to 7"):
        read_labels(SCORES, torch.tensor([0, 7, 1]))
