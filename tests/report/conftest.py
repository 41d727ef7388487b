"""A short run of digits_cnn_stdb without the simulation on Lava, and its page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spikeprop.cli import main

SHORT = ["train.epochs=5", "finetune.epochs=2", "evaluate.timesteps=[2,8]", "simulate.samples=0"]


@pytest.fixture(scope="session")
def page_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("page") / "short"
    result = CliRunner().invoke(main, ["run", "digits_cnn_stdb", *SHORT, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def write(out: Path, *runs: Path) -> Path:
    result = CliRunner().invoke(main, ["report", *map(str, runs), "-o", str(out)])
    assert result.exit_code == 0, result.output
    return out


class Opened:
    """An open page with its requests and console messages."""

    def __init__(self, chromium: Any, file: Path, scheme: str, width: int = 1400):
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 900}, accept_downloads=True)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def cells(self, caption: str) -> list[list[str]]:
        """Text of a table's body, found by its caption."""
        found = "[...document.querySelectorAll('table')].find(t => t.caption.textContent === caption)"
        script = f"caption => [...{found}.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))"
        return self.page.evaluate(script, caption)

    def points(self, figure: str, label: str) -> list[tuple[float, ...]]:
        """The values of a curve: x, y and, with a band, its ends."""
        (text,) = self.page.eval_on_selector_all(f'#{figure} g[data-label="{label}"]', "all => all.map(g => g.dataset.points)")
        return [tuple(map(float, point.split(","))) for point in text.split()]

    def bars(self, figure: str) -> dict[tuple[str, str], float]:
        """The values of bars by row and series."""
        read = "all => all.map(b => [b.dataset.row, b.dataset.series, +b.dataset.value])"
        found = self.page.eval_on_selector_all(f"#{figure} [data-value]", read)
        return {(row, series): value for row, series, value in found}

    def saved(self, selector: str) -> str:
        """The file that a button saves."""
        with self.page.expect_download() as caught:
            self.page.locator(selector).first.click()
        return Path(caught.value.path()).read_text()


@pytest.fixture(scope="session")
def page_file(page_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's page."""
    return write(tmp_path_factory.mktemp("html") / "report.html", page_run)


@pytest.fixture(scope="module", params=[("light", 1400), ("dark", 390)], ids=["light-1400", "dark-390"])
def opened(chromium: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    found = Opened(chromium, page_file, *request.param)
    yield found
    found.page.close()
