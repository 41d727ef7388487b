"""Any other operation: shapes of every form, constants that are folded, and functions and products that become layers.

What the tables of layers and tensors do not convert comes here, by name: operations on shapes are a map of places to places,
found by letting the operation move numbers that say where they are; linear operations join the synapse; sums and products with
constants are shifts and gains; a matrix product reads spikes. Everything else is a function that a layer computes, if it
computes each sample alone and without weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.arithmetic import computed, encoded
from spikeprop.convert.builder import Builder
from spikeprop.convert.forms import mapped, refuse_random
from spikeprop.convert.known import BATCH
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import LinearBranch, Value
from spikeprop.snn import Gain, SampleDropout
from spikeprop.snn.call import BatchAxis, Call, Operand
from spikeprop.snn.gather import Gather, Shift, places

SAME = frozenset(
    ("contiguous", "clone", "detach", "to", "float", "double", "type_as", "identity", "stochastic_depth", "drop_path")
)
SHAPES = frozenset((
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "swapaxes", "swapdims",
    "movedim", "moveaxis", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "roll", "flip", "rot90",
    "getitem", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select", "index_select", "cat",
    "concat", "concatenate", "stack", "hstack", "vstack", "pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold",
    "view_as", "reshape_as", "tril", "triu", "diagonal", "adjoint", "take",
))  # fmt: skip
LINEAR = frozenset((
    "mean", "sum", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "interpolate", "upsample", "fold", "diff",
))  # fmt: skip
SHAPE_MODULES = (
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unfold, nn.modules.padding._ConstantPadNd,
)  # fmt: skip
LINEAR_MODULES = (nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.Upsample, nn.Fold)
MATRIX = frozenset(("matmul", "bmm", "einsum", "linear", "mm", "baddbmm", "conv1d", "conv2d", "conv3d", "bilinear", "tensordot"))
SMOOTH = "near a jump no number of steps is enough; use a continuous function"
JUMPS = frozenset((
    "threshold", "hardshrink", "floor", "ceil", "round", "trunc", "frac", "sign", "sgn", "heaviside", "floor_divide", "floordiv",
    "fmod", "remainder", "mod",
))  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The values of a node that has several tensors."""

    values: tuple[Value | None, ...]


def converted(builder: Builder, node: fx.Node) -> Value | Parts | None:
    """The value of a node that the other tables do not convert; None if it cannot be converted at all.

    Raises:
        ConversionError: names the node.
    """
    if node.op == "call_module":
        return _of_module(builder, node, builder.modules[str(node.target)])
    name = function_name(node)
    if name == "getattr":
        name = str(node.args[1])
    whole = node.args[0] if node.args else None
    if name == "getitem" and isinstance(builder.values.get(whole), Parts):  # type: ignore[arg-type]
        return _part(builder, node, builder.values[whole])  # type: ignore[index]
    if name in SAME or (name.startswith("dropout") and not builder.arguments(node, "p", "training").get("training", False)):
        return builder.values[whole]  # type: ignore[index]
    if name in SHAPES or (name in ("T", "mT", "H") and function_name(node) == "getattr"):
        return rearranged(builder, node)
    if name in FUNCTIONS:
        return FUNCTIONS[name](builder, node)
    if name in LINEAR:
        return _linear(builder, node)
    if name in MATRIX:
        return _matrix(builder, node)
    return _function(builder, node)


def _of_module(builder: Builder, node: fx.Node, module: nn.Module) -> Value | Parts | None:
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout):
        return values.append(builder.value(node), SampleDropout(module.p))
    if isinstance(module, nn.Identity):
        return builder.value(node)
    if isinstance(module, SHAPE_MODULES):
        return rearranged(builder, node)
    if isinstance(module, LINEAR_MODULES):
        return _linear(builder, node)
    if type(module) is nn.Linear and builder.forms.of(node).axis < len(builder.forms.shape(node)) - 1:
        value = encoded(builder, node, builder.value(node), -1)
        return weighted(value, module, str(node.target))
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
        return _normalised(builder, node, module)
    if isinstance(module, nn.RNNBase | nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.Bilinear):
        return None
    if isinstance(module, nn.Threshold | nn.Hardshrink):
        raise refuse(node, "a function with jumps", SMOOTH)
    weights = [path for path, inner in module.named_modules() if isinstance(inner, nn.Linear | nn.modules.conv._ConvNd)]
    return None if weights else _function(builder, node)


# shapes -------------------------------------------------------------------------------------------------------------------------


