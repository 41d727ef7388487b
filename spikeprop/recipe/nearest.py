"""Suggestions in error messages: the known name that is nearest to an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def unknown_keys(given: Mapping[str, Any], known: Iterable[str], path: str, owner: str) -> list[str]:
    """A message for each key that the owner does not have."""
    known = set(known)
    places = {key: f"{path}.{key}" if path else str(key) for key in given if key not in known}
    return [f"{where}: {owner} has no {key!r}{nearest(str(key), known)}" for key, where in places.items()]


def nearest(name: str, known: Iterable[str], most: int = 100) -> str:
    """The end of a message: the nearest known name, or all of them where they are at most ``most``."""
    known = [str(k) for k in known]
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_lower[near[0]]!r}?"
    return f"; known: {', '.join(sorted(set(known)))}" if 0 < len(known) <= most else ""
