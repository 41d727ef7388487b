"""Shared fixtures: a network trained on real digits, and the folder of real data."""

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

pytest_plugins = ["tests.witness.counts"]  # prints what the independent checks compared, from all workers of pytest-xdist
LONG = (  # files that take longest, which start first, so that no process is left with one at the end
    "cli/test_cli.py", "plugins/explain/", "faults/", "learn/distributed/", "snn/engine/test_cuda.py",
    "snn/engine/test_engine.py", "hardware/test_reference.py", "convert/test_operations.py", "test_site.py", "test_tutorials.py",
    "test_docs.py", "report/", "convert/test_distributed.py", "test_benchmarks.py", "plugins/", "witness/",
    "hardware/", "experiment/", "convert/", "snn/",
)  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by how long they take; `make test` gives them to its processes in this order."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(here).as_posix()
        return next((i for i, long in enumerate(LONG) if name.startswith(long)), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _state_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Folders of tests are recorded as the user's own in a state directory of the tests, which their programs inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def digits_cnn() -> CNN:
    """A CNN trained for a few seconds on real digits; tests must not change it."""
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[16, "A", 32, "A"], hidden=[32], dropout=0.1, hidden_dropout=0.1)
    optimizer = torch.optim.SGD(ann.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    fit(ann, Backprop(), Digits().train(32, seed=0), optimizer, epochs=20, schedule=Cosine())
    return ann


@pytest.fixture
def data_root() -> Path:
    """$SPIKEPROP_DATA; without it the test is skipped, because real data sets are not part of the project."""
    root = os.environ.get("SPIKEPROP_DATA")
    if not root:
        pytest.skip("SPIKEPROP_DATA is not set: the real data sets are not here")
    return Path(root)


def need(root: Path, name: str) -> None:
    """Skip if a data set is not under the data root."""
    if not (root / name).exists():
        pytest.skip(f"{name} is not under SPIKEPROP_DATA")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Headless Chromium, driven by Playwright, started once for each process; skips with a reason if either is missing."""
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