def operands(builder: Builder, node: fx.Node) -> list[fx.Node]:
    """The nodes that an operation reads and that are computed from the images."""
    return [n for n in node.all_input_nodes if builder.forms.depends(n)]


def call_of(builder: Builder, node: fx.Node, *, formed: bool) -> Call:
    """The operation of a node, for samples (``formed``) or for the graph's tensors as they are.

    Raises:
        ConversionError: it reads the images otherwise than as tensors.
    """
    read = operands(builder, node)
    if any(not isinstance(builder.values.get(n), tuple) for n in read):
        raise refuse(node, "an operation on several tensors at once", "take them one by one: a, b = x.chunk(2, 1)")

    def given(argument: Any) -> Any:
        if isinstance(argument, fx.Node) and builder.forms.depends(argument):
            return Operand(read.index(argument))
        return builder.forms.constant(argument) if isinstance(argument, fx.Node) else mapped(given, _of_device(builder, argument))

    target: Any = builder.copied(node) if node.op == "call_module" else node.target
    forms = [builder.forms.of(n) if formed else BatchAxis() for n in read]
    form = builder.forms.of(node) if formed else BatchAxis()
    return Call(target, given(node.args), given(dict(node.kwargs)), forms, form, builder.changes(node))


def _of_device(builder: Builder, argument: Any) -> Any:
    return builder.device if isinstance(argument, torch.device) and argument.type == "meta" else argument


@torch.no_grad()
def rearranged(builder: Builder, node: fx.Node) -> Value | Parts:
    """The result of an operation that only moves numbers, or puts constants beside them.

    Raises:
        ConversionError: it moves numbers from image to image.
    """
    read, call = operands(builder, node), call_of(builder, node, formed=False).cpu()
    zeros = [torch.zeros(builder.forms.shape(n), dtype=torch.float64) for n in read]
    constant = _listed(call(*zeros))
    moved = []
    for i, n in enumerate(read):
        where = builder.forms.of(n).batch(places(BATCH, builder.shape(n)))
        found = _listed(call(*zeros[:i], where, *zeros[i + 1 :]))
        moved.append([(one - other).round().long() for one, other in zip(found, constant, strict=True)])
    parts = tuple(_joined(builder, node, o, [m[o] for m in moved], added) for o, added in enumerate(constant))
    return Parts(parts) if isinstance(builder.outline[node], tuple | list) else parts[0]


def _listed(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]


def _joined(builder: Builder, node: fx.Node, number: int, moved: list[Tensor], constant: Tensor) -> Value:
    """The value of one tensor of a node, from where the numbers of each operand went."""
    sizes = [builder.shape(n) for n in operands(builder, node)]
    form = next((f for f in builder.forms.candidates(node, number) if _own(f, moved, sizes)), None)
    if form is None:
        raise refuse(node, "numbers of one image that go to another", "images must not influence one another")
    builder.forms.set(node, number, form)
    branches: list[LinearBranch] = []
    for n, where, shape in zip(operands(builder, node), moved, sizes):
        branches += gathered(builder, builder.values[n], form.samples(where)[0] - 1, torch.Size(shape).numel())
    if not branches:  # none of the images' numbers is left: one branch carries the constant
        first = operands(builder, node)[0]
        index = torch.full_like(form.samples(moved[0])[0], -1)
        branches = [*builder.values[first][:1]]
        branches[0] = branches[0].then(Gather(index, torch.Size(sizes[0]).numel()).to(builder.device))
    value = tuple(branches)
    learnt = any(builder.forms.learnt(n) for n in node.all_input_nodes if not builder.forms.depends(n))
    if not learnt and not bool((constant != 0).any()):  # a class token of zeros has another value after training
        return value
    shift = builder.forms.of_sample(constant.to(builder.dtype), node, tuple(constant.shape), form)
    return shifted(value, shift)


def _own(form: BatchAxis, moved: list[Tensor], shapes: list[tuple[int, ...]]) -> bool:
    """Whether each sample's numbers are its own, and all samples are treated alike."""
    for where, shape in zip(moved, shapes):
        samples = form.samples(where)
        first = torch.arange(len(samples)).reshape(-1, *(1,) * (samples.dim() - 1)) * torch.Size(shape).numel()
        if not torch.equal(samples, torch.where(samples[:1] > 0, samples[:1] + first, 0)):
            return False
    return True


