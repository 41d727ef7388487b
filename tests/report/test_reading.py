"""Reading the page: on a phone, in the dark, by keyboard and with a screen reader; sorting, saving, and what it recommends."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from spikeprop.evaluate.report import CHIP_COLUMNS
from spikeprop.experiment.run_record import RunRecord
from spikeprop.report import document
from spikeprop.report.axes import percent_axis, zero_axis
from spikeprop.report.diagram import diagram
from spikeprop.report.headline import energy_terms, recommended
from spikeprop.report.names import NamePlaces
from tests.report.conftest import Opened

ZOOM = """() => [...document.querySelectorAll("svg text")].filter(t => t.getClientRects().length && t.textContent).map(t => {
  const svg = t.ownerSVGElement; const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [parseFloat(getComputedStyle(t).fontSize) * scale, t.textContent]; })"""
OVERLAPS = """() => [...document.querySelectorAll("svg[role]")].flatMap(svg => {
  const texts = [...svg.querySelectorAll("text:not([transform])")].filter(t => t.getClientRects().length);
  const boxes = texts.map(t => t.getBoundingClientRect()), found = [];
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && tall > 4) found.push(`${svg.dataset.title}: ${texts[i].textContent} | ${texts[i + 1 + j].textContent}`); }));
  return found; })"""


def with_accuracy(run: RunRecord, kind: str, accuracy: Mapping[str, float | None]) -> RunRecord:
    assert run.report
    return replace(run, report={**run.report, kind: {**run.report[kind], "accuracy": accuracy}})


def test_letters_are_large_enough_and_cover_no_others(opened: Opened) -> None:
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert opened.page.evaluate("document.documentElement.scrollWidth") == opened.page.viewport_size["width"]
    letters = opened.page.evaluate(ZOOM)
    assert len(letters) > 100
    assert min(letters)[0] >= 11, min(letters)
    assert opened.page.evaluate(OVERLAPS) == []


def test_axe_finds_nothing_serious(opened: Opened) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core: pip install 'spikeprop[dev]'")
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = /recipe|layer-[12]$/.test(d.id); })")
    found = axe.Axe().run(opened.page).response["violations"]
    assert not [(v["id"], v["nodes"][0]["html"][:160]) for v in found if v["impact"] in ("serious", "critical")]
    assert opened.said == []


def test_wide_tables_are_cards_on_a_phone(opened: Opened) -> None:
    cell = opened.page.locator("table.runs tbody td").nth(2)
    phone = opened.page.viewport_size["width"] < 500
    shown = cell.evaluate("c => getComputedStyle(c, '::before').content")
    assert shown == ('"ANN"' if phone else "none")
    assert opened.page.locator("table.runs thead").is_visible() != phone


def test_the_headline_has_the_reports_figures(opened: Opened, page_run: Path) -> None:
    report, run = json.loads((page_run / "report.json").read_text()), RunRecord.read(page_run)
    best = recommended(run)
    last = report["finetuned"]
    accuracy, joules = last["accuracy"][str(best)], last["activity"][str(best)]["energy_joules"]
    strip = opened.page.locator(".strip").first.inner_text()
    for text in (f"{report['ann']['accuracy']:.2f} → {accuracy:.2f} %", f"{accuracy - report['ann']['accuracy']:+.2f} points",
                 f"× {joules / report['energy_joules']['ann']:.2f}", f"T = {best}", f"{joules * 1e6:.3g} uJ", "not simulated",
                 f"{report['macs']:,} MACs at 4.6 pJ", "at most 0.5 points below its own best"):  # fmt: skip
        assert text in strip, text
    rings = opened.page.eval_on_selector_all("[data-chosen]", "all => all.map(r => [r.closest('figure').id, +r.dataset.chosen])")
    synops = sum(last["activity"][str(best)]["synops"].values())
    assert dict(rings) == {"accuracy-steps": best, "accuracy-synops": synops, "accuracy-energy": joules * 1e6}
    rules = opened.page.eval_on_selector_all("[data-rule]", "all => all.map(r => +r.dataset.rule)")
    assert set(rules) <= {best}


def test_the_page_speaks_of_the_chip_and_the_arithmetic_that_were_simulated(page_run: Path) -> None:
    run = RunRecord.read(page_run)
    assert run.report
    layer = dict.fromkeys(CHIP_COLUMNS, 0) | {"name": "a"}
    energy = {"rows": [{"model": "arithmetic and memory", "snn": [4e-6, 6e-6], "ann": [2e-6, 2e-6], "source": ""}]}
    chip = {"target": "speck", "cores": 3, "chips": 1, "problems": [], "needs": [], "layers": [layer], "energy": energy}
    note = {"layer": "", "what": "one spike a step", "why": "it sends several", "change": "compare", "stops": False}
    own = {"target": "speck", "samples": 4, "accuracy": {"pytorch": 75.0, "speck": 50.0}}
    rounded = {"samples": 4, "backend": "reference", "spikes_equal": False, "agreement": 75.0, "timesteps": 8, "spikes": 5,
               "output_error": 1.0, "mismatches": {"a": 1}, "quantization": [{"name": "a"}]}  # fmt: skip

    def page(report: Mapping[str, object], **simulated: object) -> str:
        return document([replace(run, report={**report, "simulate": {**rounded, **simulated}})], [{"missing": {}}])

    shown = page(run.report, chip={**chip, "findings": [note]}, on_chip=own)
    for text in ("Place on Speck, by layer", ">3 cores<", "a core for each layer", "50.00 % of 4 samples (PyTorch 75.00 %)",
                 "network: one spike a step; it sends several: compare.", ">75.0 %<", "× 2 to 3 at T = 8"):  # fmt: skip
        assert text in shown, text
    assert "NOT equal" not in shown
    assert "Place on Loihi 2" not in shown
    refused = {"target": "speck", "why": "too large"}
    shown = page(run.report, chip={**chip, "findings": [{**note, "stops": True}]}, on_chip=refused, quantization=[])
    for text in ("Does not fit: 1 problem, see Speck.", "In its own integers: not simulated: too large.", "NOT equal"):
        assert text in shown, text
    shown = page(run.report, chip={**chip, "target": "generic-4", "cores": 0})
    assert "Integers alone, without cores." in shown
    assert ">3 cores<" not in shown
    scratch = {"trained" if key == "finetuned" else key: v for key, v in run.report.items() if key not in ("ann", "converted")}
    assert "With memory traffic 2 to 3 times an ANN of the same layers, at T = 8." in page(scratch, chip=chip)
    late = with_accuracy(replace(run, report=scratch), "trained", {"8": None})
    assert "no network of these runs has an accuracy with its SynOps." in document([late], [{"missing": {}}])


def test_the_recommended_steps_are_the_fewest_near_the_networks_best(page_run: Path) -> None:
    run = RunRecord.read(page_run)
    for accuracy, best in (({"2": 97.5, "4": 98.0, "8": 98.4}, 4), ({"2": 97.9, "8": 98.4}, 2), ({"8": 90.0, "4": None}, 8)):
        assert recommended(with_accuracy(run, "finetuned", accuracy)) == best
    assert recommended(with_accuracy(run, "finetuned", {"8": None})) is None
    assert recommended(replace(run, report=None)) is None


def test_terms_of_the_energy_sum_to_it(page_run: Path) -> None:
    run = RunRecord.read(page_run)
    assert run.report
    for steps, active in run.report["finetuned"]["activity"].items():
        terms = energy_terms(run, int(steps))
        assert terms
        assert sum(joules for _, joules in terms.values()) == pytest.approx(active["energy_joules"])
        assert {layer: count for layer, (count, _) in terms.items()} == active["synops"]
    assert energy_terms(run, 3) is None


def test_a_table_is_sorted_by_its_heads(opened: Opened) -> None:
    if opened.page.viewport_size["width"] < 500:
        pytest.skip("cards have no heads")
    caption = "Layers at T = 8"
    head = opened.page.locator("table", has_text=caption).first.locator("thead th").nth(3)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = [float(row[3].replace(",", "")) for row in opened.cells(caption)]
    assert values == sorted(values)
    head.locator("button").click()
    assert opened.cells(caption)[0][0] == "all"


def test_charts_and_tables_are_saved_with_their_numbers(opened: Opened) -> None:
    rows = list(csv.reader(io.StringIO(opened.saved("#training-ann-loss + .tools button:text('CSV')"))))
    assert rows[0] == ["series", "epoch", "loss"]
    assert [(float(x), float(y)) for _, x, y in rows[1:]] == opened.points("training-ann-loss", "training")
    rows = list(csv.reader(io.StringIO(opened.saved("#run-0-raster-0 .tools button:text('CSV')"))))
    assert rows[0] == ["layer", "neuron", "step", "payload"]
    assert len(rows) > 10
    picture = ElementTree.fromstring(opened.saved("#accuracy-steps .tools button:text('SVG')"))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert "rgb(" in picture.find(".//*[@class='curve']").get("style")  # type: ignore[union-attr]
    assert all("var(" not in part.get("style", "") for part in picture.iter())
    table = opened.saved("div:has(> table.runs) + .tools button")
    assert len(next(csv.reader(io.StringIO(table)))) == len(opened.cells("Runs")[0])


def test_a_layer_of_the_diagram_leads_to_its_section(opened: Opened) -> None:
    for _ in range(2):  # also where the address has it already
        opened.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
        opened.page.locator('#run-0-diagram a[data-layer="features_0"]').click()
        section = opened.page.locator("#run-0-layer-1[open]")
        section.wait_for()
        assert "Conv2d 1 to 32, 3x3" in section.inner_text()


def test_the_diagram_draws_layers_that_are_passed_by_and_feedback(page_run: Path) -> None:
    layers = [{"name": "input", "shape": [4]}, {"name": "a", "reads": ["input"]}, {"name": "b", "reads": ["a", "b*"]},
              {"name": "c", "reads": ["b", "a"]}]  # fmt: skip
    drawn = diagram(RunRecord.read(page_run), {"architecture": layers}, {"a": 0.5, "b": 0.1}, "x")
    assert drawn.count('class="edge"') == 4
    assert drawn.count('class="edge feedback"') == 1
    without = diagram(RunRecord.read(page_run), {}, {"features_0": 0.5}, "x")
    assert 'class="edge"' not in without
    assert "are in the checkpoint" in without


def test_axes_do_not_enlarge_noise() -> None:
    axis = percent_axis([98.0, 98.4], 100, 0)
    assert (axis.low, axis.high) == (90, 100)
    assert percent_axis([0.0, 0.3], 100, 0).low == 0
    wide = percent_axis([20.0, 99.0], 100, 0)
    assert wide.low < 20
    assert wide.high == 100
    assert zero_axis([0.004, 0.005], 100, 0).low == 0
    assert zero_axis([-1.0, 1.0], 100, 0).low < -1


def test_names_of_points_cover_nothing_and_stand_once() -> None:
    places = NamePlaces((0, 0, 200, 100))
    places.keep_free([(0, 50), (200, 50)], joined=True)
    first, second = places.find("T = 4", 100, 50), places.find("T = 8", 104, 50)
    assert first
    assert second
    (a, b) = (box for _, box in places.taken)
    assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for box in (a, b):
        assert not box[1] - 2 < 50 < box[3] + 2
    assert places.find("T = 4", 101, 50) is None  # it is written already
    full = NamePlaces((0, 0, 30, 14))
    assert full.find("T = 1000", 15, 7) is None


def test_what_runs_share_stands_once(page_run: Path) -> None:
    run = RunRecord.read(page_run)
    other = replace(run, about={**run.about, "recipe": {**run.settings, "seed": 7}})
    page = document([run, other], [{"missing": {}}, {"missing": {}}])
    differences = page.partition("Differences in settings</caption>")[2].partition("</table>")[0]
    assert differences.count("<tr>") == 2  # heads, and the seed
    assert '<th scope="row">seed</th><td>0</td><td>7</td>' in differences
    assert page.count("finetune.lr") == 1


def test_the_recipe_is_on_the_page(opened: Opened, page_run: Path) -> None:
    assert opened.page.locator("#run-0-recipe pre").text_content() == (page_run / "recipe.yaml").read_text()
