"""Evaluation of a network in a folder, where a stopped evaluation continues; and of a checkpoint, as ``spikeprop eval`` does it.

``evaluate_network`` is what a run's evaluate stage and ``eval`` have in common. ``evaluate_checkpoint`` writes ``report.json``,
``classes.csv`` and ``report.png`` beside ``predictions.safetensors``, from which the same command makes the three again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from spikeprop.data import LabelledData
from spikeprop.errors import DamagedFileError, EvaluationError
from spikeprop.evaluate import (
    MAC_JOULES,
    BatchPredictions,
    EarlyExit,
    Journal,
    Predictions,
    Predictor,
    Report,
    class_table,
    count_macs,
    device_of,
    draw_evaluation,
    evaluate,
    evaluation_rows,
    summarise,
    total_seconds,
)
from spikeprop.evaluate.journal import recorded
from spikeprop.evaluate.loop import SAVE_EVERY
from spikeprop.experiment.network_checkpoint import LoadedNetwork, data_component, load_network, reading
from spikeprop.experiment.run_folder import describe_machine
from spikeprop.experiment.zoo import results_folder
from spikeprop.runtime.batches import Split
from spikeprop.runtime.devices import find_device
from spikeprop.runtime.files import file_hash, read_json, write_text
from spikeprop.runtime.locks import locked
from spikeprop.runtime.processes import Processes
from spikeprop.snn import SpikingNetwork

MOST_FOLDERS = 1000  # of one network's evaluations


@dataclass(frozen=True)
class NetworkEvaluation:
    """A network's predictions for all batches and, on rank 0, their summary (``spikeprop.evaluate.summarise``)."""

    batches: list[BatchPredictions]
    summary: dict[str, Any]


def evaluation_settings(network: nn.Module, split: Split, predictor: Predictor, activity_images: int) -> dict[str, Any]:
    """What a journal records of an evaluation: predictions of other settings are not mixed with these."""
    device = device_of(network).type
    return {**asdict(predictor), "batch_size": split.batch_size, "activity_images": activity_images, "device": device}


