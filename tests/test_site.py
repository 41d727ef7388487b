"""The documentation: built strictly, complete, and opened in a browser, from a folder and without a network."""

from __future__ import annotations

import html
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
import torch

from spikeprop.cli import main
from spikeprop.experiment import HybridConversion
from spikeprop.plugins.explain import replay
from spikeprop.plugins.explain.gallery import ENTRIES, subject_of
from spikeprop.recipe import components, load_recipe, slots
from spikeprop.report.evidence import FORMAT
from spikeprop.runtime.files import file_hash
from spikeprop.snn import Neuron, Surrogate
from tests.browser import Tab, open_tab
from tests.plugins.explain.subjects import plain_gradients

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
    """All but the page of what is not found, whose links begin at a server's root, and those of explain and report."""
    return sorted(file for file in site.rglob("*.html") if file.name != "404.html" and file.parent.name != "gallery")


def test_every_page_is_built_and_nothing_is_left_to_fill_in(site: Path) -> None:
    sources = {file.relative_to(ROOT / "docs").with_suffix(".html") for file in (ROOT / "docs").rglob("*.md")}
    assert {page.relative_to(site) for page in pages(site)} == sources
    for page in pages(site):
        for request in ("include", "table", "generated", "notebook"):
            assert f"<!-- {request}" not in page.read_text()


def test_explains_gallery_has_the_gradients_of_torch(site: Path) -> None:
    index = (site / "gallery/index.html").read_text()
    for name in ENTRIES:
        assert f'href="{name}.html"' in index
        text = (site / "gallery" / f"{name}.html").read_text()
        assert len(text) < 2e6
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
        assert data["checks"]["edges"] == data["checks"]["edges_that_match"]
        assert data["checks"]["differences"]["differs"] == 0
        replayed = replay(data)
        for key, gradient in plain_gradients(subject_of(name)).items():
            torch.testing.assert_close(replayed[key], gradient, rtol=1e-6, atol=1e-9)


def test_the_home_page_has_three_doors_and_a_live_page(site: Path, opened: Tab) -> None:
    page = opened.page
    page.goto((site / "index.html").as_uri())
    assert page.locator(".grid.cards:not(.pictures) > ul > li").count() == 3
    links = set(page.eval_on_selector_all(".pictures a", "all => all.map(a => a.getAttribute('href'))"))
    assert {f"gallery/{name}.html" for name in (*ENTRIES, "report", "reports")} <= links
    page.locator("iframe.live").scroll_into_view_if_needed()
    live = page.frame_locator("iframe.live")
    live.locator("html[data-ready=yes]").wait_for(state="attached", timeout=20_000)
    loss = live.locator("#loss").get_attribute("data-value")
    target = live.locator("input[aria-label='target [0]']")
    target.fill(str((int(target.input_value()) + 1) % 10))
    target.press("Tab")
    assert live.locator("#loss").get_attribute("data-value") != loss
    assert not opened.fetched()
    assert not opened.complaints


def test_reports_of_the_gallery_have_their_evidence(site: Path) -> None:
    """What docs/assets keeps of the digits network belongs to the checkpoint of the zoo, so that nothing is computed."""
    kept = json.loads((ROOT / "docs/assets/digits_page.json").read_text())
    assert kept["asked"]["format"] == FORMAT
    assert kept["asked"]["checkpoint"] == file_hash(ROOT / "zoo/digits-cnn-stdb/finetuned.safetensors")
    assert "Spikes of digits-cnn-stdb while test image" in (site / "gallery/report.html").read_text()


