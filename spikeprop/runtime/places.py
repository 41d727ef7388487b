"""Where things lie: the data root, and the folders in which a recipe's files and modules are looked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

DEFAULT_ROOT = Path("~/.cache/spikeprop/data")
_beside: ContextVar[tuple[Path, ...]] = ContextVar("folders of the recipe, and of what it extends", default=())


def data_folder() -> Path:
    """The data root: ``$SPIKEPROP_DATA``, or else ``~/.cache/spikeprop/data``."""
    return Path(os.environ.get("SPIKEPROP_DATA") or DEFAULT_ROOT).expanduser()


@contextmanager
def beside(*recipes: Path) -> Iterator[None]:
    """Within this context files and modules are also looked for in the folders of these recipes."""
    token = _beside.set(tuple(dict.fromkeys(recipe.resolve().parent for recipe in recipes)))
    try:
        yield
    finally:
        _beside.reset(token)


def folders() -> list[Path]:
    """Where a recipe's files and modules are looked for: the working directory, the recipe's own, then those that it extends."""
    return [Path.cwd(), *_beside.get()]


def nearest_path(path: str | Path) -> str:
    """The end of a message on a path that is not there: the nearest name beside it; empty where none is near."""
    missing = Path(path).expanduser()
    try:
        beside_it = [p.name for p in missing.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, beside_it, n=1, cutoff=0.7)
    return f"; did you mean {str(missing.with_name(near[0]))!r}?" if near else ""


def no_checkpoint(path: str | Path) -> str:
    """The message where a checkpoint or a run folder is not there."""
    return f"no checkpoint at {path}; give a run folder (`spikeprop ls runs`), or a .safetensors file in one{nearest_path(path)}"


def no_run_folder(path: str | Path) -> str:
    """The message where a run folder is not there, or is none."""
    near = "" if Path(path).exists() else nearest_path(path)
    return f"{path} is no run folder: it has no run.json; give a folder that `spikeprop run` wrote{near}"


def resolved(name: str) -> str:
    """A path in a recipe: as it is written where it exists in the working directory, or that of the file beside the recipe."""
    bare = name.partition("#")[0]
    if not bare or Path(bare).expanduser().exists():
        return name
    found = [str(folder / name) for folder in folders()[1:] if (folder / bare).exists()]
    return found[0] if found else name
