"""Folders that this user made on this machine, and what code and data their recipes named: commands on them ask for neither.

A run folder may come from anyone, and so may every mark in it. So what a run was allowed to import is recorded in the user's
state directory (``$XDG_STATE_HOME/spikeprop/folders`` or ``~/.local/state/spikeprop/folders``, one JSON file a folder), by the
folder's path and the file system's number of it. Nothing that lies in a folder makes it the user's own: a copy of it, or
another folder at the same path, is from elsewhere. What is granted later is no more than what was recorded: these modules,
from the files that they had then. So a stranger's files within an own folder can import nothing but what the user ran there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spikeprop.errors import DamagedFileError
from spikeprop.runtime.files import read_json, write_json


@dataclass(frozen=True)
class OwnFolder:
    """What is known of a folder from the user's state directory; empty for a folder from elsewhere.

    Attributes:
        modules: packages from outside that the folder's recipe named, with their files; of a file of Python code, itself; of a
            library's function, that alone ("torchvision.models:resnet18").
        data: the recipe's data set, with all of its settings, its root included.
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def packages(self) -> tuple[str, ...]:
        """The recorded packages that are still those files; a folder of one that is not found is added to the path."""
        return tuple(name for name, file in self.modules.items() if _is_still(name, file))


def state_folder() -> Path:
    """Where records of the user's own folders lie."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "spikeprop" / "folders"


def record_own(folder: Path, packages: Iterable[str], data: Mapping[str, Any]) -> None:
    """Record a folder that exists as this user's own.

    Args:
        folder: where the user's command writes.
        packages: those from outside that the user's recipe imported, and files of Python code by their path.
        data: description of its data set.

    Raises:
        OSError: the state directory cannot be written.
    """
    place = folder.resolve()
    files = {package: _file_of(package) for package in sorted(packages)}
    state = state_folder()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = {"folder": str(place), "number": place.stat().st_ino, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(_record_of(place), {**about, "modules": {k: v for k, v in files.items() if v}, "data": dict(data)})


def own_folder(folder: Path) -> OwnFolder:
    """What was recorded of a folder; empty where nothing was, or where it is another folder at the same path."""
    try:
        place = folder.resolve()
        record = _record_of(place)
        if hasattr(os, "geteuid") and record.stat().st_uid != os.geteuid():  # with sudo the state of another user may be found
            return OwnFolder()
        found = read_json(record)
        if found["folder"] != str(place) or found["number"] != place.stat().st_ino:
            return OwnFolder()
        return OwnFolder(dict(found["modules"]), dict(found["data"]))
    except (OSError, DamagedFileError, LookupError, TypeError, ValueError):
        return OwnFolder()  # not recorded, or not readable: the folder is from elsewhere, and its code must be named


def _record_of(place: Path) -> Path:
    return state_folder() / f"{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.json"


def _file_of(package: str) -> str | None:
    """The file of a package that is imported or can be found, or a file itself; None for a package without one."""
    if package.endswith(".py"):
        return package if Path(package).is_file() else None
    package = package.partition(":")[0]  # of a function alone, its module's
    module = sys.modules.get(package)
    found = getattr(module, "__file__", None) if module is not None else _found(package)
    return str(Path(found).resolve()) if found else None


def _found(package: str) -> str | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None


def _is_still(package: str, file: str) -> bool:
    now = _file_of(package)
    if now is None and Path(file).is_file():
        folder = Path(file).parent
        sys.path.append(str(folder.parent if Path(file).name == "__init__.py" else folder))  # nothing of that name is hidden
        now = _file_of(package)
    return now == file