def text_of(page: Path) -> str:
    """A page's text, without tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_texts_and_figures_come_from_where_they_are_kept(site: Path) -> None:
    peers, changelog = text_of(site / "peers.html"), text_of(site / "changelog.html")
    found = json.loads((ROOT / "results/benchmarks/step.json").read_text())["results"]
    assert f"{found['spikeprop']['median']:.2f}\n" in peers
    assert f"{found['snnTorch']['median'] / found['spikeprop']['median']:.1f}\n" in peers
    assert "Keep a Changelog" in changelog
    assert "class Network(nn.Module):" in peers
    migrated = ROOT / "results/benchmarks/migration.json"
    assert migrated.exists() == ("has not been run" not in peers)


@pytest.mark.parametrize("room", ["ann", "convert", "data", "evaluate", "learn", "recipe", "snn"])
def test_the_reference_has_the_public_names(site: Path, room: str) -> None:
    page = (site / "api" / f"{room}.html").read_text()
    missing = [
        name
        for name in importlib.import_module(f"spikeprop.{room}").__all__
        if name.isidentifier() and not name.isupper() and f'id="spikeprop.{room}.{name}"' not in page
    ]
    assert not missing


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("api/experiment", "spikeprop.experiment.context"),
        ("api/experiment", "spikeprop.experiment.settings"),
        ("api/errors", "spikeprop.errors"),
        ("api/runtime", "spikeprop.runtime.processes"),
    ],
)
def test_the_reference_has_the_classes_of_a_module(site: Path, page: str, module: str) -> None:
    text = (site / f"{page}.html").read_text()
    own = [n for n, c in vars(importlib.import_module(module)).items() if isinstance(c, type) and c.__module__ == module]
    public = [name for name in own if not name.startswith("_")]
    assert public
    assert not [name for name in public if f'id="{module}.{name}"' not in text]


def test_every_plugin_has_a_page_with_its_public_names(site: Path) -> None:
    found = set(re.findall(r'id="spikeprop\.plugins\.(\w+)', "".join(p.read_text() for p in (site / "plugins").glob("*.html"))))
    folder = ROOT / "spikeprop" / "plugins"
    assert {p.parent.name for p in folder.glob("*/__init__.py")} <= found


def test_the_recipe_reference_has_every_key_and_component(site: Path) -> None:
    page = text_of(site / "reference/recipe.html")
    keys: set[str] = set()
    for name, value in load_recipe("digits_cnn_stdb").describe().items():
        group = value if isinstance(value, dict) and "use" not in value else {}
        keys |= {f"{name}.{key}" for key in group} | ({name} - {"use"})
    assert len(keys) > 30
    assert not [key for key in keys if f"\n{key}\n" not in page]
    for base in {Neuron, Surrogate, *slots(HybridConversion).values()} - {torch.optim.Optimizer}:
        names = components(base)
        assert names
        assert not [name for name in names if f"{name}¶" not in page], base


def test_every_setting_has_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe", reason="the docs extra is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    rows = [line for line in importlib.import_module("references").recipe_reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_cli_reference_has_every_verb_and_option(site: Path) -> None:
    page = text_of(site / "reference/cli.html")
    for name, command in main.commands.items():
        assert f"{name}¶" in page
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        assert not [option for option in options if option not in page], name
    assert "143" in page[page.index("Exit codes¶") :]


def test_no_docstring_sends_the_reader_to_another_class(site: Path) -> None:
    """Parameters are described where they are listed, so none is "as `Neuron`'s"."""
    assert not [page.name for page in (site / "api").glob("*.html") if re.search(r"\bas [A-Z]\w+[’']s\b", text_of(page))]


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


def test_links_out_of_the_pages_lead_to_the_site_or_go(hooks: Any) -> None:
    places = {("results/a.png", ""): "../a.png", ("CHANGELOG.md", "x"): "../log.html#x"}
    text = "![p](../../results/a.png) [x](../../CHANGELOG.md#x) [gone](../../b) [far](https://a.example/) [h](#h) [p](../c.md)"

    def find(path: str, anchor: str) -> str | None:
        return places.get((path, anchor))

    expected = "![p](../a.png) [x](../log.html#x) gone [far](https://a.example/) [h](#h) [p](../c.md)"
    assert hooks.relinked(text, "docs/guides", find) == expected
    assert hooks.relinked("```\n[gone](../../b.txt)\n```", "docs/guides", find) == "```\n[gone](../../b.txt)\n```"
    with pytest.raises(Exception, match=r"no picture '\.\./b\.png'"):
        hooks.relinked("![p](../b.png)", "docs", lambda *_: None)


def test_an_entry_for_several_names_becomes_one_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe", reason="the docs extra is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    rewritten = importlib.import_module("docstrings").one_name_an_entry
    text = "A, b: c.\n\nArgs:\n    a, b: both\n        of them.\n    c: one, d: no.\n\nReturns:\n    e, f: stays."
    entries = "    a: both\n        of them.\n    b: both\n        of them.\n    c: one, d: no."
    assert rewritten(text) == f"A, b: c.\n\nArgs:\n{entries}\n\nReturns:\n    e, f: stays."


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes tables of the benchmarks' figures, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("benchmark_tables")


def test_a_benchmark_that_was_not_run_is_named(tables: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for name in ("scaling", "scaling-model"):
        assert "`benchmarks/scaling.py` has not been run" in tables.table(name)


def test_the_tables_of_scaling_are_those_of_its_benchmark(
    tables: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The processes are left out: one rate in each's place. The model is the benchmark's own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = importlib.import_module("scaling")
    rates = {"gradient_bytes": 4_000_000, "all_reduce_seconds": 0.0125}
    monkeypatch.setattr(scaling, "_both", lambda name, world, _: {**rates, "strong": 15.0 * world, "weak": 18.0 * world})
    file = tmp_path / "results/benchmarks/scaling.json"
    file.parent.mkdir(parents=True)
    scaling.main(["--processes", "1", "2", "--out", str(file)])
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert "| SNN, VGG5 | 2 | 30.0 (2.00 times one's) | 36.0 (2.00 times one's) | 12.50 | 4.00 |" in tables.table("scaling")
    assert "| VGG16 | 319.02 |" in tables.table("scaling-bytes")  # 2 * 999/1000 * 4 bytes * 39,917,248
    assert f"{100 * scaling._efficiency(4_000_000, 0.05, 1000):.1f} (" in tables.table("scaling-model")
    assert "ANN, ResNet-20" in capsys.readouterr().out


def test_the_table_of_conversions_has_accuracy_and_bits(tables: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert "`benchmarks/convert.py` has not been run" in tables.table("convert_choice")
    found = {
        "ann": 91.73,
        "accuracy": {"default": {"1": 91.25, "4": 91.5}, "SpikingJelly LTB": {"1": 10, "4": 27.789}},
        "bits_per_neuron": {"default": {"1": 2.54, "4": 7.2}},
        "settings": {"timesteps": [1, 4]},
    }
    text = tables.converted(found)
    assert "| % (bits a neuron); ANN 91.73 | T = 1 | T = 4 |" in text
    assert "| default | 91.25 (2.5) | 91.50 (7.2) |" in text
    assert "| SpikingJelly LTB | 10.00 | 27.79 |" in text


def test_the_table_of_fine_tuning_compares_equal_seeds(tables: Any) -> None:
    def run(before: float, *after: float) -> dict[str, Any]:
        return {"before": {"4": before}, "after": dict(zip(("1", "2", "4"), after))}

    found = {"ann": 70.0, "results": {"base": [run(60, 30, 40, 61), run(62, 30, 42, 65)], "other": [run(60, 31, 41, 63)]}}
    text = tables.finetuned(found)
    assert "| base | 61.00 ± 1.41 | 63.00 ± 2.83 | 41.00 ± 1.41 | 30.00 ± 0.00 |  | 2 |" in text
    assert "| other | 60.00 | 63.00 | 41.00 | 31.00 | +2.00 | 1 |" in text


@pytest.fixture
def opened(chromium: Any) -> Iterator[Tab]:
    with open_tab(chromium, height=1000) as found:
        yield found


def test_the_table_of_sharding_has_what_was_measured(
    tables: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sharding = importlib.import_module("sharding")
    peaks = {(1, False): 2000.0, (2, False): 2500.0, (2, True): 1000.0}
    monkeypatch.setattr(sharding, "_together", lambda name, world, spread, _: {"peak_mib": peaks[world, spread], "seconds": 1.25})
    file = tmp_path / "results/benchmarks/sharding.json"
    file.parent.mkdir(parents=True)
    sharding.main(["--small", "--processes", "1", "2", "--out", str(file)])
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    found = tables.table("sharding")
    assert " | 2 | all | 2,500 (1.25 times one's) | 1.2 |" in found
    assert " | 2 | its shard | 1,000 (0.50 times one's) | 1.2 |" in found
    assert "a part each: 1,000 MiB" in capsys.readouterr().out


@pytest.mark.slow
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
