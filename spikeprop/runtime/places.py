"""Where things lie: the data root, and the folders in which a recipe's files and modules are looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

DEFAULT_ROOT = Path("~/.cache/spikeprop/data")
_beside: ContextVar[Path | None] = ContextVar("folder of the recipe", default=None)


def data_folder() -> Path:
    """The data root: ``$SPIKEPROP_DATA``, or else ``~/.cache/spikeprop/data``."""
    return Path(os.environ.get("SPIKEPROP_DATA") or DEFAULT_ROOT).expanduser()


@contextmanager
def beside(recipe: Path) -> Iterator[None]:
    """Within this context files and modules are also looked for in the folder of this recipe."""
    token = _beside.set(recipe.resolve().parent)
    try:
        yield
    finally:
        _beside.reset(token)


def folders() -> list[Path]:
    """Where a recipe's files and modules are looked for: the working directory, then the recipe's own."""
    recipe = _beside.get()
    return [Path.cwd(), *([] if recipe is None else [recipe])]


def resolved(name: str) -> str:
    """A path in a recipe: as it is written where it exists in the working directory, or that of the file beside the recipe."""
    bare = name.partition("#")[0]
    if not bare or Path(bare).expanduser().exists():
        return name
    found = [str(folder / name) for folder in folders()[1:] if (folder / bare).exists()]
    return found[0] if found else name
