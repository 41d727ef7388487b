"""What README.md and results/README.md say holds: their snippets run, and the recipes and runs that they name are there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import SqueezeNet1_0_Weights, squeezenet1_0

from spikeprop.recipe import recipe_folder

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
NAMED = re.compile(r"\b(?:digits|(?:fashion_)?mnist|cifar10|cifar100|imagenet)_[a-z0-9_]+")


def folder_of_imagenet(path: Path) -> None:
    """A folder in ImageNet's layout, with one image of noise to train on and one to test on."""
    draws = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        (path / split / "n01440764").mkdir(parents=True)
        image = torch.randint(256, (64, 64, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(image.numpy()).save(path / split / "n01440764" / "1.JPEG")


def weights_that_need_no_network(folder: Path) -> None:
    """A file of random weights where torchvision keeps what it has downloaded."""
    torch.manual_seed(0)
    file = folder / "hub" / "checkpoints" / SqueezeNet1_0_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    ann = squeezenet1_0()
    nn.init.kaiming_normal_(ann.classifier[1].weight)  # type: ignore[arg-type]
    torch.save(ann.state_dict(), file)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.splitlines()[0])
def test_snippets_of_the_readme_run(snippet: str, tmp_path: Path) -> None:
    """As a program of its own, in an empty folder; what it needs to be there is made of noise."""
    folder_of_imagenet(tmp_path / "imagenet")
    weights_that_need_no_network(tmp_path / "torch")
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "torch"), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("}")  # accuracy by number of steps


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_recipes_that_are_named_exist(page: str) -> None:
    named = set(NAMED.findall((ROOT / page).read_text()))
    assert named
    assert named <= {file.stem for file in recipe_folder().glob("*.yaml")}


def test_the_results_page_tells_every_run_as_its_report_does() -> None:
    rows = [line for line in (ROOT / "results/README.md").read_text().splitlines() if line.startswith("|")]
    for file in (ROOT / "results").glob("*/report.json"):
        report = json.loads(file.read_text())
        if "arms" in report:  # a plugin's experiment has a table of its own
            _check_arms(report, rows)
            continue
        if "microbuckets" in report or "sizes" in report:
            (_check_risk if "microbuckets" in report else _check_sizes)(report, rows)
            continue
        if "effective_snr_db" in report or "peak_db" in report:
            _check_snr(report, rows)
            continue
        (row,) = (row for row in rows if f"`{file.parent.name}`" in row)
        if "learners" in report:
            _check_learners(report, row)
            continue
        kind = "finetuned" if report.get("finetuned_epochs", 1) else "converted"
        found = report[kind]["accuracy"]
        claims = re.findall(r"(\d+\.\d\d) at (?:T = )?(\d+)", row.split("|")[5])
        assert claims, row
        assert {t: f"{found[t]:.2f}" for _, t in claims} == {t: claim for claim, t in claims}
        commit = re.findall(r"`([0-9a-f]{12}(?:-dirty)?)`", row)
        assert commit == [report["provenance"]["commits"]["evaluate"]]


def _check_arms(report: dict[str, Any], rows: list[str]) -> None:
    """Each of the experiment's means and differences that the page tells stands in its report."""
    text = "\n".join(rows)
    told = [arm for arm in report["arms"].values() if f"{arm['mean']:.2f} ({arm['interval'][0]:.2f} to" in text]
    assert len(told) >= 2
    assert any(f"{arm['against_baseline']['mean']:+.2f} (" in text for arm in told)


def _check_risk(report: dict[str, Any], rows: list[str]) -> None:
    """Price and first sensitivities with their standard errors, and the two sums."""
    micro, quotes = report["microbuckets"], report["superbuckets"]
    told = [micro["price"], *(micro["sensitivities"][name] for name in ("spot", "rate", "dividend"))]
    text = "\n".join(rows)
    for one in told:
        assert f"{one['value']:.4f} +- {one['standard_error']:.4f}" in text
    for found, name in ((micro, "volatilities"), (quotes, "implied_volatilities")):
        assert f"{sum(map(sum, found['sensitivities'][name]['value'])) / 100:+.4f}" in text


def _check_sizes(report: dict[str, Any], rows: list[str]) -> None:
    """Errors of both arms, hundredfold, and their ratio, in the row of each size and measure."""
    for size, found in report["sizes"].items():
        for name, ratio in found["ratios"].items():
            (row,) = (row for row in rows if row.startswith(f"| {int(size):,} | {name} |"))
            for arm in found["errors"].values():
                assert f"{100 * arm[name]['mean']:.3f}" in row
            assert f"{ratio['of_means']:.1f} (" in row


def _check_snr(report: dict[str, Any], rows: list[str]) -> None:
    """An optical link: every figure of its table stands in its report."""
    found = report.get("effective_snr_db") or report["peak_db"]
    several = "peak_db" in report
    told = [
        f"{one['mean']:.2f}" + (f" ({one['interval'][0]:.2f} to {one['interval'][1]:.2f})" if several else "")
        for one in found.values()
    ]
    assert sum(any(f"| {text} |" in row for row in rows) for text in told) >= 5


def _check_learners(report: dict[str, Any], row: str) -> None:
    """The mean of each learner, and MAP propagation's lead over backprop, with their intervals, as the row tells them."""
    digits = 2 if "environment" in report else 3
    signed = [(found["whole_run"], "") for found in report["learners"].values()] + [(report["difference"]["map - backprop"], "+")]
    for found, sign in signed:
        mean, low, high = (f"{value:{sign}.{digits}f}" for value in (found["mean"], *found["interval"]))
        assert f"{mean}, {low} to {high}" in row
