"""Shared fixtures: a trained network on real digits, and where real data lies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeprop import CNN, Backprop, Digits, fit
from spikeprop.learn import Cosine

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


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


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium, headless, driven by Playwright, which starts once a process; skips, saying why, where either is missing."""
    program = os.environ.get("SPIKEPROP_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium, or set SPIKEPROP_CHROMIUM")
    if find_spec("playwright") is None:
        pytest.skip("no Playwright: pip install 'spikeprop[dev]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
