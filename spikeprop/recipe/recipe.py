"""``Recipe``: the complete description of a run, read from a file, and described again for the run folder."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spikeprop.recipe.checking import check
from spikeprop.recipe.component import Component
from spikeprop.recipe.extending import ExtendedRecipe
from spikeprop.recipe.names import EXPERIMENTS
from spikeprop.recipe.problems import Problems
from spikeprop.recipe.text import find_recipe, override
from spikeprop.runtime.places import beside


@dataclass(frozen=True)
class Recipe:
    """The complete description of a run."""

    name: str
    experiment: Any

    def describe(self) -> dict[str, Any]:
        """All settings, defaults included, as YAML and JSON values."""
        kind = type(self.experiment)
        own = getattr(importlib.import_module(EXPERIMENTS), kind.__name__, None) is kind
        return {"use": kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}", **_describe(self.experiment)}


def load_recipe(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, or the name of a recipe that comes with spikeprop.
        overrides: "path.to.key=value", value in YAML.

    Raises:
        RecipeError: naming the place and the fix of every mistake.
    """
    path = find_recipe(source)
    read = ExtendedRecipe(path)
    problems, experiment = Problems(), None
    for text in overrides:
        with problems.collected():
            override(read.tree, text)
    with problems.collected(), beside(*read.files), read.named():
        experiment = check(read.tree)
    problems.raise_all()
    return Recipe(path.stem, experiment)


def _describe(value: Any) -> dict[str, Any]:
    return {field.name: _described(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _described(item: Any) -> Any:
    if isinstance(item, Component):
        return item.describe()
    if dataclasses.is_dataclass(item):
        return _describe(item)
    if isinstance(item, Mapping):
        return {k: _described(i) for k, i in item.items()}
    return [_described(i) for i in item] if isinstance(item, list | tuple) else item
