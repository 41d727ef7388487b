"""The documentation: built strictly, complete, and opened in a browser, from a folder and without a network."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Tab, open_tab

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: what mkdocs warns of is an error."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "hardware"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> list[Path]:
    """All but the page of what is not found, whose links begin at a server's root."""
    return sorted(file for file in site.rglob("*.html") if file.name != "404.html")


def test_every_page_is_there_and_nothing_is_left_to_put_in(site: Path) -> None:
    sources = {file.relative_to(ROOT / "docs").with_suffix(".html") for file in (ROOT / "docs").rglob("*.md")}
    assert {page.relative_to(site) for page in pages(site)} == sources
    for page in pages(site):
        assert "<!-- include" not in page.read_text()
        assert "<!-- table" not in page.read_text()


def test_texts_and_figures_come_from_where_they_are_kept(site: Path) -> None:
    results, peers = (re.sub(r"<[^>]+>", "", (site / name).read_text()) for name in ("results.html", "peers.html"))
    found = json.loads((ROOT / "results/benchmarks/step.json").read_text())["results"]
    assert f"{found['spikeprop']['median']:.2f}\n" in peers
    assert f"{found['snnTorch']['median'] / found['spikeprop']['median']:.1f}\n" in peers
    assert "Our figures beside published ones." in results
    assert "class Network(nn.Module):" in peers
    migrated = ROOT / "results/benchmarks/migration.json"
    assert migrated.exists() == ("has not been run" not in peers)


def test_the_reference_has_the_public_names(site: Path) -> None:
    for room in ("ann", "convert", "data", "evaluate", "learn", "snn"):
        page = (site / "api" / f"{room}.html").read_text()
        missing = [
            name
            for name in importlib.import_module(f"spikeprop.{room}").__all__
            if name.isidentifier() and not name.isupper() and f'id="spikeprop.{room}.{name}"' not in page
        ]
        assert not missing, room


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"?([^\s\">]+)", page.read_text())
        assert loaded
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What mkdocs calls while it builds the site, as a module."""
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("hooks")


def test_a_section_ends_where_the_next_of_its_level_begins(hooks: Any) -> None:
    text = "# T\n## One two\na\n```\n# no heading\n```\n### Below\nb\n## Next\nc\n"
    assert hooks.section(text, "one-two") == "a\n```\n# no heading\n```\n### Below\nb"
    assert hooks.section(text, "next") == "c"
    assert hooks.section(text, "three") is None


def test_links_of_an_included_text_lead_to_the_site_or_go(hooks: Any) -> None:
    places = {("results/a.png", ""): "a.png", ("README.md", "use"): "index.html#use"}
    text = "![p](a.png) [use](../README.md#use) [gone](b.txt) [far](https://a.example/x) [here](#h)"
    told = hooks.relinked(text, "results", lambda path, anchor: places.get((path, anchor)))
    assert told == "![p](a.png) [use](index.html#use) gone [far](https://a.example/x) [here](#h)"
    with pytest.raises(Exception, match=r"no picture 'b\.png'"):
        hooks.relinked("![p](b.png)", "results", lambda *_: None)


def test_a_benchmark_that_was_not_run_is_said_to_be_so(hooks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    for name in ("scaling", "scaling-model"):
        assert "`benchmarks/scaling.py` has not been run" in hooks.table(name)


def test_the_tables_of_scaling_are_those_of_its_benchmark(
    hooks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The processes are left out: one rate in each's place. The model is the benchmark's own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = importlib.import_module("scaling")
    rates = {"gradient_bytes": 4_000_000, "all_reduce_seconds": 0.0125}
    monkeypatch.setattr(scaling, "_both", lambda name, world, _: {**rates, "strong": 15.0 * world, "weak": 18.0 * world})
    file = tmp_path / "results/benchmarks/scaling.json"
    file.parent.mkdir(parents=True)
    scaling.main(["--processes", "1", "2", "--out", str(file)])
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert "| SNN, VGG5 | 2 | 30.0 (2.00 times one's) | 36.0 (2.00 times one's) | 12.50 | 4.00 |" in hooks.table("scaling")
    assert "| VGG16 | 319.02 |" in hooks.table("scaling-bytes")  # 2 * 999/1000 * 4 bytes * 39,917,248
    assert f"{100 * scaling._efficiency(4_000_000, 0.05, 1000):.1f} (" in hooks.table("scaling-model")
    assert "ANN, ResNet-20" in capsys.readouterr().out


@pytest.fixture
def opened(chromium: Any) -> Iterator[Tab]:
    with open_tab(chromium, height=1000) as found:
        yield found


def test_the_table_of_sharding_is_of_what_was_measured(
    hooks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sharding = importlib.import_module("sharding")
    peaks = {(1, False): 2000.0, (2, False): 2500.0, (2, True): 1000.0}
    monkeypatch.setattr(sharding, "_together", lambda name, world, spread, _: {"peak_mib": peaks[world, spread], "seconds": 1.25})
    file = tmp_path / "results/benchmarks/sharding.json"
    file.parent.mkdir(parents=True)
    sharding.main(["--small", "--processes", "1", "2", "--out", str(file)])
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    found = hooks.table("sharding")
    assert " | 2 | all | 2,500 (1.25 times one's) | 1.2 |" in found
    assert " | 2 | its part | 1,000 (0.50 times one's) | 1.2 |" in found
    assert "a part each: 1,000 MiB" in capsys.readouterr().out


def test_pages_open_without_a_network_and_show_their_figures(site: Path, opened: Tab) -> None:
    figures = 0
    for page in pages(site):
        opened.page.goto(page.as_uri())
        shown = opened.page.evaluate(
            "[...document.images].map(i => { i.loading = 'eager'; return [i.src, i.complete && i.naturalWidth] })"
        )
        assert not [source for source, width in shown if not width], page
        assert len(shown) == len(re.findall(r"<img\b", page.read_text()))
        figures += len(shown)
        assert page.as_uri() in opened.requests
        assert not opened.fetched(), page
        assert not opened.complaints, page
    assert figures >= 4


def test_search_works_from_a_folder(site: Path, opened: Tab) -> None:
    opened.page.goto((site / "index.html").as_uri())
    opened.page.evaluate("document.querySelector('[data-md-toggle=search]').click()")
    opened.page.locator("[data-md-component=search-query]").press_sequentially("ThresholdBalancing")
    hits = opened.page.locator("[data-md-component=search-result] .md-search-result__link")
    hits.first.wait_for(state="attached", timeout=30_000)
    links = hits.evaluate_all("found => found.map(a => a.href)")
    assert any("api/convert.html" in link for link in links)
    assert not opened.fetched()
    assert not opened.complaints
