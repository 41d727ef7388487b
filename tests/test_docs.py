"""README.md and docs/ are true: their snippets run, their links resolve, and the recipes, runs and figures in them exist."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import SqueezeNet1_0_Weights, squeezenet1_0

from spikeprop import errors
from spikeprop.recipe import recipe_folder
from tests.forked import ROOT, Program

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "results/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "docs/results.md"
LARGEST_README = 6000  # bytes
NAMED = re.compile(r"\b(?:digits|(?:fashion_)?mnist|cifar10|cifar100|imagenet)_[a-z0-9_]+")
DOTTED = re.compile(r"\b(spikeprop(?:_hardware)?(?:\.[A-Za-z_]\w*)+)(?![\w/(]|\.\w)")
SOURCE = re.compile(r"(?<![\w/.])((?:\w+/)+\w+\.py)\b")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
SNIPPETS = [
    (page, code)
    for page in (
        "README.md",
        "docs/index.md",
        "docs/guides/conversion.md",
        "docs/guides/chips.md",
        "docs/plugins/aad.md",
        "docs/plugins/index.md",
        "docs/plugins/matrix-decompositions.md",
    )
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
]
MY_PROJECT = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))

    def forward(self, x):
        return self.head(self.body(x))

images, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
train_loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=128, shuffle=True)
test_loader = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=100)
"""
TRAINING = """
import torch
from my_project import Net, train_loader

torch.manual_seed(0)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(5):
    for x, y in train_loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
torch.save(net.state_dict(), "net.pt")
"""


def imagenet_folder(path: Path) -> None:
    """A folder in ImageNet's layout, with one image of noise to train on and one to test on."""
    draws = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        (path / split / "n01440764").mkdir(parents=True)
        image = torch.randint(256, (64, 64, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(image.numpy()).save(path / split / "n01440764" / "1.JPEG")


def downloaded_weights(folder: Path) -> None:
    """A file of random weights where torchvision keeps what it has downloaded."""
    torch.manual_seed(0)
    file = folder / "hub" / "checkpoints" / SqueezeNet1_0_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    ann = squeezenet1_0()
    nn.init.kaiming_normal_(ann.classifier[1].weight)  # type: ignore[arg-type]
    torch.save(ann.state_dict(), file)


def run_program(code: str, folder: Path) -> str:
    """What a program prints that runs by itself in a folder."""
    driver = "import contextlib\nwith open('printed', 'w') as file, contextlib.redirect_stdout(file):\n    "
    with Program(f"{driver}exec({code!r}, {{}})", [], folder / "log", folder, {"TORCH_HOME": str(folder / "torch")}) as program:
        assert program.ended() == 0, program.output
    return (folder / "printed").read_text().strip()


def shortened(code: str) -> str:
    """With one epoch where there are many, and few steps."""
    return re.sub(r"\bepochs=\d+", "epochs=1", code).replace("for timesteps in (32, 64)", "for timesteps in (2, 4)")


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[page for page, _ in SNIPPETS])
def test_snippets_run_as_programs(page: str, code: str, tmp_path: Path) -> None:
    """In a folder that holds what the page says: a trained network as a .pt file, or photographs, here of noise."""
    if page == "README.md":
        (tmp_path / "my_project.py").write_text(MY_PROJECT)
        code = f"exec({TRAINING!r}, {{}})\nexec({code!r}, {{}})"  # two programs in one process, which knows nothing of each other
    elif "imagenet" in code:
        imagenet_folder(tmp_path / "imagenet")
        downloaded_weights(tmp_path / "torch")
    printed = run_program(shortened(code), tmp_path)
    assert printed.endswith("}") or "accuracy" not in code  # accuracy by number of steps
    if page == "README.md":
        ann, snn = re.findall(r"([0-9.]+)\}?$", printed, re.MULTILINE)
        assert "{8: " in printed
        assert float(ann) > 80
        assert float(snn) > float(ann) - 10


def test_pages_have_their_snippets() -> None:
    assert [page for page, _ in SNIPPETS] == [
        "README.md",
        "docs/index.md",
        *["docs/guides/conversion.md"] * 2,
        *["docs/guides/chips.md"] * 2,
        *["docs/plugins/aad.md"] * 2,
        "docs/plugins/index.md",
        "docs/plugins/matrix-decompositions.md",
    ]


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= LARGEST_README


def test_every_item_of_a_docstring_has_a_name_and_a_text() -> None:
    """A line that lost its indentation stops the site's build, which takes minutes."""
    section = re.compile(r"^( *)(?:Args|Attributes|Raises):\n((?:\1    .*\n|\n)+)", re.MULTILINE)
    lost = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in sorted([*ROOT.glob("spikeprop/**/*.py"), *ROOT.glob("hardware/spikeprop_hardware/**/*.py")])
        for indent, items in section.findall(file.read_text())
        for line in items.splitlines()
        if re.match(rf"{indent}    \S", line) and not re.match(r"\s*[\w*.][^:]*:(\s|$)", line) and '"""' not in line
    ]
    assert lost == []


