"""The report page in a real browser: it loads nothing, logs no message, and shows every figure with the report's numbers."""

from __future__ import annotations

import html
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spikeprop.cli import main
from spikeprop.experiment.run_record import RunRecord
from spikeprop.report import document
from spikeprop.report.axes import axis, short, spaced, ticks
from spikeprop.report.charts import WIDTH, Line, line_chart
from spikeprop.report.comparison import _steps_and_bits
from spikeprop.report.heatmaps import raster_map
from tests.report.conftest import Opened, write

RESULTS = Path(__file__).parent.parent.parent / "results"
FIGURES = ["accuracy-steps", "accuracy-synops", "accuracy-energy", "training-ann-loss", "training-ann-accuracy",
           "training-finetune-loss", "training-finetune-accuracy", "run-0-rates", "run-0-thresholds", "run-0-raster-0",
           "run-0-raster-1", "run-0-confusion", "layers-synops", "layers-energy", "seconds"]  # fmt: skip


def test_graded_spikes_have_their_levels_and_bits_beside_accuracy() -> None:
    graded = {"levels": 3, "activity": {"4": {"bits_per_neuron": 7.197}}}
    assert _steps_and_bits(graded, 4) == ("4 x 3 levels", "7.2")
    assert _steps_and_bits({"activity": {"8": {"bits_per_neuron": 2.0}}}, 8) == ("8", "2")
    assert _steps_and_bits({"activity": None}, 8) == ("8", "-")  # of an older version


def test_the_name_of_the_last_point_stays_within_the_picture() -> None:
    line = Line("a", [(1.0, 1.0), (10.0, 2.0)], names={1.0: "T = 1 x 2 levels", 10.0: "T = 16 x 2 levels"})
    found = re.findall(r'<text x="([\d.]+)"[^>]*>(T = [^<]*)</text>', line_chart("c", [line], "x", "y", log=True))
    assert [name for _, name in found] == ["T = 1 x 2 levels", "T = 16 x 2 levels"]
    assert all(float(x) + 5.5 * len(name) < WIDTH for x, name in found)


def test_payloads_of_spikes_are_told_apart() -> None:
    layer = {"name": "a", "neurons": 2, "chosen": [0, 1], "spikes": [[0, 0, 1], [1, 1, 3], [0, 2, -2]]}
    drawn = raster_map("r", [layer], 4)
    found = {payload: re.search(rf"<path[^>]*><title>payload {payload}</title>", drawn) for payload in (3, 1, -2)}
    shown = {payload: match[0] if match else "" for payload, match in found.items()}
    assert all(shown.values())
    assert 'stroke-opacity="0.50"' in shown[1]
    assert "stroke-opacity" not in shown[3]
    assert 'class="spike back"' in shown[-2]


def test_a_run_without_training_has_no_section_on_it_and_names_what_simulated_it(page_run: Path) -> None:
    run = RunRecord.read(page_run)
    assert run.report
    untrained = {**run.settings, "train": {"epochs": 0}, "finetune": {"epochs": 0}}
    simulated = {"samples": 2, "backend": "reference", "spikes_equal": True, "agreement": 100.0, "timesteps": 8, "spikes": 5,
                 "output_error": 0.0, "mismatches": {"a": 0}}  # fmt: skip
    report = {**run.report, "simulate": simulated}
    shown = document([RunRecord(run.path, {**run.about, "recipe": untrained}, run.stages, report, [])], [{"missing": {}}])
    assert "Training" not in re.sub(r"<script.*|<style.*?</style>", "", shown, flags=re.DOTALL)
    assert "Simulator against PyTorch" in shown
    assert "Lava against PyTorch" not in shown
    assert f"of {report['images']} test images; 95 % intervals: ANN " in shown
    layers = re.search(r"Layers at T = 8.*?</table>", shown, re.DOTALL)
    assert layers
    assert all(f'<th scope="row">{name}</th>' in layers[0] for name in ("input", "all"))


def test_page_opens_without_console_messages_and_loads_nothing(opened: Opened, page_file: Path) -> None:
    assert opened.said == []
    assert opened.asked == [page_file.as_uri()]
    assert "http" not in re.sub(r"http-equiv", "", page_file.read_text())
    assert page_file.stat().st_size < 200_000


