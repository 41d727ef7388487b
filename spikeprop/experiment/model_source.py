"""``find_model``: the network that MODEL names on the command line, with a few samples for it.

MODEL is a recipe's name or file (its ANN with random weights, or that converted), a run folder, a checkpoint or ``zoo:NAME`` (the
trained network), or ``module:callable`` for the user's own network: the callable returns the network, or (network, x, y), or
(network, x, y, loss).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.convert import convert
from spikeprop.errors import RecipeError
from spikeprop.experiment.network_checkpoint import data_component, find_checkpoints, load_network
from spikeprop.experiment.zoo import PREFIX, located
from spikeprop.recipe import load_recipe
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

CALIBRATION_IMAGES = 32  # for a recipe's untrained network


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which network of a MODEL, and which samples.

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
            raise ValueError(f"samples is {self.samples}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A network with samples.

    Attributes:
        name: to be displayed.
        model, x, y, loss: the network, inputs (B, ...), targets and the loss of outputs and targets.
        timesteps: of a spiking network, for still samples.
    """

    name: str
    model: nn.Module
    x: Tensor | Sequences
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    timesteps: int | None = None


def find_model(source: str, request: ModelRequest) -> FoundModel:
    """The network that ``source`` names.

    Raises:
        RecipeError: no such recipe, module or callable, or no data to show it.
        CheckpointError: the run folder has no such network.
    """
    if source.startswith(PREFIX):
        return _from_checkpoint(located(source), request)
    if ":" in source and not Path(source).exists():
        return _from_callable(source, request)
    if Path(source).is_dir() or source.endswith(".safetensors"):
        return _from_checkpoint(Path(source), request)
    return _from_recipe(source, request)


def _from_callable(source: str, request: ModelRequest) -> FoundModel:
    where, _, name = source.partition(":")
    made = _import_callable(source, where, name)()
    model, *rest = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{source} gives a {type(model).__name__}; it must give a torch module, or (module, x, y[, loss])")
    if len(rest) < 2:
        if request.data is None:
            raise RecipeError(f"{source} gives no samples; return (module, x, y), or pass --data")
        rest = list(_samples({}, request))
    given: dict[str, Any] = dict(zip(("x", "y", "loss"), rest))
    return FoundModel(name=name, model=model, timesteps=request.timesteps, **given)


def _import_callable(source: str, where: str, name: str) -> Callable[[], Any]:
    """The callable; errors that it raises when it is called are not caught."""
    try:
        found = getattr(importlib.import_module(where), name)
        inspect.signature(found).bind()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise RecipeError(f"{source}: {error}; write it as module:callable, of a callable without arguments") from error
    return found


def _from_checkpoint(path: Path, request: ModelRequest) -> FoundModel:
    (file, *_) = find_checkpoints(path, [request.network] if request.network else [])
    loaded = load_network(file, request.trusted)
    x, y = _samples(loaded.data, replace(request, trusted=loaded.trusted))
    steps = _steps(loaded.network, x, loaded.timesteps, request)
    return FoundModel(name=f"{path.name} ({file.stem})" if path.is_dir() else file.stem, model=loaded.network, x=x, y=y,
                      timesteps=steps)  # fmt: skip


def _from_recipe(source: str, request: ModelRequest) -> FoundModel:
    recipe = load_recipe(source)
    experiment: Any = recipe.experiment
    if hasattr(experiment, "build_network"):
        return _from_scratch(recipe.name, experiment, request)
    if not (hasattr(experiment, "ann") and hasattr(experiment, "data")):
        raise RecipeError(f"{recipe.name}: {type(experiment).__name__} has no 'ann' and 'data'; pass module:callable")
    x, y = _samples(experiment.data.describe(), request)
    seed_torch(getattr(experiment, "seed", 0), 1)
    ann = experiment.ann.build().eval()
    if request.network in (None, "ann"):
        return FoundModel(name=f"{recipe.name} (random weights)", model=ann, x=x, y=y)
    if not hasattr(experiment, "convert"):
        raise RecipeError(f"{recipe.name} converts nothing; leave --network out")
    settings = experiment.smoke().convert
    images, _ = _samples(experiment.data.describe(), replace(request, samples=CALIBRATION_IMAGES))
    encoder = settings.encoder.build()
    network = convert(ann, [images], settings.neuron.build(), settings.calibrator.build(), encoder=encoder)
    steps = request.timesteps or experiment.finetune.timesteps
    return FoundModel(name=f"{recipe.name} (converted, random weights)", model=network, x=x, y=y, timesteps=steps)


def _from_scratch(name: str, experiment: Any, request: ModelRequest) -> FoundModel:
    """The spiking network of a recipe that trains one from scratch."""
    if request.network is not None:
        raise RecipeError(f"{name} has one network, which is trained from scratch; leave --network out")
    x, y = _samples(experiment.data.describe(), request)
    seed_torch(experiment.seed, 1)
    network = experiment.build_network(experiment.data.build()).eval()
    steps = _steps(network, x, experiment.train.timesteps, request)
    return FoundModel(name=f"{name} (random weights)", model=network, x=x, y=y, timesteps=steps)


def _steps(network: nn.Module, x: Any, own: int | None, request: ModelRequest) -> int | None:
    """Steps of a simulation on still samples, as asked for or the network's own; sequences have theirs."""
    if not isinstance(network, SpikingNetwork):
        return None
    in_time = len(x.shape) == len(network.input_shape) + 2
    return request.timesteps or (None if in_time else own)


@torch.no_grad()
def _samples(described: Mapping[str, Any], request: ModelRequest) -> tuple[Any, Tensor]:
    """The first test images and their labels."""
    data = data_component({} if request.data else described, request.trusted, named=request.data, root=request.root).build()
    return next(data.test(request.samples).epoch(0))
