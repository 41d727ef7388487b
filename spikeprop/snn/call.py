"""``Call``: one function of a traced network, applied to samples; ``BatchAxis``: where a tensor of it has the batch.

A traced network may hold its images on any axis, and beside other things: (3, B, heads, N, d) while queries, keys and values are
split, (B * windows, N, C) while windows attend alone. Layers of a spiking network hold samples: (B, ...), the batch first and
alone. A ``BatchAxis``, short form, says how one becomes the other:

    (.., outer * B * inner, ..)  at ``axis``   <->   (B, .., outer, inner, ..)      outer, inner left out where they are 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class BatchAxis(NamedTuple):
    """Where the batch is: on ``axis``, between ``outer`` and ``inner`` other entries."""

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def plain(self) -> bool:
        """Whether the batch is the first axis, and alone there."""
        return self == BatchAxis()

    def samples(self, x: Tensor) -> Tensor:
        """From the traced network's tensor to samples (B, ...)."""
        if self.plain:
            return x
        x = x.unflatten(self.axis, (self.outer, -1, self.inner)).movedim(self.axis + 1, 0)
        x = x.squeeze(self.axis + 2) if self.inner == 1 else x
        return x.squeeze(self.axis + 1) if self.outer == 1 else x

    def batch(self, x: Tensor) -> Tensor:
        """From samples (B, ...) to the traced network's tensor."""
        if self.plain:
            return x
        x = x.unsqueeze(self.axis + 1) if self.outer == 1 else x
        x = x.unsqueeze(self.axis + 2) if self.inner == 1 else x
        return x.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)


class Operand(NamedTuple):
    """Stands in the arguments of a call for one of the tensors that it is given."""

    number: int


class Held(NamedTuple):
    """Stands in the arguments of a call for a constant tensor that the call holds."""

    name: str


class Call(nn.Module):
    """A function, a tensor's method or a module, with arguments in which ``Operand`` and tensors stand for tensors.

    Args:
        target: the function, the method's name, or the module.
        args, kwargs: tensors among them become buffers.
        forms: of the operands.
        form: of the result.
        changes: whether it changes its first operand, which is then copied.
    """

    def __init__(
        self,
        target: Callable[..., Any] | str | nn.Module,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        forms: Sequence[BatchAxis],
        form: BatchAxis,
        changes: bool = False,
    ):
        super().__init__()
        self.module = target if isinstance(target, nn.Module) else None
        self.function = None if isinstance(target, nn.Module) else target
        self.args, self.kwargs = self._held(tuple(args)), self._held(dict(kwargs))
        self.forms, self.form, self.changes = tuple(forms), form, changes

    def _held(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            name = f"constant_{len(self._buffers)}"
            self.register_buffer(name, argument.detach().clone())
            return Held(name)
        return _mapped(self._held, argument)

    def forward(self, *operands: Tensor) -> Tensor:
        """The result (B, ...) for operands (B, ...)."""
        given = [form.batch(x) for form, x in zip(self.forms, operands, strict=True)]
        if self.changes:
            given[0] = given[0].clone()

        def filled(argument: Any) -> Any:
            if isinstance(argument, Operand):
                return given[argument.number]
            return getattr(self, argument.name) if isinstance(argument, Held) else _mapped(filled, argument)

        args, kwargs = filled(self.args), filled(self.kwargs)
        if isinstance(self.function, str):
            return self.form.samples(getattr(args[0], self.function)(*args[1:], **kwargs))
        target: Any = self.module if self.module is not None else self.function
        return self.form.samples(target(*args, **kwargs))

    def extra_repr(self) -> str:
        return "" if self.function is None else str(getattr(self.function, "__name__", self.function))


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """Q K^T."""
    return query @ key.transpose(-2, -1)


def _mapped(change: Callable[[Any], Any], argument: Any) -> Any:
    """The argument with ``change`` made to what it contains."""
    if isinstance(argument, Operand | Held | torch.Size):
        return argument
    if isinstance(argument, tuple | list):
        return type(argument)(change(part) for part in argument)
    if isinstance(argument, dict):
        return {key: change(part) for key, part in argument.items()}
    if isinstance(argument, slice):
        return slice(change(argument.start), change(argument.stop), change(argument.step))
    return argument
