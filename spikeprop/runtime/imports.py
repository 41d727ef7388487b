"""The import policy: which modules may be imported because a text (a recipe, a checkpoint, a NIR file) names them.

A recipe may name any module, and the person who runs it is responsible for that; ``note_foreign_names`` collects what it named,
for the record of the user's own folders (``runtime/own_folders.py``). Two contexts allow less. Within
``record_foreign_names`` (used by ``check``) names outside spikeprop are recorded and not imported. Within ``only_trusted`` (used
for checkpoints and NIR files, which people pass on) three kinds of modules may be imported: the libraries of which networks are
built, what this process has already imported, and what the user lists. Of the first two, classes of a slot alone may be used, and
no functions (``may_call``): ``torch.hub.load`` and ``os.system`` would run anything.

A name is that of a module (``package.module``), or of a file (``folder/mynet.py``), which is looked for in the working directory
and beside the recipe; so are modules that Python itself does not find. A file is trusted by its path, since any file may have its
name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from spikeprop.runtime.places import folders

LIBRARIES = ("spikeprop", "torch", "torchvision", "snntorch", "norse")


@dataclass(frozen=True)
class _Policy:
    packages: Collection[str]
    already_imported: bool
    recorded: list[str] | None = None
    listed: Collection[str] = ()  # by the user


_policy: ContextVar[_Policy | None] = ContextVar("import policy", default=None)
_noted: ContextVar[set[str] | None] = ContextVar("modules that a recipe named", default=None)


@contextmanager
def note_foreign_names() -> Iterator[set[str]]:
    """Within this context, packages outside ``LIBRARIES`` that a text names and that may be imported are added to this set."""
    noted: set[str] = set()
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


@contextmanager
def record_foreign_names() -> Iterator[list[str]]:
    """Within this context, names outside spikeprop are appended to the list that it returns, and are not imported."""
    recorded: list[str] = []
    token = _policy.set(_Policy(("spikeprop",), False, recorded))
    try:
        yield recorded
    finally:
        _policy.reset(token)


@contextmanager
def only_trusted(allowed: Collection[str] = ()) -> Iterator[None]:
    """Within this context, a module is refused unless it is in ``LIBRARIES`` or ``allowed``, or is already imported."""
    token = _policy.set(_Policy((*LIBRARIES, *allowed), True, listed=allowed))
    try:
        yield
    finally:
        _policy.reset(token)


def importable(module: str) -> bool:
    """Whether a module, or a file of Python code by its path, may be imported here because a text names it."""
    policy, noted = _policy.get(), _noted.get()
    package = _package(module)
    named = policy is None or package in _packages(policy.packages)
    if noted is not None and named and package not in LIBRARIES:
        noted.add(package)
    present = Path(package) in _files if is_file(module) else module in sys.modules
    return named or (policy is not None and policy.already_imported and present)


def may_call(module: str, name: str) -> bool:
    """Whether what is no class of a slot (a function, an object, another class) may be used because a text names it.

    Within ``only_trusted`` the user must have listed its package, or it itself ("torchvision.models:resnet18").
    """
    policy, noted, package, own = _policy.get(), _noted.get(), _package(module), f"{module}:{name}"
    allowed = policy is None or package in _packages(policy.listed) or own in policy.listed
    if noted is not None and allowed and package in LIBRARIES:  # others are noted as packages
        noted.add(own)
    return allowed


def _package(module: str) -> str:
    return str(Path(module).resolve()) if is_file(module) else package_of(module)


def _packages(names: Collection[str]) -> set[str]:
    return {str(Path(name).expanduser().resolve()) if is_file(name) else name for name in names}


def recorded_names() -> list[str] | None:
    """The list that collects names which are not imported; None where such names are refused."""
    policy = _policy.get()
    return None if policy is None else policy.recorded


def is_file(module: str) -> bool:
    """Whether a name is that of a file of Python code, and not of a module."""
    return module.endswith(".py")


def package_of(use: str) -> str:
    """What ``--import`` must name before ``use`` ("package.module.Name", "module:Name", "folder/file.py:Name") is imported."""
    where, colon, _ = use.rpartition(":")
    where = where if colon else use
    return where if is_file(where) else where.partition(".")[0]


def find_file(name: str) -> Path | None:
    """The file of Python code that a text names: as it is, or in ``folders()``, at last by its name alone; or None."""
    given = Path(name).expanduser()
    found = [given, *(folder / given for folder in folders()), *(folder / given.name for folder in folders())]
    return next((file.resolve() for file in found if file.is_file()), None)


_files: dict[Path, ModuleType] = {}  # modules that were imported by their file


def import_named(module: str) -> ModuleType:
    """Import a module by its dotted name, or by its file's path; in both cases those beside it can be imported too.

    Raises:
        ImportError: there is none.
        Exception: whatever its own code raises.
    """
    if is_file(module):
        return _import_file(Path(module).resolve())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        first = module.partition(".")[0]
        folder = next((f for f in folders() if (f / f"{first}.py").is_file() or (f / first).is_dir()), None)
        if error.name != first or folder is None or str(folder) in sys.path:
            raise
    _append(folder)
    return importlib.import_module(module)


def _import_file(file: Path) -> ModuleType:
    if file in _files:
        return _files[file]
    present = sys.modules.get(file.stem)
    if present is not None and Path(getattr(present, "__file__", None) or ".").resolve() == file:
        return _files.setdefault(file, present)
    _append(file.parent)
    taken = present is not None or _origin(file.stem) != file  # another module has its name
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}" if taken else file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be read as Python code")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return _files.setdefault(file, module)


def _origin(name: str) -> Path | None:
    """The file that Python itself would import by this name."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve()


def _append(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end: a file there must not replace an installed module
        importlib.invalidate_caches()
