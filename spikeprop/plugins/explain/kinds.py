"""The kind of operation of a recorded call, with the settings that its closed form needs.

A kind names a closed form (``forms``), which names a card. All calls that only move entries have the kind "rearrange": applied
to the numbers of the entries, they show where each output entry comes from. A call of no known kind is "opaque": the page shows
its numbers, but cannot recompute it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikeprop.plugins.explain.arguments import OPAQUE, Arguments, Kind, operand_of
from spikeprop.plugins.explain.kinds_indexing import INDEXING
from spikeprop.plugins.explain.trace import Node, Trace
from spikeprop.snn.surrogate import STDB, ATan, FastSigmoid, Triangle

MOVING = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "mT", "T", "squeeze",
    "unsqueeze", "expand", "expand_as", "__getitem__", "chunk", "split", "unbind", "select", "narrow", "cat", "concat",
    "stack", "contiguous", "clone", "repeat", "pad", "roll", "flip", "to", "view_as", "t", "index_select",
    "tile", "repeat_interleave", "pixel_shuffle", "write",
}  # fmt: skip
PLAIN = {
    "relu": "relu",
    "relu_": "relu",
    "tanh": "tanh",
    "tanh_": "tanh",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "silu": "silu",
}
BINARY = {
    "add": "add", "add_": "add", "__add__": "add", "__radd__": "add", "__iadd__": "add", "sub": "sub", "sub_": "sub",
    "__sub__": "sub", "__rsub__": "rsub", "rsub": "rsub", "__isub__": "sub", "mul": "mul", "mul_": "mul", "__mul__": "mul",
    "__rmul__": "mul", "__imul__": "mul", "multiply": "mul", "div": "div", "div_": "div", "__truediv__": "div",
    "__itruediv__": "div", "divide": "div",
}  # fmt: skip


def kind_of(node: Node, trace: Trace) -> Kind:
    """(kind, settings as JSON values) of a call."""
    inputs = [trace.values[i].tensor for i in node.inputs]
    for table, make in ((MOVING, _rearrange), (PLAIN, _plain), (BINARY, _binary), (SPECIAL, _special)):
        if node.name in table:
            try:
                return make(node, inputs)
            except (LookupError, TypeError, ValueError, RuntimeError):
                return OPAQUE
    return OPAQUE


def _rearrange(node: Node, inputs: list[Tensor]) -> Kind:
    """The position of each output entry in the concatenated inputs; -1 for a zero."""
    numbered = _numbered(inputs, 1)
    outputs = node.run(numbered)
    moved = [out.detach().flatten() for out in outputs]
    if any((m != m.round()).any() for m in moved):
        return OPAQUE
    if not _moves(moved, node.run(inputs), inputs) or not _shifts(moved, node, inputs):
        return OPAQUE
    lost = [int(t.numel()) for t in inputs if t.is_floating_point()]
    if len(moved) == 1 and lost == [len(moved[0])] and torch.equal(moved[0], torch.arange(1.0, lost[0] + 1, dtype=torch.float64)):
        return "rearrange", {"same": True, "shapes": [list(outputs[0].shape)]}
    index = [(m - 1).long().tolist() for m in moved]
    return "rearrange", {"index": index, "shapes": [list(out.shape) for out in outputs]}


def _numbered(inputs: list[Tensor], first: int) -> list[Tensor]:
    """The inputs with consecutive numbers as entries."""
    found = []
    for tensor in inputs:
        if tensor.is_floating_point():
            found.append(torch.arange(first, first + tensor.numel(), dtype=torch.float64).view(tensor.shape))
            first += tensor.numel()
        else:
            found.append(tensor)
    return found


def _shifts(moved: list[Tensor], node: Node, inputs: list[Tensor]) -> bool:
    """Whether every number but zero grows with the numbers of the entries: one that a pad adds, for example, does not."""
    by = 1 + sum(t.numel() for t in inputs)
    again = node.run(_numbered(inputs, 1 + by))
    return all(torch.equal(new.detach().flatten(), torch.where(m == 0, m, m + by)) for m, new in zip(moved, again))


def _moves(moved: list[Tensor], outputs: list[Tensor], inputs: list[Tensor]) -> bool:
    """Whether the outputs are the entries with these numbers: a pad with ones, for example, also gives a number."""
    entries = torch.cat([torch.zeros(1, dtype=torch.float64), *(t.double().flatten() for t in inputs if t.is_floating_point())])
    if any(bool((m < 0).any()) or bool((m >= len(entries)).any()) for m in moved):
        return False
    return all(torch.equal(entries[m.long()].nan_to_num(), out.double().flatten().nan_to_num()) for m, out in zip(moved, outputs))


def _plain(node: Node, inputs: list[Tensor]) -> Kind:
    return PLAIN[node.name], {}


def _binary(node: Node, inputs: list[Tensor]) -> Kind:
    args, kwargs = node.arguments
    if set(kwargs) - {"other", "out"} or len(args) + len(kwargs) != 2:
        return OPAQUE
    return BINARY[node.name], {"operands": [operand_of(operand) for operand in (*args, *kwargs.values())]}


def _special(node: Node, inputs: list[Tensor]) -> Kind:
    return SPECIAL[node.name](Arguments(node.name, node.arguments, node.run), inputs)


def _linear(a: Arguments, inputs: list[Tensor]) -> Kind:
    return "affine", {"slots": [a.slot(0, "input"), a.slot(1, "weight"), a.slot(2, "bias")]}


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in (value if len(value) == 2 else [*value, *value])]


def _conv(a: Arguments, inputs: list[Tensor]) -> Kind:
    padding = a.get(4, "padding", 0)
    if isinstance(padding, str) or inputs[0].dim() != 4:
        return OPAQUE
    settings = {"stride": _pair(a.get(3, "stride", 1)), "padding": _pair(padding), "dilation": _pair(a.get(5, "dilation", 1))}
    slots = [a.slot(0, "input"), a.slot(1, "weight"), a.slot(2, "bias")]
    return "conv2d", {"slots": slots, **settings, "groups": int(a.get(6, "groups", 1))}


def _pool(a: Arguments, inputs: list[Tensor]) -> Kind:
    kernel = _pair(a.get(1, "kernel_size"))
    stride = _pair(a.get(2, "stride") or kernel)
    largest = a.name == "max_pool2d"
    if largest:
        unusual = _pair(a.get(4, "dilation", 1)) != [1, 1] or a.get(5, "ceil_mode", False) or a.get(6, "return_indices", False)
    else:
        unusual = a.get(4, "ceil_mode", False) or not a.get(5, "count_include_pad", True) or a.get(6, "divisor_override")
    if inputs[0].dim() != 4 or unusual:
        return OPAQUE
    kind = "max_pool2d" if largest else "avg_pool2d"
    return kind, {"kernel": kernel, "stride": stride, "padding": _pair(a.get(3, "padding", 0))}


def _adaptive(a: Arguments, inputs: list[Tensor]) -> Kind:
    size = a.get(1, "output_size")
    wanted = [size, size] if isinstance(size, int) or size is None else list(size)
    sides = list(inputs[0].shape[-2:])
    wanted = [side if w is None else w for w, side in zip(wanted, sides)]
    if inputs[0].dim() != 4 or any(side % w for side, w in zip(sides, wanted)):
        return OPAQUE
    kernel = [side // w for side, w in zip(sides, wanted)]
    return "avg_pool2d", {"kernel": kernel, "stride": kernel, "padding": [0, 0]}


def _batch_norm(a: Arguments, inputs: list[Tensor]) -> Kind:
    slots = [a.slot(0, "input"), a.slot(3, "weight"), a.slot(4, "bias"), a.slot(1, "running_mean"), a.slot(2, "running_var")]
    training = bool(a.get(5, "training", False)) or slots[3] is None
    return "batch_norm", {"slots": slots, "training": training, "eps": float(a.get(7, "eps", 1e-5))}


def _layer_norm(a: Arguments, inputs: list[Tensor]) -> Kind:
    slots = [a.slot(0, "input"), a.slot(2, "weight"), a.slot(3, "bias")]
    return "layer_norm", {"slots": slots, "axes": len(list(a.get(1, "normalized_shape"))), "eps": float(a.get(4, "eps", 1e-5))}


def _group_norm(a: Arguments, inputs: list[Tensor]) -> Kind:
    slots = [a.slot(0, "input"), a.slot(2, "weight"), a.slot(3, "bias")]
    return "group_norm", {"slots": slots, "groups": int(a.get(1, "num_groups")), "eps": float(a.get(4, "eps", 1e-5))}


def _attention(a: Arguments, inputs: list[Tensor]) -> Kind:
    if a.get(3, "attn_mask") is not None or a.get(7, "enable_gqa", False):
        return OPAQUE
    slots = [a.slot(0, "query"), a.slot(1, "key"), a.slot(2, "value")]
    scale = a.get(6, "scale")
    causal = bool(a.get(5, "is_causal", False))
    found = {"slots": slots, "causal": causal, "scale": float(inputs[0].shape[-1] ** -0.5 if scale is None else scale)}
    if not a.get(4, "dropout_p", 0.0):
        return "attention", found
    return "attention_dropout", found | {"factor": _dropped_weights(a, inputs, causal).flatten().tolist()}


def _dropped_weights(a: Arguments, inputs: list[Tensor], causal: bool) -> Tensor:
    """The factor of each weight, by the call itself: queries of zero make all weights equal, and values of unit vectors show
    them."""
    query, key = inputs[:2]
    count = key.shape[-2]
    shown = a.run([torch.zeros_like(query), torch.zeros_like(key), torch.eye(count).to(key).expand(*key.shape[:-1], count)])[0]
    seen = torch.arange(1, query.shape[-2] + 1).clamp(max=count) if causal else torch.full((query.shape[-2],), count)
    return shown * seen[:, None]


def _softmax(a: Arguments, inputs: list[Tensor]) -> Kind:
    axis = a.get(1, "dim")
    return ("softmax", {}) if axis in (-1, inputs[0].dim() - 1) else OPAQUE


def _cross_entropy(a: Arguments, inputs: list[Tensor]) -> Kind:
    unusual = a.get(2, "weight") is not None or a.get(6, "reduction", "mean") != "mean" or a.get(7, "label_smoothing", 0.0)
    if unusual or inputs[0].dim() != 2 or inputs[1].dim() != 1:
        return OPAQUE
    if (inputs[1] < 0).any() or (inputs[1] == a.get(4, "ignore_index", -100)).any():
        return OPAQUE
    return "cross_entropy", {"slots": [a.slot(0, "input"), a.slot(1, "target")]}


def _bce(a: Arguments, inputs: list[Tensor]) -> Kind:
    unusual = a.get(2, "weight") is not None or a.get(5, "reduction", "mean") != "mean" or a.get(6, "pos_weight") is not None
    return OPAQUE if unusual else ("bce_with_logits", {"slots": [a.slot(0, "input"), a.slot(1, "target")]})


def _mse(a: Arguments, inputs: list[Tensor]) -> Kind:
    unusual = a.get(4, "reduction", "mean") != "mean" or inputs[0].shape != inputs[1].shape or len(inputs) != 2
    return OPAQUE if unusual else ("squared_error", {"slots": [a.slot(0, "input"), a.slot(1, "target")]})


def _reduce(a: Arguments, inputs: list[Tensor]) -> Kind:
    axes, rank = a.get(1, "dim", a.kwargs.get("axis")), inputs[0].dim()
    given = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
    return "reduce", {
        "mean": a.name == "mean",
        "axes": sorted(int(axis) % rank for axis in given) if rank else [],
        "keep": bool(a.get(2, "keepdim", False)),
    }


def _matmul(a: Arguments, inputs: list[Tensor]) -> Kind:
    return ("matmul", {}) if len(inputs) == 2 and min(t.dim() for t in inputs) >= 2 else OPAQUE


def _dropout(a: Arguments, inputs: list[Tensor]) -> Kind:
    factor = a.run([torch.ones_like(inputs[0])])[0]
    return "factor", {"factor": factor.flatten().tolist()}


def _gelu(a: Arguments, inputs: list[Tensor]) -> Kind:
    return ("gelu", {}) if a.get(1, "approximate", "none") == "none" else OPAQUE


def _qr(a: Arguments, inputs: list[Tensor]) -> Kind:
    rows, columns = inputs[0].shape[-2:]
    return ("qr", {}) if a.get(1, "mode", "reduced") == "reduced" and rows >= columns else OPAQUE


def _negative(a: Arguments, inputs: list[Tensor]) -> Kind:
    return "mul", {"operands": [{"input": 0}, {"number": -1.0}]}


def _integrate(a: Arguments, inputs: list[Tensor]) -> Kind:
    return "integrate", {}


def _fire(a: Arguments, inputs: list[Tensor]) -> Kind:
    surrogate = a.get(3, "surrogate")
    if type(surrogate) not in (STDB, Triangle, FastSigmoid, ATan):
        return OPAQUE
    return "fire", {"surrogate": type(surrogate).__name__, **vars(surrogate)}


def _reset(a: Arguments, inputs: list[Tensor]) -> Kind:
    return "reset", {"to_zero": bool(a.get(3, "to_zero"))}


def _grade(a: Arguments, inputs: list[Tensor]) -> Kind:
    return "grade", {"payload": int(a.get(3, "payload"))}


SPECIAL: dict[str, Callable[[Arguments, list[Tensor]], Kind]] = {
    "linear": _linear, "conv2d": _conv, "max_pool2d": _pool, "avg_pool2d": _pool, "adaptive_avg_pool2d": _adaptive,
    "batch_norm": _batch_norm, "layer_norm": _layer_norm, "scaled_dot_product_attention": _attention, "softmax": _softmax,
    "cross_entropy": _cross_entropy, "binary_cross_entropy_with_logits": _bce, "mse_loss": _mse, "mean": _reduce,
    "group_norm": _group_norm, "sum": _reduce,
    "matmul": _matmul, "__matmul__": _matmul, "bmm": _matmul, "mm": _matmul, "dropout": _dropout,
    "dropout2d": _dropout, "gelu": _gelu, "linalg_qr": _qr, "neg": _negative, "__neg__": _negative, "integrate": _integrate,
    "fire": _fire, "reset": _reset, "grade": _grade, **INDEXING,
}  # fmt: skip
