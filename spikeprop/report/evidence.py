"""What a report page shows and a report does not hold: confusions, images told right and wrong, spike rasters, thresholds.

It is made from the run's checkpoint, its data and the answers that its evaluation kept; where a run of an older version kept
none, the first test images are asked again. It is kept in the run folder as ``page.json``, for as long as checkpoint and
question are the same. What cannot be made is named with the reason, and nothing stands in for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.data import ImageData
from spikeprop.errors import DamagedFileError, SpikepropError
from spikeprop.evaluate import Answers, Journal, Question, evaluate, latency_of
from spikeprop.evaluate.journal import recorded
from spikeprop.evaluate.raster import raster
from spikeprop.evaluate.thumbnails import thumbnail
from spikeprop.experiment.networks import LoadedNetwork, described_data, load_network
from spikeprop.experiment.pipeline import ANSWERS
from spikeprop.experiment.runs import Run
from spikeprop.experiment.settings import find_device
from spikeprop.recipe import Component
from spikeprop.runtime.files import read_json, write_json
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

FORMAT = 1
SHOWN = 8  # images told right, and as many told wrong
FEW_CLASSES = 100  # of more, the confusions are a list of the commonest and not a table


@dataclass(frozen=True)
class Told:
    """What a network answers: Answers at one number of steps, and whether they cover the whole test set."""

    answers: Answers
    column: int
    whole: bool


def evidence(run: Run, samples: int = 500, trusted: Collection[str] = ()) -> dict[str, Any]:
    """What can be made of a run now; read from its folder where it was made before.

    Args:
        run: finished; plugins' experiments have none of this.
        samples: test images to ask where the run kept no answers; 0 for none.
        trusted: packages that the folder's files may have imported.

    Returns:
        JSON values: network, timesteps, thresholds by layer, confusion, examples, rasters as far as there are any, and "missing":
        what there is not, with the reason.
    """
    if not run.hybrid:
        return {"missing": {}}
    kind = list(run.networks)[-1]
    file = run.path / f"{kind}.safetensors"
    if not file.is_file():
        why = f"the folder holds no {file.name}, from which it would be made"
        return {"missing": dict.fromkeys(("thresholds", "confusion", "examples", "rasters"), why)}
    asked = {"format": FORMAT, "checkpoint": _hash(file), "samples": samples, "answers": _kept(run, kind).is_file()}
    cache = run.path / "page.json"
    if cache.exists() and (found := _cached(cache)).get("asked") == asked:
        return found
    found = {"asked": asked, **_made(run, kind, samples, trusted)}
    if not found.pop("passing"):  # data that are not here today may be here tomorrow
        write_json(cache, found)
    return found


def _made(run: Run, kind: str, samples: int, trusted: Collection[str]) -> dict[str, Any]:
    try:
        loaded = load_network(run.path / f"{kind}.safetensors", trusted)
    except SpikepropError as error:  # a damaged checkpoint, or a part that is not installed here
        return {"passing": True, "missing": dict.fromkeys(("thresholds", "confusion", "examples", "rasters"), str(error))}
    network = loaded.network
    assert isinstance(network, SpikingNetwork)
    found: dict[str, Any] = {"network": kind, "timesteps": run.steps, "missing": {}, "thresholds": _thresholds(network)}
    try:
        source = described_data(run.settings["data"], trusted)
        data = source.build()
        told = _told(run, kind, loaded, source, samples)
        if told is None:
            why = "the run kept no answers, and with --samples 0 none are asked for"
            return found | {"passing": False, "missing": dict.fromkeys(("confusion", "examples", "rasters"), why)}
        shown = _chosen(told)
        images = _images(data, run, [i for numbers in shown.values() for i in numbers])
    except (SpikepropError, OSError) as error:
        missing = dict.fromkeys(("confusion", "examples", "rasters"), str(error))
        return found | {"passing": True, "missing": missing}
    found["confusion"] = _confusion(told, data)
    found["examples"] = {name: [_example(i, images[i], told, data) for i in numbers] for name, numbers in shown.items()}
    found["rasters"] = _rasters(loaded, run, shown, images, told, data)
    return found | {"passing": False}


def _told(run: Run, kind: str, loaded: LoadedNetwork, source: Component[ImageData], samples: int) -> Told | None:
    """The answers that the run kept, or those to the first images, asked now."""
    kept = _kept(run, kind)
    if kept.is_file():
        settings = recorded(kept.parent)["settings"]
        steps = settings.get("timesteps")
        if not isinstance(steps, list) or run.steps not in steps:
            raise DamagedFileError(f"{kept.parent / 'evaluation.json'} is damaged: it has no answers at T = {run.steps}")
        batches = list(Journal(kept.parent, settings).read().values())
        if batches:  # damaged ones are put aside
            return Told(Answers.of(batches), steps.index(run.steps), True)
    if samples == 0:
        return None
    data = source.replace(test_limit=min(samples, source.build().test_limit or samples)).build()
    split = data.test(_batch_size(run))
    network = loaded.network.to(find_device("auto"))
    extra = latency_of(network)
    question = Question(timesteps=(run.steps,), extra_steps=extra, classes=data.classes, seed=run.settings["seed"])
    batches = evaluate(network, split, question, activity_images=0, label=f"ask {run.name}")
    answers = Answers.of(batches)
    images = run.stages.get("data", {}).get("result", {}).get("test_images")
    return Told(answers, 0, len(answers.labels_N) == images)


def _chosen(told: Told) -> dict[str, list[int]]:
    """The first images told right and wrong, each of another class as long as there are such."""
    answered = told.answers.best_NTK[:, told.column, 0].long()
    right = answered == told.answers.labels_N
    return {name: _varied(rows, told.answers.labels_N) for name, rows in (("right", right), ("wrong", ~right))}


def _varied(rows: Tensor, labels_N: Tensor) -> list[int]:
    turn: dict[int, int] = {}
    order = []
    for i in rows.nonzero().flatten().tolist():
        label = int(labels_N[i])
        order.append((turn.get(label, 0), i))
        turn[label] = turn.get(label, 0) + 1
    return [i for _, i in sorted(order)[:SHOWN]]


def _images(data: ImageData, run: Run, numbers: list[int]) -> dict[int, Tensor]:
    """Test images by their number, from as few batches as possible."""
    size = _batch_size(run)
    split, found = data.test(size), {}
    for batch in sorted({i // size for i in numbers}):
        x, _ = next(split.epoch(0, batch))
        found |= {i: x[i % size].clone() for i in numbers if i // size == batch}
    return found


def _confusion(told: Told, data: ImageData) -> dict[str, Any]:
    """Images by true class and answer; the commonest confusions alone where classes are many."""
    counts = told.answers.confusion(data.classes, told.column)
    wrong = counts.clone().fill_diagonal_(0)
    best = wrong.flatten().sort(descending=True, stable=True)
    commonest = [[int(i) // data.classes, int(i) % data.classes, int(n)] for n, i in zip(*best) if n][:20]
    return {
        "images": int(counts.sum()),
        "right": int(counts.diagonal().sum()),
        "whole": told.whole,
        "names": data.class_names(),
        "commonest": commonest,
        "counts": counts.tolist() if data.classes <= FEW_CLASSES else None,
    }


def _example(number: int, image: Tensor, told: Told, data: ImageData) -> dict[str, Any]:
    names = data.class_names()
    label, answer = int(told.answers.labels_N[number]), int(told.answers.best_NTK[number, told.column, 0])
    picture = thumbnail(image, data.mean, data.std)
    return {"number": number, "label": names[label], "answer": names[answer], "png": picture}


def _rasters(
    loaded: LoadedNetwork, run: Run, shown: dict[str, list[int]], images: dict[int, Tensor], told: Told, data: ImageData
) -> list[dict[str, Any]]:
    """Spikes while the first image told right and the first told wrong are shown."""
    network = loaded.network.cpu()
    found = []
    for numbers in shown.values():
        for i in numbers[:1]:
            seed_torch(run.settings["seed"], i // _batch_size(run))
            layers = raster(network, images[i], run.steps - latency_of(network))  # type: ignore[arg-type]
            found.append(_example(i, images[i], told, data) | {"steps": run.steps - latency_of(network), "layers": layers})
    return found


@torch.no_grad()
def _thresholds(network: SpikingNetwork) -> dict[str, dict[str, float]]:
    found = {}
    for name, dynamics in network.dynamics().items():
        theta = dynamics.spike_size.float()
        found[name] = {"least": float(theta.min()), "mean": float(theta.mean()), "largest": float(theta.max())}
    return found


def _kept(run: Run, kind: str) -> Path:
    return run.path / ANSWERS / kind / "answers.safetensors"


def _batch_size(run: Run) -> int:
    return run.settings["evaluate"]["batch_size"]


def _cached(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except DamagedFileError:  # it is made again
        return {}
    return found if isinstance(found, dict) else {}


def _hash(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
