"""Recipes as text: the file of a name, reading YAML within bounds, overrides, and writing YAML. The only file that uses YAML.

YAML is PyYAML's 1.1, except that ``1e-3`` is a number. Values are counted, each as often as anchors repeat it, before objects are
built from them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from spikeprop_hardware import kinds

from spikeprop.errors import RecipeError
from spikeprop.recipe.component import first_sentence
from spikeprop.recipe.nearest import nearest

LARGEST_RECIPE = 2**20  # bytes
LARGEST_TREE = 100_000  # values, each counted as often as anchors and merges repeat it
DEEPEST_TREE = 50


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def recipe_folder() -> Path:
    """Folder of the recipes that come with spikeprop: inside the package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def description(path: Path) -> str:
    """What a recipe does: the first sentence of the comment under its first line, which is its command."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    comment = [line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    return first_sentence(" ".join(comment))


def find_recipe(source: str) -> Path:
    """The file of a recipe given as path or as name."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path
    names = {p.stem: p for p in sorted(recipe_folder().glob("*.yaml"))}
    if path.suffix == "" and source in names:
        return names[source]
    if path.is_dir():
        stored = path / "recipe.yaml"
        fix = f"the run there goes on with: spikeprop run {stored} --out {path}" if stored.is_file() else "give a recipe's file"
        raise RecipeError(f"{path} is a folder; {fix}")
    if path.is_file():
        wrong = kinds.wrong_kind(path, "a recipe (YAML)", kinds.YAML, kinds.TEXT)
        raise RecipeError(wrong or f"{path} is no recipe by its name: a recipe's file ends in .yaml")
    near = nearest(path.stem, names, most=0)
    raise RecipeError(f"no recipe {source!r}{near}; 'spikeprop ls' lists them, 'spikeprop new' writes one to begin with")


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a recipe's file.

    Raises:
        RecipeError: it is too large, or not a YAML mapping.
    """
    size = path.stat().st_size
    if size > LARGEST_RECIPE:
        raise RecipeError(f"{path} has {size:,} bytes; a recipe has at most {LARGEST_RECIPE:,}")
    wrong = kinds.wrong_kind(path, "a recipe (YAML)", kinds.YAML, kinds.TEXT, kinds.JSON, kinds.EMPTY)
    if wrong is not None:
        raise RecipeError(wrong)
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        hint = "; indent with spaces: YAML has no tabs" if "'\\t'" in str(error) else ""
        raise RecipeError(f"{path} is not valid YAML for a recipe: {error}{hint}") from error
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path} must hold a mapping of settings, such as 'data: Digits'; 'spikeprop new' writes a recipe to begin with"
        )
    return tree


def dump(tree: Mapping[str, Any]) -> str:
    """YAML text of a described recipe."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def read_yaml(text: str) -> Any:
    """Read YAML within bounds, which are checked before objects are built.

    Raises:
        ValueError: it is not YAML, or it is too large when anchors are followed.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _count(node, 0, [0])
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # invalid dates and numbers
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: Any, depth: int, count: list[int]) -> None:
    count[0] += 1
    if count[0] > LARGEST_TREE or depth > DEEPEST_TREE:
        raise ValueError(f"more than {LARGEST_TREE:,} values, or nested deeper than {DEEPEST_TREE}, with anchors followed")
    below = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else ()
    for item in below:
        for inner in item if isinstance(item, tuple) else (item,):
            _count(inner, depth + 1, count)


def override(tree: dict[str, Any], text: str) -> None:
    """Set the value of "path.to.key=value" in a recipe's tree.

    Raises:
        RecipeError: the text has another form, or the path leads through a value that has no keys.
    """
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise RecipeError(f"override {text!r}: write it as path.to.key=value")
    *parents, last = path.split(".")
    node: Any = tree
    for i, key in enumerate(parents):  # a section that is not there is begun: recipes may leave sections out
        below = node.get(key)
        if isinstance(below, str):  # a bare component name gets settings
            below = node[key] = {"use": below}
        node = node.setdefault(key, {}) if below is None else below
        if not isinstance(node, dict):
            raise RecipeError(f"override {text!r}: {'.'.join(parents[: i + 1])} is {node!r}, which has no keys")
    try:
        node[last] = read_yaml(value)
    except ValueError as error:
        raise RecipeError(f"override {text!r}: the value is not YAML: {error}") from error
