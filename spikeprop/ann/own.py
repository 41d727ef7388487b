"""Networks of one's own in a recipe: ``mynet.py:MyNet``, a function or an object that is a network; ``weights`` for all of them.

``spikeprop.recipe`` calls ``expand`` and ``adapt`` for the slot of networks. ``torchvision:resnet18`` is ``TorchvisionModel``,
``timm:resnet18`` is ``TimmModel`` and ``onnx:model.onnx`` is ``OnnxModel``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from spikeprop.ann.weights import find_weights, load_weights

SCHEMES = {"torchvision": ("TorchvisionModel", "name"), "timm": ("TimmModel", "name"), "onnx": ("OnnxModel", "path")}


def expand(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings with the class of ours that a scheme in ``use`` means: ``{use: torchvision:resnet18}``."""
    scheme, colon, named = settings["use"].partition(":")
    if not (colon and named and scheme in SCHEMES):
        return settings
    name, parameter = SCHEMES[scheme]
    return {**settings, "use": name, parameter: named}


def adapt(found: Any, given: Mapping[str, Any], module: Any) -> Callable[..., nn.Module] | None:
    """What makes the network from a class, a function or a network, with weights where they are ``given`` and it takes none.

    None for anything else.
    """
    if isinstance(found, nn.Module):
        make: Callable[..., Any] = lambda: copy.deepcopy(found)  # noqa: E731
        parameters = []
    elif callable(found) and (not inspect.isclass(found) or issubclass(found, nn.Module)):
        make, parameters = found, [*inspect.signature(found).parameters.values()]
    else:
        return None
    takes = any(p.name == "weights" for p in parameters)
    return make if inspect.isclass(found) and (takes or "weights" not in given) else _NetworkMaker(found, make, parameters, takes)


class _NetworkMaker:
    """Makes a network, checks that it is one, and loads its weights.

    Its signature is that of what it calls, and ``weights`` after it.
    """

    def __init__(self, found: Any, make: Callable[..., Any], parameters: list[inspect.Parameter], takes_weights: bool):
        self.make, self.takes_weights = make, takes_weights
        self.__name__ = getattr(found, "__name__", type(found).__name__)
        own = inspect.Parameter("weights", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None")
        rest = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        first = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        self.__signature__ = inspect.Signature([*first, *([] if takes_weights else [own]), *rest])
        constructor = found.__init__ if inspect.isclass(found) else found
        self.__annotations__ = {"weights": "str | None", **getattr(constructor, "__annotations__", {})}
        self.__globals__ = getattr(constructor, "__globals__", {})  # in which annotations are names

    def __call__(self, *late: Any, **given: Any) -> nn.Module:
        """The network.

        Raises:
            ValueError: the function returned something else.
            CheckpointError: weights that are missing or do not fit.
        """
        weights = None if self.takes_weights else given.pop("weights", None)
        made = self.make(*late, **given)
        if not isinstance(made, nn.Module):
            raise ValueError(f"it returned a {type(made).__name__}, not a torch module")
        if weights is not None and torch.get_default_device().type != "meta":  # whose tensors have no values
            load_weights(made, find_weights(weights))
        return made
