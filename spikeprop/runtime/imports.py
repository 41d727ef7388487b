"""The import policy: which modules may be imported because a text (a recipe, a checkpoint, a NIR file) names them.

A recipe may name any module, and the person who runs it is responsible for that. Two contexts allow less. Within
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
    policy = _policy.get()
    if policy is None or module.partition(".")[0] in policy.packages:
        return True
    return policy.already_imported and module in sys.modules


def recorded_names() -> list[str] | None:
    """The list that collects names which are not imported; None where such names are refused."""
    policy = _policy.get()
    return None if policy is None else policy.recorded