def gathered(builder: Builder, value: Value, index: Tensor, size: int) -> Value:
    """Each branch with its numbers at other places; branches of which nothing is left are gone."""
    if bool((index < 0).all()):
        return ()
    made: dict[int, Gather] = {}
    branches = []
    for branch in value:
        last = branch.last if isinstance(branch.last, Gather) else None
        if id(last) not in made:  # the same object where it is the same, by which branches are compared
            plain = Gather(index, size)
            made[id(last)] = (plain if last is None else plain.after(last)).to(builder.device)
        branches.append((branch.without_last() if last is not None else branch).then(made[id(last)]))
    return tuple(branches)


def _part(builder: Builder, node: fx.Node, parts: Parts) -> Value | Parts:
    whole, index = node.args[0], builder.constant(node.args[1])
    chosen = parts.values[index]
    if isinstance(index, slice):
        return Parts(chosen)  # type: ignore[arg-type]
    if chosen is None:
        raise refuse(node, "a result that is not converted", "leave it out")
    builder.forms.set(node, 0, builder.forms.of(whole, index % len(parts.values)))  # type: ignore[arg-type]
    return chosen  # type: ignore[return-value]


# constants ----------------------------------------------------------------------------------------------------------------------


def shifted(value: Value, shift: Tensor) -> Value:
    """The value plus a constant of the shape of a sample, or broadcastable to it."""
    return (value[0].then(Shift(shift)), *value[1:])


def weighted(value: Value, layer: nn.Linear, label: str) -> Value:
    """A linear layer along the last axis of samples of several axes."""
    return tuple(b.then(layer if b.kept else values._copy(layer, bias=i == 0), label) for i, b in enumerate(value))


def _normalised(builder: Builder, node: fx.Node, norm: nn.modules.batchnorm._BatchNorm) -> Value:
    """Batch-norm of a tensor that has the batch elsewhere than first and alone; channels are its axis 1."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain_C = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift_C = (0 if norm.bias is None else norm.bias) - norm.running_mean * gain_C
    shape, form = builder.forms.shape(node), builder.forms.of(node)
    gain, shift = (
        builder.forms.of_sample(c.detach().reshape(1, -1, *(1,) * (len(shape) - 2)), node, shape, form) for c in (gain_C, shift_C)
    )
    return shifted(scaled(builder.value(node), gain), shift)


def _expanded(builder: Builder, node: fx.Node, argument: fx.Node) -> Value:
    """An operand of the shape of the result."""
    value: Value = builder.values[argument]
    own, wanted = builder.forms.shape(argument), builder.forms.shape(node)
    if own == wanted:
        return value
    where = builder.forms.of(argument).batch(places(BATCH, builder.shape(argument)))
    moved = builder.forms.of(node).samples(torch.broadcast_to(where, wanted)).long()
    size = torch.Size(builder.shape(argument)).numel()
    if not _own(BatchAxis(), [moved], [builder.shape(argument)]):
        raise refuse(node, "numbers of one image that go to another", "images must not influence one another")
    return gathered(builder, value, moved[0] - 1, size)


def _constant(builder: Builder, node: fx.Node, argument: Any) -> Tensor:
    """An operand that depends on no image, as one sample meets it."""
    constant = torch.as_tensor(builder.forms.constant(argument), device=builder.device)
    constant = constant.detach() if constant.is_floating_point() else constant.to(builder.dtype)
    return builder.forms.of_sample(constant, node, builder.forms.shape(node), builder.forms.of(node))


def _add(builder: Builder, node: fx.Node, sign: float = 1.0, swapped: bool = False) -> Value:
    first, second = _two(builder, node)
    if swapped:
        first, second = second, first
    factor = sign * float(builder.constant(node.kwargs.get("alpha", 1)))
    branches: list[LinearBranch] = []
    for argument, weight in ((first, 1.0), (second, factor)):
        if builder.forms.depends(argument):
            branches += values.scale(_expanded(builder, node, argument), weight)
    value = tuple(branches)
    for argument, weight in ((first, 1.0), (second, factor)):
        if not builder.forms.depends(argument):
            value = shifted(value, weight * _constant(builder, node, argument))
    return value


def _two(builder: Builder, node: fx.Node) -> tuple[Any, Any]:
    given = [*node.args, *(node.kwargs[k] for k in ("input", "other") if k in node.kwargs)]
    return given[0], given[1]


def _subtract(builder: Builder, node: fx.Node) -> Value:
    return _add(builder, node, -1.0, swapped=function_name(node) == "rsub")


def _multiply(builder: Builder, node: fx.Node) -> Value:
    first, second = _two(builder, node)
    if builder.forms.depends(first) and builder.forms.depends(second):
        return _function(builder, node)
    argument, factor = (first, second) if builder.forms.depends(first) else (second, first)
    learnt = builder.forms.learnt(factor)
    return scaled(_expanded(builder, node, argument), _constant(builder, node, factor), learnt=learnt)


def _divide(builder: Builder, node: fx.Node) -> Value:
    first, second = _two(builder, node)
    if builder.forms.depends(second) or node.kwargs.get("rounding_mode") is not None:
        return _function(builder, node)
    learnt = builder.forms.learnt(second)
    return scaled(_expanded(builder, node, first), 1 / _constant(builder, node, second), learnt=learnt)


def scaled(value: Value, factor: Tensor, *, learnt: bool = False) -> Value:
    """The value times a constant of the shape of a sample, or broadcastable to it; ``learnt``: from the network's tensors."""
    if factor.numel() == 1:
        return values.scale(value, float(factor), learnt=learnt)
    return tuple(b.then(Gain(factor)) for b in value)


