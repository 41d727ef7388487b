"""``with_known_shapes``: an ONNX model in which what is computed from sizes is a constant, where it is the same for any batch.

Exporters that keep the number of images open write arithmetic of sizes into the file (Shape, Gather, Div, Concat, ...). All
shapes and all that follows from them are computed twice, for two numbers of images: what is equal becomes a constant, the target
of a reshape in which only the number of images differs becomes one with -1 in its place, and a tensor that is repeated for every
image (a class token) becomes ``ExpandToBatch``, an operator of our own that onnx2torch is taught.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import Tensor, nn

TWO = (5, 8)  # numbers of images
ROUNDS = 8  # inference sees further when some sizes are constants
RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")
DOMAIN, EXPAND = "spikeprop", "ExpandToBatch"


class ExpandToBatch(nn.Module):
    """A weight that is repeated along an axis, once for each image.

    Args:
        weight: that is repeated.
        sizes: after it; the one at ``axis`` is the number of images.
        axis: of the images.
    """

    def __init__(self, weight: Tensor, sizes: list[int], axis: int):
        super().__init__()
        self.weight, self.sizes, self.axis = nn.Parameter(weight), sizes, axis

    def forward(self, images: Tensor) -> Tensor:
        return self.weight.expand(*self.sizes[: self.axis], images.shape[0], *self.sizes[self.axis + 1 :])


def with_known_shapes(model: Any, name: str, sizes: list[int]) -> Any:
    """The model, its input ``name`` having images of the given sizes, without arithmetic of sizes where that is possible."""
    model = copy.deepcopy(model)
    (one, one_computed), (other, other_computed) = (_inferred(model, name, [images, *sizes]) for images in TWO)
    _fold(model.graph, one_computed, other_computed)
    _fix_reshapes(model.graph, (one, other))
    _fix_expansions(model, name, (one, other))
    _drop_unread(model.graph)
    return model


def _inferred(model: Any, name: str, sizes: list[int]) -> tuple[dict[str, list[int]], dict[str, np.ndarray]]:
    """The shapes of all values that can be inferred, for one size of the input, and the values that follow from them."""
    from onnx import numpy_helper

    fixed, computed = copy.deepcopy(model), dict[str, np.ndarray]()
    for _ in range(ROUNDS):
        shapes = _shapes(fixed, name, sizes)
        found = _computed(fixed, shapes)
        if not found:
            break
        computed |= found
        for node in [node for node in fixed.graph.node if node.output and all(output in found for output in node.output)]:
            fixed.graph.node.remove(node)
            fixed.graph.initializer.extend(numpy_helper.from_array(found[output], output) for output in node.output)
    return _shapes(fixed, name, sizes), computed


def _shapes(model: Any, name: str, sizes: list[int]) -> dict[str, list[int]]:
    """The shapes of all values that can be inferred, for one size of the input."""
    from onnx import shape_inference

    fixed = copy.deepcopy(model)
    value = next(v for v in fixed.graph.input if v.name == name)
    del value.type.tensor_type.shape.dim[:]
    for size in sizes:
        value.type.tensor_type.shape.dim.add().dim_value = size
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
    found = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for v in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = v.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            found[v.name] = [d.dim_value for d in tensor.shape.dim]
    return found


def _fix_expansions(model: Any, name: str, shapes: tuple[Any, Any]) -> None:
    from onnx import helper

    types, changed = {tensor.name: tensor.data_type for tensor in model.graph.initializer}, False
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Expand" or node.input[0] not in types or not all(node.output[0] in known for known in shapes):
            continue
        one, other = (known[node.output[0]] for known in shapes)
        axes = [axis for axis, pair in enumerate(zip(one, other)) if pair[0] != pair[1]]
        if len(axes) == 1 and (one[axes[0]], other[axes[0]]) == TWO:
            given = {"domain": DOMAIN, "name": node.name, "sizes": one, "axis": axes[0]}
            taught = helper.make_node(EXPAND, [node.input[0], name], list(node.output), **given)
            model.graph.node.remove(node)
            model.graph.node.insert(number, taught)
            kind = types[node.input[0]]
            sizes = ["images" if axis == axes[0] else size for axis, size in enumerate(one)]
            model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], kind, sizes))  # inference goes on from it
            changed = True
    if changed:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _fix_reshapes(graph: Any, shapes: tuple[Any, Any]) -> None:
    """Reshapes get a constant target, with -1 for the size that depends on the batch; so do squeezes, which become reshapes."""
    from onnx import helper, numpy_helper

    for number, node in enumerate(graph.node):
        if node.op_type not in RESHAPES or not all(node.output[0] in known for known in shapes):
            continue
        one, other = (known[node.output[0]] for known in shapes)
        target = [a if a == b else -1 for a, b in zip(one, other)]
        if len(one) == len(other) and target.count(-1) <= 1 and 0 not in target:
            name = f"{node.output[0]}_target"
            graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
            graph.node.remove(node)
            graph.node.insert(number, helper.make_node("Reshape", [node.input[0], name], list(node.output), name=node.name))


def _fold(graph: Any, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """What is computed from sizes and constants, and is equal for both numbers of images, becomes a constant."""
    from onnx import numpy_helper

    equal = {name for name, value in one.items() if name in other and np.array_equal(value, other[name])}
    for node in [node for node in graph.node if node.output and all(name in equal for name in node.output)]:
        graph.node.remove(node)
        graph.initializer.extend(numpy_helper.from_array(one[name], name) for name in node.output)


def _computed(model: Any, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The values that follow from sizes and constants; weights are left alone."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known: set[str] = {""} | {tensor.name for tensor in graph.initializer}
    of_sizes, constant, chosen, given = set[str](), set[str](), [], []
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
            given.append(numpy_helper.from_array(np.array(shapes[node.input[0]], np.int64), node.output[0]))
            of_sizes.add(node.output[0])
        elif node.op_type == "Constant":
            chosen.append(node)
            constant.update(node.output)
        elif all(name in known | constant | of_sizes for name in node.input) and (of_sizes | constant) & set(node.input):
            chosen.append(node)
            of_sizes.update(node.output)
    wanted = [name for node in chosen if node.op_type != "Constant" for name in node.output]
    read = {name for node in chosen for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    results = [helper.make_empty_tensor_value_info(name) for name in wanted]
    small = helper.make_model(helper.make_graph(chosen, "sizes", [], results, [*weights, *given]))
    del small.opset_import[:]
    small.opset_import.extend(model.opset_import)
    values: dict[str, Any] = dict(zip(wanted, ReferenceEvaluator(small).run(None, {}))) if wanted else {}
    return values | {tensor.name: numpy_helper.to_array(tensor) for tensor in given}


def _drop_unread(graph: Any) -> None:
    while True:
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        unread = [node for node in graph.node if not any(name in read for name in node.output)]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)
