"""Decompositions in regions of ``torch.autocast`` are computed in float32, as torch's own are, and so are their derivatives.

The backward pass of a product of matrices that runs within such a region computes in bfloat16, whatever the forward pass did. So
a function that is called there becomes one node of the graph, which differentiates it outside of autocast; the derivative is
such a node too, for the next order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

F = TypeVar("F", bound=Callable[..., Any])
Many = tuple[Tensor, ...]


def without_autocast(function: F) -> F:
    """A function whose operations do not see ``torch.autocast``; for the rules of derivatives."""

    @functools.wraps(function)
    def wrapped(*given: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return function(*given)
        device = next((x.device.type for x in given if isinstance(x, Tensor)), "cpu")
        if not torch.is_autocast_enabled(device):
            return function(*given)
        with torch.autocast(device, enabled=False):
            return function(*given)

    return cast(F, wrapped)


def in_float32(function: F) -> F:
    """In a region of ``torch.autocast``: a function in float32, with all its derivatives."""

    @functools.wraps(function)
    def wrapped(*given: Any, **options: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():  # most calls: as fast as can be
            return function(*given, **options)
        tensors = [x for x in (*given, *options.values()) if isinstance(x, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        if not torch.is_autocast_enabled(device):
            return function(*given, **options)

        def computed(*tensors: Tensor) -> Any:
            left = iter(tensors)

            def single(x: Any) -> Any:
                return _single(next(left)) if isinstance(x, Tensor) else x

            return function(*map(single, given), **{name: single(x) for name, x in options.items()})

        with torch.autocast(device, enabled=False):
            return _as_a_node(computed, tensors) if _reverse_mode(tensors) else computed(*tensors)

    return cast(F, wrapped)


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _reverse_mode(tensors: Sequence[Tensor]) -> bool:
    """Whether a graph is recorded, and no compilation, transform or forward mode is active, which must see each operation."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return wanted and all(unpack_dual(x).tangent is None for x in tensors)


def _as_a_node(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Any:
    kind: list[Any] = []  # of the result: a tensor, a tuple or a named tuple
    found = _Node.apply(function, kind, *tensors)
    return kind[0](*found) if hasattr(kind[0], "_fields") else found


class _Node(torch.autograd.Function):
    """A function of tensors as one node, which keeps the graph of its inside for the first derivative."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], kind: list[Any], *tensors: Tensor) -> Any:
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in tensors]  # one may be computed from another
        with torch.enable_grad():
            found = function(*leaves)
        kind.append(type(found))
        ctx.function, ctx.leaves, ctx.inside = function, leaves, _as_tuple(found)
        outside = [x.detach() for x in ctx.inside]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(y for x, y in zip(ctx.inside, outside) if not x.requires_grad))
        return tuple(outside) if isinstance(found, tuple) else outside[0]

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        known = [i for i, g in enumerate(grads) if g is not None]
        seeds = [grads[i] for i in known]
        if not known:
            return None, None, *(None for _ in needed)

        def pulled(*given: Tensor) -> Many:
            inputs, seeds = given[: len(needed)], given[len(needed) :]
            found = _as_tuple(ctx.function(*inputs))
            return _derivatives([found[i] for i in known], inputs, needed, seeds, again=True)

        if torch.is_grad_enabled():
            found = _as_a_node(pulled, [*ctx.saved_tensors, *cast(list[Tensor], seeds)])
        else:
            found = _derivatives([ctx.inside[i] for i in known], ctx.leaves, needed, cast(list[Tensor], seeds), again=False)
        left = iter(found)
        return None, None, *(next(left) if one else None for one in needed)


def _derivatives(
    found: Sequence[Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], seeds: Sequence[Tensor], *, again: bool
) -> Many:
    """By the inputs that need one; ``again``: differentiable."""
    wanted = [x for x, one in zip(inputs, needed) if one]
    return torch.autograd.grad(found, wanted, seeds, retain_graph=True, create_graph=again, materialize_grads=True)


def _as_tuple(found: Any) -> Many:
    return tuple(found) if isinstance(found, tuple) else (found,)
