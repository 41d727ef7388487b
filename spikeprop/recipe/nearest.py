"""Suggestions in error messages: the known name that is nearest to an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from spikeprop.errors import RecipeError


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], path: str, owner: str) -> None:
    """Raise a RecipeError for the first key that the owner does not have."""
    known = set(known)
    for key in given:
        if key not in known:
            where = f"{path}.{key}" if path else str(key)
            raise RecipeError(f"{where}: {owner} has no {key!r}{nearest(str(key), known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the nearest known name, or all of them."""
    known = [str(k) for k in known]
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else f"; known: {', '.join(sorted(known))}"
