"""``Faces``: a mode of torch in which products and activations pass other cotangents to their input than their derivative's.

In the relaxed forms of Millidge et al. 2020 W^T becomes a weight B of its own in the backward direction, and the derivative of
the non-linearity is left out. Both are properties of single operations, so they hold inside any network. In the mode, linear
layers and convolutions whose weight has a B, and activations, are computed once as ever, and keep two graphs: the true one (for
the gradient of the weights, and backprop's to compare with) and the other one. Which a cotangent takes is decided when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
ACTIVATIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh, F.hardswish, F.sigmoid,
    F.tanh, F.relu_, torch.relu, torch.relu_, torch.tanh, torch.sigmoid, Tensor.relu, Tensor.relu_, Tensor.tanh, Tensor.sigmoid,
}  # fmt: skip


class Faces(TorchFunctionMode):
    """See above.

    Args:
        backward_weights: B by the id of the weight W in whose place it stands.
        activations: whether activations can be skipped at all.

    Attributes:
        exact: cotangents take the true graph; otherwise B's, and past activations if ``skip_activations``.
        skip_activations: pass cotangents through activations as they are, whatever ``exact`` says.
        weights: whether the gradient of weights is asked for.
    """

    def __init__(self, backward_weights: Mapping[int, Tensor], activations: bool = True):
        super().__init__()
        self.activations = activations
        self.backward_weights = backward_weights
        self.exact = False
        self.skip_activations = False
        self.weights = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.activations and func in ACTIVATIONS and args:
            kwargs.pop("inplace", None)
            return _Activation.apply(args[0], self, func, (args[1:], kwargs))
        if func in PRODUCTS:
            x, weight, bias, rest = _operands(args, kwargs)
            other = self.backward_weights.get(id(weight))
            if other is not None:
                return _Product.apply(x, weight, bias, self, func, rest, other)
        return func(*args, **kwargs)


def _operands(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None, tuple[tuple, dict[str, Any]]]:
    """(input, weight, bias, what else) of a product."""
    names = ("input", "weight", "bias")
    found = [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]
    rest = {k: v for k, v in kwargs.items() if k not in names}
    return found[0], found[1], found[2], (args[3:], rest)  # type: ignore[return-value]


class _Product(torch.autograd.Function):
    """y = f(x, W, b); the cotangent of x goes by B instead of W unless the mode is exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, mode: Faces, f: Callable, rest: Any, other: Tensor) -> Tensor:
        more, kwargs = rest
        with torch.enable_grad():
            ctx.leaves = [t if t is None else t.detach().requires_grad_() for t in (x, w, b)]
            ctx.true = f(*ctx.leaves, *more, **kwargs)
            ctx.twin = x.detach().requires_grad_()
            ctx.other = f(ctx.twin, other.detach(), None, *more, **kwargs)
        ctx.mode, ctx.matrix = mode, other.detach() if f is F.linear else None
        return ctx.true.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        if ctx.matrix is not None and not (ctx.mode.exact or ctx.mode.weights):  # as below, without a graph to walk
            return g @ ctx.matrix, None, None, None, None, None, None
        x, w, b = ctx.leaves
        wanted = [t for t in (w, b) if t is not None] if ctx.mode.weights else []
        found = [*torch.autograd.grad(ctx.true, wanted, g, retain_graph=True), None, None] if wanted else [None, None]
        source, leaf = (ctx.true, x) if ctx.mode.exact else (ctx.other, ctx.twin)
        (gx,) = torch.autograd.grad(source, [leaf], g, retain_graph=True)
        return gx, found[0], found[1], None, None, None, None


class _Activation(torch.autograd.Function):
    """y = f(x); the cotangent passes as it is where the mode says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mode: Faces, f: Callable, rest: Any) -> Tensor:
        more, kwargs = rest
        with torch.enable_grad():
            ctx.leaf = x.detach().requires_grad_()
            source = ctx.leaf.clone() if getattr(f, "__name__", "").endswith("_") else ctx.leaf
            ctx.true = f(source, *more, **kwargs)
        ctx.mode = mode
        return ctx.true.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        if ctx.mode.skip_activations:
            return g, None, None, None
        (gx,) = torch.autograd.grad(ctx.true, [ctx.leaf], g, retain_graph=True)
        return gx, None, None, None
