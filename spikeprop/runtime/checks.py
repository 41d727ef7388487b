"""Checks of settings, in every room; an error names the setting, its value and the bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikeprop.runtime.arguments import is_real, shown


def _number(settings: Any, name: str) -> Any:
    """The attribute; raises ValueError unless it is a number."""
    value = getattr(settings, name)
    if not is_real(value):
        raise ValueError(f"{name} is {shown(value)}; it must be a real number")
    return value


def positive(settings: Any, *names: str) -> None:
    """Raises ValueError unless each of these attributes is above 0."""
    for name in names:
        if not _number(settings, name) > 0:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be positive")


def positive_or_null(settings: Any, *names: str) -> None:
    """Raises ValueError unless each of these attributes is None or above 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not _number(settings, name) > 0:
            raise ValueError(f"{name} is {value}; it must be positive, or null")


def not_negative(settings: Any, *names: str, hint: str = "") -> None:
    """Raises ValueError unless each of these attributes is at least 0; ``hint`` ends the message."""
    for name in names:
        if not _number(settings, name) >= 0:
            raise ValueError(f"{name} is {getattr(settings, name)}; it cannot be negative{hint}")


def at_least_one(settings: Any, *names: str) -> None:
    """Raises ValueError unless each of these attributes is at least 1."""
    for name in names:
        if not _number(settings, name) >= 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least 1")


def one_of(settings: Any, name: str, *known: str) -> None:
    """Raises ValueError unless this attribute is one of these words."""
    if getattr(settings, name) not in known:
        raise ValueError(f"{name} is {getattr(settings, name)!r}; use {', '.join(known)}")


def in_percent(settings: Any, name: str) -> None:
    """Raises ValueError unless this attribute lies in (0, 100]."""
    if not 0 < _number(settings, name) <= 100:
        raise ValueError(f"{name} is {getattr(settings, name)}; it lies in (0, 100]")


def distinct(settings: Any, *names: str, least: int = 1) -> None:
    """Raises ValueError unless each of these lists holds at least ``least`` values (1 or 2), all different."""
    for name in names:
        values: Sequence[Any] = getattr(settings, name)
        if len(values) < least or len(set(values)) < len(values):
            raise ValueError(f"{name} is {list(values)}; give at least {('one', 'two')[least - 1]}, each once")
