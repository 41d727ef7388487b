"""From a network that someone has (a class in a file, torchvision's, timm's, an ONNX file) to a recipe that converts it.

``own_recipe`` writes the tree of an ordinary recipe of the hybrid conversion, without training and fine-tuning: the network with
its weights, the data with the normalisation that fits them (``experiment/preprocessing.py``), and the numbers of steps. All else
is chosen as in any recipe, so the run folder's recipe is complete and says what was chosen.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from spikeprop_hardware import lava_is_ready
from torch import Tensor, nn

from spikeprop.data import ImageData, LabelledData
from spikeprop.errors import RecipeError
from spikeprop.experiment.class_order import order_text
from spikeprop.experiment.finetuning import conversion_rows
from spikeprop.experiment.preprocessing import (
    NORMALISATION,
    check_shape,
    chosen_normalisation,
    fitting_shape,
    known_transform,
    unfitting_classes,
)
from spikeprop.experiment.run_folder import check_same
from spikeprop.recipe import Component, Recipe, check, check_component, components
from spikeprop.recipe.names import find, home
from spikeprop.recipe.text import override
from spikeprop.runtime.files import leaves
from spikeprop.runtime.places import nearest_path

SCHEMES = ("torchvision", "timm", "onnx")
OWN_WEIGHTS = {"torchvision": "DEFAULT", "timm": "pretrained"}  # those that the library has
SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}  # of weights, which are no network


@dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """What is to be converted.

    Attributes:
        source: "mynet.py:MyNet", "package.module:Net", "torchvision:resnet18", "timm:resnet18", "model.onnx" or a class of
            ``spikeprop.ann``.
        weights: file or folder, None for those of the library, or for a network that has its own.
        data: data set, as a recipe names it.
        root: its folder.
        timesteps: numbers of steps; the thresholds are calibrated for the largest.
        samples: test images to simulate.
        backend: "lava" or "reference"; None for Lava where its environment is made.
        binary: keep to spikes of one bit, with a sign.
        mean, std: normalisation; None for the one that fits the network.
        overrides: "path.to.key=value" on the recipe.
    """

    source: str
    weights: str | None = None
    data: str = "ImageFolder"
    root: str | None = None
    timesteps: Sequence[int] = (4, 8, 16)
    samples: int = 4
    backend: str | None = None
    binary: bool = False
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    overrides: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Of the recipe, and of its run folder."""
        last = re.split(r"[:/\\]", self.source.removesuffix(".onnx"))[-1]
        return re.sub(r"[^\w.-]+", "_", last.rpartition(".")[2] if ":" not in self.source else last)


def own_recipe(own: OwnNetwork, folder: Path) -> tuple[Recipe, list[tuple[str, str]]]:
    """The checked recipe, and what was chosen, as rows of label and text.

    Args:
        own: what is to be converted.
        folder: of the run; if it holds one of another recipe that is found before any data are read.

    Raises:
        RecipeError: no such network or data set, or one that does not fit the other; or another recipe in the folder.
    """
    tree: dict[str, Any] = {
        "ann": ann_settings(own.source, own.weights),
        "data": _given(use=_code(own.data), root=_file(own.root), mean=own.mean, std=own.std),
        "convert": {"timesteps": max(own.timesteps), **({"binary": True} if own.binary else {})},
        "train": {"epochs": 0},
        "evaluate": {"timesteps": sorted(set(own.timesteps))},
        "simulate": {"samples": own.samples, "backend": own.backend or ("lava" if lava_is_ready() else "reference")},
    }
    for text in own.overrides:
        override(tree, text)
    _check_data(tree["data"].get("use"))
    if tree["data"].get("use") == "ImageFolder" and not tree["data"].get("root"):
        raise RecipeError("where are the images? Give --root FOLDER, with a folder of images for each class; or another --data")
    try:
        described = Recipe(own.name, check(tree)).describe()
    except RecipeError as error:
        raise RecipeError(f"{error}{_other_classes(own.source)}") from error
    check_same(folder, described, leaves(tree))
    if not tree["ann"].get("weights") and tree["ann"].get("use") != "OnnxModel":
        warnings.warn("no --weights: the network has the values with which it starts (random, unless its class loads some); "
                      "give --weights best.pt", stacklevel=2)  # fmt: skip
    rows = _fitted(tree)
    recipe = Recipe(own.name, check(tree))
    return recipe, rows + conversion_rows(recipe.experiment)


