"""The arguments of a call as a pattern with a ``Slot`` for each tensor, so that it can be repeated and its kind be recognised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """The place of a tensor among a call's arguments."""

    index: int


def take(tree: Any, found: list[Tensor]) -> Any:
    """The tree with a Slot instead of each tensor; the tensors are appended to ``found``."""
    if isinstance(tree, Tensor):
        found.append(tree)
        return Slot(len(found) - 1)
    if isinstance(tree, dict):
        return {key: take(value, found) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(take(value, found) for value in tree)
    return tree


def fill(tree: Any, tensors: list[Tensor]) -> Any:
    """The tree with the tensors in its slots."""
    if isinstance(tree, Slot):
        return tensors[tree.index]
    if isinstance(tree, dict):
        return {key: fill(value, tensors) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(fill(value, tensors) for value in tree)
    return tree


def floating(result: Any) -> list[Tensor]:
    """Floating-point tensors of the result of a call, in order."""
    return [t for t in tensors_of(result) if t.is_floating_point()]


def complex_of(result: Any) -> list[Tensor]:
    """Complex tensors of the result of a call."""
    return [t for t in tensors_of(result) if t.is_complex()]


def tensors_of(result: Any) -> list[Tensor]:
    """Tensors of the result of a call, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in tensors_of(part)] if isinstance(result, list | tuple) else []


Kind = tuple[str, dict[str, Any]]
OPAQUE: Kind = ("opaque", {})


class Arguments:
    """The arguments of a recorded call, by position or name.

    Attributes:
        run: the call on other tensors (``Node.run``).
        name: of the function.

    """

    def __init__(self, name: str, arguments: tuple[Any, Any], run: Callable[[list[Tensor]], list[Tensor]]):
        self.name, self.run = name, run
        self.args, self.kwargs = arguments

    def get(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def slot(self, place: int, name: str) -> int | None:
        return slot_of(self.get(place, name))


def slot_of(argument: Any) -> int | None:
    """The number of the input that an argument is; None for anything else."""
    return argument.index if isinstance(argument, Slot) else None


def operand_of(argument: Any) -> dict[str, Any]:
    """An operand as JSON: the input that it is, or the number.

    Raises:
        TypeError: neither of both.
    """
    if isinstance(argument, Slot):
        return {"input": argument.index}
    if isinstance(argument, int | float):
        return {"number": float(argument)}
    raise TypeError(f"an operand is {type(argument).__name__}")
