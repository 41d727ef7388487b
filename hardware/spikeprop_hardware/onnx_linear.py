"""A connection as ONNX operators: convolutions and products with the very numbers of its matrix, in real numbers or in integers.

The matrix of a connection is a product of linear nodes (network.py). At most one of them holds weights that differ; the others
(pooling, places among concatenated channels, Flatten) only choose and add. So the weights are read from the matrix itself: of

    ids = W(1..n) P,   W the operator with its weights numbered, P what comes before it with ones

entry (i, j) says which weight must be at (i, j) of the matrix. Where every entry then is its weight, and nothing else is left,
the operators are the matrix, entry by entry; a product that no operator is, such as two layers of weights in a row, is written as
a matrix, up to ``LARGEST`` numbers. In integers weights are int8 and messages uint8 of at most 127, larger ones in digits of 7
bits and each sign by itself: a runtime that adds two products in 16 bits (vpmaddubsw) then cannot saturate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.matrix import Shape, across, linear_of, places_of

LARGEST = 2**24  # numbers of a matrix that is written out
DIGIT = 128


class Graph:
    """Nodes and constants of an ONNX graph as they are made; tensors go by their names, and each constant is kept once."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[tuple[bytes, str, Shape], Any] = {}

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append an operator; returns the name of its result."""
        from onnx import helper

        made = name or f"_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], **attributes))
        return made

    def constant(self, values: Any, dtype: Any) -> str:
        """A tensor of the model's own."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(values, dtype=dtype).reshape(np.shape(values))
        key = array.tobytes(), array.dtype.str, array.shape
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def cast(self, x: str, dtype: Any) -> str:
        """The tensor in another type."""
        from onnx import helper

        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """A tensor (B, ...) as (B, *shape)."""
        return self.op("Reshape", x, self.constant([-1, *shape], np.int64))


class Messages(NamedTuple):
    """What a source sends in a step: a tensor (B, *shape) of 32-bit numbers, the largest of them, whether some are negative."""

    tensor: str
    shape: Shape
    most: int
    signed: bool


class _Part(NamedTuple):
    """One operator: a kernel over images with its weights, a dense matrix, or factors by element; or None: only another shape."""

    kind: str
    node: Any
    before: Shape
    after: Shape


def deliver(
    graph: Graph, values: Messages, nodes: dict[str, Any], matrix: sparse.csr_matrix, after: Shape, fixed: bool, name: str
) -> str:
    """What a connection makes of a source's messages: (B, *after), int32 where ``fixed``, else float32.

    Args:
        graph: gets the operators.
        values: what arrives.
        nodes: the linear nodes of the path, by name, in order.
        matrix: of the connection, in C-order; whole numbers where ``fixed``.
        after: shape of the layer that reads.
        fixed: in integers.
        name: of that layer, for errors.

    Raises:
        HardwareError: a matrix that no operators are and that is too large to be written.
    """
    parts = _parts(nodes, values.shape)
    weights = None if parts is None else _weights(parts, matrix)
    if parts is None or weights is None:
        if math.prod(matrix.shape) > LARGEST:
            raise HardwareError(
                f"layer {name!r} reads {', '.join(nodes)}, whose product is neither a convolution nor a matrix of at most "
                f"{LARGEST:,} numbers, and ONNX has no sparse product: put neurons between layers of weights, or merge them"
            )
        dense = _Part("dense", None, (matrix.shape[1],), (matrix.shape[0],))
        parts, weights = [dense], {0: matrix.toarray()}
    number = np.int32 if fixed else np.float32
    x = values
    for i, part in enumerate(parts):
        own = weights.get(i)
        held = _structure(part) if own is None else own
        if part.kind == "factors":
            tensor = graph.op("Mul", x.tensor, graph.constant(compact(held.reshape(x.shape)), number))
        else:
            tensor = _applied(graph, graph.reshape(x.tensor, part.before), x, part, held, fixed)
        most = x.most if own is not None else x.most * int(held.reshape(len(held), -1).sum(1).max())
        x = Messages(tensor, part.after, most, x.signed)
    return graph.reshape(x.tensor, after)


def compact(values: np.ndarray) -> np.ndarray:
    """Values by neuron as one number, or one for each channel, where they are equal there; else as they are."""
    if values.size and (values == values.flat[0]).all():
        return values.reshape(-1)[:1].reshape([1] * values.ndim)
    first = values[(slice(None), *[slice(0, 1)] * (values.ndim - 1))]
    return first if (values == first).all() else values


