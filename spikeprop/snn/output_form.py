"""``OutputForm``: the structure of what an ANN returns, and where its tensors lie in the readout of the spiking network.

A spiking network has one readout. Where the ANN returns several tensors (a tuple, a list, a dictionary, nested, a class of named
fields), they are flattened and concatenated in it, in their order; one tensor keeps its shape. Suffix legend: B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import SimulationError


@dataclass(frozen=True)
class OutputPart:
    """One tensor of the result.

    Attributes:
        shape: of a sample.
        first: of its numbers in the flat readout; None where the readout is this tensor.
    """

    shape: tuple[int, ...]
    first: int | None = None

    def of(self, output: Tensor) -> Tensor:
        """The tensor (..., *shape) in a readout."""
        if self.first is None:
            return output
        mine = output[..., self.first : self.first + prod(self.shape)]
        return mine.reshape(*output.shape[:-1], *self.shape)


@dataclass(frozen=True)
class OutputForm:
    """What an ANN returns, with an ``OutputPart`` in the place of each tensor."""

    template: Any

    @classmethod
    def of(cls, result: Any, shape: Callable[[Any], tuple[int, ...] | None]) -> OutputForm | None:
        """The form of a result; None for a single tensor with an axis of outputs.

        Args:
            result: an ANN's.
            shape: of a sample of what is a tensor in it, else None.
        """
        shapes = [found for _, leaf in leaves(result) if (found := shape(leaf)) is not None]
        if shape(result):
            return None
        flat, first = len(shapes) > 1 or shapes == [()], 0

        def part(leaf: Any) -> Any:
            nonlocal first
            mine = shape(leaf)
            if mine is None:
                return leaf
            found = OutputPart(mine, first if flat else None)
            first += prod(mine)
            return found

        return cls(mapped(part, result))

    def __call__(self, output: Tensor) -> Any:
        """The ANN's structure of a readout (..., outputs)."""
        return mapped(lambda leaf: leaf.of(output) if isinstance(leaf, OutputPart) else leaf, self.template)

    def described(self) -> Any:
        """In JSON values, from which ``from_description`` makes it again.

        Raises:
            SimulationError: a class of the caller's own, which a file cannot hold.
        """
        return _described(self.template)

    @classmethod
    def from_description(cls, found: Any) -> OutputForm:
        """Of what ``described`` returned."""
        return cls(_again(found))

    def parts(self) -> dict[str, OutputPart]:
        """The tensors by name: keys, fields and numbers on the way to them, joined by dots."""
        return {name: leaf for name, leaf in leaves(self.template) if isinstance(leaf, OutputPart)}


def leaves(result: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a result holds, with its name: the path to it."""
    inner = _children(result)
    if inner is None:
        yield path, result
        return
    for name, value in inner.items():
        yield from leaves(value, f"{path}.{name}" if path else str(name))


def mapped(change: Callable[[Any], Any], result: Any) -> Any:
    """The result, in its own classes, with ``change`` made to all that it holds."""
    inner = _children(result)
    if inner is None:
        return change(result)
    changed = {name: mapped(change, value) for name, value in inner.items()}
    if isinstance(result, Mapping):
        other: Any = copy.copy(result) if type(result).__module__ != "torch.fx.immutable_collections" else dict(result)
        for name, value in changed.items():
            other[name] = value
        return other
    if is_dataclass(result):
        return replace(result, **changed)  # type: ignore[type-var]
    if hasattr(result, "_fields"):
        return type(result)(**changed)
    return (list if isinstance(result, list) else tuple)(changed.values())


def _children(result: Any) -> dict[Any, Any] | None:
    """What a container holds, or None for anything else."""
    if isinstance(result, Mapping):
        return dict(result)
    if is_dataclass(result) and not isinstance(result, type | OutputPart):
        return {field.name: getattr(result, field.name) for field in fields(result)}
    if isinstance(result, tuple | list) and not isinstance(result, torch.Size):
        return dict(zip(getattr(result, "_fields", range(len(result))), result))
    return None


def _described(leaf: Any) -> Any:
    if isinstance(leaf, OutputPart):
        return {"part": [list(leaf.shape), leaf.first]}
    if type(leaf) is dict and all(isinstance(key, str) for key in leaf):
        return {"dict": {key: _described(value) for key, value in leaf.items()}}
    if type(leaf) in (tuple, list):
        return {type(leaf).__name__: [_described(value) for value in leaf]}
    if isinstance(leaf, bool | int | float | str | None):
        return {"value": leaf}
    raise SimulationError(
        f"the network returns a {type(leaf).__name__}, which a description does not hold: return a dict, tuple or list of tensors"
    )


def _again(found: Any) -> Any:
    ((kind, held),) = found.items()
    if kind == "part":
        return OutputPart(tuple(held[0]), held[1])
    if kind == "dict":
        return {key: _again(value) for key, value in held.items()}
    return held if kind == "value" else {"tuple": tuple, "list": list}[kind](_again(value) for value in held)
