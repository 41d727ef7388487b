"""What ``fit`` is given as batches: understood, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spikeprop import Backprop, Digits, fit
from spikeprop.errors import DataError

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