def ann_settings(source: str, weights: str | None) -> dict[str, Any]:
    """The settings of slot ``ann`` for a network that a user names.

    Raises:
        RecipeError: it is a file of weights, an ONNX file with weights beside it, or a file of another kind or that is not there.
    """
    scheme, _, named = source.partition(":")
    if Path(source).suffix == ".onnx" and scheme != "onnx":
        scheme, named = "onnx", source
    if scheme == "onnx":
        if weights is not None:
            raise RecipeError(f"{source} has its own weights; leave --weights out")
        return {"use": "OnnxModel", "path": _file(named)}
    if Path(source).suffix in SUFFIXES:
        raise RecipeError(
            f"{source} has tensors and not the network that they belong to: name its class, and the file as --weights: "
            f"spikeprop convert mynet.py:MyNet --weights {source}"
        )
    if source.endswith(".py"):
        raise RecipeError(f"{source} is a file: name the class in it too, as in {source}:MyNet{_classes(Path(source))}")
    use = {"torchvision": "TorchvisionModel", "timm": "TimmModel"}.get(scheme)
    if use is not None:
        return {"use": use, "name": named, "weights": _file(weights) or OWN_WEIGHTS[scheme]}
    _check_source(source)
    return _given(use=_code(source), weights=_file(weights))


def _check_source(source: str) -> None:
    """Raises RecipeError for a file that holds no network, and for a name like a file's by which nothing can be imported."""
    near = nearest_path(source)
    if ":" in source:
        return
    if Path(source).is_file():
        raise RecipeError(f"{source} is no file of a network that is read here: mynet.py:MyNet or model.onnx")
    if os.sep in source:
        raise RecipeError(f"there is no file {source}{near}")
    if near and get_close_matches(Path(source).suffix, (".onnx", ".py", *SUFFIXES), cutoff=0.6):
        try:
            find(source, "ann", nn.Module, home(nn.Module))
        except RecipeError as error:
            raise RecipeError(f"there is no file {source}{near}") from error


def _check_data(use: Any) -> None:
    """Raises RecipeError if ``--data`` names a folder, or a table, in place of a data set."""
    if not isinstance(use, str) or use in components(LabelledData):
        return
    place = Path(use).expanduser()
    if place.is_dir():
        raise RecipeError(f"--data {use} is a folder: give --data ImageFolder --root {use}")
    if place.suffix in (".csv", ".tsv") and place.is_file():
        raise RecipeError(f"--data {use} is a table: give --data CSVLabels data.table={use}")


def _classes(file: Path) -> str:
    """The classes of a file, for a message; nothing is run."""
    found = _class_names(file)
    return f"; it has {', '.join(found)}" if found else ""


def _class_names(file: Path) -> list[str]:
    return re.findall(r"^class (\w+)", file.read_text(errors="replace"), re.MULTILINE) if file.is_file() else []


def _other_classes(source: str) -> str:
    """The end of a message on a class that cannot be built: the others of its file, one of which may be meant."""
    file, _, name = source.rpartition(":")
    others = [other for other in _class_names(Path(file)) if other != name] if file.endswith(".py") else []
    return f"; or is {' or '.join(others)}, which {Path(file).name} has too, the network?" if others else ""


def _code(text: str) -> str:
    """The name of a class, of a file with its path made absolute; a folder that is called like a class is not meant."""
    path, colon, name = text.rpartition(":")
    return f"{_file(path)}{colon}{name}" if path.endswith(".py") else text


