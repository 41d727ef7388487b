"""Attention: softmax(Q K^T / sqrt(d) + mask) V, of spikes: on Q, K and V, and on what the softmax sends.

Samples are (heads, N, d), or of any number of axes before the last two. Each of the two products and the softmax is a layer that
computes; the neurons between them make spikes (``convert/arithmetic.py``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.arithmetic import computed, encoded
from spikeprop.convert.builder import Builder
from spikeprop.convert.operations.functions import Parts, gathered, shifted, weighted
from spikeprop.convert.trace import refuse
from spikeprop.convert.value import Value
from spikeprop.snn.call import BatchAxis, Call, Operand, scores_of


def attended(
    builder: Builder,
    node: fx.Node,
    operands: tuple[Value, Value, Value],
    shapes: tuple[tuple[int, ...], ...],
    scale: float,
    mask: Tensor | None,
) -> tuple[Value, Value]:
    """What attention makes of Q, K and V, of samples in these shapes, and the spikes of its softmax."""
    query, key, value = (encoded(builder, node, operand, 1, product=True) for operand in operands)
    product = Call(scores_of, (Operand(0), Operand(1)), {}, (BatchAxis(), BatchAxis()), BatchAxis())
    scores = values.scale(computed(builder, node, product, ((query, shapes[0]), (key, shapes[1]))), scale)
    scores = scores if mask is None else shifted(scores, mask)
    softmax = Call(torch.softmax, (Operand(0), -1), {}, (BatchAxis(),), BatchAxis())
    shape = (*torch.broadcast_shapes(shapes[0][:-2], shapes[1][:-2]), shapes[0][-2], shapes[1][-2])
    weights = encoded(builder, node, computed(builder, node, softmax, ((scores, shape),)), 1, product=True)
    mixed = Call(torch.matmul, (Operand(0), Operand(1)), {}, (BatchAxis(), BatchAxis()), BatchAxis())
    return computed(builder, node, mixed, ((weights, shape), (value, shapes[2]))), weights


def _mask(builder: Builder, node: fx.Node, mask: Any) -> Tensor | None:
    """An additive mask; of truth values, true lets through."""
    if mask is None:
        return None
    if builder.forms.depends(mask):
        raise refuse(node, "an attention mask that is computed from the images", "give attention a constant mask")
    mask = builder.forms.constant(mask)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=builder.dtype, device=mask.device).masked_fill(~mask, -math.inf)
    return mask.detach().to(builder.dtype)


def scaled_dot_product(builder: Builder, node: fx.Node) -> Value | None:
    """``F.scaled_dot_product_attention``."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = {**dict(zip(names, node.args)), **node.kwargs}
    read: list[Any] = [given[name] for name in names[:3]]
    axes = len(builder.forms.shape(node))
    forms = [builder.forms.of(n) for n in read if builder.forms.depends(n)]
    if builder.constant(given.get("enable_gqa", False)) or len(forms) < 3 or any(f.axis >= axes - 2 for f in forms):
        return None
    shapes = tuple(builder.shape(n) for n in read)
    scale = builder.constant(given.get("scale"))
    mask = _mask(builder, node, given.get("attn_mask"))
    tokens, keys = shapes[0][-2], shapes[1][-2]
    if builder.constant(given.get("is_causal", False)):
        mask = torch.full((tokens, keys), -math.inf, dtype=builder.dtype, device=builder.device).triu(1)
    if mask is not None:
        whole = (*builder.forms.shape(node)[:-2], tokens, keys)
        mask = builder.forms.of_sample(mask, node, whole, builder.forms.of(node))
    operands = (builder.values[read[0]], builder.values[read[1]], builder.values[read[2]])
    return attended(builder, node, operands, shapes, 1 / math.sqrt(shapes[0][-1]) if scale is None else float(scale), mask)[0]


def multihead(builder: Builder, node: fx.Node, module: nn.MultiheadAttention) -> Parts | None:
    """``nn.MultiheadAttention``: its packed projection, the heads, attention, and the projection of the result."""
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
    given = {**dict(zip(names, node.args)), **node.kwargs}
    read: list[Any] = [given[name] for name in names[:3]]
    if module.bias_k is not None or module.add_zero_attn or given.get("key_padding_mask") is not None:
        return None
    if not all(builder.forms.depends(n) and len(builder.shape(n)) == 2 for n in read):
        return None
    heads, size = module.num_heads, module.head_dim
    operands, shapes = [], []
    for i, n in enumerate(read):
        value = encoded(builder, node, builder.values[n], -1, product=True)
        value = weighted(value, _projection(module, i), f"{node.target}.in_proj_{'qkv'[i]}")
        tokens = builder.shape(n)[0]
        index = torch.arange(tokens * heads * size).reshape(tokens, heads, size).transpose(0, 1)
        operands.append(gathered(builder, value, index, index.numel()))
        shapes.append((heads, tokens, size))
    mask = _mask(builder, node, _additive(builder, given.get("attn_mask")))
    if mask is not None and mask.dim() == 3:
        return None
    mixed, weights = attended(builder, node, (operands[0], operands[1], operands[2]), tuple(shapes), size**-0.5, mask)
    index = torch.arange(heads * shapes[0][1] * size).reshape(heads, -1, size).transpose(0, 1).flatten(1)
    value = encoded(builder, node, gathered(builder, mixed, index, index.numel()), -1)
    value = weighted(value, module.out_proj, f"{node.target}.out_proj")
    average = Call(torch.mean, (Operand(0), 1), {}, (BatchAxis(),), BatchAxis())
    wanted = builder.constant(given.get("average_attn_weights", True))
    return Parts((value, tuple(b.then(average) for b in weights) if wanted else weights))


def _additive(builder: Builder, mask: Any) -> Any:
    """The module's truth values are the other way round: true keeps out."""
    constant = None if mask is None or builder.forms.depends(mask) else builder.forms.constant(mask)
    return mask if constant is None else (~constant if constant.dtype == torch.bool else constant)


def _projection(module: nn.MultiheadAttention, number: int) -> nn.Linear:
    """The linear layer of queries, keys or values."""
    part = slice(number * module.embed_dim, (number + 1) * module.embed_dim)
    if module.in_proj_weight is not None:
        weight = module.in_proj_weight[part]
    else:
        weight = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)[number]
    layer = nn.Linear(weight.shape[1], len(weight), module.in_proj_bias is not None, weight.device, weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if module.in_proj_bias is not None:
        layer.bias = nn.Parameter(module.in_proj_bias.detach()[part].clone(), module.in_proj_bias.requires_grad)
    return layer


def function_form(builder: Builder, node: fx.Node) -> Value | None:
    """``F.multi_head_attention_forward``: its weights are arguments, so that no layer would have them."""
    raise refuse(
        node,
        "its weights are arguments of the function, and no module's",
        "call an nn.MultiheadAttention with these weights, or F.linear and F.scaled_dot_product_attention",
    )


FUNCTIONS = {"scaled_dot_product_attention": scaled_dot_product, "multi_head_attention_forward": function_form}
