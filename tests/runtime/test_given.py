"""What people pass as data: understood, or refused in words that name it and say what to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from spikeprop import IF, Backprop, Digits, MaxActivation, Poisson, SpikingNetwork, ann_accuracy, convert, fit, snn_accuracy
from spikeprop.errors import ConversionError, DataError, LabelError
from spikeprop.runtime.given import read_batches
from spikeprop.runtime.labels import read_labels

X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def converted(data: Any) -> SpikingNetwork:
    return convert(mlp(), data, IF(), MaxActivation())


class Dictionaries(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i >= 8:
            raise IndexError
        return {"image": X[i], "label": int(Y[i])}


class Pictures(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return slice(i), 1  # stands for an image of PIL


def one_buffer() -> Iterator[Tensor]:
    buffer = torch.empty(4, 1, 8, 8)
    yield buffer.copy_(X[:4])
    yield buffer.copy_(X[4:])


UNDERSTOOD: dict[str, Any] = {
    "tensor": lambda: X,
    "list": lambda: [X],
    "two batches": lambda: [X[:4], X[4:]],
    "a tuple of two batches": lambda: (X[:5], X[5:]),
    "one pair": lambda: (X, Y),
    "one pair as DataLoader gives it": lambda: [X, Y],
    "one pair with one-hot labels": lambda: (X, torch.eye(8)),
    "pairs": lambda: [(X[:3], Y[:3]), (X[3:], Y[3:])],
    "examples with their labels": lambda: [(x, int(y)) for x, y in zip(X, Y)],
    "array": lambda: X.numpy(),
    "array of float64": lambda: X.double().numpy(),
    "pair of arrays": lambda: (X.numpy(), Y.numpy()),
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), 3),
    "data set": lambda: TensorDataset(X, Y),
    "data set of dictionaries": lambda: Dictionaries(),
    "dictionary": lambda: {"pixel_values": X},
    "dictionaries": lambda: [{"x": X, "y": Y}],
    "generator of one buffer": one_buffer,
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_common_forms_give_the_same_network(name: str) -> None:
    network, expected = converted(UNDERSTOOD[name]()), converted([X])
    assert network.input_shape == (1, 8, 8)
    assert torch.equal(network(X, 4), expected(X, 4))


REFUSED: list[tuple[Any, str]] = [
    ((X * 255).byte(), r"torch.uint8; convert the images to floating-point.*/ 255"),
    ([X > 0.5], "torch.bool"),
    (X[0], r"shape \(1, 8, 8\): is it one image \(C, H, W\).*x\[None\]"),
    (list(X), r"8 tensors of shape \(1, 8, 8\).*torch.stack"),
    ((X, X), "may be two batches, or examples and labels"),
    ([{"image": X, "x": X}], "'image' and 'x', and it is not clear which of them are the examples"),
    ([{"foo": X}], "the keys 'foo'"),
    (np.array([None, None]), "NumPy array of object"),
    (Pictures(), "no tensors.*ToTensor"),
    (Digits, "the class Digits; pass an instance"),
    ("MNIST", "the data are text; pass a tensor"),
    (None, "a NoneType; pass a tensor"),
    ([1, 2], r"batch 0 has the shape \(\), which is no batch"),
    ([{1, 2}], "a set where a tensor or numbers belong"),
    ((X, Y[:3]), "8 examples and 3 labels"),
    ((X, [1, 2]), "8 examples and 2 labels"),
    ((X, Y[0]), "8 examples and 1 labels"),
    ((X, ["a"] * 8), "labels is a list of str where a tensor or numbers belong"),
    ((X, [[0]] * 7 + [[0, 1]]), "labels cannot become a tensor"),
    (torch.rand(8), r"shape \(8,\), which is no batch"),
    ([X, X[..., :7]], r"batch 1 have the shape \(1, 8, 7\), and those before \(1, 8, 8\)"),
    ([(X, Y[:3])], "8 images and 3 labels"),
    ([], "no calibration images"),
]


@pytest.mark.parametrize(("data", "says"), REFUSED, ids=[says[:20] for _, says in REFUSED])
def test_what_is_no_data_is_refused_in_words(data: Any, says: str) -> None:
    with pytest.raises((DataError, ConversionError), match=says):
        converted(data)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((IF, MaxActivation()), r"neuron is the class IF; pass an instance, IF\(\)"),
        ((IF(), MaxActivation), "calibrator is the class MaxActivation"),
        ((MaxActivation(), IF()), "neuron is a MaxActivation; pass a neuron"),
        ((IF(), MaxActivation(), Poisson), "encoder is the class Poisson"),
    ],
)
def test_a_class_in_the_place_of_an_instance_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    neuron, calibrator, *encoder = arguments
    with pytest.raises(ConversionError, match=says):
        convert(mlp(), X, neuron, calibrator, encoder=encoder[0] if encoder else None)
    with pytest.raises(ConversionError, match="already"):
        convert(converted(X), X, IF(), MaxActivation())


@pytest.mark.parametrize("name", [name for name in UNDERSTOOD if "pair" in name or "data set" in name or name == "DataLoader"])
def test_accuracy_reads_the_same_forms(name: str) -> None:
    if "one-hot" in name:
        pytest.skip("what one-hot labels mean is the labels' own test")
    ann, network = mlp(), converted(X)
    assert ann_accuracy(ann, UNDERSTOOD[name]()) == ann_accuracy(ann, [(X, Y)])
    assert snn_accuracy(network, UNDERSTOOD[name](), [4]) == snn_accuracy(network, [(X, Y)], [4])


UNUSUAL = {
    "sparse": (lambda x: x.to_sparse(), r"stored as sparse_coo; pass x.to_dense\(\)"),
    "rows": (lambda x: x.flatten(1).to_sparse_csr(), r"stored as sparse_csr; pass x.to_dense\(\)"),
    "mkldnn": (lambda x: x.to_mkldnn(), r"stored as _mkldnn; pass x.to_dense\(\)"),
    "meta": (lambda x: x.to("meta"), "meta device, which holds shapes without values"),
    "complex": (lambda x: x.to(torch.complex64), "complex .*networks are real; pass torch.view_as_real"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), r"quantised \(quint8\); pass x.dequantize"),
    "nested": (lambda x: torch.nested.nested_tensor([*x]), r"nested tensor; pad.*x.to_padded_tensor\(0.0\)"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.filterwarnings("ignore")  # torch calls some of these kinds prototypes
def test_tensors_of_unusual_kinds_are_refused_everywhere(kind: str) -> None:
    change, says = UNUSUAL[kind]
    x, network, ann = change(X), converted(X), mlp()
    optimizer = torch.optim.SGD(ann.parameters(), lr=0.1)
    doors: list[Callable[[], Any]] = [
        lambda: converted(x),
        lambda: converted([x]),
        lambda: ann_accuracy(ann, (x, Y)),
        lambda: snn_accuracy(network, [(x, Y)], [4]),
        lambda: network(x, 4),
        lambda: fit(ann, Backprop(), [(x, Y)], optimizer, epochs=1),
    ]
    if kind not in ("nested", "mkldnn", "rows"):  # labels have one axis
        y = change(Y.float() if kind == "quantised" else Y)
        doors += [
            lambda: ann_accuracy(ann, (X, y)),
            lambda: ann_accuracy(ann, [{"x": X, "y": y}]),
            lambda: fit(ann, Backprop(), [(X, y)], optimizer, epochs=1),
            lambda: read_labels(torch.rand(8, 10), y),
        ]
    for packed in (True, False):
        network.packed = packed
        for door in doors:
            with pytest.raises(ValueError, match=says):
                door()


LABELS: dict[str, Any] = {
    "list": Y.tolist(), "tuple": tuple(Y.tolist()), "range": range(8), "NumPy": Y.numpy(), "one column": Y[:, None],
    "nested list": [[i] for i in range(8)], "list of tensors": [*Y], "another byte order": Y.numpy().astype(">i4"),
    "unsigned": Y.numpy().astype(np.uint16), "one-hot list": torch.eye(10)[:8].int().tolist(),
}  # fmt: skip


@pytest.mark.parametrize("form", LABELS)
def test_labels_in_the_forms_that_people_have(form: str) -> None:
    right = ann_accuracy(mlp(), (X, mlp()(X).argmax(1)))
    assert right == 100
    wanted = ann_accuracy(mlp(), [(X, Y)])
    assert wanted > 0
    assert ann_accuracy(mlp(), (X, LABELS[form])) == ann_accuracy(mlp(), [(X, LABELS[form])]) == wanted


@pytest.mark.parametrize("kind", [">f4", np.longdouble, np.float16])
def test_arrays_of_types_that_torch_does_not_have(kind: Any) -> None:
    ((x, _),) = read_batches(X.numpy()[::-1].astype(kind))
    torch.testing.assert_close(x.float(), X.flip(0), rtol=1e-3, atol=1e-3)


def test_labels_that_are_all_ignored_are_no_missing_images() -> None:
    with pytest.raises(LabelError, match="all labels are -100, which means no class"):
        ann_accuracy(mlp(), (X, torch.full((8,), -100)))


def test_accuracy_reads_splits_and_data_sets() -> None:
    network, data = converted(X), Digits(test_limit=60)
    expected = snn_accuracy(network, data.test(25).epoch(0), [4])
    assert snn_accuracy(network, data.test(25), [4]) == snn_accuracy(network, data, [4]) == expected
    assert converted(Digits(train_limit=20)).input_shape == converted(data.test(25)).input_shape == (1, 8, 8)


def test_accuracy_without_labels_is_refused() -> None:
    with pytest.raises(LabelError, match="has no labels; give"):
        ann_accuracy(mlp(), X)
    with pytest.raises(LabelError, match="8 examples and 3 labels"):
        snn_accuracy(converted(X), [(X, Y[:3])], [4])
    with pytest.raises(DataError, match="uint8"):
        ann_accuracy(mlp(), [((X * 255).byte(), Y)])


def test_tokens_are_read_where_integers_may_be() -> None:
    tokens = torch.zeros(2, 5, dtype=torch.long)
    ((x, y),) = read_batches([(tokens, tokens)], integers=True)
    assert x is tokens
    assert y is tokens
