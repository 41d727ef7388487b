"""``BackwardOverrides``: a torch function mode in which products and activations use another backward pass than their derivative.

In the relaxed forms of Millidge et al. 2020, W^T is replaced by a separate backward weight B, and the derivative of the
non-linearity is omitted. Both concern single operations, so they work inside any network. In this mode, linear layers and
convolutions whose weight has a B, and activations, are computed as usual in the forward pass and keep two graphs: the exact one
(for the gradient of the weights, and for comparison with backprop) and the replaced one. The attributes at the time of the
backward pass decide which one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from spikeprop.ann.activation import Clipped
from spikeprop.errors import SegmentError
from spikeprop.learn.segments import INPUT, SegmentGraph
from spikeprop.learn.tracing import NORMS

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ELEMENTWISE = (*NORMS, nn.PReLU, nn.Embedding, Clipped)  # their backward pass carries no error from neuron to neuron by a weight
OPERATIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
ACTIVATIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh, F.hardswish, F.sigmoid,
    F.tanh, F.relu_, torch.relu, torch.relu_, torch.tanh, torch.sigmoid, Tensor.relu, Tensor.relu_, Tensor.tanh, Tensor.sigmoid,
}  # fmt: skip


class BackwardOverrides(TorchFunctionMode):
    """Replace the backward pass of products and activations.

    Args:
        backward_weights: B by the id of the weight W that it replaces.
        activations: whether the backward pass of activations can be skipped.

    Attributes:
        exact: use the exact graph for products; otherwise B.
        skip_activations: pass cotangents through activations unchanged, independently of ``exact``.
        weights: whether the gradients of weights are computed.
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
        if func in OPERATIONS:
            x, weight, bias, rest = _operands(args, kwargs)
            other = self.backward_weights.get(id(weight))
            if other is not None:
                return _Product.apply(x, weight, bias, self, func, rest, other)
        return func(*args, **kwargs)


def products(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of linear layers and convolutions, by module name: those that a B can replace."""
    known = dict(model.named_parameters())
    paths = {name: f"{name}.weight".lstrip(".") for name, module in model.named_modules() if isinstance(module, PRODUCTS)}
    return {name: known[path] for name, path in paths.items() if path in known}


def refuse_other_weights(rule: str, model: nn.Module, graph: SegmentGraph) -> None:
    """Refuse a network in which an error would go back by weights that no B replaces.

    Raises:
        SegmentError: a weight that is computed, or shared, which has no id of its own; or one of another kind of module.
    """
    replaced, firsts = products(model), _sends_nothing_back(graph)
    for path, module in model.named_modules():
        if not _has_weights(module) or path in replaced or id(module) in firsts or ".parametrizations." in f".{path}":
            continue  # a parametrisation is judged by its module
        remedy = "those of nn.Linear and convolutions; use"
        if isinstance(module, PRODUCTS):
            remedy = "parameters of one layer; remove the reparametrisation or weight sharing, or use"
        raise SegmentError(
            f"{path or 'the network itself'} ({type(module).__name__}) would send the error back by its own weights: the "
            f"backward weights of {rule} replace {remedy} a rule without them (Backprop, DirectFeedbackAlignment)"
        )


def _has_weights(module: nn.Module) -> bool:
    """Whether the module carries an error from neuron to neuron by weights of its own."""
    if isinstance(module, ELEMENTWISE):
        return False
    scales = all(p.dim() == 3 and p.shape[1:] == (1, 1) for p in module.parameters(recurse=False))  # (C, 1, 1), of channels
    return isinstance(module, PRODUCTS) or is_parametrized(module) or not scales


def _sends_nothing_back(graph: SegmentGraph) -> set[int]:
    """Modules, by id, that alone have weights in a segment that reads only the network's input, and are in no other."""
    found: set[int] = set()
    for segment in graph.segments:
        held = [m for n, m in segment.module.named_modules() if _has_weights(m) and ".parametrizations." not in f".{n}"]
        elsewhere = {id(m) for s in graph.segments if s is not segment for m in s.module.modules()}
        if set(segment.reads) == {INPUT} and len(held) == 1 and id(held[0]) not in elsewhere:
            found.add(id(held[0]))
    return found


def _operands(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None, tuple[tuple, dict[str, Any]]]:
    """(input, weight, bias, other arguments) of a product."""
    names = ("input", "weight", "bias")
    found = [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]
    rest = {k: v for k, v in kwargs.items() if k not in names}
    return found[0], found[1], found[2], (args[3:], rest)  # type: ignore[return-value]


class _Product(torch.autograd.Function):
    """y = f(x, W, b); the cotangent of x uses B instead of W unless the mode is exact."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, mode: BackwardOverrides, f: Callable, rest: Any, other: Tensor
    ) -> Tensor:
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
        if ctx.matrix is not None and not (ctx.mode.exact or ctx.mode.weights):  # the same as below, without traversing a graph
            return g @ ctx.matrix, None, None, None, None, None, None
        x, w, b = ctx.leaves
        wanted = [t for t in (w, b) if t is not None] if ctx.mode.weights else []
        found = [*torch.autograd.grad(ctx.true, wanted, g, retain_graph=True), None, None] if wanted else [None, None]
        source, leaf = (ctx.true, x) if ctx.mode.exact else (ctx.other, ctx.twin)
        (gx,) = torch.autograd.grad(source, [leaf], g, retain_graph=True)
        return gx, found[0], found[1], None, None, None, None


class _Activation(torch.autograd.Function):
    """y = f(x); the cotangent passes unchanged if the mode skips activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mode: BackwardOverrides, f: Callable, rest: Any) -> Tensor:
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
