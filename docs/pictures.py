"""Take the docs' pictures of pages: ``make docs``, then ``python docs/pictures.py site``. Chromium and Playwright are needed.

Each page is taken at 1400 pixels, and side by side with others at 390.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
WIDE, PHONE, TALL = 1400, 390, 1000
GAP = 30  # between the screens of a picture of phones
COLOURS = 128  # of each kind, see ``save``
TOP = "window.scrollTo(0, 0)"
Action = Callable[[Any], object]


def at(selector: str, above: int = 8) -> Action:
    """Bring an element to the top of the screen, below the ``above`` pixels of what sticks there."""
    script = f"e => window.scrollTo(0, e.getBoundingClientRect().top + scrollY - {above})"
    return lambda page: page.eval_on_selector(selector, script)


def exercise(page: Any) -> None:
    """Fill two blanks of the NumPy program, one of them wrongly."""
    page.click("#code-exercise")
    for number, text in enumerate(("h3_bar @ W2", "h3_bar.sum()")):
        page.locator(".blank").nth(number).fill(text)
        page.locator(".blank").nth(number).press("Enter")
    page.locator("#code").scroll_into_view_if_needed()


def loose(page: Any) -> None:
    """The timeline does not stick, so that a picture of an element has nothing across it."""
    page.add_style_tag(content=".timeline { position: static !important }")


PAGES: dict[str, tuple[str, Action | None, str | None, int]] = {  # page, action, element (None: the screen), height
    "explain_mlp": ("gallery/xor.html#step=6", None, None, 1180),
    "explain_cnn": ("gallery/cnn.html#step=15", at(".timeline"), None, TALL),
    "explain_attention": ("gallery/attention.html#step=45", at(".timeline"), None, TALL),
    "explain_snn": ("gallery/spiking.html#step=100", at("#neurons"), None, TALL),
    "explain_code": ("gallery/xor.html#step=5", exercise, "#code", TALL),
    "report_page": ("gallery/report.html", None, None, 1200),
    "report_network": ("gallery/report.html", at("#run-0-diagram", 60), None, 1400),
    "report_runs": ("gallery/reports.html", None, None, TALL),
    "home": ("index.html", None, None, 1180),
}
PHONES: dict[str, list[tuple[str, Action | None]]] = {
    "explain_phone": [
        ("gallery/xor.html#step=6", None),
        ("gallery/cnn.html#step=15", at(".timeline")),
        ("gallery/attention.html#step=45", at("#inspector")),
        ("gallery/spiking.html#step=100", at("#neurons")),
    ],
    "report_phone": [
        ("gallery/report.html", None),
        ("gallery/report.html", at("#accuracy")),
        ("gallery/report.html", at("#run-0-about-network")),
        ("gallery/report.html", at("#run-0-about-spikes")),
    ],
    "home_phone": [
        ("index.html", None),
        ("index.html", at(".live-picture")),
        ("index.html", at(".pictures")),
        ("results.html", None),
    ],
}


def taken(
    browser: Any, site: Path, address: str, width: int, height: int, act: Action | None, element: str | None
) -> Image.Image:
    """A picture of a page, or of an element on it."""
    page = browser.new_page(viewport={"width": width, "height": height})
    path, _, anchor = address.partition("#")
    page.goto(f"{(site / path).resolve().as_uri()}{'#' * bool(anchor)}{anchor}")
    if path.startswith("gallery/") and "report" not in path:
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        loose(page)
    if "index" in address and width == WIDE:  # its frame loads when it comes into view; phones have a picture instead
        page.locator("iframe.live").scroll_into_view_if_needed()
        page.frame_locator("iframe.live").locator("html[data-ready=yes]").wait_for(state="attached")
        page.evaluate(TOP)
    if act is not None:
        act(page)
    page.wait_for_timeout(300)
    found = page.locator(element).screenshot() if element else page.screenshot()
    page.close()
    return Image.open(io.BytesIO(found)).convert("RGB")


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Screens on a grey ground."""
    width, height = pictures[0].size
    found = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), (150, 150, 150))
    for number, picture in enumerate(pictures):
        found.paste(picture, (number * (width + GAP), 0))
    return found


def save(picture: Image.Image, file: Path) -> None:
    """As a small PNG of 256 colours: those of most pixels, and those that cover all that occur, such as a chart's thin lines."""
    kinds = (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for kind in kinds for part in (picture.quantize(COLOURS, kind).getpalette() or [])[: 3 * COLOURS]])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """Take all pictures, or those named after the site's folder."""
    site, names = Path(sys.argv[1]), sys.argv[2:] or [*PAGES, *PHONES]
    program = os.environ.get("SPIKEPROP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name in names:
            if name in PAGES:
                address, act, element, height = PAGES[name]
                picture = taken(browser, site, address, WIDE, height, act, element)
            else:
                picture = side_by_side([taken(browser, site, address, PHONE, TALL, act, None) for address, act in PHONES[name]])
            save(picture, FOLDER / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
