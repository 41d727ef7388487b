"""Shared fixtures: a trained network on real digits, and where real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from spikeprop import CNN, Backprop, Digits, fit
from spikeprop.learn import Cosine


@pytest.fixture(scope="session")
def digits_cnn() -> CNN:
    """A CNN trained for a few seconds on real digits; tests must leave it as it is."""
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[16, "A", 32, "A"], hidden=[32], dropout=0.1, hidden_dropout=0.1)
    optimizer = torch.optim.SGD(ann.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    fit(ann, Backprop(), Digits().train(32, seed=0), optimizer, epochs=20, schedule=Cosine())
    return ann


@pytest.fixture
def data_root() -> Path:
    """$SPIKEPROP_DATA, or the test is skipped: real data sets are not part of the project."""
    root = os.environ.get("SPIKEPROP_DATA")
    if not root:
        pytest.skip("SPIKEPROP_DATA is not set: the real data sets are not here")
    return Path(root)


def need(root: Path, name: str) -> None:
    """Skip where a data set is not under the data root."""
    if not (root / name).exists():
        pytest.skip(f"{name} is not under SPIKEPROP_DATA")
