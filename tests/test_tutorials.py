"""The tutorials of docs/ run from top to bottom, and print what they say they print."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forked import ROOT, Program

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
LONG = ("convert-your-own", "event-camera", "report", "torchvision")
BLOCK = re.compile(r"^```(python|console|text)(?: title=\"([\w.]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DRIVER = """
import contextlib, io, json, pathlib, shlex
from click.testing import CliRunner
from spikeprop.cli import main

told, names = [], {}
for kind, title, text in json.loads(pathlib.Path("given.json").read_text()):
    printed = io.StringIO()
    if title:
        pathlib.Path(title).write_text(text)
    elif kind == "python":
        with contextlib.redirect_stdout(printed):
            exec(compile(text, f"block {len(told) + 1}", "exec"), names)
    else:
        result = CliRunner().invoke(main, shlex.split(text.removeprefix("python -m "))[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        printed.write(result.stdout)
    told.append(printed.getvalue())
pathlib.Path("told.json").write_text(json.dumps(told))
"""


@dataclass
class Block:
    """Something to run, and what the page says that it prints.

    Attributes:
        kind: "python" or "console".
        title: the file that it is, or "".
        text: code, or one command.
        prints: what stands below it.
    """

    kind: str
    title: str
    text: str
    prints: str = ""


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order; of a console block, its one command."""
    found: list[Block] = []
    for kind, title, text in BLOCK.findall(page):
        if kind == "text":
            found[-1].prints = text
        elif kind == "python":
            found.append(Block(kind, title, text))
        else:
            command, _, prints = text.partition("\n")
            assert command.startswith(("$ spikeprop ", "$ python -m spikeprop "))
            found.append(Block(kind, "", command.removeprefix("$ "), prints))
    return found


def without_figures(text: str) -> str:
    """Words and shape of what is printed: figures depend on the machine, and columns on the figures."""
    return " ".join(re.sub(r"\d[\d,.]*(?:e-?\d+)?", "#", text).split())


def run(page: list[Block], folder: Path) -> list[str]:
    """What each block prints, all of them in one program that starts in an empty folder."""
    (folder / "given.json").write_text(json.dumps([(block.kind, block.title, block.text) for block in page]))
    with Program(DRIVER, [], folder.with_suffix(".log"), folder) as program:
        assert program.ended() == 0, program.output[-3000:]
    return json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize("page", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in LONG else []) for p in PAGES])
def test_tutorials_run_and_print_what_they_say(page: Path, tmp_path: Path) -> None:
    told = blocks(page.read_text())
    assert sum(bool(block.prints) for block in told) >= 2
    for block, printed in zip(told, run(told, tmp_path), strict=True):
        assert without_figures(printed) == without_figures(block.prints), block.text


def test_there_are_nine_tutorials() -> None:
    known = {
        "convert-your-own",
        "train-convert-deploy",
        "torchvision",
        "own-data",
        "own-components",
        "learning-rule",
        "report",
        "train-from-scratch",
        "event-camera",
    }
    assert {page.stem for page in PAGES} == known
