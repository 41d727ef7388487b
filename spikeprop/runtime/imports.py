"""The import policy: which modules may be imported because a text (a recipe, a checkpoint, a NIR file) names them.

A recipe may name any module, and the person who runs it is responsible for that; ``note_foreign_names`` collects what it named, for
the record of the user's own folders (``runtime/own_folders.py``). Two contexts allow less. Within
``record_foreign_names`` (used by ``check``) names outside spikeprop are recorded and not imported. Within ``only_trusted`` (used
for checkpoints and NIR files, which people pass on) three kinds of modules may be imported: the libraries of which networks are
built, what this process has already imported, and what the user lists.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

LIBRARIES = ("spikeprop", "torch", "torchvision", "snntorch", "norse")


@dataclass(frozen=True)
class _Policy:
    packages: Collection[str]
    already_imported: bool
    recorded: list[str] | None = None


_policy: ContextVar[_Policy | None] = ContextVar("import policy", default=None)
_noted: ContextVar[set[str] | None] = ContextVar("modules that a recipe named", default=None)


@contextmanager
def note_foreign_names() -> Iterator[set[str]]:
    """Within this context, packages outside ``LIBRARIES`` that may be imported, since a recipe names them, are added to this set."""
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
    token = _policy.set(_Policy((*LIBRARIES, *allowed), True))
    try:
        yield
    finally:
        _policy.reset(token)


def importable(module: str) -> bool:
    """Whether a module may be imported here because a text names it."""
    policy, noted, package = _policy.get(), _noted.get(), module.partition(".")[0]
    named = policy is None or package in policy.packages
    if noted is not None and named and package not in LIBRARIES:
        noted.add(package)
    return named or (policy is not None and policy.already_imported and module in sys.modules)


def recorded_names() -> list[str] | None:
    """The list that collects names which are not imported; None where such names are refused."""
    policy = _policy.get()
    return None if policy is None else policy.recorded
