"""The zoo: trained networks by name, from a checkout's folder ``zoo/`` or fetched from an address.

An entry is a run folder without its intermediate files: one network (safetensors and its description), recipe, run.json,
report.json and a card. Size and SHA-256 of every file, from the index beside the entries (``runtime/zoo_index.py``), are compared
whenever an entry is used. What is fetched is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeprop.errors import CheckpointError, DamagedFileError, MissingDataError
from spikeprop.recipe.nearest import nearest
from spikeprop.runtime.files import file_hash, write_atomically
from spikeprop.runtime.zoo_index import NAME, ZooEntry, entries, fetched, nowhere, place

PREFIX = "zoo:"
CARD = "card.md"


def fetch(name: str) -> Path:
    """The folder of an entry whose files are complete: in the zoo's own folder, or in the user's cache.

    Raises:
        CheckpointError: no such entry, naming the nearest.
        MissingDataError: it cannot be reached.
        DamagedFileError: a file has another size or SHA-256 than the index says.
    """
    known = entries()
    if name not in known:
        raise CheckpointError(f"the zoo has no network {name!r}{nearest(name, known)}; 'spikeprop ls zoo' shows all")
    where = place()
    if where is None:
        raise nowhere()
    if isinstance(where, Path):
        for file, held in known[name].files.items():
            _check(where / name / file, held)
        for file in _unlisted(where / name, known[name]):
            raise DamagedFileError(f"{file} is not in the zoo's index, and would be taken for the network: move it away")
        return where / name
    folder = _cache() / name
    for file in _unlisted(folder, known[name]):  # of an older version of the entry
        file.unlink(missing_ok=True)
    for file, held in known[name].files.items():
        if not ((folder / file).is_file() and _holds(folder / file, held)):
            _download(f"{where}/{name}/{file}", folder / file, held)
    return folder


def located(source: str | Path) -> Path:
    """The file or folder that ``source`` names: a path, ``zoo:NAME``, or the name of an entry where no such path exists.

    Raises:
        CheckpointError: no such entry.
        MissingDataError, DamagedFileError: as ``fetch``.
    """
    text = str(source)
    if text.startswith(PREFIX):
        return fetch(text.removeprefix(PREFIX))
    path = Path(source)
    if isinstance(source, Path) or path.exists() or not NAME.fullmatch(text):
        return path
    try:
        return fetch(text)
    except (CheckpointError, MissingDataError) as error:
        raise CheckpointError(f"there is no file or folder {text!r} here, and {error}") from error


def results_folder(checkpoint: Path) -> Path:
    """Where results on a checkpoint are written: beside it, and of a network of the zoo in ``runs/zoo-NAME``."""
    folder = checkpoint.parent
    return Path("runs") / f"zoo-{folder.name}" if (folder / CARD).is_file() else folder


def shown(folder: Path) -> str:
    """A folder as people name it: ``zoo:NAME`` for a network of the zoo."""
    return f"{PREFIX}{folder.name}" if (folder / CARD).is_file() else str(folder)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spikeprop" / "zoo"


def _download(address: str, file: Path, held: Mapping[str, Any]) -> None:
    """Put a file into the cache; one of another SHA-256 is refused."""
    content = fetched(address, int(held["bytes"]))
    if hashlib.sha256(content).hexdigest() != held["sha256"]:
        raise DamagedFileError(f"{address} is not the file that the zoo's index lists (its SHA-256 differs): try again later")

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(file, write)


def _holds(file: Path, held: Mapping[str, Any]) -> bool:
    return file.stat().st_size == held["bytes"] and file_hash(file) == held["sha256"]


def _unlisted(folder: Path, entry: ZooEntry) -> list[Path]:
    """Networks in an entry's folder that the index does not have."""
    return [file for file in folder.glob("*.safetensors") if file.name not in entry.files]


def _check(file: Path, held: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise DamagedFileError(f"{file} is not there, and the zoo's index lists it: restore it from a copy")
    if not _holds(file, held):
        raise DamagedFileError(f"{file} is not the file that the zoo's index lists (its SHA-256 differs): restore it from a copy")
