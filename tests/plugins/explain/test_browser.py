"""Pages in a browser: timeline, numbers, editing, cards, quiz, and accessibility by axe-core."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop.learn import CrossEntropy
from spikeprop.plugins.activation_relaxation import ActivationRelaxation
from spikeprop.plugins.explain import TracedStep, TrainingStep, explain, page_data, replay, trace_step, write_page
from spikeprop.plugins.interlocking import Interlocking, PooledHead
from tests.plugins.explain.conftest import Built, Opened
from tests.plugins.explain.subjects import ALL, EXTRA, causal, plain_gradients
from tests.plugins.explain.test_trace import _Cubed

Build = Callable[[str], Built]


def serious(opened: Opened) -> list[str]:
    """What axe-core finds that is serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core: pip install 'spikeprop[dev]'")
    found = axe.Axe().run(opened.page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found if v["impact"] in ("serious", "critical")]


def wait_for(opened: Opened, selector: str, text: str) -> None:
    """Wait until an element starts with a text, without evaluating strings, which the page forbids."""
    opened.page.locator(selector, has_text=re.compile(f"^{re.escape(text)}")).first.wait_for(timeout=20000)


def assert_equals_torch(opened: Opened, step: TracedStep) -> None:
    """All values and cotangents computed by the page equal those of the trace to 1e-6."""
    read = "[v.id, Array.from(app.net.value(v.id).all), v.cotangent && Array.from(app.net.cotangent(v.id).all)]"
    for index, content, cotangent in opened.page.evaluate(f"app.net.data.values.map(v => {read})"):
        value = step.trace.values[index]
        torch.testing.assert_close(torch.tensor(content).double(), value.tensor.double().flatten(), rtol=1e-7, atol=1e-7)
        if value.needs_grad:
            true = torch.zeros_like(value.tensor) if value.cotangent is None else value.cotangent
            torch.testing.assert_close(torch.tensor(cotangent, dtype=torch.float64), true.flatten(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", [*ALL, *EXTRA])
def test_the_browser_computes_the_same_numbers_as_torch(opened: Opened, build: Build, name: str) -> None:
    built = build(name)
    opened.go(built.file)
    assert opened.page.evaluate("app.net.computes")
    assert opened.page.evaluate("app.net.editable") == (name != "modern")  # whose masks stay
    assert_equals_torch(opened, built.step)


@pytest.mark.parametrize("name", [*ALL, "graded"])
def test_sums_computed_in_the_browser_equal_those_from_torch(opened: Opened, build: Build, name: str) -> None:
    built = build(name)
    opened.go(built.file)
    edges = built.data["edges"]
    for k in range(0, len(edges), max(1, len(edges) // 12)):
        expected = edges[k]["sums"][0]
        found = opened.page.evaluate(f"app.net.sumAt(app.net.data.edges[{k}], {expected['entry']}, 6)")
        assert found["matches"]
        assert found["downstream"] == pytest.approx(expected["downstream"], rel=1e-8, abs=1e-12)
        assert found["others"] == expected["others"]
        assert sorted(t["local"] * t["upstream"] for t in found["terms"]) == pytest.approx(
            sorted(t["local"] * t["upstream"] for t in expected["terms"]), rel=1e-7, abs=1e-12
        )


def test_the_timeline_steps_scrubs_and_plays(opened: Opened, build: Build) -> None:
    opened.go(build("mlp").file)
    page = opened.page
    assert opened.where().startswith("forward 1 of 4: linear")
    page.keyboard.press("ArrowRight")
    assert opened.where().startswith("forward 2 of 4: tanh")
    page.click("#next")
    page.click("#back")
    assert opened.where().startswith("forward 2 of 4")
    page.keyboard.press("End")
    assert opened.where().startswith("backward 4 of 4: linear")
    page.focus("#scrub")
    page.keyboard.press("Home")
    assert opened.where().startswith("forward 1 of 4")
    page.fill("#scrub", "5")
    assert opened.where().startswith("backward 2 of 4: linear")
    assert page.get_attribute("#scrub", "aria-valuetext") == opened.where()
    page.click("#first")
    page.select_option("#speed", "120")
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    wait_for(opened, "#where", "backward 4 of 4")
    wait_for(opened, "#play", "Play")
    page.click("[data-node='1']")
    assert opened.where().startswith("backward 3 of 4: tanh")
    assert page.get_attribute("[data-node='1']", "aria-current") == "step"


def test_a_step_shows_upstream_local_and_downstream_in_numbers(opened: Opened, build: Build) -> None:
    built = build("mlp")
    opened.go(built.file, "#step=6")
    assert opened.where().startswith("backward 3 of 4: tanh")
    shown = [
        float(t) for t in opened.page.eval_on_selector_all("#inspector .edge .numbers td", "cells => cells.map(c => c.title)")
    ]
    cotangent = built.step.trace.values[built.step.trace.nodes[0].outputs[0]].cotangent
    assert cotangent is not None
    assert shown == pytest.approx(cotangent.flatten().tolist(), rel=1e-6, abs=1e-12)
    assert "finite differences agree" in opened.page.inner_text("#difference")
    rows = opened.page.eval_on_selector_all(
        "#inspector .terms tbody tr:not(.total)", "r => r.map(x => [...x.cells].map(c => c.textContent))"
    )
    for row in rows:
        upstream, local, product = (float(row[i].replace("−", "-")) for i in (1, 3, 5))
        assert upstream * local == pytest.approx(product, rel=2e-4)


def test_fan_outs_are_sums(opened: Opened, build: Build) -> None:
    built = build("residual")
    relu = next(n for n in built.data["nodes"] if n["name"] == "relu")
    opened.go(built.file, f"#step={2 * len(built.data['nodes']) - 1 - relu['id']}")
    text = opened.page.inner_text(".fan-out")
    assert "used 2 times" in text
    first, second, total = (float(t.split()[0].replace("−", "-")) for t in text.split(": ", 2)[2].replace("=", "+").split("+"))
    assert first + second == pytest.approx(total, rel=1e-3)
    assert text.endswith("✓")


def test_an_edited_input_gives_the_numbers_that_torch_gives(opened: Opened, build: Build) -> None:
    built = build("mlp")
    opened.go(built.file, "#step=5")
    page = opened.page
    before = page.get_attribute("#loss", "data-value")
    page.fill("input[aria-label='input [1, 0]']", "0.75")
    page.press("input[aria-label='input [1, 0]']", "Enter")
    page.fill("input[aria-label='target [3, 0]']", "1")
    page.press("input[aria-label='target [3, 0]']", "Tab")
    page.fill("input[aria-label='0.weight [2, 1]']", "-1.5")
    page.press("input[aria-label='0.weight [2, 1]']", "Tab")
    x, y = built.subject.x.clone(), built.subject.y.clone()
    x[1, 0], y[3, 0] = 0.75, 1.0
    model, _, _ = built.subject.double()
    with torch.no_grad():
        model[0].weight[2, 1] = -1.5  # type: ignore[index, operator]
    step = trace_step(dataclasses.replace(built.subject, model=model, x=x, y=y))
    assert float(page.get_attribute("#loss", "data-value")) == pytest.approx(step.loss, rel=1e-9)
    assert_equals_torch(opened, step)
    assert "finite differences agree" in page.inner_text("#difference")
    assert "(edited)" in page.inner_text("#loss")
    address = page.evaluate("location.hash")
    opened.go(built.file, address)  # the URL contains step and edits
    assert float(page.get_attribute("#loss", "data-value")) == pytest.approx(step.loss, rel=1e-9)
    assert opened.where().startswith("backward 2 of 4")
    page.click("#reset")
    assert page.get_attribute("#loss", "data-value") == before


def test_invalid_edit_is_marked_and_ignored(opened: Opened, build: Build) -> None:
    built = build("attention")
    opened.go(built.file, "#step=oops&edit=1.0:9,x,2.5:1e999,0.1:nan")
    before = opened.page.get_attribute("#loss", "data-value")
    assert float(before) == pytest.approx(built.step.loss, rel=1e-9)
    for text in ("3", "1.5", ""):
        opened.page.fill("input[aria-label='target [0]']", text)
        opened.page.press("input[aria-label='target [0]']", "Tab")
        assert opened.page.get_attribute("input[aria-label='target [0]']", "aria-invalid") == "true"
    assert opened.page.get_attribute("#loss", "data-value") == before


@pytest.mark.parametrize("name", list(ALL))
def test_every_card_opens_typeset(opened: Opened, build: Build, name: str) -> None:
    built = build(name)
    opened.go(built.file)
    opened.page.keyboard.press("c")
    assert opened.page.is_visible("#card .katex")
    assert "By the chain rule" in opened.page.inner_text("#card")
    opened.page.keyboard.press("Escape")
    assert not opened.page.is_visible("#card")
    for key, card in built.data["cards"].items():
        opened.page.evaluate(f"showCard(app.net, {key!r})")
        lines = sum(len(card[part]) for part in ("statement", "direct", "chain"))
        assert opened.page.locator("#card .math .katex").count() == lines
        opened.page.keyboard.press("Escape")
    fonts = opened.page.evaluate("document.fonts.ready.then(f => [...f].filter(x => x.status === 'error').length)")
    assert fonts == 0


def test_the_quiz_runs_by_keyboard(opened: Opened, build: Build) -> None:
    opened.go(build("residual").file)
    page = opened.page
    page.keyboard.press("q")
    seen = set()
    for asked in range(1, 9):
        correct = page.eval_on_selector_all(".choice", "b => b.findIndex(x => x.dataset.correct === 'yes')")
        count = page.locator(".choice").count()
        assert 3 <= count <= 4
        covered = page.inner_text("#quiz-status").startswith("The numbers of this call are covered")
        assert page.is_visible("#step-title") is not covered
        seen.add(covered)
        answer = correct if asked % 2 else (correct + 1) % count
        page.keyboard.press(str(answer + 1))
        status = page.inner_text("#quiz-status")
        assert status.startswith("Correct." if asked % 2 else f"Wrong: number {correct + 1} is correct.")
        assert status.endswith(f"{(asked + 1) // 2} of {asked} correct.")
        assert page.is_visible("#step-title")
        page.keyboard.press("n")
    assert seen == {True, False}
    page.keyboard.press("Escape")
    assert not page.is_visible("#quiz")
    assert page.is_visible("#step-title")
    page.keyboard.press("ArrowRight")  # the page handles its keys again


@pytest.mark.parametrize(("name", "theme"), [("mlp", "light"), ("spiking", "dark")])
def test_axe_finds_nothing_serious(opened: Opened, build: Build, name: str, theme: str) -> None:
    opened.page.emulate_media(color_scheme=theme)
    opened.go(build(name).file, "#step=5")
    assert not serious(opened)
    opened.page.keyboard.press("q")
    assert not serious(opened)
    opened.page.keyboard.press("Escape")
    opened.page.keyboard.press("End")
    opened.page.keyboard.press("c")
    assert opened.page.is_visible("#card")
    assert not serious(opened)


def test_dark_and_light(opened: Opened, build: Build) -> None:
    opened.page.emulate_media(color_scheme="light")
    opened.go(build("mlp").file)
    colour = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(colour)
    opened.page.keyboard.press("t")
    assert opened.page.evaluate(colour) != light
    assert opened.page.get_attribute("#theme", "aria-pressed") == "true"
    opened.page.click("#theme")
    assert opened.page.evaluate(colour) == light


@pytest.mark.parametrize("name", ["spiking", "causal"])
def test_what_is_exported_can_be_replayed(opened: Opened, build: Build, tmp_path: Path, name: str) -> None:
    built = build(name)
    opened.go(built.file)
    with opened.page.expect_download() as download:
        opened.page.click("#export")
    download.value.save_as(tmp_path / "page.json")
    found = replay(json.loads((tmp_path / "page.json").read_text()), forward=False)
    for name, p in built.step.model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("filled", [False, True])
def test_numbers_that_are_not_finite_are_shown(opened: Opened, tmp_path: Path, filled: bool) -> None:
    subject = causal(filled)
    step = trace_step(subject)
    data = page_data(subject, step)
    write_page(tmp_path / "p.html", data)
    assert all(node["difference"]["verdict"] == "agrees" for node in data["nodes"])
    opened.go(tmp_path / "p.html")
    if filled:
        assert not opened.page.evaluate("app.net.editable")
    infinite = [v["id"] for v in data["values"] if -torch.inf in v["data"]["all"]]
    assert infinite
    for index in infinite:
        count = f"Array.from(app.net.value({index}).all).filter((x) => x === -Infinity).length"
        assert opened.page.evaluate(count) == int(torch.isneginf(step.trace.values[index].tensor).sum())
    (softmax,) = [node["id"] for node in data["nodes"] if node["kind"] == "softmax"]
    opened.go(tmp_path / "p.html", f"#step={softmax}")
    assert opened.page.locator("#inspector td", has_text=re.compile("^−inf$")).count() == 6
    assert opened.page.locator("#inspector td", has_text=re.compile("^nan$")).count() == 0
    assert not serious(opened)


def test_spikes_are_drawn_at_their_steps(opened: Opened, build: Build) -> None:
    built = build("spiking")
    opened.go(built.file, "#step=20")
    drawn = opened.page.locator("#neurons .spike").count()
    assert drawn == sum(sum(map(sum, layer["spikes"])) for layer in built.data["neurons"]) > 0
    step = built.data["nodes"][20]["step"]
    lit = opened.page.eval_on_selector_all("#neurons .at.on", "r => r.map(x => x.dataset.step)")
    assert set(lit) == {str(step)}


def test_folded_modules_open(opened: Opened, build: Build) -> None:
    opened.go(build("attention").file)
    boxes = opened.page.locator(".box").count()
    opened.page.locator(".box.folded").first.click()
    assert opened.page.locator(".box").count() > boxes
    opened.page.select_option("#fold", "0")
    assert opened.page.locator(".box").count() == len(build("attention").data["nodes"])


def test_pages_without_editing_state_the_reason(opened: Opened, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cube = TrainingStep(name="cube", model=_Cubed(3.0), x=torch.randn(2, 3), y=torch.tensor([0, 1]))
    write_page(tmp_path / "cube.html", page_data(cube, trace_step(cube)))
    opened.go(tmp_path / "cube.html", "#step=4")
    assert "Not editable: the page cannot compute Cube" in opened.page.inner_text("#edits")
    large = ALL["residual"]()
    write_page(tmp_path / "large.html", page_data(large, trace_step(large), limit=10))
    opened.go(tmp_path / "large.html", "#step=15")
    assert "Not editable: this page contains only a sample" in opened.page.inner_text("#edits")
    assert "Activations are sampled" in opened.page.inner_text("#about")
    assert "entries kept" in opened.page.inner_text("#inspector")
    assert not serious(opened)


class _Choosing(nn.Module):
    """A hidden layer without its negative entries, chosen by one of three conditions."""

    def __init__(self, how: str):
        super().__init__()
        self.first, self.last, self.how = nn.Linear(2, 3), nn.Linear(3, 2), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.how == "write":
            h[h < 0] = 0
        elif self.how == "where":
            h = torch.where(h.detach() * 2 < 0, torch.zeros_like(h), h)
        elif h.sum() > 0:
            h = h * 2
        return self.last(h)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("write", "write reads what lt computed"),
        ("where", "where reads what lt computed"),
        ("if", "bool decides with one of these numbers"),
    ],
)
def test_a_page_whose_conditions_would_change_is_not_editable(how: str, reason: str, opened: Opened, tmp_path: Path) -> None:
    """And its nudges are measured by torch: a condition computed from the original numbers would give a wrong loss."""
    torch.manual_seed(1)
    step = TrainingStep(name=how, model=_Choosing(how), x=torch.tensor([[0.5, -0.7], [1.2, 0.3]]), y=torch.tensor([0, 1]))
    data = page_data(step, trace_step(step))
    write_page(tmp_path / "page.html", data)
    bias = next(v["id"] for v in data["values"] if v["name"] == "first.bias")
    opened.go(tmp_path / "page.html", f"#step=0&edit={bias}.0:-3")
    assert f"Not editable: {reason}" in opened.page.inner_text("#edits")
    assert "edited" not in opened.page.inner_text("#loss")
    opened.page.fill("#nudge", "0")
    assert float(opened.page.get_attribute("#nudge-answer", "data-loss")) == data["story"]["nudges"][0]["loss"]


@pytest.mark.parametrize("name", ["spiking", "graded"])
def test_spikes_of_a_reset_and_sums_of_payloads_follow_an_edit(opened: Opened, build: Build, name: str) -> None:
    """In torch they are constants, which have no gradient; after an edit they are other ones."""
    built = build(name)
    inputs = next(v for v in built.data["values"] if v["role"] == "input")
    x = 0.4 * built.subject.x.flip(1)
    edits = ",".join(f"{inputs['id']}.{i}:{value!r}" for i, value in enumerate(x.flatten().tolist()))
    opened.go(built.file, f"#step=0&edit={edits}")
    step = trace_step(dataclasses.replace(built.subject, x=x))
    changed = [i for i in step.trace.followed if not step.trace.values[i].tensor.equal(built.step.trace.values[i].tensor)]
    assert changed
    assert_equals_torch(opened, step)


def test_rules_are_compared_and_animated(opened: Opened, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)]
    subject = TrainingStep(name="v", model=torch.nn.Sequential(*layers), x=torch.randn(4, 4), y=torch.tensor([0, 1, 2, 1]))
    rules: dict[str, Any] = {
        "relaxation": ActivationRelaxation(iterations=200, sweep="jacobi", loss=CrossEntropy()),
        "local": Interlocking(cuts=3, reach=1, head=PooledHead()),
    }
    data = explain(subject, tmp_path / "v.html", rules)
    opened.go(tmp_path / "v.html")
    page = opened.page
    assert page.locator(".variant").count() == 2
    assert page.locator(".variant .segments li").count() == 6
    assert "follows the head after 0" in page.inner_text("#variants")
    frames = data["variants"][0]["frames"]
    assert [f["at"] for f in frames] == [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 200]
    page.click(".relax")
    wait_for(opened, ".player output", "iterations: 3")
    page.click(".relax")
    page.fill(".player input", "0")
    angles = page.locator(".variant").first.locator("tbody tr td:nth-child(2)").all_inner_texts()
    for shown, layer in zip(angles, frames[0]["layers"], strict=True):
        if layer["angle"] is None:  # nothing has reached this layer yet
            assert shown.strip() == "no gradient"
        else:
            assert float(shown.strip().rstrip("°").replace("−", "-")) == pytest.approx(layer["angle"], rel=1e-2, abs=1e-9)
    assert not serious(opened)


def test_the_story_measures_a_nudge_and_multiplies_along_paths(opened: Opened, build: Build) -> None:
    built = build("mlp")
    story = built.data["story"]
    gradient = plain_gradients(built.subject)["0.weight"].flatten()[story["entry"]]
    assert story["gradient"] == pytest.approx(float(gradient), rel=1e-9)
    assert story["measured"] == pytest.approx(story["gradient"], rel=1e-5)
    for path in story["paths"]:
        assert math.prod(step["local"] for step in path["steps"]) == pytest.approx(path["product"], rel=1e-12)
    assert story["others"] is None
    assert sum(path["product"] for path in story["paths"]) == pytest.approx(story["gradient"], rel=1e-9)
    opened.go(built.file)
    page = opened.page
    products = [float(t.replace("−", "-")) for t in page.locator(".path .product").all_inner_texts()]
    assert products == pytest.approx([path["product"] for path in story["paths"]], rel=1e-3)
    page.fill("#nudge", "0.5")
    model, x, y = built.subject.double()
    with torch.no_grad():
        model[0].weight.view(-1)[story["entry"]] += 0.5  # type: ignore[index, operator, union-attr]
        loss = float(built.subject.loss(model(x), y))
    assert float(page.get_attribute("#nudge-answer", "data-loss")) == pytest.approx(loss, rel=1e-9)
    assert [n["loss"] for n in story["nudges"] if n["by"] == 0.5] == [pytest.approx(loss, rel=1e-12)]
    page.locator(".factor").nth(1).click()
    assert opened.where().startswith("backward 3 of 4: tanh")


@pytest.mark.parametrize("name", list(ALL))
def test_the_program_that_the_page_copies_gives_torchs_gradients(opened: Opened, build: Build, name: str) -> None:
    built = build(name)
    opened.go(built.file)
    promised = "the loss changes by about" in opened.page.inner_text("#story")
    assert promised != (built.data["spiking"] or built.data["story"] is None)  # the loss of spikes jumps
    opened.page.click("#code-run")
    count = len(built.data["program"]["gradients"])
    assert f"{count} of {count} gradients equal torch's" in opened.page.inner_text("#code-status")
    opened.page.evaluate("app.code.copy()")
    found: dict[str, Any] = {}
    exec(opened.page.evaluate("app.code.copied"), found)
    expected = plain_gradients(built.subject)
    names = {variable: built.data["values"][index]["name"] for variable, index in built.data["program"]["gradients"].items()}
    assert set(names.values()) == set(expected)
    for variable, parameter in names.items():
        torch.testing.assert_close(torch.as_tensor(found[variable]), expected[parameter], rtol=1e-9, atol=1e-12, msg=parameter)


def test_blanks_are_checked_by_their_numbers(opened: Opened, build: Build) -> None:
    opened.go(build("mlp").file)
    page = opened.page
    page.click("#code-all")
    lines = build("mlp").data["program"]["backward"]
    blanks = [i for i, line in enumerate(lines) if line["blank"]]
    assert page.locator(".blank").count() == len(blanks) == 7
    wrong = {
        "h2_bar @ W1": "known",
        "h3_bar @ W2.T": "columns meet",
        "-h3_bar @ W2": "and it should be",
        "h3_bar @": "missing",
        "np.det(x)": "np.det",
    }
    second = page.locator(f"[data-blank='{blanks[1]}']")
    for text, complaint in {**wrong, "h3_bar": "shape 4×1, and it should be 4×4", "h3_bar.sum()": "shape one number"}.items():
        second.fill(text)
        second.press("Enter")
        verdict = page.locator(".verdict").nth(1).inner_text()
        assert verdict.startswith("✗"), text
        assert complaint in verdict or text == "h2_bar @ W1"
    for i in blanks:
        page.locator(f"[data-blank='{i}']").fill(lines[i]["text"].split(" = ", 1)[1])
        page.locator(f"[data-blank='{i}']").press("Enter")
    assert page.locator(".verdict.good").count() == 7
    assert "4 of 4 gradients equal torch's ✓" in page.inner_text("#code-status")
    assert not serious(opened)
    page.click("#code-show")
    assert page.locator(".blank").count() == 0


def test_a_small_graph_has_its_numbers(opened: Opened, build: Build) -> None:
    built = build("mlp")
    opened.go(built.file, "#step=7")
    read = (
        "all => all.map(t => { const b = t.getBoundingClientRect(); return [t.textContent, b.left, b.right, b.top, b.bottom]; })"
    )
    shown = 0
    for v in built.data["values"]:
        drawn = opened.page.eval_on_selector_all(f"[data-value='{v['id']}'] .numbers text", read)
        if not drawn:
            continue
        shown += 1
        all_ = v["data"]["all"] + (v["cotangent"]["all"] if "cotangent" in v else [])
        cut = drawn if len(drawn) == len(all_) else []  # one of the two tensors may have no room
        for (text, *_), number in zip(cut, all_):
            assert float(text.replace("−", "-")) == pytest.approx(number, abs=0.0501, rel=0.1)
        for i, (_, left, right, top, bottom) in enumerate(drawn):
            for _, left2, right2, top2, bottom2 in drawn[i + 1 :]:
                assert min(right, right2) - max(left, left2) <= 0.5 or min(bottom, bottom2) - max(top, top2) <= 3
    assert shown >= 2
    assert opened.page.locator(".box .numbers text").count() > 0


def test_arrows_stay_after_the_backward_pass_and_the_map_shows_where(opened: Opened, build: Build) -> None:
    built = build("residual")
    opened.go(built.file)
    page = opened.page
    page.keyboard.press("End")
    turned = page.locator(".link.up[marker-start]").count()
    assert turned == page.locator(".link").count() - 1  # all but that of the target
    assert page.is_visible("#minimap")
    left = page.evaluate("document.getElementById('graph').scrollLeft")
    width = page.locator("#minimap svg").bounding_box()["width"]
    page.locator("#minimap svg").click(position={"x": width - 4, "y": 8})
    assert page.evaluate("document.getElementById('graph').scrollLeft") > left
    assert page.locator(".leaf.parameter").count() == 8
    picture = page.get_attribute(".leaf.input image.value", "href")
    assert picture.startswith("data:image/png")
    assert built.data["values"][0]["picture"]["shape"] == [1, 6, 6]
    assert "skip = F.relu(self.norm(self.first(x)), inplace=True)" in page.inner_text("#inspector .source")
    page.keyboard.press("c")
    assert "stride 1×1; padding 1×1" in page.inner_text("#card .own-call")


@pytest.mark.parametrize("name", ["mlp", "spiking"])
def test_a_phone_shows_the_page_without_scrolling_sideways(opened: Opened, build: Build, name: str) -> None:
    opened.page.set_viewport_size({"width": 390, "height": 844})
    opened.go(build(name).file, "#step=5")
    opened.page.keyboard.press("q")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not serious(opened)
