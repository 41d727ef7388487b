"""The class of docs/tutorials/torchvision.md, which reads its own trained weights, in a recipe."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch

from spikeprop.errors import SpikepropError
from spikeprop.experiment.pipeline import HybridConversion
from spikeprop.recipe import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "torchvision.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r'```python title="my_package.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    (tmp_path / "own_weights_page.py").write_text(textwrap.dedent(code[1]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)


def experiment(weights: str) -> HybridConversion:
    overrides = [f"ann={{use: own_weights_page.Net, weights: {weights}}}", "train.epochs=0"]
    found = load_recipe("digits_cnn_stdb", overrides).experiment
    assert isinstance(found, HybridConversion)
    return found


@pytest.mark.usefixtures("module")
def test_recipe_builds_the_class_of_the_page_with_its_weights() -> None:
    first = experiment("null").ann.build()
    torch.save(first.state_dict(), "net.pt")
    again = experiment("net.pt")
    again.check()
    built = again.ann.build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), built.parameters(), strict=True))


@pytest.mark.usefixtures("module")
def test_missing_weights_are_named() -> None:
    with pytest.raises(SpikepropError, match=r"no weights file at none\.pt"):
        experiment("none.pt").ann.build()
