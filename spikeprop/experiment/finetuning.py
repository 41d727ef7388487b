"""From the folder of a converted network to the recipe that fine-tunes it; its trained ANN is taken over, not trained again."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spikeprop.errors import RunError
from spikeprop.experiment.run_record import RunRecord
from spikeprop.recipe import Recipe, check, check_component
from spikeprop.recipe.text import override
from spikeprop.snn import Neuron
from spikeprop.snn.signed import GradedIF

NEURON = {"use": "IF", "v_init": 0.5, "surrogate": {"use": "STDB", "alpha": 0.3, "beta": 0.01}}
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
    folder: Path, overrides: Iterable[str] = (), *, timesteps: int | None, epochs: int | None, lr: float | None
) -> tuple[Recipe, list[tuple[str, str]]]:
    """The checked recipe, and what was chosen, as rows of label and text.

    Args:
        folder: of a run of the hybrid conversion that has converted its ANN.
        overrides: "path.to.key=value" on the recipe.
        timesteps, epochs, lr: of the fine-tuning; None for the folder's own, or the defaults.

    Raises:
        RunError: no such folder, one of another experiment, or an override of the ANN or its training.
    """
    run = RunRecord.read(folder)
    if not {"ann", "convert"} <= run.stages.keys() or not (folder / "ann.safetensors").is_file():
        raise RunError(f"{folder} has no converted network; give the folder of a finished `spikeprop convert` or `run`")
    tree: dict[str, Any] = copy.deepcopy(run.settings)
    recorded = tree["finetune"]
    steps = timesteps or (recorded["timesteps"] if recorded["epochs"] else min(tree["evaluate"]["timesteps"]))
    given = {key: value for key, value in (("epochs", epochs), ("lr", lr)) if value is not None}
    tree["finetune"] = {**(recorded if recorded["epochs"] else DEFAULTS), "timesteps": steps, **given}
    tree["evaluate"]["timesteps"] = sorted({*tree["evaluate"]["timesteps"], steps})
    rows = (
        [("from", f"{folder}, ANN {run.stages['evaluate']['result']['ann']['accuracy']:.2f} %")]
        if "evaluate" in run.stages
        else []
    )
    rows += _with_gradient(tree, steps)
    for text in overrides:
        if re.match(r"(ann|train)\b", text):
            raise RunError(f"{text}: the trained ANN of {folder} is taken over as it is; for another one run the recipe again")
        override(tree, text)
    recipe = Recipe(f"{run.recipe}-finetuned", check(tree))
    return recipe, rows + _chosen(recipe.experiment.finetune)


def _with_gradient(tree: dict[str, Any], steps: int) -> list[tuple[str, str]]:
    """Convert with neurons that pass a gradient, where the folder's do not."""
    neuron = check_component(Neuron, tree["convert"]["neuron"], "convert.neuron")
    if not isinstance(neuron.build(), GradedIF):
        return [("neuron", f"{neuron.use}, as converted")]
    tree["convert"] = {
        **{key: value for key, value in tree["convert"].items() if key not in ("calibrator", "binary")},
        "neuron": NEURON,
        "timesteps": steps,
    }
    return [("neuron", f"IF in place of {neuron.use}, which passes no gradient; calibrated for T = {steps}")]


def _chosen(settings: Any) -> list[tuple[str, str]]:
    rule, optimizer = settings.rule.use, settings.optimizer.use
    epochs = f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}"
    text = f"{rule} at T = {settings.timesteps}, {epochs}, batches of {settings.batch_size}, {optimizer}, lr {settings.lr:g}"
    return [("fine-tuning", text)]
