"""The index of the zoo of trained networks: where the zoo is, and what its ``index.json`` says; it needs no network and no torch.

The index holds the size and the SHA-256 of every file. ``$SPIKEPROP_ZOO`` names another folder or address; without a checkout
the address is the one that the project's metadata call ``Zoo``, and the index is the one that was installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeprop.errors import DamagedFileError, MissingDataError
from spikeprop.runtime.files import parse_json, read_json

VARIABLE = "SPIKEPROP_ZOO"
INDEX = "index.json"
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
        raise nowhere()
    if isinstance(where, Path):
        if not (where / INDEX).is_file():
            raise MissingDataError(f"{where} is no zoo: it has no {INDEX}; set {VARIABLE} to a checkout's folder zoo/")
        return read_index(where / INDEX)
    return _parsed(fetched(f"{where}/{INDEX}", LARGEST), f"{where}/{INDEX}")


def read_index(file: Path) -> dict[str, ZooEntry]:
    """The entries of an index.

    Raises:
        DamagedFileError: it is not one.
    """
    return _entries(read_json(file), str(file))


def nowhere() -> MissingDataError:
    """The error where there is no zoo."""
    return MissingDataError(
        f"this installation does not know where the zoo is: set {VARIABLE} to the folder zoo/ of a checkout, or to its address"
    )


def _is_address(text: str) -> bool:
    return text.startswith(("https://", "http://"))


def fetched(address: str, most: int) -> bytes:
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
