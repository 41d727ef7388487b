"""``with_known_shapes``: an ONNX model in which what is computed from sizes is a constant, where it is the same for any batch.

Exporters that keep the number of images open write arithmetic of sizes into the file (Shape, Gather, Div, Concat, ...). The
shapes of all values are inferred twice, for two numbers of images: what follows from them and is equal becomes a constant, and
the target of a reshape, in which only the number of images differs, becomes one with -1 in its place.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

TWO = (5, 8)  # numbers of images
ROUNDS = 4  # inference sees further when some sizes are constants


def with_known_shapes(model: Any, name: str, sizes: list[int]) -> Any:
    """The model, its input ``name`` having images of the given sizes, without arithmetic of sizes where that is possible."""
    model = copy.deepcopy(model)
    for _ in range(ROUNDS):
        before = len(model.graph.node)
        one, other = (_shapes(model, name, [images, *sizes]) for images in TWO)
        computed = _computed(model, one), _computed(model, other)
        _fix_reshapes(model.graph, (one, other), computed)
        _fold(model.graph, *computed)
        _drop_unread(model.graph)
        if len(model.graph.node) == before:
            break
    return model


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
    found = {}
    for v in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = v.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            found[v.name] = [d.dim_value for d in tensor.shape.dim]
    return found


def _fix_reshapes(graph: Any, shapes: tuple[Any, Any], computed: tuple[Any, Any]) -> None:
    from onnx import numpy_helper

    for node in (n for n in graph.node if n.op_type == "Reshape" and n.input[1] in computed[0] and n.input[1] in computed[1]):
        source, sizes = node.input[:2]
        if not all(source in known for known in shapes):
            continue
        one, other = (_reshaped(known[source], values[sizes]) for known, values in zip(shapes, computed))
        target = [a if a == b else -1 for a, b in zip(one, other)]
        if len(one) == len(other) and target.count(-1) <= 1 and 0 not in target:
            graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), f"{node.output[0]}_target"))
            node.input[1] = f"{node.output[0]}_target"


def _reshaped(before: list[int], target: np.ndarray) -> list[int]:
    """The shape after a reshape, whose target has 0 for a size that is kept and -1 for what remains."""
    after = [before[i] if size == 0 else int(size) for i, size in enumerate(target.tolist())]
    rest = math.prod(size for size in after if size != -1)
    return [math.prod(before) // max(rest, 1) if size == -1 else size for size in after]


def _fold(graph: Any, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """What is computed from sizes and constants, and is equal for both numbers of images, becomes a constant."""
    from onnx import numpy_helper

    equal = {name for name, value in one.items() if name in other and np.array_equal(value, other[name])}
    for node in [node for node in graph.node if node.output and all(name in equal for name in node.output)]:
        graph.node.remove(node)
        graph.initializer.extend(numpy_helper.from_array(one[name], name) for name in node.output)


def _computed(model: Any, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The values that follow from sizes and constants."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known: set[str] = {""} | {tensor.name for tensor in graph.initializer}
    of_sizes, chosen, given = set(), [], []
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
            given.append(numpy_helper.from_array(np.array(shapes[node.input[0]], np.int64), node.output[0]))
            of_sizes.add(node.output[0])
        elif node.op_type == "Constant" or (all(name in known | of_sizes for name in node.input) and of_sizes & set(node.input)):
            chosen.append(node)
            (known if node.op_type == "Constant" else of_sizes).update(node.output)
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
