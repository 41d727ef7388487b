"""``extends``: a recipe that is another one with some settings of its own.

    extends: cifar10_fast_graded       # a recipe's name, or a file beside this one
    train: {epochs: 10}                # laid over that recipe's

Mappings are laid over one another key by key, lists and values replace what was there. A component with another ``use`` replaces
the whole component, since the settings of one class are not those of another; one without ``use`` changes settings of the
component that is there. What comes of it is a complete recipe: run folders hold that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spikeprop.errors import RecipeError
from spikeprop.recipe.text import find_recipe, read_recipe

KEY = "extends"
DEEPEST = 5  # recipes that extend one another


class ExtendedRecipe:
    """The settings of a recipe's file, over those of the recipe that it extends, if it does.

    Args:
        path: of the file.

    Attributes:
        tree: complete settings, without ``extends``.
        files: of the recipe, then of what it extends, and so on.

    Raises:
        RecipeError: names the file with the mistake.
    """

    def __init__(self, path: Path):
        self.files = [path]
        trees = [read_recipe(path)]
        while KEY in trees[-1]:
            below = _extended(self.files[-1], trees[-1].pop(KEY))
            if below.resolve() in [file.resolve() for file in self.files]:
                chain = " extends ".join(file.name for file in (*self.files, below))
                raise RecipeError(f"{KEY}: a recipe cannot extend itself: {chain}")
            if len(self.files) == DEEPEST:
                raise RecipeError(f"{KEY}: more than {DEEPEST} recipes extend one another, from {path} on")
            self.files.append(below)
            trees.append(read_recipe(below))
        self.tree: dict[str, Any] = {}
        self._origin: dict[str, Path] = {}
        for file, tree in zip(reversed(self.files), reversed(trees)):
            self.tree = laid_over(self.tree, tree)
            self._origin |= dict.fromkeys(_paths(tree), file)
        left = {*_paths(self.tree)}  # without those of components that were replaced
        self._origin = {path: file for path, file in self._origin.items() if path in left}

    @contextmanager
    def named(self) -> Iterator[None]:
        """In this context an error about a setting that stands in another file names that file."""
        try:
            yield
        except RecipeError as error:
            if len(self.files) == 1:
                raise
            raise RecipeError(*map(self._with_file, getattr(error, "problems", (str(error),)))) from error

    def _with_file(self, message: str) -> str:
        place = re.match(r"[\w.]+", message)
        keys = place[0].split(".") if place else []
        for end in range(len(keys), 0, -1):
            file = self._origin.get(".".join(keys[:end]))
            if file is not None:
                return message if file == self.files[0] else f"{message} (in {file})"
        return message


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both; those ``above`` win."""
    found = dict(below)
    for key, value in above.items():
        known = found.get(key)
        if isinstance(known, str) and isinstance(value, Mapping) and "use" not in value:
            known = {"use": known}  # a bare component name gets settings
        found[key] = value
        if isinstance(known, Mapping) and isinstance(value, Mapping) and value.get("use", known.get("use")) == known.get("use"):
            found[key] = laid_over(known, value)
    return found


def _extended(path: Path, source: Any) -> Path:
    """The file that a recipe's file extends: beside it, or one that comes with spikeprop."""
    if not isinstance(source, str) or not source:
        raise RecipeError(f"{path}: {KEY} is {source!r}; it is the name of a recipe, or a file beside this one")
    beside = [path.parent / name for name in (source, f"{source}.yaml") if name.endswith((".yaml", ".yml"))]
    found = next((file for file in beside if file.is_file()), None)
    if found is not None:
        return found
    try:
        return find_recipe(source)
    except RecipeError as error:
        raise RecipeError(f"{path}: {KEY}: {error}") from error


def _paths(tree: Any, path: str = "") -> Iterator[str]:
    """The path of every setting."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        where = f"{path}.{key}" if path else str(key)
        yield where
        yield from _paths(value, where)