def evaluate_network(
    network: nn.Module,
    split: Split,
    predictor: Predictor,
    journal: Journal,
    begin: Callable[[], None],
    *,
    processes: Processes,
    activity_images: int,
    label: str,
    save_every: float = SAVE_EVERY,
) -> NetworkEvaluation:
    """Predict every batch of a split that the journal does not hold yet, and summarise all.

    Args:
        network: spiking network or ANN, on its device.
        split: test images.
        predictor: which predictions.
        journal: with ``evaluation_settings``; its folder is locked by the caller.
        begin: opens the journal; called on rank 0.
        processes: each predicts its own batches.
        activity_images: about so many images' spikes are counted.
        label: text of the progress bar.
        save_every: seconds between two writes.
    """
    processes.on_rank_zero(begin)
    batches = evaluate(
        network,
        split,
        predictor,
        journal=journal,
        processes=processes,
        activity_images=activity_images,
        label=label,
        save_every=save_every,
    )
    return NetworkEvaluation(batches, {} if processes.rank else summarise(network, predictor, batches))


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How checkpoints are evaluated.

    Attributes:
        data: name of the data set; None for the one that the network was trained on.
        root: folder of the data; None for ``$SPIKEPROP_DATA``.
        limit: only so many test images.
        timesteps: numbers of steps; none for those of its run's recipe, or without a run folder for that of its training.
        batch_size: images at once.
        activity_images: about so many images' spikes are counted.
        device: "auto", "cpu", "cuda" or "cuda:1".
        save_every: seconds between two writes.
        trusted: packages that the checkpoint may have imported, for its network and its data.
        early_exit: when images leave a second simulation; None for none.
    """

    data: str | None = None
    root: str | None = None
    limit: int | None = None
    timesteps: Sequence[int] = ()
    batch_size: int = 100
    activity_images: int = 200
    device: str = "auto"
    save_every: float = SAVE_EVERY
    trusted: tuple[str, ...] = ()
    early_exit: EarlyExit | None = None


def evaluate_checkpoint(
    checkpoint: Path,
    options: EvaluationOptions,
    *,
    out: Path | None = None,
    restart: bool = False,
    processes: Processes,
) -> tuple[Report, Path]:
    """Evaluate a checkpoint, or continue an evaluation that was stopped; the report, and its folder.

    Args:
        checkpoint: written by spikeprop.
        options: data, numbers of steps and so on.
        out: folder; default ``eval-DATA/NETWORK`` beside the checkpoint, or ``NETWORK-2`` and so on where that holds an
            evaluation of the same network with other options.
        restart: delete what the folder holds.
        processes: that share the work; rank 0 writes the report.

    Raises:
        BusyError: another evaluation, or a run, uses the folder.
    """
    loaded = load_network(checkpoint, options.trusted)
    data = _data(loaded, options)
    split = data.test(options.batch_size)
    network = loaded.network.to(processes.device(find_device(options.device)))
    predictor = _predictor(loaded, options, data, checkpoint)
    settings = {
        "checkpoint": file_hash(checkpoint),
        "data": {**_describe_data(data), "fingerprint": split.fingerprint()},
        **evaluation_settings(network, split, predictor, options.activity_images),
    }
    folder = out or _own_folder(results_folder(checkpoint) / f"eval-{type(data).__name__}" / checkpoint.stem, settings, restart)
    journal = Journal(folder, settings)
    with locked(folder, processes):
        evaluation = evaluate_network(
            network,
            split,
            predictor,
            journal,
            lambda: _begin(journal, checkpoint.name, restart),
            processes=processes,
            activity_images=options.activity_images,
            label=f"{checkpoint.stem} on {type(data).__name__}",
            save_every=options.save_every,
        )
        if processes.rank:
            return Report(name="", values={}), folder
        return _report(loaded, data, predictor, evaluation, journal), folder


def _own_folder(folder: Path, settings: dict[str, Any], restart: bool) -> Path:
    """Of ``folder``, ``folder-2``, ... that which holds this evaluation, else the first free one; or ``folder`` to begin again.

    An evaluation of another network is in the way.
    """
    wanted = Journal(folder, settings).settings
    for number in range(1, MOST_FOLDERS):
        found = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not (found / "evaluation.json").exists():
            return folder if restart else found
        try:
            held = recorded(found)["settings"]
        except DamagedFileError:
            if restart:
                return found
            raise
        if held == wanted or held.get("checkpoint") != wanted["checkpoint"]:
            return found
    return folder


def _report(
    loaded: LoadedNetwork, data: LabelledData, predictor: Predictor, evaluation: NetworkEvaluation, journal: Journal
) -> Report:
    """The report on the predictions, with its files."""
    about, calibrated = journal.about(), loaded.description.get("calibrated_for")
    spent = total_seconds(evaluation.batches)
    predictions, names = Predictions.of(evaluation.batches), data.class_names()
    by_class = _by_class(predictions, predictor, len(names))
    values = {
        "network": Path(about["checkpoint"]).stem,
        "timesteps": list(predictor.timesteps),
        **({"calibrated_for": calibrated} if calibrated is not None else {}),
        **evaluation.summary,
        **({} if predictor.timesteps else _ann_cost(loaded.network, data)),
        "seconds": round(spent, 2),
        "images_per_second": round(evaluation.summary["images"] / max(spent, 1e-9), 2),
        "settings": journal.settings,
        "provenance": about,
        "classes": {
            "names": names,
            "at": by_class["column"],
            "top1": [None if a != a else a for a in by_class["top1"].tolist()],
        },
    }
    report = Report(name=str(journal.path), values=values, rows=evaluation_rows(values))
    write_text(journal.path / "classes.csv", class_table(predictor, predictions, names))
    report.save(journal.path / "report.json")
    ann = _ann_report(journal)
    draw_evaluation(values, journal.path / "report.png", names=names, by_class=by_class, ann=ann)
    return report


def _by_class(predictions: Predictions, predictor: Predictor, classes: int) -> dict[str, Any]:
    """Confusions and accuracy by class at the largest number of steps."""
    return {
        "column": f"T = {predictor.timesteps[-1]}" if predictor.timesteps else "ANN",
        "top1": 100 * predictions.correct(classes)[:, -1] / predictions.images(classes),
        "confusion": predictions.confusion(classes, -1),
    }


def _ann_cost(ann: nn.Module, data: LabelledData) -> dict[str, Any]:
    macs = count_macs(ann, data.input_shape)
    return {"macs": macs, "energy_joules": macs * MAC_JOULES}


def _ann_report(journal: Journal) -> dict[str, Any] | None:
    """The report of the ANN on the same images, where it was evaluated."""
    file = journal.path.parent / "ann" / "report.json"
    if journal.path.name == "ann" or not file.exists():
        return None
    report = read_json(file)
    same = report["settings"]["data"]["fingerprint"] == journal.settings["data"]["fingerprint"]
    return report if same and report["network"] == "ann" else None


def _begin(journal: Journal, checkpoint: str, restart: bool) -> None:
    """Begin, or continue, with a warning where another version of the code began: its predictions may differ."""
    about = {"checkpoint": checkpoint, **describe_machine()}
    journal.open(about, restart=restart)
    begun, commit = journal.about()["commit"], about["commit"]
    if begun != commit:
        warnings.warn(f"{journal.path} was begun at commit {begun}, and this is {commit}; --restart begins again", stacklevel=3)


def _predictor(loaded: LoadedNetwork, options: EvaluationOptions, data: LabelledData, checkpoint: Path) -> Predictor:
    if not isinstance(loaded.network, SpikingNetwork):
        return Predictor(classes=data.classes)
    own = {loaded.timesteps} if loaded.timesteps is not None else set()
    timesteps = {*options.timesteps} or own | _recipes_timesteps(checkpoint, loaded.timesteps or 0)
    if not timesteps:
        raise EvaluationError("the checkpoint does not say its number of steps; pass --timesteps")
    seed = loaded.description.get("seed", 0)
    return Predictor(timesteps=tuple(sorted(timesteps)), classes=data.classes, seed=seed, early_exit=options.early_exit)


def _recipes_timesteps(checkpoint: Path, own: int) -> set[int]:
    """``evaluate.timesteps`` of the run in whose folder a checkpoint lies; of a fine-tuned one those that the run measures."""
    file = checkpoint.parent / "run.json"
    recorded = read_json(file) if file.is_file() else {}
    recipe = recorded.get("recipe") if isinstance(recorded, dict) else None
    settings = recipe.get("evaluate") if isinstance(recipe, dict) else None
    if not isinstance(settings, dict):
        return set()
    given, limit = settings.get("timesteps"), settings.get("finetuned_up_to")
    found = {t for t in given if type(t) is int and t >= 1} if isinstance(given, list) else set()
    if checkpoint.stem == "finetuned" and isinstance(limit, int):
        found = {t for t in found if t <= max(limit, own)}
    return found


def _data(loaded: LoadedNetwork, options: EvaluationOptions) -> LabelledData:
    """The data set, with the normalisation and the size of images that the network was trained with."""
    if not (loaded.data or options.data):
        raise EvaluationError("the checkpoint does not name its data; pass --data")
    wanted = data_component(loaded.data, loaded.trusted, named=options.data, test_limit=options.limit, root=options.root)
    if "size" in wanted.parameters() and "size" not in wanted.arguments:
        height, width = loaded.input_shape[-2:]
        wanted = wanted.replace(size=width if height == width else [height, width])
    return wanted.build()


def _describe_data(data: LabelledData) -> dict[str, Any]:
    """The data, without the folder in which they lie."""
    return {"use": type(data).__name__, **reading(data), "limit": data.test_limit}
