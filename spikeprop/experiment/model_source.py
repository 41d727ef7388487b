"""``find_model``: what a MODEL on the command line means, with a few samples for it.

A recipe's name or file (its ANN with fresh weights, or that converted), a run folder or a checkpoint (what was trained), or
``module:callable`` for a network of one's own, whose callable returns the network, or (network, x, y), or (network, x, y, loss).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.convert import convert
from spikeprop.errors import RecipeError
from spikeprop.experiment.evaluation import find_checkpoints
from spikeprop.experiment.network_checkpoint import data_component, data_settings, load_network
from spikeprop.recipe import load_recipe
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

FRESH_IMAGES = 32  # that a recipe's untrained network is calibrated on


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What is asked for.

    Attributes:
        samples: how many.
        data: name of a data set, in place of the model's own.
        root: its folder.
        timesteps: of a spiking network, in place of its own.
        network: "ann", "converted" or "finetuned" of a run folder; "ann" or "converted" of a recipe.
        trusted: packages that a checkpoint may have imported, for its network and its data.
    """

    samples: int = 2
    data: str | None = None
    root: str | None = None
    timesteps: int | None = None
    network: str | None = None
    trusted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; show at least 1")


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A network with samples.

    Attributes:
        name: for people.
        model, x, y, loss: the network, inputs (B, ...), targets and the loss of outputs and targets.
        timesteps: of a spiking network.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    timesteps: int | None = None


def find_model(source: str, asked: ModelRequest) -> FoundModel:
    """The network that ``source`` names.

    Raises:
        RecipeError: no such recipe, module or callable, or no data are known.
        CheckpointError: the run folder has no such network.
    """
    if ":" in source and not Path(source).exists():
        return _of_callable(source, asked)
    if Path(source).is_dir() or source.endswith(".safetensors"):
        return _of_checkpoint(Path(source), asked)
    return _of_recipe(source, asked)


def _of_callable(source: str, asked: ModelRequest) -> FoundModel:
    where, _, name = source.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        made = _found(source, where, name)()
    finally:
        sys.path.pop(0)
    model, *rest = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{source} gives a {type(model).__name__}; it must give a torch module, or (module, x, y[, loss])")
    if len(rest) < 2:
        if asked.data is None:
            raise RecipeError(f"{source} gives no samples; return (module, x, y), or pass --data")
        rest = list(_samples({}, asked))
    given: dict[str, Any] = dict(zip(("x", "y", "loss"), rest))
    return FoundModel(name=name, model=model, timesteps=asked.timesteps, **given)


def _found(source: str, where: str, name: str) -> Callable[[], Any]:
    """The callable; what goes wrong once it is called is its own, and goes on as it is."""
    try:
        return getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"{source}: {error}; write it as module:callable") from error


def _of_checkpoint(path: Path, asked: ModelRequest) -> FoundModel:
    (file, *_) = find_checkpoints(path, [asked.network] if asked.network else [])
    loaded = load_network(file, asked.trusted)
    x, y = _samples(data_settings(loaded.description["data"]), asked)
    steps = asked.timesteps or loaded.description["timesteps"]
    spiking = isinstance(loaded.network, SpikingNetwork)
    return FoundModel(name=f"{path.name} ({file.stem})" if path.is_dir() else file.stem, model=loaded.network, x=x, y=y,
                      timesteps=steps if spiking else None)  # fmt: skip


def _of_recipe(source: str, asked: ModelRequest) -> FoundModel:
    recipe = load_recipe(source)
    experiment: Any = recipe.experiment
    if not (hasattr(experiment, "ann") and hasattr(experiment, "data")):
        raise RecipeError(f"{recipe.name}: {type(experiment).__name__} has no 'ann' and 'data' to show; pass module:callable")
    x, y = _samples(experiment.data.describe(), asked)
    seed_torch(getattr(experiment, "seed", 0), 1)
    ann = experiment.ann.build().eval()
    if asked.network in (None, "ann"):
        return FoundModel(name=f"{recipe.name} (fresh weights)", model=ann, x=x, y=y)
    if not hasattr(experiment, "convert"):
        raise RecipeError(f"{recipe.name} converts nothing; leave --network out")
    settings = experiment.smoke().convert
    images, _ = _samples(experiment.data.describe(), replace(asked, samples=FRESH_IMAGES))
    encoder = settings.encoder.build()
    network = convert(ann, [images], settings.neuron.build(), settings.calibrator.build(), encoder=encoder)
    steps = asked.timesteps or experiment.finetune.timesteps
    return FoundModel(name=f"{recipe.name} (converted, fresh weights)", model=network, x=x, y=y, timesteps=steps)


@torch.no_grad()
def _samples(described: Mapping[str, Any], asked: ModelRequest) -> tuple[Tensor, Tensor]:
    """The first test images and their labels; a recipe has had its code imported by now."""
    data = data_component({} if asked.data else described, asked.trusted, named=asked.data, root=asked.root)
    return next(data.build().test(asked.samples).epoch(0))
