"""The documentation: built strictly, complete, and opened in a browser, from a folder and without a network."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLACES = ("file:", "data:", "blob:", "about:")


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, which notes what it asks the network for and what its console says."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, of the docs extra, is not installed")
    if DRIVER is None or BROWSER is None:
        pytest.skip("no Chromium with its chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def requested(browser: Any) -> list[str]:
    """Addresses that the browser asked for since it was last looked."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_pages_open_without_a_network_and_show_their_figures(site: Path, browser: Any) -> None:
    figures = 0
    for page in pages(site):
        browser.get(page.as_uri())
        shown = browser.execute_script(
            "return [...document.images].map(i => { i.loading = 'eager'; return [i.src, i.complete && i.naturalWidth] })"
        )
        assert not [source for source, width in shown if not width], page
        assert len(shown) == len(re.findall(r"<img\b", page.read_text()))
        figures += len(shown)
        asked = requested(browser)
        assert page.as_uri() in asked
        assert not [url for url in asked if not url.startswith(PLACES)], page
        assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")], page
    assert figures >= 4


def test_search_works_from_a_folder(site: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site / "index.html").as_uri())
    browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    browser.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").send_keys("ThresholdBalancing")
    hits = "[data-md-component=search-result] .md-search-result__link"
    WebDriverWait(browser, 30).until(lambda b: b.find_elements(By.CSS_SELECTOR, hits))
    links = [hit.get_attribute("href") for hit in browser.find_elements(By.CSS_SELECTOR, hits)]
    assert any("api/convert.html" in link for link in links)
    assert not [url for url in requested(browser) if not url.startswith(PLACES)]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
