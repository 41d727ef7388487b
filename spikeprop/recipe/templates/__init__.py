"""Commented recipes to begin with, one a file; ``new_recipe`` writes one of them."""

from __future__ import annotations

from pathlib import Path

from spikeprop.errors import RecipeError
from spikeprop.runtime.files import write_text


def new_recipe(file: Path, door: str, *, replace: bool = False) -> None:
    """Write the recipe ``door`` (trained, train, finetune or scratch) to ``file``.

    Raises:
        RecipeError: the file exists, and ``replace`` is not set.
    """
    if file.exists() and not replace:
        raise RecipeError(f"{file} exists; choose another name, or replace it: --force")
    text = (Path(__file__).parent / f"{door}.yaml").read_text(encoding="utf-8")
    write_text(file, text.replace("RECIPE", str(file)))
