"""``assess``: a checkpoint put to the test on a data set, with everything that is said of it in one folder.

The folder holds ``report.json``, ``classes.csv`` and ``report.png`` beside the predictions themselves
(``predictions.safetensors``), from which the three are made again by the same command.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikeprop.data import ImageData
from spikeprop.errors import CheckpointError
from spikeprop.evaluate import (
    MAC_JOULES,
    BatchPredictions,
    Journal,
    Predictions,
    Predictor,
    Report,
    accuracy_lines,
    class_table,
    count_macs,
    draw_evaluation,
    evaluate,
    latency_of,
    seconds,
    summarise,
)
from spikeprop.experiment.network_checkpoint import LoadedNetwork, data_component, data_settings, load_network
from spikeprop.experiment.run_folder import describe_machine
from spikeprop.experiment.settings import find_device
from spikeprop.runtime.files import read_json, write_text
from spikeprop.runtime.locks import locked
from spikeprop.runtime.processes import Processes
from spikeprop.snn import SpikingNetwork

NETWORKS = ("ann", "converted", "finetuned")  # of a run folder, the best last


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """How checkpoints are assessed.

    Attributes:
        data: name of the data set; None for the one that the network was trained on.
        root: folder of the data; None for ``$SPIKEPROP_DATA``.
        limit: only so many test images.
        timesteps: numbers of steps; none for the recipe's.
        batch_size: images at once.
        activity_images: about so many images' spikes are counted.
        device: "auto", "cpu", "cuda" or "cuda:1".
        save_every: seconds between two writes.
        trusted: packages that the checkpoint may have imported, for its network and its data.
    """

    data: str | None = None
    root: str | None = None
    limit: int | None = None
    timesteps: Sequence[int] = ()
    batch_size: int = 100
    activity_images: int = 200
    device: str = "auto"
    save_every: float = 5.0
    trusted: tuple[str, ...] = ()


def find_checkpoints(path: Path, networks: Sequence[str] = ()) -> list[Path]:
    """The checkpoint at ``path``, or those of the run folder there: the networks named, or the best there is.

    Raises:
        CheckpointError: no such checkpoint, naming those that are there.
    """
    if not path.is_dir():
        if networks:
            raise CheckpointError(f"{path} is no run folder, so there is nothing to choose; leave --network out")
        return [path]
    present = [name for name in NETWORKS if (path / f"{name}.safetensors").is_file()]
    absent = [name for name in networks if name not in present]
    if absent or not present:
        found = f"it has {', '.join(present)}" if present else "it has none of ann, converted and finetuned.safetensors"
        raise CheckpointError(f"{path} has no {absent[0] if absent else 'checkpoint'}.safetensors; {found}")
    chosen = [name for name in NETWORKS if name in networks] or present[-1:]
    return [path / f"{name}.safetensors" for name in chosen]


def assess(
    checkpoint: Path,
    how: Assessment,
    *,
    out: Path | None = None,
    restart: bool = False,
    processes: Processes,
) -> tuple[Report, Path]:
    """Assess a checkpoint, or go on where that was stopped; the report, and its folder.

    Args:
        checkpoint: written by spikeprop.
        how: settings.
        out: folder; default ``eval-DATA/NETWORK`` beside the checkpoint.
        restart: throw away what the folder holds.
        processes: that share the work; rank 0 writes the report.

    Raises:
        BusyError: another evaluation, or a run, is at work in the folder.
    """
    loaded = load_network(checkpoint, how.trusted)
    data = _data(loaded, how)
    split = data.test(how.batch_size)
    predictor = _predictor(loaded, how, data)
    device = processes.device(find_device(how.device))
    settings = {
        "checkpoint": _hash(checkpoint),
        "data": {**_described(data), "fingerprint": split.fingerprint()},
        **asdict(predictor),
        "batch_size": how.batch_size,
        "activity_images": how.activity_images,
        "device": device.type,
    }
    folder = out or checkpoint.parent / f"eval-{type(data).__name__}" / checkpoint.stem
    journal = Journal(folder, settings)
    with locked(folder, processes):
        processes.on_rank_zero(lambda: _open(journal, checkpoint.name, restart))
        network = loaded.network.to(device)
        batches = evaluate(
            network,
            split,
            predictor,
            journal=journal,
            processes=processes,
            activity_images=how.activity_images,
            label=f"{checkpoint.stem} on {type(data).__name__}",
            save_every=how.save_every,
        )
        return _report(network, data, predictor, batches, journal, processes), folder


def _report(
    network: nn.Module,
    data: ImageData,
    predictor: Predictor,
    batches: list[BatchPredictions],
    journal: Journal,
    processes: Processes,
) -> Report:
    """What is said of the predictions; written by rank 0, which has them all."""
    if processes.rank:
        return Report(name="", values={})
    about = journal.about()
    spent = seconds(batches)
    values = {
        "network": Path(about["checkpoint"]).stem,
        "timesteps": list(predictor.timesteps),
        "extra_steps": predictor.extra_steps,
        **summarise(network, predictor, batches),
        **({} if predictor.timesteps else _ann_cost(network, data)),
        "seconds": round(spent, 2),
        "images_per_second": round(sum(len(b.labels) for b in batches) / max(spent, 1e-9), 2),
        "settings": journal.settings,
        "provenance": about,
    }
    predictions, names = Predictions.of(batches), data.class_names()
    by_class = _by_class(predictions, predictor, len(names))
    values["classes"] = {
        "names": names,
        "at": by_class["column"],
        "top1": [None if a != a else a for a in by_class["top1"].tolist()],
    }
    report = Report(name=str(journal.path), values=values, rows=accuracy_lines(values))
    write_text(journal.path / "classes.csv", class_table(predictor, predictions, names))
    report.save(journal.path / "report.json")
    draw_evaluation(values, journal.path / "report.png", names=names, by_class=by_class, ann=_ann_beside(journal, data))
    return report


def _by_class(predictions: Predictions, predictor: Predictor, classes: int) -> dict[str, Any]:
    """Confusions and accuracy by class at the largest number of steps."""
    top1 = 100 * predictions.right(classes)[:, -1] / predictions.images(classes)
    available = not predictor.timesteps or predictor.main_steps[-1] >= 1
    confusion = predictions.confusion(classes, -1) if available else torch.zeros(classes, classes)
    return {"column": f"T = {predictor.timesteps[-1]}" if predictor.timesteps else "ANN", "top1": top1, "confusion": confusion}


def _ann_cost(ann: nn.Module, data: ImageData) -> dict[str, Any]:
    macs = count_macs(ann, data.input_shape)
    return {"macs": macs, "energy_joules": macs * MAC_JOULES}


def _ann_beside(journal: Journal, data: ImageData) -> dict[str, Any] | None:
    """The report of the ANN on the same images, where it has been assessed."""
    file = journal.path.parent / "ann" / "report.json"
    if journal.path.name == "ann" or not file.exists():
        return None
    report = read_json(file)
    same = report["settings"]["data"]["fingerprint"] == journal.settings["data"]["fingerprint"]
    return report if same and report["network"] == "ann" else None


def _open(journal: Journal, checkpoint: str, restart: bool) -> None:
    """Begin, or go on, with a warning where another version of the code began: it may have predicted otherwise."""
    about = {"checkpoint": checkpoint, **describe_machine()}
    journal.open(about, restart=restart)
    begun, commit = journal.about()["commit"], about["commit"]
    if begun != commit:
        warnings.warn(f"{journal.path} was begun at commit {begun}, and this is {commit}; --restart begins anew", stacklevel=3)


def _predictor(loaded: LoadedNetwork, how: Assessment, data: ImageData) -> Predictor:
    if not isinstance(loaded.network, SpikingNetwork):
        return Predictor(classes=data.classes)
    extra = latency_of(loaded.network)
    return Predictor(
        timesteps=tuple(sorted(set(how.timesteps) or {loaded.description["timesteps"] + extra})),
        extra_steps=extra,
        classes=data.classes,
        seed=loaded.description["seed"],
    )


def _data(loaded: LoadedNetwork, how: Assessment) -> ImageData:
    """The data set, with the normalisation and the size of images that the network was trained with."""
    described = data_settings(loaded.description["data"])
    wanted = data_component(described, how.trusted, named=how.data, test_limit=how.limit, root=how.root)
    if "size" in wanted.parameters():
        wanted = wanted.replace(size=loaded.description["input_shape"][-1])
    return wanted.build()


def _described(data: ImageData) -> dict[str, Any]:
    """What the data are, wherever they lie."""
    return {"use": type(data).__name__, "mean": data.mean, "std": data.std, "limit": data.test_limit}


def _hash(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