def _masked(builder: Builder, node: fx.Node) -> Value:
    """``masked_fill`` and ``where`` with a constant mask: numbers are left out, and constants, infinite ones too, put there."""
    given: dict[str, Any] = {**dict(zip(_MASKED[function_name(node)], node.args)), **node.kwargs}
    where, first, second = (
        (given["mask"], given["value"], given["input"])
        if function_name(node) == "masked_fill"
        else (given["condition"], given.get("input"), given.get("other"))
    )
    if builder.forms.depends(where) or first is None or second is None:
        return _function(builder, node)
    mask, value = _constant(builder, node, where) != 0, ()
    for argument, chosen in ((first, mask), (second, ~mask)):
        if builder.forms.depends(argument):
            value += scaled(_expanded(builder, node, argument), chosen.to(builder.dtype))
    for argument, chosen in ((first, mask), (second, ~mask)):
        if not builder.forms.depends(argument):
            constant = _constant(builder, node, argument).to(builder.dtype)
            value = shifted(value, torch.where(chosen, constant, torch.zeros_like(constant)))
    return value


_MASKED = {"masked_fill": ("input", "mask", "value"), "where": ("condition", "input", "other")}


def _negate(builder: Builder, node: fx.Node) -> Value:
    return values.scale(builder.value(node), -1.0)


# linear operations, products and functions --------------------------------------------------------------------------------------


def _linear(builder: Builder, node: fx.Node) -> Value:
    """A linear operation without weights."""
    op = call_of(builder, node, formed=True)
    return tuple(b.then(op) for b in builder.values[operands(builder, node)[0]])


def _matrix(builder: Builder, node: fx.Node) -> Value | None:
    """A matrix product: of spikes and weights, or of spikes and spikes."""
    read = operands(builder, node)
    product = len(read) > 1
    name = function_name(node)
    if name.startswith("conv") and not product:
        return None
    given = []
    for n in read:
        axis = -1 if name == "linear" or len(builder.shape(n)) < 3 else 1
        given.append((encoded(builder, node, builder.values[n], axis, product=product), builder.shape(n)))
    op = call_of(builder, node, formed=True)
    if product:
        return computed(builder, node, op, given)
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    value = given[0][0]
    if name == "linear" and bias is not None:
        op.args, op.kwargs = op.args[:2], {k: v for k, v in op.kwargs.items() if k != "bias"}
        return shifted(tuple(b.then(op, node.name) for b in value), _constant(builder, node, bias))
    return tuple(b.then(op, node.name) for b in value)


def _function(builder: Builder, node: fx.Node) -> Value:
    """A layer that computes what is neither linear nor a ReLU."""
    outlined = builder.outline[node]
    if not isinstance(outlined, Tensor) or not outlined.is_floating_point():
        what = "a result of whole numbers or truth values" if isinstance(outlined, Tensor) else "a function of several results"
        raise refuse(node, what, "a spiking network computes with real numbers, one tensor an operation")
    refuse_random(node)
    if function_name(node).strip("_") in JUMPS or "rounding_mode" in node.kwargs:
        raise refuse(node, "a function with jumps", SMOOTH)
    read = operands(builder, node)
    op = call_of(builder, node, formed=True)
    return computed(builder, node, op, [(builder.values[n], builder.shape(n)) for n in read])


FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value | None]] = {
    **dict.fromkeys(("add", "iadd", "radd"), _add),
    **dict.fromkeys(("sub", "isub", "rsub", "subtract"), _subtract),
    **dict.fromkeys(("mul", "imul", "multiply", "rmul"), _multiply),
    **dict.fromkeys(("truediv", "itruediv", "div", "divide", "true_divide"), _divide),
    **dict.fromkeys(("neg", "negative"), _negate),
    **dict.fromkeys(("masked_fill", "where"), _masked),
}
