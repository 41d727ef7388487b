"""Inputs and outputs of `spikeprop explain`: recipes, run folders, user modules; learning rules; the gallery; the size."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import spikeprop as sp
from spikeprop.cli import main
from spikeprop.errors import ExplainError, RecipeError
from spikeprop.experiment.model_source import ModelRequest, find_model
from spikeprop.plugins.activation_relaxation import ActivationRelaxation
from spikeprop.plugins.explain import TrainingStep, explain, page_html, trace_step, variants
from spikeprop.plugins.explain.data import page_data
from spikeprop.plugins.explain.html import FOLDER, SCRIPTS
from spikeprop.plugins.explain.numbers import read, written
from spikeprop.plugins.interlocking import Interlocking, PooledHead
from spikeprop.plugins.map_propagation import MAPPropagation
from spikeprop.snn import SpikingNetwork
from tests.plugins.explain.conftest import Opened
from tests.plugins.explain.subjects import attention, mlp, spiking


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["explain", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_recipe_becomes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    told = run("digits_mlp_stdb", "--samples", "1", "--entries", "100", "--rule", "ActivationRelaxation", "-o", str(out))
    assert re.search(r"backward edges +(\d+), of which \1 in numbers, \1 add up", told)
    assert "activations sampled" in told
    assert re.search(r"finite differences +calls: \d+ agree", told)
    assert re.search(r"flags +(none|(\w+: \w+ in layers\S*.*))\n", told)
    assert "ActivationRelaxation" in out.read_text()


@pytest.mark.slow
def test_a_converted_recipe_is_unrolled(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    told = run(
        "digits_mlp_stdb", "--network", "converted", "--timesteps", "3", "--samples", "1", "--rule", "BPTT", "-o", str(out)
    )
    assert re.search(r"backward edges +(\d+), of which \1 in numbers, \1 add up", told)
    assert "surrogate" in told
    assert "BPTT(timesteps=3" in out.read_text()


def test_user_module_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\ndef net():\n    return torch.nn.Linear(3, 2), torch.ones(2, 3), torch.tensor([0, 1])\n"
    (tmp_path / "own_nets.py").write_text(
        code + "def bare():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert "complete" in run("own_nets:net", "-o", "p.html")
    assert (tmp_path / "p.html").exists()
    assert "calls" in run("own_nets:bare", "--data", "Digits", "-o", "q.html")
    monkeypatch.syspath_prepend(tmp_path)  # as the command line has the working folder
    with pytest.raises(RecipeError, match="gives no samples"):
        find_model("own_nets:bare", ModelRequest())
    with pytest.raises(RecipeError, match="write it as module:callable"):
        find_model("own_nets:nothing", ModelRequest())
    (tmp_path / "odd_nets.py").write_text("def net():\n    return 3\n")
    with pytest.raises(RecipeError, match="gives a int"):
        find_model("odd_nets:net", ModelRequest())


@pytest.mark.parametrize(("body", "error"), [("torch.nn.Lnear(3, 2)", AttributeError), ("__import__('nowhere')", ImportError)])
def test_error_inside_a_user_module_is_not_reported_as_a_wrong_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, error: type[Exception]
) -> None:
    (tmp_path / "bad_nets.py").write_text(f"import torch\ndef net():\n    return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad_nets", raising=False)
    with pytest.raises(error, match=r"Lnear|nowhere") as raised:
        find_model("bad_nets:net", ModelRequest())
    assert Path(raised.traceback[-1].path).name == "bad_nets.py"


def test_a_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = CliRunner().invoke(main, ["run", "digits_mlp_stdb", "--smoke", "--out", str(folder), "simulate.samples=0"])
    assert done.exit_code == 0, done.output
    finetuned, ann = find_model(str(folder), ModelRequest()), find_model(str(folder), ModelRequest(network="ann"))
    assert isinstance(finetuned.model, SpikingNetwork)
    assert finetuned.timesteps == 2
    assert not isinstance(ann.model, SpikingNetwork)
    assert ann.x.shape == (2, 1, 8, 8)
    assert "add up" in run(str(folder), "--samples", "1", "-o", str(tmp_path / "p.html"))


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("no_such_recipe", [], "no recipe"),
        ("map_cartpole", [], "has no 'ann' and 'data'"),
        ("digits_mlp_stdb", ["--rule", "NoSuchRule"], "no component 'NoSuchRule'"),
        ("digits_mlp_stdb", ["--rule", "{use: ["], "is not YAML"),
        ("digits_mlp_stdb", ["--rule", "MAPPropagation"], "is a dropout"),
    ],
)
def test_unsupported_models_are_refused(source: str, more: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["explain", source, *more, "-o", str(tmp_path / "p.html")])
    assert done.exit_code == 1
    assert message in done.output
    assert not (tmp_path / "p.html").exists()


def test_numbers_that_are_not_finite_survive_json() -> None:
    values = {"a": [1.5, -math.inf, {"number": math.inf}], "number": 2.0, "b": (math.inf, 3), "c": "NaN", "d": None}
    text = json.dumps(written(values), allow_nan=False)
    assert read(json.loads(text)) == {**values, "b": [math.inf, 3]}
    assert math.isnan(read(json.loads(json.dumps(written(math.nan), allow_nan=False))))


def _classifier() -> TrainingStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))
    return TrainingStep(name="c", model=model, x=torch.randn(40, 5), y=torch.arange(40) % 3)


def test_a_relaxation_ends_at_backprops_gradient() -> None:
    subject = _classifier()
    (shown,) = variants(subject, trace_step(subject), {"AR": ActivationRelaxation(iterations=400, sweep="jacobi")})
    assert all(layer["angle"] < 1e-3 and abs(layer["ratio"] - 1) < 1e-6 for layer in shown["layers"])
    angles = [frame["layers"][0]["angle"] for frame in shown["frames"]]
    assert angles[0] is None  # no gradient has reached the first layer after one sweep
    assert angles[-1] == shown["layers"][0]["angle"]
    assert [frame["at"] for frame in shown["frames"]][-1] == 400


def test_interlocking_names_whose_loss_each_segment_follows() -> None:
    subject = _classifier()
    rules = {reach: Interlocking(cuts=3, reach=reach, head=PooledHead(), combine="furthest") for reach in (1, 2, None)}
    rules[3] = Interlocking(cuts=3, reach=2, head=PooledHead())
    local, pairwise, whole, mean = variants(subject, trace_step(subject), {str(reach): rule for reach, rule in rules.items()})
    assert [s["follows"] for s in local["segments"]] == ["the head after 0", "the head after 2", "the network's own loss"]
    assert [s["follows"] for s in pairwise["segments"]] == [
        "the head after 2",
        "the network's own loss",
        "the network's own loss",
    ]
    assert mean["segments"][0]["follows"] == "the mean of the head after 0 and the head after 2"
    assert all(layer["angle"] < 1e-4 for layer in whole["layers"])  # a reach of all segments is backpropagation
    assert local["layers"][0]["angle"] > 5 > 1e-4 > local["layers"][2]["angle"]


def test_map_propagation_is_compared_and_animated() -> None:
    subject = _classifier()
    (shown,) = variants(subject, trace_step(subject), {"MAP": MAPPropagation(iterations=5)})
    assert [frame["at"] for frame in shown["frames"]] == [1, 2, 3, 5]
    assert 0 < shown["layers"][-1]["angle"] < 180
    assert "reward" in shown["about"]


def test_spiking_variants_include_the_engines_own_bptt() -> None:
    subject = spiking(timesteps=3)
    (shown,) = variants(subject, trace_step(subject), {"BPTT": sp.BPTT(timesteps=3)})
    assert all(layer["angle"] < 1e-4 and abs(layer["ratio"] - 1) < 1e-9 for layer in shown["layers"])


def test_wrapped_cross_entropy_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, plain = _classifier(), F.cross_entropy
    step = trace_step(subject)
    monkeypatch.setattr(F, "cross_entropy", lambda *inputs, **options: plain(*inputs, **options))
    assert len(variants(subject, step, {"AR": ActivationRelaxation(iterations=1)})) == 1


def test_rules_need_labels() -> None:
    with pytest.raises(ExplainError, match="class labels"):
        variants(mlp(), trace_step(mlp()), {"AR": ActivationRelaxation()})


def test_pages_are_self_contained() -> None:
    subject = attention()
    text = page_html(page_data(subject, trace_step(subject)))
    assert not re.findall(r"""(?:src|href)=["'](?!data:)[^"']+""", text.split("<script", 1)[0])
    assert "url(fonts/" not in text
    assert text.count("data:font/woff2;base64,") >= 9
    assert "default-src 'none'" in text


def test_no_script_of_the_page_declares_a_name_of_another() -> None:
    """All share one scope; a name declared twice would stop the page."""
    texts = [(FOLDER / f"{name}.js").read_text() for name in SCRIPTS]
    names = [name for text in texts for name in re.findall(r"^(?:const|let|class|function) (\w+)", text, re.MULTILINE)]
    assert {name for name in names if names.count(name) > 1} == set()


def test_names_cannot_break_out_of_the_page() -> None:
    subject = TrainingStep(name="</script><b>@data@</b>", model=nn.Linear(2, 2), x=torch.ones(1, 2), y=torch.tensor([0]))
    text = page_html(page_data(subject, trace_step(subject)))
    assert "</script><b>" not in text
    assert text.count("</script>") == 2


@pytest.mark.slow
def test_page_of_a_spiking_vgg5_is_small_and_opens_fast(opened: Opened, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ann = sp.VGG(depth=5, input_shape=(3, 32, 32), classes=10)
    snn = sp.convert(ann, [torch.rand(4, 3, 32, 32)], sp.IF(), sp.MaxActivation())
    subject = TrainingStep(
        name="VGG5", model=snn, x=torch.rand(1, 3, 32, 32), y=torch.tensor([3]), timesteps=10, loss=F.cross_entropy
    )
    data = explain(subject, tmp_path / "vgg5.html")
    assert data["bytes"] < 5e6
    assert data["checks"]["edges"] == data["checks"]["edges_that_match"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        opened.go(tmp_path / "vgg5.html")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2
    assert "Activations are sampled" in opened.page.inner_text("#about")
