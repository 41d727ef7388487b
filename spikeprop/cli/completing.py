"""Completion in the shell: names of recipes, keys of their settings, run folders. It reads recipes, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from spikeprop.errors import SpikepropError


def recipes(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes that come with spikeprop, with what they do; and YAML files."""
    from spikeprop.recipe.text import description, recipe_folder

    found = [p for p in sorted(recipe_folder().glob("*.yaml")) if p.stem.startswith(incomplete)]
    items = [CompletionItem(path.stem, help=description(path)) for path in found]
    return items + [CompletionItem(name) for name in _files(incomplete)]


def settings(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """KEY= of the settings of the recipe that the command line names; or recipes, where it names none yet."""
    from spikeprop.recipe.extending import ExtendedRecipe
    from spikeprop.recipe.text import find_recipe

    given = context.params.get("recipe") or next((a for a in context.params.get("arguments") or () if "=" not in a), None)
    if given is None:
        return recipes(context, _, incomplete)
    try:
        tree = ExtendedRecipe(find_recipe(given)).tree
    except (SpikepropError, OSError):
        return []
    items = [CompletionItem(f"{key}=", help=str(value)) for key, value in leaves(tree) if key.startswith(incomplete)]
    return items if context.info_name != "check" else items + recipes(context, _, incomplete)


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every setting of a recipe; a component has its name, and settings of its own."""
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            if "use" in value:
                yield where, value["use"]
            yield from leaves({k: v for k, v in value.items() if k != "use"}, where)
        else:
            yield where, value


def _files(incomplete: str) -> list[str]:
    """Folders and YAML files that begin like this."""
    start = Path(incomplete or ".")
    folder = start if incomplete.endswith("/") or not incomplete else start.parent
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return []
    shown = [f"{p}/" if p.is_dir() else str(p) for p in entries if p.is_dir() or p.suffix in {".yaml", ".yml"}]
    return [name for name in shown if name.startswith(incomplete)]
