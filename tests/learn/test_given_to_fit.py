"""What ``fit`` is given as batches: understood, or refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from spikeprop import BPTT, LIF, Backprop, Digits, Frames, SpikingNetwork, fit, spiking
from spikeprop.errors import DataError, LabelError

X, Y = torch.rand(8, 1, 8, 8), torch.arange(8)


def trained(batches: Any) -> list[dict[str, Any]]:
    ann = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return fit(ann, Backprop(), batches, torch.optim.SGD(ann.parameters(), lr=0.1), epochs=1)


@pytest.mark.parametrize("batches", [[(X, Y)], ((X, Y),), DataLoader(TensorDataset(X, Y), 4), Digits(test_limit=20).test(10)])
def test_collections_of_batches_are_read(batches: Any) -> None:
    assert len(trained(batches)) == 1


@pytest.mark.parametrize("batches", [TensorDataset(X, Y), Digits(), iter([(X, Y)]), (X, Y), X, {"image": X}])
def test_what_cannot_be_read_once_an_epoch_is_refused(batches: Any) -> None:
    with pytest.raises(DataError, match="pass a split"):
        trained(batches)


def test_images_in_bytes_are_refused() -> None:
    with pytest.raises(DataError, match="normalise them first"):
        trained([((X * 255).byte(), Y)])


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ((X, Y, Y), "a batch is 3 parts: give pairs"),
        ({"image": X, "label": Y}, "a batch is a dict: give pairs"),
        ((X.numpy(), Y.numpy()), "a batch holds ndarray and ndarray"),
        ((X, Y[0]), "a batch has 8 images and one number instead of labels"),
        ((X[:0], Y[:0]), "a batch holds no examples"),
        ((X, torch.full((8,), -100)), "all labels of batch 1 in epoch 1 are -100"),
        ((X, Y.to_sparse()), "the tensor of labels is stored as sparse_coo"),
    ],
)
def test_batches_that_cannot_be_trained_on_are_refused(batch: Any, says: str) -> None:
    with pytest.raises((DataError, LabelError), match=says):
        trained([batch])


def test_a_loader_without_a_length_is_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return zip(X, Y)

    with pytest.raises(DataError, match="a DataLoader of a known length"):
        trained(DataLoader(Stream(), 4))


def test_images_in_float64_and_of_inference_mode_are_trained_on() -> None:
    torch.manual_seed(0)
    (wanted,) = trained([(X, Y)])
    with torch.inference_mode():
        x, y = X.double(), Y.clone()
    torch.manual_seed(0)
    (found,) = trained([(x, y)])
    assert found["loss"] == wanted["loss"]


def with_neurons() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), LIF(), nn.Linear(10, 10))


def of_frames() -> SpikingNetwork:
    return spiking(with_neurons(), (1, 8, 8), encoder=Frames())


@pytest.mark.parametrize(
    ("model", "rule", "x", "says"),
    [
        (with_neurons, BPTT(timesteps=2), X, r"a Sequential with neurons .* network = spikeprop.spiking\(module, input_shape\)"),
        (lambda: spiking(with_neurons(), (1, 8, 8)), BPTT(), X, r"needs a number of steps: BPTT\(timesteps=\.\.\.\)"),
        (of_frames, BPTT(), X, r"\(time, 8, 1, 8, 8\) without timesteps, in batches for fit \(8, time, 1, 8, 8\)"),
        (of_frames, BPTT(timesteps=2), X, r"\(time, 8, 1, 8, 8\) without timesteps, in batches for fit \(8, time, 1, 8, 8\)"),
        (of_frames, BPTT(), X.expand(3, *X.shape), r"3 images and 8 labels: .* the examples first, .* x.transpose\(0, 1\)"),
    ],
)
def test_what_a_simulation_cannot_be_trained_on_is_named_with_the_remedy(model: Any, rule: BPTT, x: Any, says: str) -> None:
    network = model()
    with pytest.raises((ValueError, LabelError), match=says):
        fit(network, rule, [(x, Y)], torch.optim.SGD(network.parameters(), lr=0.1), epochs=1)