def _file(text: str | None) -> str | None:
    """A path that exists, made absolute, so that the run folder's recipe holds in any working directory."""
    if text is None:
        return None
    file, sign, part = text.partition("#")
    return f"{Path(file).expanduser().resolve()}{sign}{part}" if Path(file).expanduser().exists() else text


def _given(**settings: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _fitted(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Complete number of classes, shape and normalisation of the tree, from weights and data; what was found, as rows."""
    settings = tree["data"]
    data = check_component(LabelledData, settings, "data")
    given = [key for key in NORMALISATION if key in settings]
    transform = known_transform(tree["ann"])
    for key, value in (transform or {}).items():
        if key in data.parameters() and not (key == "transforms" and "size" in data.arguments):
            settings.setdefault(key, value)
    data = check_component(LabelledData, settings, "data")
    ann = check_component(nn.Module, tree["ann"], "ann")
    if ann.use in ("TorchvisionModel", "TimmModel") and tree["ann"].get("weights") not in OWN_WEIGHTS.values():
        tree["ann"].setdefault("classes", data.build().classes)
        ann = check_component(nn.Module, tree["ann"], "ann")
    module = ann.build().eval()
    data.build().check_files()  # at once, and not in the stage that comes to the file
    shape = fitting_shape(module, data)
    settings |= shape
    data = data.replace(**shape)
    built = data.build()
    rows = [("network", _network_text(tree["ann"])), ("data", _data_text(built, shape))]
    if not isinstance(built, ImageData):
        return rows
    check_shape(module, built, ann.use)
    if built.label_shape:
        return rows
    _check_outputs(module, ann, data)
    rows.append(("outputs", order_text(built.class_names())))
    if transform is not None and not given:
        return [*rows, ("normalisation", f"mean {built.mean}, std {built.std}: that of the weights")]
    found, text = chosen_normalisation(module, data, {key: settings[key] for key in given})
    settings |= found
    return [*rows, ("normalisation", text)]


@torch.no_grad()
def _check_outputs(module: nn.Module, ann: Component[nn.Module], data: Component[Any]) -> None:
    """Raises RecipeError where a network with weights has more outputs than the data have classes: which these lack."""
    if not (ann.arguments.get("weights") or ann.use == "OnnxModel"):
        return
    built = data.build()
    outputs = module(torch.zeros(1, *built.input_shape))
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[1] <= built.classes:
        return  # the recipe's check says what else is wrong
    lacking = unfitting_classes(module, data, outputs.shape[1])
    raise RecipeError(
        f"ann: {ann.use} has {outputs.shape[1]} outputs, but data: {type(built).__name__} has {built.classes} classes"
        f"{f': {lacking}' if lacking else ''}. If it was trained on more classes, give each its place"
        f"{' (an empty folder is enough)' if data.use == 'ImageFolder' else ''}; if these are all, give the weights of a network "
        f"with {built.classes} outputs"
    )


def _network_text(ann: dict[str, Any]) -> str:
    use = ann["use"] if "name" not in ann else f"{ann['name']} ({ann['use']})"
    return _shown(ann.get("path", use)) + (f", weights {_shown(ann['weights'])}" if ann.get("weights") else "")


def _shown(path: str) -> str:
    """A path, from the working directory on where it is below that."""
    return path.removeprefix(f"{Path.cwd()}{os.sep}")


def _data_text(data: LabelledData, shape: dict[str, Any]) -> str:
    names = data.class_names()
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    read = "x".join(map(str, data.input_shape)) + (", which is what the network reads" if shape else "")
    divisor = getattr(data, "divisor", 1.0)
    divided = f", divided by {divisor:g}" if divisor != 1 else ""
    return f"{type(data).__name__}, {data.classes} classes ({shown}), {read}{divided}"
