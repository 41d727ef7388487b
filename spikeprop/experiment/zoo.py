"""The zoo: trained networks by name, from a checkout's folder ``zoo/`` or fetched from an address.

An entry is a run folder without its intermediate files: one network (safetensors and its description), recipe, run.json,
report.json and a card. ``index.json`` beside the entries holds the size and the SHA-256 of every file, which are compared
whenever an entry is used. ``$SPIKEPROP_ZOO`` names another folder or address; without a checkout the address is the one that the
project's metadata call ``Zoo``, and the index is the one that was installed. What is fetched is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeprop.errors import CheckpointError, DamagedFileError, MissingDataError
from spikeprop.recipe.nearest import nearest
from spikeprop.runtime.files import file_hash, parse_json, read_json, write_atomically

VARIABLE = "SPIKEPROP_ZOO"
PREFIX = "zoo:"
INDEX = "index.json"
CARD = "card.md"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # of an entry
FILE = re.compile(r"[A-Za-z0-9][\w.-]*")
LARGEST = 64 * 2**20  # bytes of a file
SECONDS = 30.0  # that an address may take to answer


@dataclass(frozen=True)
class ZooEntry:
    """What the index says of a network.

    Attributes:
        name: of the entry.
        about: one line.
        network: which network of its run: "ann", "converted", "finetuned" or "trained".
        timesteps: of a simulation.
        accuracy: percent, by number of steps, and "ANN".
        licence: of the weights.
        files: name to {"bytes", "sha256"}.
    """

    name: str
    about: str
    network: str
    timesteps: int | None
    accuracy: Mapping[str, float]
    licence: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file["bytes"] for file in self.files.values())


def place() -> Path | str | None:
    """The zoo's folder, or its address; None where an installation has neither."""
    given = os.environ.get(VARIABLE)
    if given:
        return given.rstrip("/") if _is_address(given) else Path(given)
    checkout = Path(__file__).parents[2] / "zoo"
    if (checkout / INDEX).is_file():
        return checkout
    try:
        urls = importlib.metadata.metadata("spikeprop").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        urls = []
    named = dict(url.split(", ", 1) for url in urls if ", " in url)
    return named["Zoo"].rstrip("/") if "Zoo" in named else None


def entries() -> dict[str, ZooEntry]:
    """All networks of the zoo, by name.

    Raises:
        MissingDataError: there is no zoo, or it cannot be reached.
        DamagedFileError: its index is not one.
    """
    where, installed = place(), Path(__file__).parents[1] / "zoo" / INDEX
    if installed.is_file() and not os.environ.get(VARIABLE):
        return read_index(installed)
    if where is None:
        raise _nowhere()
    if isinstance(where, Path):
        if not (where / INDEX).is_file():
            raise MissingDataError(f"{where} is no zoo: it has no {INDEX}; set {VARIABLE} to a checkout's folder zoo/")
        return read_index(where / INDEX)
    return _parsed(_fetched(f"{where}/{INDEX}", LARGEST), f"{where}/{INDEX}")


def read_index(file: Path) -> dict[str, ZooEntry]:
    """The entries of an index.

    Raises:
        DamagedFileError: it is not one.
    """
    return _entries(read_json(file), str(file))


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
        raise _nowhere()
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


def _nowhere() -> MissingDataError:
    return MissingDataError(
        f"this installation does not know where the zoo is: set {VARIABLE} to the folder zoo/ of a checkout, or to its address"
    )


def _is_address(text: str) -> bool:
    return text.startswith(("https://", "http://"))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spikeprop" / "zoo"


def _download(address: str, file: Path, held: Mapping[str, Any]) -> None:
    """Put a file into the cache; one of another SHA-256 is refused."""
    content = _fetched(address, int(held["bytes"]))
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


def _fetched(address: str, most: int) -> bytes:
    """What an address holds, at most so many bytes."""
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(address, timeout=SECONDS) as answer:  # of http or https alone
            content = answer.read(most + 1)
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise MissingDataError(f"cannot fetch {address} ({why}); set {VARIABLE} to the folder zoo/ of a checkout") from error
    if len(content) > most:
        raise DamagedFileError(f"{address} has more than {most:,} bytes, and the zoo's index says otherwise")
    return content


def _parsed(content: bytes, source: str) -> dict[str, ZooEntry]:
    try:
        return _entries(parse_json(content.decode()), source)
    except ValueError as error:
        raise DamagedFileError(f"{source} is no index of a zoo: {error}") from error


def _entries(found: Any, source: str) -> dict[str, ZooEntry]:
    """Entries whose names can be used as those of files, and whose sizes are bounded."""
    try:
        made = {name: ZooEntry(name, **entry) for name, entry in found["networks"].items()}
        for entry in made.values():
            sizes = [file["bytes"] for file in entry.files.values()]
            names_fit = NAME.fullmatch(entry.name) and all(FILE.fullmatch(name) for name in entry.files)
            if not names_fit or not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
                raise ValueError(f"its entry {entry.name!r} has names or sizes that no zoo has")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DamagedFileError(f"{source} is no index of a zoo, or damaged: {error}") from error
    return made
