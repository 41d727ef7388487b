"""From a folder with a trained ANN (a run's, or a network of the zoo) to the recipe that converts it otherwise, or fine-tunes it.

The trained ANN is taken over, not trained again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spikeprop.errors import CheckpointError, RunError
from spikeprop.experiment.run_record import RunRecord
from spikeprop.experiment.trained_ann import TUNED, read_trained
from spikeprop.experiment.zoo import CARD, shown
from spikeprop.learn import load_checkpoint
from spikeprop.recipe import Recipe, check, check_component
from spikeprop.recipe.text import override
from spikeprop.runtime.files import file_hash
from spikeprop.snn import Neuron
from spikeprop.snn.signed import GradedIF

DEFAULTS = {  # those of the recipes of small networks
    "rule": "BPTT",
    "optimizer": {"use": "Adam", "amsgrad": True},
    "schedule": {"use": "Cosine", "warmup": 0.05},
    "epochs": 5,
    "batch_size": 32,
    "lr": 1e-4,
    "weight_decay": 0.0,
}


def finetuning_recipe(
    folder: Path,
    overrides: Iterable[str] = (),
    *,
    timesteps: int | None,
    epochs: int | None,
    lr: float | None,
    network: str | None = None,
) -> tuple[Recipe, list[tuple[str, str]]]:
    """The checked recipe, and what was chosen, as rows of label and text.

    Args:
        folder: of a run of the hybrid conversion that has converted its ANN.
        overrides: "path.to.key=value" on the recipe.
        timesteps, epochs, lr: of the fine-tuning; None for the folder's own, or the defaults.
        network: "finetuned" to train the folder's fine-tuned network further, "converted" to start from the conversion; None
            for its last. The first, with fewer and fewer steps, is IIR-SNN of Chowdhury et al. 2021 (arXiv:2110.05929).

    Raises:
        RunError: no such folder, one without a trained ANN or without such a network, one whose fine-tuning has not finished, an
            override of what is taken over, or no epochs.
    """
    run = read_trained(folder)
    start = _find_tuned(run, network)
    further = start is not None
    tree: dict[str, Any] = copy.deepcopy(run.settings)
    recorded = tree["finetune"]
    steps = timesteps or (recorded["timesteps"] if recorded["epochs"] else min(tree["evaluate"]["timesteps"]))
    given = {key: value for key, value in (("epochs", epochs), ("lr", lr)) if value is not None}
    tree["finetune"] = {**(recorded if recorded["epochs"] else DEFAULTS), "timesteps": steps, "start": start, **given}
    overrides = list(overrides)
    of_training = [text for text in overrides if re.match(r"finetune\b", text)]
    _override(tree, of_training, folder, further)  # first, since the number of steps may be among them
    if not isinstance(tree["finetune"], dict) or tree["finetune"].get("start") != start:
        raise RunError(
            "finetune.start: --network says which network is trained (converted, finetuned); set other keys one by one"
        )
    if isinstance(steps := tree["finetune"].get("timesteps"), int):
        tree["evaluate"]["timesteps"] = sorted({*tree["evaluate"]["timesteps"], steps})
        if not further:
            _calibrate_for(tree, steps)
    _override(tree, (text for text in overrides if text not in of_training), folder, further)
    ending = "" if further and run.recipe_name.endswith("-finetuned") else "-finetuned"
    recipe = Recipe(f"{run.recipe_name}{ending}", check(tree))
    if not recipe.experiment.finetune.epochs:
        raise RunError("finetune.epochs=0 trains nothing; to convert without fine-tuning, use `spikeprop convert`")
    network_row = ("network", f"fine-tuned at T = {recorded['timesteps']}, and trained further")
    row = network_row if further else _neuron_row(run.settings["convert"], recipe.experiment.convert)
    return recipe, [*_origin(run), row, *_chosen(recipe.experiment.finetune)]


def conversion_recipe(
    folder: Path,
    overrides: Iterable[str] = (),
    *,
    timesteps: Sequence[int],
    samples: int,
    backend: str,
    binary: bool = False,
    root: str | None = None,
) -> tuple[Recipe, list[tuple[str, str]]]:
    """The checked recipe that converts the folder's ANN for other numbers of steps, and what was chosen, as rows.

    Args:
        folder: with a trained ANN.
        overrides: "path.to.key=value" on the recipe.
        timesteps: numbers of steps; neuron and calibrator are chosen for the largest.
        samples: test images to simulate.
        backend: "lava" or "reference".
        binary: keep to spikes of one bit, with a sign.
        root: folder of the data; None for the folder's own.

    Raises:
        RunError: no such folder, one without a trained ANN, or an override of the ANN or its training.
    """
    run = read_trained(folder)
    tree: dict[str, Any] = copy.deepcopy(run.settings)
    del tree["finetune"]
    kept = {key: tree["convert"][key] for key in ("encoder", "images")}
    tree["convert"] = {**kept, "timesteps": max(timesteps), "binary": binary}
    tree["evaluate"] |= {"timesteps": sorted(set(timesteps)), "finetuned_up_to": None}
    tree["simulate"] |= {"samples": samples, "backend": backend}
    if root is not None:
        tree["data"]["root"] = root
    _override(tree, overrides, folder)
    recipe = Recipe(f"{run.recipe_name}-converted", check(tree))
    return recipe, _origin(run) + conversion_rows(recipe.experiment)


def conversion_rows(experiment: Any) -> list[tuple[str, str]]:
    """Rows on neuron, calibrator, steps and simulator."""
    convert, simulate = experiment.convert, experiment.simulate
    steps = convert.describe_choice()["calibrated_for"] or convert.timesteps
    others = [t for t in experiment.evaluate.timesteps if t != steps]
    rows = [("time steps", f"{', '.join(map(str, experiment.evaluate.timesteps))}; calibrated for T = {steps}"
             + (f" (for the best network at T = {others[0]}, give --timesteps {others[0]})" if others else ""))]  # fmt: skip
    rows.append(("converted by", f"{convert.neuron.use}, {convert.calibrator.use}"))
    where = {"lava": "Lava", "reference": "the reference simulator, which equals Lava's processes"}[simulate.backend]
    return [*rows, ("simulated on", f"{where}, {simulate.samples} test images" if simulate.samples else "nothing")]


def _find_tuned(run: RunRecord, network: str | None) -> str | None:
    """SHA-256 of the fine-tuned network that is trained further; None where the converted one is trained."""
    if network == "converted":
        return None
    anew = "to start from the conversion, give --network converted"
    if "finetune" in run.stages:
        file = run.path / f"{TUNED}.safetensors"
        try:
            load_checkpoint(file)
        except CheckpointError as error:
            raise RunError(f"{error}; {anew}") from error
        return file_hash(file)
    if run.settings["finetune"]["epochs"] and not (run.path / CARD).is_file():  # of the zoo's runs, one network is left
        raise RunError(f"the fine-tuning of {shown(run.path)} is not finished: the command that began it continues; {anew}")
    if network == TUNED:
        raise RunError(f"{shown(run.path)} has no fine-tuned network; leave --network out")
    return None


def _origin(run: RunRecord) -> list[tuple[str, str]]:
    found = (run.report or run.stages.get("evaluate", {}).get("result", {})).get("ann", {})
    return [("from", f"{shown(run.path)}, ANN {found['accuracy']:.2f} %")] if "accuracy" in found else []


def _override(tree: dict[str, Any], overrides: Iterable[str], folder: Path, further: bool = False) -> None:
    """Set values of the recipe, but none of what is taken over: the ANN, and the network that is trained ``further``."""
    ann = f"the trained ANN of {shown(folder)} is taken over as it is; for another one run the recipe again"
    kept = {"ann": ann, "train": ann}
    if further:
        again = "to convert anew, give --network converted"
        kept["convert"] = f"the fine-tuned network of {shown(folder)} is trained further as it is; {again}"
    for text in overrides:
        section = re.split(r"[.=]", text, maxsplit=1)[0]
        if section in kept:
            raise RunError(f"{text}: {kept[section]}")
        override(tree, text)


def _calibrate_for(tree: dict[str, Any], steps: int) -> None:
    """Keep the converted network's neurons; graded ones that were calibrated for other steps are so for those of training."""
    convert = tree["convert"]
    neuron = check_component(Neuron, convert["neuron"], "convert.neuron")
    if isinstance(neuron.build(), GradedIF) and convert["calibrator"].get("timesteps") not in (None, steps):
        tree["convert"] = {key: convert[key] for key in ("neuron", "encoder", "images")} | {"timesteps": steps}


def _neuron_row(recorded: dict[str, Any], made: Any) -> tuple[str, str]:
    """Of the network that is trained; ``made``: its conversion's settings, after the overrides."""
    was, before = check_component(Neuron, recorded["neuron"], "convert.neuron"), recorded["calibrator"].get("timesteps")
    same, steps = made.neuron.describe() == was.describe(), made.calibrator.describe().get("timesteps")
    found = f"{made.neuron.use}, as converted" if same else f"{made.neuron.use}, as given, in place of the converted {was.use}"
    if steps not in (None, before):
        found += f"; calibrated for T = {steps}" + (f", and not for {before}" if before else "")
    return ("neuron", found)


def _chosen(settings: Any) -> list[tuple[str, str]]:
    rule, optimizer = settings.rule.use, settings.optimizer.use
    epochs = f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}"
    text = f"{rule} at T = {settings.timesteps}, {epochs}, batches of {settings.batch_size}, {optimizer}, lr {settings.lr:g}"
    return [("fine-tuning", text)]