def test_every_figure_is_there_and_has_a_size(opened: Opened) -> None:
    read = """names => names.map(n => [...document.querySelectorAll(`#${n} svg[role=img]`)].map(p => {
      const box = p.getBoundingClientRect(); return [box.width, box.height, p.getAttribute("aria-label")]; }))"""
    for cost, other in (("synops", "energy"), ("energy", "synops")):
        opened.page.check(f"[name=cost][value={cost}]")
        for name, found in zip(FIGURES, opened.page.evaluate(read, FIGURES), strict=True):
            ((width, height, label),) = found
            assert label, name
            assert (width > 100 and height > 40) != name.endswith(f"-{other}"), name
    assert opened.page.locator("#run-0-correct img").count() == 8


def test_numbers_of_the_page_are_those_of_the_report(opened: Opened, page_run: Path) -> None:
    report = json.loads((page_run / "report.json").read_text())
    (row,) = opened.cells("Runs")
    shares = [report["ann"]["accuracy"], report["converted"]["accuracy"]["8"], report["finetuned"]["accuracy"]["8"]]
    assert row[3:6] == [f"{value:.2f} %" for value in shares]
    assert row[7:9] == [f"{report['macs']:,}", f"{round(sum(report['synops'].values())):,}"]
    table = {(name, steps): cells for name, steps, *cells in opened.cells("Every measured T")}
    for kind, label in (("converted", "converted"), ("finetuned", "fine-tuned")):
        by_steps = [(float(t), a) for t, a in report[kind]["accuracy"].items()]
        assert opened.points("accuracy-steps", label) == [(t, a, *report[kind]["interval"][str(int(t))]) for t, a in by_steps]
        active = report[kind]["activity"]
        assert opened.points("accuracy-synops", label) == [(sum(active[str(int(t))]["synops"].values()), a) for t, a in by_steps]
        assert opened.points("accuracy-energy", label) == [(active[str(int(t))]["energy_joules"] * 1e6, a) for t, a in by_steps]
        for t, a in by_steps:
            joules = active[str(int(t))]["energy_joules"]
            cells = table[label, str(int(t))]
            assert (cells[0], cells[4]) == (f"{a:.2f}", f"{joules * 1e6:.4g}")
            assert cells[5] == f"{joules / report['energy_joules']['ann']:.3f}"
    assert opened.points("accuracy-energy", "ANN") == [(report["energy_joules"]["ann"] * 1e6, shares[0])]
    layers = {row[0]: row for row in opened.cells("Layers at T = 8")}
    for layer, threshold in report["thresholds"].items():
        assert layers[layer][2] == f"{report['rates'][layer]:.4g}"
        assert float(layers[layer][4]) == pytest.approx(threshold, rel=1e-3)
    errors = {row[0]: row for row in opened.cells("Relative difference between rates and the ANN's activations")}
    for layer, by_steps in report["conversion_error"].items():
        assert errors[layer][1:3] == [f"{by_steps[t]['total']:.3f}" for t in ("2", "8")]
        at = by_steps[errors_at(opened)]
        assert errors[layer][3] == max(("clipping", "quantisation", "unevenness"), key=at.__getitem__)


def errors_at(opened: Opened) -> str:
    """The T of the layers' causes."""
    return opened.page.locator("th", has_text="most, T = ").inner_text().rpartition(" ")[2]


def test_training_and_layers_are_those_of_the_run(opened: Opened, page_run: Path) -> None:
    report = json.loads((page_run / "report.json").read_text())
    logged = [json.loads(line) for line in (page_run / "metrics.jsonl").read_text().splitlines()]
    for stage, key in ((stage, key) for stage in ("ann", "finetune") for key in ("loss", "accuracy")):
        expected = [(e["epoch"] + 1, e[key]) for e in logged if e["stage"] == stage]
        assert opened.points(f"training-{stage}-{key}", "training") == expected
    for stage in ("ann", "finetune"):
        checked = [(e["epoch"] + 1, e["validation"]) for e in logged if e["stage"] == stage]
        assert opened.points(f"training-{stage}-accuracy", "validation") == checked
        assert "on 200 test images after it" in opened.page.inner_text(f"#training-{stage}")
    assert opened.points("training-ann-accuracy", "test") == [(5, report["ann"]["accuracy"])]
    assert opened.points("training-finetune-accuracy", "test") == [(2, report["finetuned"]["accuracy"]["8"])]
    rates = {
        (layer, label): rate
        for kind, label in (("converted", "converted"), ("finetuned", "fine-tuned"))
        for layer, rate in report[kind]["activity"]["8"]["rates"].items()
        if layer != "input"
    }
    assert opened.bars("run-0-rates") == rates
    assert {n: v for (n, series), v in opened.bars("run-0-thresholds").items() if series == "as calibrated"} == report[
        "thresholds"
    ]
    read = "all => all.map(a => [a.dataset.layer, a.dataset.rate === undefined ? null : +a.dataset.rate])"
    drawn = dict(opened.page.eval_on_selector_all("#run-0-diagram a", read))
    assert drawn == {"input": None, "classifier_4": None, **{n: rates[n, "fine-tuned"] for n in report["thresholds"]}}
    best = opened.page.locator("#accuracy-steps [data-chosen]").get_attribute("data-chosen")
    active = report["finetuned"]["activity"][str(int(float(best)))]
    synops, joules = opened.bars("layers-synops"), opened.bars("layers-energy")
    assert {name: value for (name, _), value in synops.items()} == active["synops"]
    assert sum(joules.values()) == pytest.approx(1e6 * active["energy_joules"])
    assert opened.bars("seconds") == {(stage, "seconds"): spent for stage, spent in report["seconds"].items()}