def test_recipes_that_are_named_exist() -> None:
    named = {name for page in PAGES for name in NAMED.findall(page.read_text())}
    assert len(named) > 20
    assert named <= {file.stem for file in recipe_folder().glob("*.yaml")}


def test_names_of_the_library_can_be_imported() -> None:
    """Dotted names in the pages, of modules, classes and functions; the changelog names old ones too."""
    names = {name for page in PAGES if page.name != "CHANGELOG.md" for name in DOTTED.findall(page.read_text())}
    assert len(names) > 30
    assert not [name for name in sorted(names) if not importable(name)]


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, last = name.rpartition(".")
    with contextlib.suppress(ImportError):
        return importlib.import_module(name) is not None
    with contextlib.suppress(ImportError):
        return hasattr(importlib.import_module(module), last)
    return False


def test_files_of_the_repository_that_are_named_exist() -> None:
    """Programs that a page names by folder and file, from the root, or below the library."""
    named = {(page, file) for page in PAGES for file in SOURCE.findall(page.read_text())}
    assert len(named) > 15
    places = (ROOT, ROOT / "spikeprop")
    assert not [(page.name, file) for page, file in named if not any((place / file).is_file() for place in places)]


def without_code(text: str) -> str:
    """A page without its blocks of code and code in lines, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def links(page: Path) -> Iterator[str]:
    """Links of a page to files and headings of the repository."""
    yield from (url for url in LINK.findall(without_code(page.read_text())) if not urlsplit(url).scheme)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as mkdocs and GitHub make them; those made from the code are not there."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Links of a page that lead to no file, or to a heading that its page does not have."""
    broken = []
    for url in links(page):
        path, _, anchor = url.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.parent == ROOT / "docs" / "gallery":
            continue  # written while the site is built; mkdocs checks that it is there
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(url)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert not broken_links(page)


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "# It's here\n[a](#its-here) [b](#not-here) [c](none.md) `[d](none.md)` [e](https://a.example) [f](page.md#its-here)\n"
    page.write_text(text)
    assert broken_links(page) == ["#not-here", "none.md"]


def test_every_page_is_reached_from_the_readme() -> None:
    """By links alone, as on a site that shows the repository's files."""
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        found = [(page.parent / url.partition("#")[0]).resolve() for url in links(page) if url.partition("#")[0].endswith(".md")]
        todo += [file for file in found if file not in seen]
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs") and page.name != "changelog.md"} <= seen


