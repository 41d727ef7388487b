"""What a recipe of the hybrid conversion may leave out, and what then holds: from a recipe's tree to the complete one.

A stage that is not named is not done: without ``train`` the ANN keeps the weights that it loads, without ``finetune`` the
network is converted only, without ``simulate`` nothing is simulated. Neuron and calibrator that are not named are chosen for the
number of steps, as ``convert(..., timesteps=)`` does. This happens before the check, so a run folder's recipe is complete.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from spikeprop.convert import ThresholdCalibrator
from spikeprop.convert.choice import Choice, choose
from spikeprop.errors import SpikepropError
from spikeprop.recipe import Component, check_component
from spikeprop.snn import Neuron

UNUSED_TRAINING = {"rule": "Backprop", "optimizer": {"use": "SGD", "momentum": 0.9}, "schedule": "Constant"}
UNUSED_FINETUNING = {"rule": "BPTT", "optimizer": "Adam", "schedule": "Constant"}
WEIGHTS = ("weights", "pretrained", "path")  # arguments by which an ANN comes trained; path is that of an ONNX file
NO_WEIGHTS = (
    "train is missing, and ann names no weights, so a random network would be converted; give ann.weights=FILE of a trained "
    "network, or a section train, or train={epochs: 0} if the class loads its weights itself"
)
NO_STEPS = "convert.timesteps is missing: for how many time steps is the network converted? For example convert.timesteps=8"


def complete(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The complete tree of a recipe's tree, and what is missing that nothing can stand for.

    What is wrong in the tree is left as it is, for the check.
    """
    tree, problems = dict(given), []
    if "train" not in tree and not _trained(tree.get("ann")):
        problems.append(NO_WEIGHTS)
    tree["train"] = _unused(tree.get("train", {"epochs": 0}), UNUSED_TRAINING)
    steps = _steps(tree)
    converted = tree.get("convert", {})
    if isinstance(converted, Mapping):
        tree["convert"] = _converted(converted, steps, problems)
    finetuned = _unused(tree.get("finetune", {"epochs": 0}), UNUSED_FINETUNING)
    unused = isinstance(finetuned, Mapping) and finetuned.get("epochs") == 0
    if isinstance(finetuned, Mapping) and "timesteps" not in finetuned and (unused or _given_steps(converted)):
        if steps is None and isinstance(converted, Mapping) and _given_steps(converted) is None:
            problems.append(NO_STEPS)
        finetuned = {**finetuned, "timesteps": steps or 1}
    tree["finetune"] = finetuned
    evaluated = tree.get("evaluate", {})
    if isinstance(evaluated, Mapping) and "timesteps" not in evaluated and isinstance(finetuned, Mapping):
        tree["evaluate"] = {**evaluated, "timesteps": [finetuned.get("timesteps", 1)]}
    return tree, list(dict.fromkeys(problems))


def why_chosen(neuron: Component[Neuron], calibrator: Component[ThresholdCalibrator], steps: int | None, binary: bool) -> str:
    """Why these fit the number of steps, where they are those that ``convert`` chooses; empty where they are the user's own."""
    own = calibrator.build()
    steps = steps or getattr(own, "timesteps", None)
    if steps is None:
        return ""
    for given in ((None, None), (neuron.build(), None), (None, own)):
        try:
            choice = choose(*given, steps, binary=binary and given[0] is None)
        except SpikepropError:
            continue
        if _components(choice) == [neuron.describe(), calibrator.describe()]:
            return choice.why
    return ""


def _components(choice: Choice) -> list[dict[str, Any]]:
    neuron, calibrator = _written(choice.neuron), _written(choice.calibrator)
    return [
        check_component(Neuron, neuron, "convert.neuron").describe(),
        check_component(ThresholdCalibrator, calibrator, "convert.calibrator").describe(),
    ]


def _unused(settings: Any, parts: Mapping[str, Any]) -> Any:
    """The settings of a training of no epochs, whose components may be left out."""
    return {**parts, **settings} if isinstance(settings, Mapping) and settings.get("epochs") == 0 else settings


def _trained(ann: Any) -> bool:
    """Whether an ANN comes with weights; one that is wrong counts as such, since the check names the mistake."""
    try:
        described = check_component(nn.Module, ann, "ann").describe()
    except SpikepropError:
        return True
    return any(described.get(key) for key in WEIGHTS)


def _steps(tree: Mapping[str, Any]) -> int | None:
    """The number of steps that the network is converted for, where the recipe says it."""
    sections = {name: tree.get(name) for name in ("convert", "finetune", "evaluate")}
    convert, finetune, evaluate = (value if isinstance(value, Mapping) else {} for value in sections.values())
    calibrator, evaluated = convert.get("calibrator"), evaluate.get("timesteps")
    candidates = [
        _given_steps(convert),
        calibrator.get("timesteps") if isinstance(calibrator, Mapping) else None,
        _given_steps(finetune),
        evaluated[0] if isinstance(evaluated, list) and len(evaluated) == 1 else None,
    ]
    return next((steps for steps in candidates if type(steps) is int and steps > 0), None)


def _given_steps(section: Any) -> Any:
    return section.get("timesteps") if isinstance(section, Mapping) else None


def _converted(given: Mapping[str, Any], steps: int | None, problems: list[str]) -> dict[str, Any]:
    """The section ``convert`` with encoder, neuron and calibrator."""
    convert = {"encoder": "Direct", **given}
    if "calibrator" in convert and steps is not None:
        convert["calibrator"] = _with_steps(convert["calibrator"], steps, required=given.get("timesteps") is None)
    if "neuron" in convert and "calibrator" in convert:
        return convert
    if steps is None and _given_steps(given) is None:  # one that is wrong is named by the check
        problems.append(NO_STEPS)
    try:
        neuron, calibrator = _built(Neuron, convert, "neuron"), _built(ThresholdCalibrator, convert, "calibrator")
        binary = given.get("binary") is True and neuron is None
        choice = choose(neuron, calibrator, steps or 1, binary=binary)
    except SpikepropError:
        choice = choose(None, None, steps or 1)  # what is given is wrong, and the check names it
    chosen = {"neuron": _written(choice.neuron), "calibrator": _written(choice.calibrator)}
    return {"timesteps": steps, **chosen, **convert}


def _with_steps(calibrator: Any, steps: int, *, required: bool) -> Any:
    """A calibrator with the number of steps where it has none: one that takes them, or only one that requires them."""
    try:
        component = check_component(ThresholdCalibrator, calibrator, "convert.calibrator")
    except SpikepropError:
        return calibrator
    own = component.parameters().get("timesteps")
    if own is None or "timesteps" in component.arguments or (required and own.default is not own.empty):
        return calibrator
    return {**({"use": calibrator} if isinstance(calibrator, str) else calibrator), "timesteps": steps}


def _built(base: type, convert: Mapping[str, Any], key: str) -> Any:
    return check_component(base, convert[key], f"convert.{key}").build() if key in convert else None


def _written(part: Any) -> dict[str, Any]:
    """A neuron or calibrator that was chosen, as a recipe names it."""
    values = {name: getattr(part, name, None) for name in inspect.signature(type(part)).parameters}
    return {"use": type(part).__name__, **{k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}}
