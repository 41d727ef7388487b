"""``Component``: a part of a run, named and checked, that is not made yet; and what the signature of its maker says."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from spikeprop.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Component(Generic[T]):
    """A component that a recipe named, checked but not yet made.

    Attributes:
        use: its name, as written.
        target: what makes it.
        arguments: checked keyword arguments; nested components are Components.
        path: where in the recipe, for errors.
    """

    use: str
    target: Callable[..., T]
    arguments: dict[str, Any]
    path: str

    def build(self, *late: Any, **more: Any) -> T:
        """Make it; ``late`` and ``more`` are arguments that only exist now."""
        arguments = {k: v.build() if isinstance(v, Component) else v for k, v in self.arguments.items()}
        try:
            return self.target(*late, **{**more, **arguments})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{self.path}: {self.use}: {error}") from error

    def replace(self, **arguments: Any) -> Component[T]:
        """The same with other arguments."""
        return dataclasses.replace(self, arguments={**self.arguments, **arguments})

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The target's parameters by name."""
        return parameters_of(self.target)

    def describe(self) -> dict[str, Any]:
        """As it would be written in a recipe, defaults included."""
        defaults = {
            name: p.default
            for name, p in parameters_of(self.target).items()
            if p.default is not p.empty and isinstance(p.default, bool | int | float | str | list | tuple | None)
        }
        values = {k: v.describe() if isinstance(v, Component) else v for k, v in self.arguments.items()}
        return {"use": self.use, **_plain({**defaults, **values})}


def source_of(target: Any) -> Any:
    """What carries the signature: an adapter's own target, or the target itself."""
    return getattr(target, "adapts", target)


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """What it takes, by name."""
    return dict(inspect.signature(source_of(target)).parameters)


def hints_of(target: Any) -> dict[str, Any]:
    """The annotated types of what it takes; none where they cannot be told."""
    try:
        constructor = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
        return get_type_hints(constructor)
    except (NameError, TypeError):
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
