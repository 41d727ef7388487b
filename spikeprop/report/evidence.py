"""What a report page shows and report.json does not contain: confusions, example images, spike rasters, thresholds.

It is computed from the run's checkpoint, its data and the predictions that its evaluation saved; if a run saved none, the first
test images are predicted again. The run folder keeps it as ``page.json``, as long as checkpoint and request are the same. What
cannot be computed is listed as missing with the reason.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.data import LabelledData
from spikeprop.errors import DamagedFileError, SpikepropError
from spikeprop.evaluate import Journal, Predictions, Predictor, evaluate
from spikeprop.evaluate.journal import recorded
from spikeprop.experiment.network_checkpoint import LoadedNetwork, data_component, load_network
from spikeprop.experiment.run_record import RunRecord
from spikeprop.experiment.stages import PREDICTIONS
from spikeprop.experiment.zoo import results_folder
from spikeprop.recipe import Component
from spikeprop.report.raster import potentials, raster, scores
from spikeprop.report.thumbnails import strip, thumbnail
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.devices import find_device
from spikeprop.runtime.files import file_hash, read_json, write_json
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

FORMAT = 5
SHOWN = 8  # images predicted correctly, and as many predicted wrongly
FEW_CLASSES = 100  # with more, only the commonest confusions are listed


@dataclass(frozen=True)
class RunPredictions:
    """A network's predictions, the column of the number of steps that is shown, and whether they cover the complete test set."""

    predictions: Predictions
    column: int
    complete: bool


def evidence(run: RunRecord, samples: int = 500, trusted: Collection[str] = ()) -> dict[str, Any]:
    """The evidence of a run; read from its folder if it was computed before.

    Args:
        run: finished; plugins' experiments have no evidence.
        samples: test images to predict if the run saved no predictions; 0 for none.
        trusted: packages that the folder's files may have imported.

    Returns:
        JSON values: network, timesteps, its architecture and notes, thresholds by layer, confusion, examples and
        rasters, as far as available, and "missing": what is not available, with the reason.
    """
    if not run.pipeline:
        return {"missing": {}}
    kind = list(run.networks)[-1]
    file = run.path / f"{kind}.safetensors"
    if not file.is_file():
        why = f"the folder holds no {file.name}, from which it is computed"
        return {"missing": dict.fromkeys(("thresholds", "confusion", "examples", "rasters"), why)}
    asked = {"format": FORMAT, "checkpoint": file_hash(file), "samples": samples, "predictions": _kept(run, kind).is_file()}
    cache = results_folder(file) / "page.json"
    if cache.exists() and (found := _cached(cache)).get("asked") == asked:
        return found
    found = {"asked": asked, **_made(run, kind, samples, trusted)}
    if not found.pop("temporary"):  # a missing file may exist at the next call
        with suppress(OSError):  # a run that may only be read has no cache, and the same page
            write_json(cache, found)
    return found


def _made(run: RunRecord, kind: str, samples: int, trusted: Collection[str]) -> dict[str, Any]:
    try:
        loaded = load_network(run.path / f"{kind}.safetensors", trusted)
    except SpikepropError as error:  # a damaged checkpoint, or a package that is not installed here
        return {"temporary": True, "missing": dict.fromkeys(("thresholds", "confusion", "examples", "rasters"), str(error))}
    network = loaded.network
    assert isinstance(network, SpikingNetwork)
    found: dict[str, Any] = {"network": kind, "timesteps": run.steps, "missing": {}, **_network(network)}
    try:
        source = data_component(run.settings["data"], loaded.trusted)
        data = source.build()
        predicted = _run_predictions(run, kind, loaded, source, samples)
        if predicted is None:
            why = "the run saved no predictions, and with --samples 0 none are computed"
            return found | {"temporary": False, "missing": dict.fromkeys(("confusion", "examples", "rasters"), why)}
        if predicted.predictions.dense:
            missing = dict.fromkeys(("examples", "rasters"), "each pixel has a prediction of its own, an image has none")
            return found | {"confusion": _confusion(predicted, data), "temporary": False, "missing": missing}
        shown = _chosen(predicted)
        images = _images(data, run, [i for numbers in shown.values() for i in numbers])
    except (SpikepropError, OSError) as error:
        missing = dict.fromkeys(("confusion", "examples", "rasters"), str(error))
        return found | {"temporary": True, "missing": missing}
    found["confusion"] = _confusion(predicted, data)
    found["examples"] = {name: [_example(i, images[i], predicted, data) for i in numbers] for name, numbers in shown.items()}
    found["rasters"] = _rasters(loaded, run, shown, images, predicted, data)
    return found | {"temporary": False}


def _run_predictions(
    run: RunRecord, kind: str, loaded: LoadedNetwork, source: Component[LabelledData], samples: int
) -> RunPredictions | None:
    """The predictions that the run saved, or those of the first images, computed now."""
    kept = _kept(run, kind)
    if kept.is_file():
        settings = recorded(kept.parent)["settings"]
        steps = settings.get("timesteps")
        if not isinstance(steps, list) or run.steps not in steps:
            raise DamagedFileError(f"{kept.parent / 'evaluation.json'} is damaged: it has no predictions at T = {run.steps}")
        batches = list(Journal(kept.parent, settings).read().values())
        if batches:  # empty if the file is damaged; then it was renamed
            return RunPredictions(Predictions.of(batches), steps.index(run.steps), True)
    if samples == 0:
        return None
    data = source.replace(test_limit=min(samples, source.build().test_limit or samples)).build()
    split = data.test(_batch_size(run))
    network = loaded.network.to(find_device("auto"))
    predictor = Predictor(timesteps=(run.steps,), classes=data.classes, seed=run.settings["seed"])
    batches = evaluate(network, split, predictor, activity_images=0, label=f"predict {run.name}")
    predictions = Predictions.of(batches)
    images = run.stages.get("data", {}).get("result", {}).get("test_images")
    return RunPredictions(predictions, 0, predictions.image_count == images)


