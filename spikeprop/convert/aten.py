"""Operations of an exported graph (``torch.ops.aten``) as functions and methods of PyTorch, which the tables know by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DROPPED = ("_guards_fn", "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")


def python_form(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """A function that computes what the operation computes, of the same arguments."""
    name = op._schema.name.removeprefix("aten::")
    if name in FORMS:
        return FORMS[name]
    for place in (torch, F):
        if hasattr(place, name):
            return getattr(place, name)
    return _method(name) if hasattr(Tensor, name) else op


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _slice(x: Tensor, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Tensor:
    stop = None if stop == sys.maxsize else stop
    if (start in (0, None)) and stop is None and step == 1:
        return x
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, stop, step),)]


def _select(x: Tensor, axis: int, index: Any) -> Tensor:
    return x[(slice(None),) * (axis % x.ndim) + (index,)]


def _retyped(x: Tensor, *arguments: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return x.to(next((a for a in arguments if isinstance(a, torch.dtype)), dtype or x.dtype))


def _interpolated(mode: str) -> Callable[..., Tensor]:
    def interpolate(x: Tensor, size: Any = None, *corners_and_factors: Any) -> Tensor:
        *corners, factors = corners_and_factors
        return F.interpolate(x, size, factors, mode, *corners)

    return interpolate


FORMS: dict[str, Callable[..., Any]] = {
    "batch_norm": lambda x, weight, bias, mean, var, training, momentum, eps, *_: F.batch_norm(
        x, mean, var, weight, bias, training, momentum, eps
    ),
    "instance_norm": lambda x, weight, bias, mean, var, use, momentum, eps, *_: F.instance_norm(
        x, mean, var, weight, bias, use, momentum, eps
    ),
    "layer_norm": lambda x, shape, weight=None, bias=None, eps=1e-5, *_: F.layer_norm(x, shape, weight, bias, eps),
    "group_norm": lambda x, groups, weight=None, bias=None, eps=1e-5, *_: F.group_norm(x, groups, weight, bias, eps),
    "constant_pad_nd": lambda x, pad, value=0: F.pad(x, pad, "constant", value),
    **{f"{word}_pad{n}d": lambda x, pad, mode=mode: F.pad(x, pad, mode) for n in (1, 2, 3)
       for word, mode in (("reflection", "reflect"), ("replication", "replicate"))},
    **{f"upsample_{mode}{n}d": _interpolated(name) for n, mode, name in (
        (1, "nearest", "nearest"), (2, "nearest", "nearest"), (3, "nearest", "nearest"), (1, "linear", "linear"),
        (2, "bilinear", "bilinear"), (2, "bicubic", "bicubic"), (3, "trilinear", "trilinear"))},
    "slice": _slice,
    "select": _select,
    "split_with_sizes": torch.split,
    "sym_size": lambda x, axis: x.size(axis),
    "rsub": lambda x, other, alpha=1: other - x * alpha,
    **dict.fromkeys(("_to_copy", "to"), _retyped),
    **{name: _method(name) for name in ("view", "expand", "permute", "transpose", "unsqueeze", "repeat", "reshape")},
    **dict.fromkeys(("alias", "lift_fresh_copy", "lift_fresh", "detach_"), lambda x: x),
    **dict.fromkeys(DROPPED, lambda *_, **__: None),
}  # fmt: skip
