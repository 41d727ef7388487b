"""``typed``: an argument that is not of the kind which its annotation says is refused by name, before it is used.

Python checks no annotation: for ``call: bool`` the text "put" would count as true, and for ``strike: float`` the text "100" would
fail somewhere inside, where no message knows the argument. Kinds are bool, int, float, str, None, literals, classes, functions,
and unions, sequences, tuples and mappings of them; another annotation (``Any``) says nothing. A whole number is a real number, a
bool is neither, and a scalar of NumPy or PyTorch is what it holds.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T", bound=Callable[..., Any])

_short = reprlib.Repr()
_short.maxother, _short.maxstring = 60, 40


def typed(error: type[Exception]) -> Callable[[T], T]:
    """A decorator of functions, and of classes for their arguments (above ``dataclass``): raises ``error`` for a wrong kind."""

    def decorate(thing: T) -> T:
        own: Any = thing
        if not inspect.isclass(own):
            return cast(T, _checked(own, own, error))
        own.__init__ = _checked(own.__init__, own if dataclasses.is_dataclass(own) else own.__init__, error)
        return thing

    return decorate


def is_real(value: Any) -> bool:
    """Whether a value is one real number: not text, not a bool, not an array."""
    return (
        not isinstance(value, str | bytes | bool | np.bool_ | np.complexfloating)
        and hasattr(value, "__float__")
        and getattr(value, "ndim", 0) == 0
    )


def shown(value: Any) -> str:
    """A value on one short line."""
    plain = type(value).__repr__ is object.__repr__
    return f"{type(value).__name__}(...)" if plain else " ".join(_short.repr(value).split())


class _Wrong(NamedTuple):
    """A value that is not what it must be; ``depth``: of its place within the argument."""

    where: str
    value: Any
    due: str
    depth: int


def _checked(function: Callable[..., Any], annotated: Any, error: type[Exception]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    several = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @functools.cache  # at the first call: an annotation may name what is defined below
    def kinds() -> dict[str, Any]:
        return {name: kind for name, kind in get_type_hints(annotated).items() if name not in several}

    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        try:
            values = signature.bind_partial(*given, **named).arguments
        except TypeError:  # too many, or of another name: the call itself says which
            values = {}
        for name, value in values.items():
            wrong = _wrong(name, value, kinds()[name], 0) if name in kinds() else None
            if wrong is not None:
                raise error(f"{wrong.where} is {shown(wrong.value)}; it must be {wrong.due}")
        return function(*given, **named)

    return checked


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return is_real(value)


_SIMPLE: dict[Any, tuple[Callable[[Any], bool], str, str]] = {
    bool: (lambda value: isinstance(value, bool | np.bool_), "True or False", "True or False"),
    int: (_is_whole, "a whole number", "whole numbers"),
    float: (is_real, "a real number", "real numbers"),
    str: (lambda value: isinstance(value, str), "a string", "strings"),
    NoneType: (lambda value: value is None, "None", "None"),
    Callable: (callable, "a function", "functions"),
}


def _wrong(where: str, value: Any, kind: Any, depth: int) -> _Wrong | None:
    """The first value within ``value`` that is not of its kind."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return None
    here = _Wrong(where, value, _due(kind), depth)
    if origin in (Union, UnionType):
        found = [_wrong(where, value, one, depth) for one in inside]
        deepest = max((one for one in found if one is not None), key=lambda one: one.depth, default=None)
        return None if None in found or deepest is None else deepest if deepest.depth > depth else here
    if origin is Literal:
        return None if any(type(value) is type(one) and value == one for one in inside) else here
    if origin in _SIMPLE:
        return None if _SIMPLE[origin][0](value) else here
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return here
        parts = [(f"{where}[{key!r}]", one, inside[1]) for key, one in value.items()]
        return _first(parts, depth + 1)
    if origin in (Sequence, list, tuple):
        items = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(items, str | bytes | Mapping | Set) or not isinstance(items, Collection):
            return here
        if origin is tuple and len(items) != len(inside):
            return here
        each = inside if origin is tuple else inside[:1] * len(items)
        return _first([(f"{where}[{i}]", one, each[i]) for i, one in enumerate(items)], depth + 1)
    return here if inspect.isclass(origin) and not isinstance(value, origin) else None


def _first(parts: Sequence[tuple[str, Any, Any]], depth: int) -> _Wrong | None:
    return next((wrong for part in parts if (wrong := _wrong(*part, depth)) is not None), None)


def _due(kind: Any, *, several: bool = False) -> str:
    """What a value must be, in words."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_due(one, several=several) for one in inside)
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin in _SIMPLE:
        _, one, more = _SIMPLE[origin]
        return more if several else one
    if origin is Mapping:
        return f"{'mappings' if several else 'a mapping'} of names to {_due(inside[1], several=True)}"
    if origin is tuple:
        return f"{'tuples' if several else 'a tuple'} of {len(inside)} {_due(inside[0], several=True)}"
    if origin in (Sequence, list):
        return f"{'sequences' if several else 'a sequence'} of {_due(inside[0], several=True)}"
    name = getattr(origin, "__name__", str(origin))
    if inspect.isabstract(origin) and origin.__subclasses__():
        name += f", such as {origin.__subclasses__()[0].__name__}"
    return name if several else f"of class {name}"