def test_the_results_page_has_every_run_as_its_report() -> None:
    rows = [line for line in RESULTS.read_text().splitlines() if line.startswith("|")]
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
        if "segments" in report:
            for name, one in report["segments"].items():
                idle = 100 * one["idle_seconds"] / (one["idle_seconds"] + one["busy_seconds"])
                assert f"| `{name}` | {idle:.0f} | {one['memory_mb']:.0f} | {one['grown_mb']:.0f} |" in rows
            continue
        row = next(row for row in rows if f"`{file.parent.name}`" in row)
        if "learners" in report:
            _check_learners(report, row)
            continue
        cells = [cell.strip() for cell in row.split("|")]
        if "trained" in report:  # from scratch
            assert cells[3:5] == ["none", "no"]
            _check_accuracy(cells[5], report["trained"]["accuracy"])
            commit = re.findall(r"`([0-9a-f]{12}(?:-dirty)?)`", row)
            assert commit == [report["provenance"]["commits"]["evaluate"]]
            continue
        assert cells[3] == f"{report['ann']['accuracy']:.2f}"
        _check_accuracy(cells[4], report["converted"]["accuracy"])
        if report.get("finetuned_epochs", 1):
            _check_accuracy(cells[5], report["finetuned"]["accuracy"])
        else:
            assert cells[5] == "no"
        commit = re.findall(r"`([0-9a-f]{12}(?:-dirty)?)`", row)
        assert commit == [report["provenance"]["commits"]["evaluate"]]


def _check_accuracy(cell: str, found: dict[str, float]) -> None:
    """Each "percent at T" of a cell stands in the report."""
    claims = re.findall(r"(\d+\.\d\d) at (?:T = )?(\d+)", cell)
    assert claims, cell
    assert {t: f"{found[t]:.2f}" for _, t in claims} == {t: claim for claim, t in claims}


def test_the_readme_has_the_figures_of_the_results_page() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    results = RESULTS.read_text()
    figures = {figure for row in rows for figure in re.findall(r"\d\d\.\d\d|\d+,\d{3}", row)}
    assert len(figures) >= 10
    assert not [figure for figure in figures if figure not in results]


def _check_arms(report: dict[str, Any], rows: list[str]) -> None:
    """Each of the experiment's means and differences that the page tells stands in its report."""
    text = "\n".join(rows)
    shown = [arm for arm in report["arms"].values() if f"{arm['mean']:.2f} ({arm['interval'][0]:.2f} to" in text]
    assert len(shown) >= 2
    assert any(f"{arm['against_baseline']['mean']:+.2f} (" in text for arm in shown)


def _check_risk(report: dict[str, Any], rows: list[str]) -> None:
    """Price and first sensitivities with their standard errors, and the two sums."""
    micro, quotes = report["microbuckets"], report["superbuckets"]
    shown = [micro["price"], *(micro["sensitivities"][name] for name in ("spot", "rate", "dividend"))]
    text = "\n".join(rows)
    for one in shown:
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
    shown = [
        f"{one['mean']:.2f}" + (f" ({one['interval'][0]:.2f} to {one['interval'][1]:.2f})" if several else "")
        for one in found.values()
    ]
    assert sum(any(f"| {text} |" in row for row in rows) for text in shown) >= 5


def _check_learners(report: dict[str, Any], row: str) -> None:
    """The mean of each learner, and MAP propagation's lead over backprop, with their intervals, as the row tells them."""
    digits = 2 if "environment" in report else 3
    signed = [(found["whole_run"], "") for found in report["learners"].values()] + [(report["difference"]["map - backprop"], "+")]
    for found, sign in signed:
        mean, low, high = (f"{value:{sign}.{digits}f}" for value in (found["mean"], *found["interval"]))
        assert f"{mean}, {low} to {high}" in row


def test_the_page_of_refusals_lists_every_error_and_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    refusals = importlib.import_module("refusals")
    page = refusals.refusals()
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.SpikepropError)
    }
    assert {"SpikepropError", "LabelError", "NirError", "HardwareError"} <= classes
    assert {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")} == classes
    silent = {name for name in classes if not refusals.collect().get(name)}
    assert silent <= {"SpikepropError", "ForeignFileError"}  # the base; and the one whose message a function makes
    assert "they seem to count from 1" in page or "has <code>classes</code> outputs" in page  # runtime
    assert "node <code>name!r</code> cannot be read" in page or "cannot be read as" in page  # hardware
    assert "reference/refusals.md" in (ROOT / "mkdocs.yml").read_text()
