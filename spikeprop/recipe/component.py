"""``Component``: what a recipe names in a slot, checked but not built yet; and what the signature of its class says."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from spikeprop.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Component(Generic[T]):
    """A component that a recipe names, checked but not yet built.

    Attributes:
        use: its name, as written.
        target: the class or function that builds it.
        arguments: checked keyword arguments; nested components, in lists too, are Components.
        path: where in the recipe, for errors.
    """

    use: str
    target: Callable[..., T]
    arguments: dict[str, Any]
    path: str

    def build(self, *late: Any, **more: Any) -> T:
        """Build it; ``late`` and ``more`` are arguments of the caller, before those of the recipe."""
        arguments = {k: _built(v) for k, v in self.arguments.items()}
        try:
            return self.target(*late, **{**arguments, **more})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{self.path}: {self.use}: {error}") from error

    def replace(self, **arguments: Any) -> Component[T]:
        """The same with other arguments."""
        return dataclasses.replace(self, arguments={**self.arguments, **arguments})

    def with_timesteps(self, timesteps: int, *, override: bool = False) -> Component[T]:
        """The same with ``timesteps``, where it takes them; those that the recipe gives stay, unless ``override``.

        The recipe of a run folder writes out what was not given, as null.
        """
        if "timesteps" not in self.parameters() or (self.arguments.get("timesteps") is not None and not override):
            return self
        return self.replace(timesteps=timesteps)

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
        return {"use": self.use, **_plain({**defaults, **self.arguments})}


def source_of(target: Any) -> Any:
    """What has the signature: the class that an adapter adapts, or the target itself."""
    return getattr(target, "adapts", target)


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """Its parameters, by name."""
    return dict(inspect.signature(source_of(target)).parameters)


def purpose_of(target: Any) -> str:
    """What it is for, and what it is: of its docstring, the first sentences of the paragraph with "For", and of the first one."""
    paragraphs = inspect.cleandoc(source_of(target).__doc__ or "").split("\n\n")
    chosen = [*[p for p in paragraphs[1:] if p.startswith("For ")][:1], paragraphs[0]]
    return " ".join(first_sentence(p) for p in chosen).replace("``", "")


def first_sentence(text: str) -> str:
    """The text up to the first full stop that is not that of an abbreviation."""
    return re.split(r"(?<!al\.)(?<=\.)\s(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]


def hints_of(target: Any) -> dict[str, Any]:
    """The annotated types of its parameters; empty where they cannot be resolved."""
    try:
        constructor = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
        return get_type_hints(constructor)
    except (NameError, TypeError):
        return {}


def _built(value: Any) -> Any:
    """An argument with the components in it built."""
    if isinstance(value, list):
        return [_built(v) for v in value]
    return value.build() if isinstance(value, Component) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return value.describe()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