def _parts(nodes: dict[str, Any], shape: Shape) -> list[_Part] | None:
    """The operators of a path; the last one that holds weights, or else the last of all, gets the matrix's numbers."""
    found: list[_Part] = []
    for name, node in nodes.items():
        after = linear_of(node, shape, name)[2]
        if isinstance(node, nir.Affine | nir.Linear):
            found.append(_Part("dense", node, (math.prod(shape),), after))
        elif isinstance(node, nir.Conv1d):
            found.append(_Part("kernel", across(node), (shape[0], 1, shape[1]), (after[0], 1, after[1])))
        elif isinstance(node, nir.Conv2d | nir.AvgPool2d | nir.SumPool2d):
            found.append(_Part("kernel", _as_convolution(node, shape, name), shape, after))
        shape = after
    if not found:
        return [_Part("factors", None, shape, shape)]
    differing = sum(not _uniform(part.node) for part in found)
    main = next((i for i, part in enumerate(found) if not _uniform(part.node)), len(found) - 1)
    return found if differing <= 1 and main == len(found) - 1 else None


def _as_convolution(node: Any, shape: Shape, name: str) -> nir.Conv2d:
    """Pooling as a convolution within each channel with ones."""
    if isinstance(node, nir.Conv2d):
        return node
    ones = np.ones((shape[0], 1, *places_of(node, shape, name).kernel))
    return nir.Conv2d(None, ones, node.stride, node.padding, (1, 1), shape[0], np.zeros(shape[0]))


def _uniform(node: Any) -> bool:
    """Its weights are all one number, or 0: it chooses and adds."""
    weight = np.asarray(node.weight)
    return len(np.unique(weight[weight != 0])) <= 1


def _structure(part: _Part) -> np.ndarray:
    """The weights of an operator that chooses and adds, as ones."""
    return (np.asarray(part.node.weight) != 0).astype(np.float64)


def _matrix(part: _Part, weights: np.ndarray) -> sparse.csr_matrix:
    """The matrix of an operator with other weights."""
    if part.kind == "dense":
        return sparse.csr_matrix(weights)
    filled = dataclasses.replace(part.node, weight=weights, bias=np.zeros(len(weights)))
    return linear_of(filled, part.before, "")[0]


def _weights(parts: list[_Part], matrix: sparse.csr_matrix) -> dict[int, np.ndarray] | None:
    """The last operator's weights, by its number, with which the operators are the matrix; None where there are none."""
    *before, last = parts
    shape: Shape = last.before if last.node is None else np.shape(last.node.weight)
    numbers = np.arange(1.0, math.prod(shape) + 1)
    ids = sparse.diags(numbers, format="csr") if last.node is None else _matrix(last, numbers.reshape(shape))
    for part in reversed(before):
        ids = (ids @ _matrix(part, _structure(part))).tocsr()
    ids.sort_indices()
    held = matrix if matrix.has_sorted_indices else matrix.sorted_indices()
    if ids.shape != held.shape:
        return None
    if np.array_equal(ids.indptr, held.indptr) and np.array_equal(ids.indices, held.indices):
        values = held.data
    else:
        rows = np.repeat(np.arange(ids.shape[0]), np.diff(ids.indptr))
        values = np.asarray(held[rows, ids.indices]).ravel()
    places, found = np.rint(ids.data).astype(np.int64) - 1, np.zeros(len(numbers))
    if places.max(initial=0) >= len(found):  # sums of several weights
        return None
    found[places] = values
    same = np.array_equal(found[places], values) if held.dtype.kind == "i" else np.allclose(found[places], values, 1e-9, 0)
    return {len(before): found.reshape(shape)} if same and np.count_nonzero(values) == np.count_nonzero(held.data) else None


def _applied(graph: Graph, tensor: str, x: Messages, part: _Part, weights: np.ndarray, fixed: bool) -> str:
    """The operator on messages; in integers on digits of them."""
    if part.kind == "dense":
        kind, held, attributes = "MatMul", weights.T, {}
    else:
        kind, held = "Conv", weights
        node, places = part.node, places_of(part.node, part.before, "")
        (top, bottom), (left, right) = places.margins
        attributes = {
            "strides": list(places.stride), "dilations": list(places.dilation), "pads": [top, left, bottom, right],
            "group": int(node.groups),
        }  # fmt: skip
    if not fixed:
        return graph.op(kind, tensor, graph.constant(held, np.float32), **attributes)
    constant = graph.constant(held, np.int8)

    def product(digits: str) -> str:
        return graph.op(f"{kind}Integer", graph.cast(digits, np.uint8), constant, **attributes)

    zero = graph.constant(0, np.int32)
    if not x.signed:
        return _digits(graph, tensor, x.most, product)
    above, below = graph.op("Max", tensor, zero), graph.op("Max", graph.op("Neg", tensor), zero)
    return graph.op("Sub", _digits(graph, above, x.most, product), _digits(graph, below, x.most, product))


def _digits(graph: Graph, tensor: str, most: int, product: Callable[[str], str]) -> str:
    """The product with numbers from 0 to ``most``, digit by digit."""
    if most < DIGIT:
        return product(tensor)
    base = graph.constant(DIGIT, np.int32)
    rest = graph.op("Div", tensor, base)
    lowest = product(graph.op("Sub", tensor, graph.op("Mul", rest, base)))
    return graph.op("Add", lowest, graph.op("Mul", _digits(graph, rest, most // DIGIT, product), base))
