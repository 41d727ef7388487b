"""Pages of explain in the browser of the shared fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spikeprop.plugins.explain import TracedStep, TrainingStep, page_data, trace_step, write_page
from tests.browser import Tab, open_tab
from tests.plugins.explain.subjects import ALL, EXTRA


class Opened(Tab):
    """A page of explain in the browser."""

    def go(self, file: Path, address: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(f"file://{file}{address}")
        self.page.wait_for_selector("html[data-ready=yes]", state="attached")

    def where(self) -> str:
        return self.page.inner_text("#where")


@pytest.fixture
def opened(chromium: Any) -> Iterator[Opened]:
    """A new tab; after the test it must have requested only the page and reported no errors."""
    with open_tab(chromium, Opened) as found:
        yield found
    assert not found.complaints
    assert not found.fetched()


@dataclass(frozen=True)
class Built:
    """The file of a page, and its data."""

    file: Path
    subject: TrainingStep
    step: TracedStep
    data: dict[str, Any]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Pages of the shared networks by name, each written once."""
    folder, made = tmp_path_factory.mktemp("pages"), {}

    def page(name: str) -> Built:
        if name not in made:
            subject = {**ALL, **EXTRA}[name]()
            step = trace_step(subject)
            data = page_data(subject, step)
            write_page(folder / f"{name}.html", data)
            made[name] = Built(folder / f"{name}.html", subject, step, data)
        return made[name]

    return page
