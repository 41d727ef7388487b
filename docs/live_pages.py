"""Pages of the site that spikeprop itself writes while the site is built: explain's gallery, and reports of committed runs.

The digits network is the zoo's. Its predictions and spikes are kept in assets/digits_page.json, which ``spikeprop report`` wrote;
if it does not fit the checkpoint any more, they are computed again.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
FOLDER = "gallery"
NETWORK = "digits-cnn-stdb"  # in zoo/
SIDE_BY_SIDE = ("cifar10_fast_graded", "cifar10_fast_signed", "cifar10_resnet20_signed")  # in results/


@cache
def live_pages() -> dict[str, str]:
    """Pages by their path on the site."""
    from spikeprop.plugins.explain.gallery import write_gallery

    with TemporaryDirectory() as place:
        folder = Path(place)
        write_gallery(folder / FOLDER)
        found = {f"{FOLDER}/{file.name}": file.read_text(encoding="utf-8") for file in sorted((folder / FOLDER).glob("*.html"))}
        found[f"{FOLDER}/report.html"] = _report([_zoo_run(folder)], "A CNN on 8x8 digits")
        runs = [ROOT / "results" / name for name in SIDE_BY_SIDE]
        found[f"{FOLDER}/reports.html"] = _report(runs, "Three networks on CIFAR-10")
    return found


def _zoo_run(folder: Path) -> Path:
    """The zoo's network as a run folder."""
    run = folder / NETWORK
    shutil.copytree(ROOT / "zoo" / NETWORK, run)
    (run / f"{NETWORK}.yaml").rename(run / "recipe.yaml")
    shutil.copy(ROOT / "docs/assets/digits_page.json", run / "page.json")
    return run


def _report(runs: list[Path], title: str) -> str:
    from spikeprop.experiment.run_record import RunRecord
    from spikeprop.report import document
    from spikeprop.report.evidence import evidence

    records = [RunRecord.read(run) for run in runs]
    return document(records, [evidence(record) for record in records], title)
