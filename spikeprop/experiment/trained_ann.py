"""The trained ANN of another run folder, for a new one: several conversions of one network need one training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from spikeprop.errors import RunError
from spikeprop.experiment.run_record import RunRecord
from spikeprop.experiment.zoo import CARD, PREFIX, shown
from spikeprop.recipe import Recipe
from spikeprop.runtime.files import file_hash, write_json, write_text
from spikeprop.runtime.zoo_index import entries

DECIDE = ("use", "seed", "precision", "data", "ann", "train")  # what of a recipe decides which ANN its run trains
FILES = ("ann.safetensors", "ann.json")
TUNED, START = "finetuned", "start"  # checkpoint of a fine-tuned network, and its name in a run that trains it further
METRICS = "metrics.jsonl"


def read_trained(source: Path) -> RunRecord:
    """The record of a folder that holds a trained ANN.

    Raises:
        RunError: no run folder, or no trained ANN in it; of a network of the zoo with those entries that have one.
    """
    run = RunRecord.read(source)
    if {"data", "ann"} <= run.stages.keys() and (source / FILES[0]).is_file():
        return run
    remedy = "give the folder of a run that has trained it"
    if (source / CARD).is_file():
        others = ", ".join(f"{PREFIX}{name}" for name, entry in entries().items() if entry.network == "ann") or "none"
        remedy = f"an entry holds one network, and this one's is spiking; with an ANN: {others}; `spikeprop ls zoo` shows all"
    elif (source / "trained.safetensors").is_file():
        remedy = "its spiking network was trained from scratch; to train one for longer, run its recipe with more train.epochs"
    raise RunError(f"{shown(source)} has no trained ANN: {remedy}")


def find_start(made: Path, recipe: Recipe, source: Path | None) -> Path | None:
    """File of the fine-tuned network that the recipe trains further, in its folder or in ``source``; None where none is needed.

    Raises:
        RunError: it is in neither, and fine-tuning is not finished.
    """
    start = recipe.describe().get("finetune", {}).get("start")
    if start is None:
        return None
    at_hand = [made / f"{START}.safetensors", *(source / f"{name}.safetensors" for name in (TUNED, START) if source)]
    for file in at_hand:
        if file.is_file() and file_hash(file) == start:
            return file
    if (made / "run.json").exists() and "finetune" in RunRecord.read(made).stages:
        return None
    raise RunError(
        f"the recipe trains a fine-tuned network further (finetune.start {start[:12]}...), which is not in {made}: run "
        "`spikeprop finetune` with the folder of the run that fine-tuned it, or set finetune.start=null"
    )


def take_over(source: Path, made: Path, start: Path | None = None) -> None:
    """Copy the ANN, its training curve and the results of its stages to a new run folder; a run that goes on has them already.

    Args:
        source: run folder.
        made: the new one.
        start: file of a fine-tuned network that is trained further; it is copied to the folder of a run that has lost it, too.

    Raises:
        RunError: the folder holds a run with another ANN.
    """
    goes_on = (made / "run.json").exists()
    if goes_on and not _same_file(source / FILES[0], made / FILES[0]):
        raise RunError(f"{made} holds a run with an ANN of its own, not that of {source}: give another --out")
    made.mkdir(parents=True, exist_ok=True)
    copies = {} if goes_on else {source / name: made / name for name in FILES}
    if start is not None and start.parent != made:
        copies |= {start.with_suffix(end): made / f"{START}{end}" for end in (".safetensors", ".json")}
    for file, own in copies.items():
        if file.is_file():
            shutil.copyfile(file, own)
    if not goes_on:
        write_history(RunRecord.read(source), made)


def write_history(run: RunRecord, folder: Path) -> None:
    """Write the ANN's training curve and the results of its stages, without which nobody can take it over."""
    curve = [json.dumps(line) for line in run.metrics if line.get("stage") == "ann"]
    write_text(folder / METRICS, "".join(f"{line}\n" for line in curve))
    write_json(folder / "stages.json", {name: run.stages[name] for name in ("data", "ann")})


def _same_file(one: Path, other: Path) -> bool:
    return other.is_file() and file_hash(one) == file_hash(other)


def _deciding(value: Any) -> Any:
    """A setting without the folder that data are read from, which is another one on each machine."""
    return {key: held for key, held in value.items() if key != "root"} if isinstance(value, dict) else value


def check_same_training(source: Path, recipe: Recipe) -> None:
    """Raises RunError unless the run in ``source`` has trained just the ANN that this recipe would train."""
    run, own = read_trained(source), recipe.describe()
    other = [key for key in DECIDE if _deciding(run.settings.get(key)) != _deciding(own.get(key))]
    if other:
        raise RunError(
            f"{source} has trained another ANN than {recipe.name} would: they differ in {', '.join(other)}; make these the same, "
            f"or run {recipe.name} without another run's ANN"
        )