def _chosen(predicted: RunPredictions) -> dict[str, list[int]]:
    """The first images predicted correctly and wrongly, from as many classes as possible."""
    classes_N = predicted.predictions.best_NTK[:, predicted.column, 0].long()
    correct_N = classes_N == predicted.predictions.labels_N
    return {name: _varied(rows, predicted.predictions.labels_N) for name, rows in (("correct", correct_N), ("wrong", ~correct_N))}


def _varied(rows: Tensor, labels_N: Tensor) -> list[int]:
    turn: dict[int, int] = {}
    order = []
    for i in rows.nonzero().flatten().tolist():
        label = int(labels_N[i])
        order.append((turn.get(label, 0), i))
        turn[label] = turn.get(label, 0) + 1
    return [i for _, i in sorted(order)[:SHOWN]]


def _images(data: LabelledData, run: RunRecord, numbers: list[int]) -> dict[int, Tensor]:
    """Test images by number; only the batches that contain them are read."""
    size = _batch_size(run)
    split, found = data.test(size), {}
    for batch in sorted({i // size for i in numbers}):
        x, _ = next(split.epoch(0, batch))
        found |= {i: _one(x, i % size) for i in numbers if i // size == batch}
    return found


def _one(x: Any, row: int) -> Tensor:
    """One example of a batch; of sequences of unequal length without its padding."""
    return x.values[row, : int(x.lengths[row])].clone() if isinstance(x, Sequences) else x[row].clone()


def _confusion(predicted: RunPredictions, data: LabelledData) -> dict[str, Any]:
    """Images by true class and predicted class; for many classes only the commonest confusions."""
    counts = predicted.predictions.confusion(data.classes, predicted.column)
    wrong = counts.clone().fill_diagonal_(0)
    best = wrong.flatten().sort(descending=True, stable=True)
    commonest = [[int(i) // data.classes, int(i) % data.classes, int(n)] for n, i in zip(*best) if n][:20]
    return {
        "images": int(counts.sum()),
        "correct": int(counts.diagonal().sum()),
        "complete": predicted.complete,
        "names": data.class_names(),
        "commonest": commonest,
        "counts": counts.tolist() if data.classes <= FEW_CLASSES else None,
    }


def _example(number: int, image: Tensor, predicted: RunPredictions, data: LabelledData) -> dict[str, Any]:
    names = data.class_names()
    label = int(predicted.predictions.labels_N[number])
    prediction = int(predicted.predictions.best_NTK[number, predicted.column, 0])
    found = {"number": number, "label": names[label], "prediction": names[prediction]}
    if not data.in_time:
        return found | {"png": thumbnail(image, getattr(data, "mean", 0.0), getattr(data, "std", 1.0))}
    picture, frames = strip(image)
    return found | {"png": picture, "frames": frames, "steps": len(image)}


def _rasters(
    loaded: LoadedNetwork,
    run: RunRecord,
    chosen: dict[str, list[int]],
    images: dict[int, Tensor],
    predicted: RunPredictions,
    data: LabelledData,
) -> list[dict[str, Any]]:
    """Spikes for the first image predicted correctly and for the first predicted wrongly."""
    network, names = loaded.network.cpu(), data.class_names()
    assert isinstance(network, SpikingNetwork)
    found = []
    for numbers in chosen.values():
        for i in numbers[:1]:
            seed_torch(run.settings["seed"], i // _batch_size(run))
            image, steps = images[i], None if data.in_time else run.steps
            shown = {"steps": steps or len(image), "layers": raster(network, image, steps)}
            label = int(predicted.predictions.labels_N[i])
            named = {names[k]: values for k, values in scores(network, image, steps, label).items()}
            shown |= {"scores": named, "potentials": potentials(network, image, steps)}
            found.append(_example(i, image, predicted, data) | shown)
    return found


@torch.no_grad()
def _network(network: SpikingNetwork) -> dict[str, Any]:
    """Its layers as its summary describes them, their thresholds, and what its conversion noted."""
    keys = ("name", "reads", "synapses", "shape", "parameters", "neuron")
    layers = [{key: getattr(layer, key) for key in keys} for layer in network.summary().layers]
    found = {}
    for name, dynamics in network.dynamics().items():
        theta = dynamics.spike_size.float()
        found[name] = {"least": float(theta.min()), "mean": float(theta.mean()), "largest": float(theta.max())}
    return {"architecture": layers, "notes": list(network.notes), "thresholds": found}


def _kept(run: RunRecord, kind: str) -> Path:
    return run.path / PREDICTIONS / kind / "predictions.safetensors"


def _batch_size(run: RunRecord) -> int:
    return run.settings["evaluate"]["batch_size"]


def _cached(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (DamagedFileError, OSError):  # it is computed again
        return {}
    return found if isinstance(found, dict) else {}