def test_spikes_scores_and_confusions_are_those_of_the_evidence(opened: Opened, page_run: Path) -> None:
    found = json.loads((page_run / "page.json").read_text())
    for i, one in enumerate(found["rasters"]):
        name = f"run-0-raster-{i}"
        read = """all => all.map(b => [b.dataset.layer, b.dataset.neurons.split(" ").map(Number),
          [...b.querySelectorAll("[data-payload]")]
          .flatMap(p => [...p.getAttribute("d").matchAll(/M(\\d+) (\\d+)/g)].map(m => [+m[2], +m[1], +p.dataset.payload]))])"""
        drawn = opened.page.eval_on_selector_all(f"#{name} [data-layer]", read)
        assert [(n, chosen, sorted(spikes)) for n, chosen, spikes in drawn] == [
            (layer["name"], layer["chosen"], sorted(layer["spikes"])) for layer in one["layers"]
        ]
        assert one["layers"][0]["name"] == "input"
        for kind, values in one["scores"].items():
            label = f"{kind}, correct" if kind == one["label"] else kind
            assert opened.points(f"run-0-scores-{i}", label) == [(t, v) for t, v in enumerate(values, 1)]
        for trace in one["potentials"]:
            figure = f"run-0-potential-{trace['name']}-{i}"
            assert [v for _, v in opened.points(figure, f"{trace['name']}, neuron {trace['neuron']}")] == trace["values"]
            assert {v for _, v in opened.points(figure, "threshold")} == {trace["threshold"]}
    read = "all => all.map(g => [+g.dataset.row, +g.dataset.column, +g.dataset.count])"
    cells = opened.page.eval_on_selector_all("#run-0-confusion g[data-count]", read)
    assert {(r, c): n for r, c, n in cells} == {
        (r, c): n for r, line in enumerate(found["confusion"]["counts"]) for c, n in enumerate(line) if n
    }
    assert opened.cells("Commonest confusions") == [list(map(str, row)) for row in found["confusion"]["commonest"]]


def test_page_is_accessible(opened: Opened) -> None:
    levels = opened.page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert opened.page.locator("img:not([alt]), img[alt='']").count() == 0
    assert opened.page.locator("th:not([scope])").count() == 0
    assert opened.page.locator("table:not(:has(caption))").count() == 0
    assert opened.page.locator("html[lang=en]").count() == 1
    ids = opened.page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = opened.page.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
    assert links
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    contrast = opened.page.evaluate(CONTRAST)
    assert min(contrast.values()) >= 4.5, contrast


CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = c => { const l = light(c); return (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05); };
  const of = (selector, key) => ratio(getComputedStyle(document.querySelector(selector))[key]);
  return {text: of('.note', 'color'), head: of('thead th', 'color'), caption: of('figcaption', 'color'), link: of('a', 'color'),
    tick: of('svg text.tick', 'fill')};
}"""


def test_curves_of_several_runs_are_overlaid_and_can_be_hidden(chromium: Any, page_run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(page_run, tmp_path / "other")
    results = [
        RESULTS / name for name in ("fashion_mnist_cnn_diet", "mnist_cnn_rifle", "map_cartpole", "cifar10_resnet20_signed")
    ]
    opened = Opened(chromium, write(tmp_path / "all.html", page_run, Path(other), *results), "light")
    assert (opened.said, len(opened.asked)) == ([], 1)
    rows = opened.cells("Pipelines")
    assert [row[0] for row in rows] == [page_run.name, "other", "fashion_mnist_cnn_diet", "cifar10_resnet20_signed"]
    assert rows[3][5] == "-"  # it was not fine-tuned
    assert [row[0] for row in opened.cells("Experiments of plugins")] == ["mnist_cnn_rifle", "map_cartpole"]
    curve = opened.page.locator('#accuracy-steps g[data-label="other, fine-tuned"]')
    assert curve.is_visible()
    opened.page.locator('[data-shows="1"]').uncheck()
    assert not curve.is_visible()
    assert opened.page.locator(f'#accuracy-steps g[data-label="{page_run.name}, fine-tuned"]').is_visible()
    colours = {  # a network has one colour in every run, and in every chart
        (label.rpartition(", ")[2], kind.split()[0])
        for label, kind in opened.page.eval_on_selector_all(
            "#accuracy-steps g[data-label], #accuracy-energy g[data-label]",
            "all => all.map(g => [g.dataset.label, g.getAttribute('class')])",
        )
    }
    assert colours == {("converted", "c1"), ("fine-tuned", "c0"), ("ANN", "c2")}
    section = opened.page.locator("section:has(#run-3)")
    assert not section.locator("img.drawn").is_visible()
    opened.page.locator('nav a[href="#run-3"]').click()
    section.locator("img.drawn").wait_for(state="visible")
    arms = json.loads((RESULTS / "mnist_cnn_rifle" / "report.json").read_text())["arms"]
    assert [row[:2] for row in opened.cells("Arms, over seeds")] == [[name, f"{arm['mean']:.2f}"] for name, arm in arms.items()]
    opened.page.close()


def test_missing_content_of_a_folder_is_named(page_run: Path, tmp_path: Path) -> None:
    old = document([RunRecord.read(RESULTS / "fashion_mnist_cnn_diet")], [{"missing": dict.fromkeys(MISSING, "no checkpoint")}])
    for told in ("counts spikes at one T only", "Rasters: no checkpoint", "Confusions: no checkpoint", "Spikes by layer: not in",
                 "Conversion error: not in this report", "not recorded"):  # fmt: skip
        assert told in old, told
    unfinished = Path(shutil.copytree(page_run, tmp_path / "r"))
    (unfinished / "report.json").unlink()
    assert "This run is not finished (stopped after simulate)" in document([RunRecord.read(unfinished)], [{"missing": {}}])
    with pytest.raises(ValueError, match="at least one run"):
        document([], [])


MISSING = ("thresholds", "confusion", "examples", "rasters")


def test_a_kept_diagnosis_is_on_the_page(page_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(page_run, folder)
    title = "What conversion loses"
    assert title not in document([RunRecord.read(folder)], [{"missing": {}}])
    result = CliRunner().invoke(main, ["diagnose", str(folder), "--timesteps", "2", "--samples", "20", "--keep"])
    assert result.exit_code == 0, result.output
    page = document([RunRecord.read(folder)], [{"missing": {}}])
    assert title in page
    assert html.escape((folder / "diagnosis.txt").read_text()) in page
    assert (folder / "diagnosis.txt").read_text().strip() in result.output


def test_text_from_run_folders_is_escaped(page_run: Path, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    folder = Path(shutil.copytree(RESULTS / "mnist_cnn_rifle", tmp_path / "r"))
    report = json.loads((folder / "report.json").read_text())
    report["arms"][bad] = report["arms"].pop("L2-SP")
    (folder / "report.json").write_text(json.dumps(report))
    page = document([RunRecord.read(folder)], [{"missing": {}}])
    assert bad not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize("name", sorted(f.parent.name for f in RESULTS.glob("*/run.json")))
def test_every_stored_result_has_a_page(name: str) -> None:
    run = RunRecord.read(RESULTS / name)
    page = document([run], [{"missing": dict.fromkeys(MISSING, "not here") if run.hybrid else {}}])
    assert str(run.about["commit"]) in page
    for value in run.headline().values():
        assert f"{value:.2f}" in page or f"{value:.4g}" in page


def test_ticks_are_round_and_within() -> None:
    assert ticks(axis([0, 100], 0, 500, margin=0)) == [0, 20, 40, 60, 80, 100]
    assert ticks(axis([97.3, 98.4], 0, 500, margin=0)) == [97.5, 98]
    assert ticks(axis([1, 1000], 0, 500, log=True, margin=0), 4) == [1, 10, 100, 1000]
    assert spaced([1, 2, 3, 50], axis([1, 50], 0, 490, margin=0), 15) == [1, 3, 50]
    assert [short(v) for v in (0.2, 1500.0, 20000.0, 2e6, 5e9)] == ["0.2", "1500", "20 k", "2 M", "5 G"]
    same = axis([5, 5], 0, 100)
    assert same.place(5) == pytest.approx(50)
