"""Whose code may be imported because a text names it: the one place that decides it.

A recipe that someone runs may name any module: running it is trusting it. Two readers trust less. ``looking`` notes names
from outside instead of importing them. ``from_file`` is for checkpoints and NIR files, which pass from hand to hand: they get the
libraries that networks are built of, what this process has already imported, and what the user names.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

LIBRARIES = ("spikeprop", "torch", "torchvision", "snntorch", "norse")


@dataclass(frozen=True)
class _Trust:
    packages: Collection[str]
    imported_too: bool
    noted: list[str] | None = field(default=None)


_trust: ContextVar[_Trust | None] = ContextVar("trust", default=None)


@contextmanager
def looking() -> Iterator[list[str]]:
    """Within, names from outside spikeprop are put into the list that this gives, and nothing of theirs is imported."""
    noted: list[str] = []
    token = _trust.set(_Trust(("spikeprop",), False, noted))
    try:
        yield noted
    finally:
        _trust.reset(token)


@contextmanager
def from_file(named: Collection[str] = ()) -> Iterator[None]:
    """Within, names of packages that are neither known, nor imported already, nor ``named`` are refused."""
    token = _trust.set(_Trust((*LIBRARIES, *named), True))
    try:
        yield
    finally:
        _trust.reset(token)


def importable(module: str) -> bool:
    """Whether a module may be imported here because a text names it."""
    trust = _trust.get()
    if trust is None or module.partition(".")[0] in trust.packages:
        return True
    return trust.imported_too and module in sys.modules


def noted() -> list[str] | None:
    """Where names go that are not imported; None where they are to be refused."""
    trust = _trust.get()
    return None if trust is None else trust.noted
