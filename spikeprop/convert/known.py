"""``KnownTracer``: a tracer that knows the shape of the images, so that whatever follows from shapes is a plain value.

Every recorded operation is also performed on the meta device, which computes shapes and types only. A result that is no tensor,
such as a size, a type, a number of axes or a comparison of these, is given to the network's own code as the value that it has:
assertions, branches and loops on it run as they would. Only what depends on the number of images stays symbolic; it is recognised
by a second performance, on another number of images. A result with tensors is a ``Traced`` for each of them. What needs the
numbers in the images, or the number of images as a plain number, is refused.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute
from torch.utils._pytree import tree_map

from spikeprop.convert.aten import python_form
from spikeprop.convert.place import Place, place_of_frame
from spikeprop.convert.plain import meta_copy
from spikeprop.errors import ConversionError
from spikeprop.runtime.tracing import OwnTracer, suspended

BATCH, OTHER_BATCH = 7, 10  # images; unusual numbers, so that the axis of the batch is recognised; one is odd, one is even
OF_THE_DEVICE = ("device", "is_cuda", "is_cpu", "is_meta", "is_mps", "is_xpu")
NEW = ("new_zeros", "new_ones", "new_full", "new_empty")
MOVES = ("to", "cpu", "cuda")  # methods that change the device
NO_CHANGE = (
    *MOVES,
    "type",
    "type_as",
    "float",
    "double",
    "half",
    "contiguous",
    "requires_grad_",
)  # if they return their argument
FIRST = ("input", "tensors", "self")  # names of the first argument, which the graph has by position
TENSOR_PROPERTIES = {"data": "detach", "T": "t", "mT": "adjoint"}
DATA = "control flow that depends on the data: the numbers in the images decide what is computed"
NUMBER = "the number of images becomes a plain number of Python; keep it as x.shape[0], which views and reshapes accept"
BRANCH = "control flow that depends on the number of images"
ASSIGNED = "a part of a tensor is assigned; build the tensor by concatenation (torch.cat) instead"


class Untraceable(ConversionError):
    """What the code asks for is not known before the network runs, so no other way of tracing knows it either."""


class Sizes(tuple[Any, ...]):
    """A tensor's shape, of which one number, that of the images, is symbolic."""

    def numel(self) -> Any:
        """The product of the sizes."""
        total: Any = 1
        for size in self:
            total = total * size
        return total

    def __getitem__(self, index: Any) -> Any:
        found = tuple.__getitem__(self, index)
        return _sizes(found) if isinstance(index, slice) else found


def _sizes(sizes: tuple[Any, ...]) -> Any:
    return torch.Size(sizes) if all(type(size) is int for size in sizes) else Sizes(sizes)


class Traced(fx.Proxy):
    """Stands for a tensor, or for a number that depends on the number of images, while the network's code runs.

    Attributes:
        known: the tensor on the meta device, or the number for ``BATCH`` images.
    """

    def __init__(self, node: fx.Node, tracer: KnownTracer, known: Any):
        super().__init__(node, tracer)
        self.known = known

    def __getattr__(self, name: str) -> Any:
        tracer: Any = self.tracer
        if name in OF_THE_DEVICE and isinstance(self.known, Tensor):
            return getattr(tracer.probe, name)
        if name in TENSOR_PROPERTIES:
            return tracer.create_proxy("call_method", TENSOR_PROPERTIES[name], (self,), {})
        if callable(getattr(self.known, name)):
            return Attribute(self, name)
        return tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __iter__(self) -> Iterator[Any]:
        tracer: Any = self.tracer
        return (tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(len(self)))

    def __len__(self) -> int:
        return int(self.size(0) if isinstance(self.known, Tensor) else len(self.known))

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __index__(self) -> int:
        return operator.index(self._number())

    def _number(self) -> Any:
        tracer: Any = self.tracer
        return tracer.number(self)

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda a: tuple(a) if type(a) is Sizes else a, (tuple(args), kwargs or {}))
        return super().__torch_function__(orig_method, types, args, kwargs)


def _len(value: Any) -> Any:
    """Python's ``len``, but the number of images stays symbolic."""
    return value.size(0) if type(value) is Traced and isinstance(value.known, Tensor) else builtins.len(value)


def _isinstance(value: Any, kinds: Any) -> bool:
    """Python's ``isinstance``, for which what stands for a tensor is one."""
    return builtins.isinstance(value.known if type(value) is Traced else value, kinds)


class KnownTracer(OwnTracer):
    """A tracer for one shape of image.

    Args:
        shape: of one image.
        dtype: of the images.
        device: of the network, which its code may ask for.

    Attributes:
        known, second: the result of each node for ``BATCH`` and ``OTHER_BATCH`` images.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.probe = torch.empty(0, dtype=dtype, device=device)
        self.place: Place | None = None  # given, if the code that runs is not the network's own
        self.known: dict[fx.Node, Any] = {}
        self.second: dict[fx.Node, Any] = {}
        self.varying: set[fx.Node] = set()  # depend on the images
        self.constants: dict[fx.Node, Any] = {}  # real results of the others

    # what the tracer of torch.fx calls ----------------------------------------------------------------------------------------

    def _traced(self, root: nn.Module, patcher: Any) -> fx.Graph:
        with suspended():
            self.meta_root = meta_copy(root)
        patcher.patch(vars(torch), "is_tensor", lambda value: _isinstance(value, Tensor))
        graph = super()._traced(root, patcher)
        for node in reversed(graph.nodes):  # what has no effect: conditions, results that nobody reads
            if not node.users and node.op not in ("placeholder", "output") and not self._in_place(node):
                graph.erase_node(node)
        return graph

    def _in_place(self, node: fx.Node) -> bool:
        return any(self.known[node] is self.known[earlier] for earlier in node.all_input_nodes)

    def inputs(self, forward: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
        """The image is the first argument; the others have their default values."""
        kinds = list(inspect.signature(forward).parameters.values())[1:]
        fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [p.name for p in kinds[1:] if p.default is p.empty and p.kind not in fixed]
        if needed or not kinds:
            names = ", ".join([p.name for p in kinds[:1]] + needed)
            raise Untraceable(
                f"its forward needs {len(needed) + bool(kinds)} inputs{f' ({names})' if names else ''}; convert a network with "
                "one input; others must have default values"
            )
        image = self.create_proxy("placeholder", kinds[0].name, (), {})
        return forward, [self.root, image]

    def wrapped(self, patcher: Any) -> None:
        """Marked functions are traced as well: shapes are known, and what they do with weights must become layers."""

    def entered(self, patcher: Any, names: dict[str, Any]) -> None:
        """Code with these global names is about to run."""
        super().entered(patcher, names)
        if "__builtins__" in names:  # of Python code
            for name, function in (("len", _len), ("isinstance", _isinstance)):
                if name not in names:
                    patcher.patch(names, name, function)

    def create_arg(self, a: Any) -> Any:
        """An argument of a node."""
        return super().create_arg(tuple(a) if type(a) is Sizes else a)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> fx.Node:
        """A node of the graph, which is performed on the meta device."""
        node = super().create_node(kind, target, args, kwargs, *more, **named)
        if kind == "output":
            return node
        if kind == "placeholder" or any(n in self.varying for n in node.all_input_nodes):
            self.varying.add(node)
        node.meta["place"] = self.place or place_of_frame(sys._getframe(1))
        self.known[node], self.second[node] = node.meta["outlines"] = (
            self._performed(node, self.known, BATCH),
            self._performed(node, self.second, OTHER_BATCH),
        )
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        """What the network's code gets for an operation."""
        if target is torch._assert:  # of something that varies; the module itself asserts it when the guard runs it
            return None
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and python_form(target) is not target:
            return python_form(target)(*args, **kwargs)
        if not args and (name := next((name for name in FIRST if name in kwargs), None)) is not None:
            args, kwargs = (kwargs[name],), {k: v for k, v in kwargs.items() if k != name}
        node = super().create_proxy(kind, target, args, kwargs, *more, **named).node
        return self._result(node) if target not in NEW or self._of_batch(node) else self._new(node)

    def _of_batch(self, node: fx.Node) -> bool:
        return self.known[node].shape != self.second[node].shape or any(isinstance(a, fx.Node) for a in node.args[1:])

    def _new(self, node: fx.Node) -> Any:
        """``x.new_zeros(sizes)`` and the like depend on no image: the network's code gets and may change the tensor."""
        known = self.known[node]
        with suspended():
            made = getattr(self.probe.new_empty(0, dtype=self.dtype), str(node.target))(*node.args[1:], **node.kwargs)
        self.graph.erase_node(node)
        return made.to(known.dtype)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition in the network's code. What is asserted is true: the module asserts it itself when the guard runs it."""
        node = obj.node
        if node not in self.varying:
            return bool(self._constant(node))
        if not isinstance(self.known[node], Tensor):
            raise Untraceable(BRANCH)
        if _is_asserted(sys._getframe(2)):
            return True
        raise Untraceable(DATA)

    def number(self, obj: fx.Proxy) -> Any:
        """The plain number of Python that the network's code asks for."""
        if obj.node not in self.varying:
            return self._constant(obj.node)
        if isinstance(self.known[obj.node], Tensor):
            raise Untraceable(DATA)
        raise TypeError(NUMBER)

    # what is known ------------------------------------------------------------------------------------------------------------

    def _result(self, node: fx.Node) -> Any:
        known, first = self.known[node], node.args[0] if node.args else None
        if isinstance(known, Tensor):
            if isinstance(first, fx.Node) and node.target in NO_CHANGE and known is self.known[first]:
                self.graph.erase_node(node)
                node = first
            return Traced(node, self, known)
        if known is None:
            raise Untraceable(ASSIGNED if "setitem" in str(node.target) else f"{node.target} has no result")
        if not holds_tensors(known) and _same(known, self.second[node]):
            self.graph.erase_node(node)
            return known
        whole = Traced(node, self, known)
        if not isinstance(known, tuple | list):
            return whole
        parts = [
            None if part is None else self.create_proxy("call_function", operator.getitem, (whole, i), {})
            for i, part in enumerate(known)
        ]
        if isinstance(known, torch.Size):
            return _sizes(tuple(parts))
        return type(known)(*parts) if hasattr(known, "_fields") else type(known)(parts)  # type: ignore[call-arg]

    def _performed(self, node: fx.Node, results: dict[fx.Node, Any], images: int) -> Any:
        """The result of a node on the meta device, or of one that does not depend on the images and is no tensor, its value."""
        if node.op == "placeholder":
            return torch.zeros(images, *self.shape, dtype=self.dtype, device="meta")
        try:
            with suspended(), torch.no_grad():
                result = _perform(node, results, self.root if node.op == "get_attr" else self.meta_root, "meta")
                return result.to("meta") if isinstance(result, Tensor) and not result.is_meta else result  # of torch.zeros
        except Exception as error:
            if node not in self.varying:
                return self._constant(node)
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            if isinstance(error, NotImplementedError) or "meta tensor" in str(error) or "meta device" in str(error):
                raise Untraceable(f"{DATA} ({what})") from error
            raise ConversionError(
                f"node {node.name!r} ({node.op} {what}) cannot run on images of the given shape, {self.shape}: {error}"
                f"{self._misfit(node, results)}"
            ) from error

    def _misfit(self, node: fx.Node, results: dict[fx.Node, Any]) -> str:
        """Of a layer whose input has a wrong shape: what it reads, what it is given, and what to do."""
        module: Any = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        first = node.args[0] if node.args else None
        given = results[first].shape if isinstance(first, fx.Node) and isinstance(results[first], Tensor) else ()
        if isinstance(module, nn.Linear):
            reads, fits = f"(batch, ..., {module.in_features})", given[-1:] == (module.in_features,)
        elif isinstance(module, nn.modules.conv._ConvNd):
            sizes = ("depth", "height", "width")[-len(module.kernel_size) :] if len(module.kernel_size) > 1 else ("length",)
            reads = f"(batch, {module.in_channels}, {', '.join(sizes)})"
            fits = given[1:2] == (module.in_channels,) and len(given) == 2 + len(sizes)
        else:
            return ""
        if fits or tuple(given[:1]) not in ((BATCH,), (OTHER_BATCH,)):
            return ""
        remedy = f"pass images {reads}; one image has no batch axis: image[None]"
        if node.all_input_nodes[0].op != "placeholder":
            remedy = "pass images of the shape that the ANN was trained on, or pool to a fixed size before it"
        return f"; it reads {reads}, and is given {('batch', *given[1:])!r}; {remedy}".replace("'", "")

    def _constant(self, node: fx.Node) -> Any:
        """The real result of a node that does not depend on the images."""
        if node not in self.constants:
            for earlier in node.all_input_nodes:
                self._constant(earlier)
            with suspended(), torch.no_grad():
                self.constants[node] = _perform(node, self.constants, self.root, None)
        return self.constants[node]


def _perform(node: fx.Node, results: dict[fx.Node, Any], root: nn.Module, device: str | None) -> Any:
    args: Any
    args, kwargs = map_arg((node.args, node.kwargs), results.__getitem__)
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(root)
        if isinstance(value, Tensor):  # never the network's own, which an operation in place would change
            return value.detach().clone() if device is None else torch.empty_like(value, device=device)
        return value
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method" and device is not None and node.target in MOVES:
        return _retyped(*args, *kwargs.values())
    if device is not None and "device" in kwargs:
        kwargs = {**kwargs, "device": device}
    function: Any = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
    return function(*(args[1:] if node.op == "call_method" else args), **kwargs)


def _retyped(tensor: Tensor, *arguments: Any) -> Tensor:
    """``tensor.to`` without a change of the device."""
    types = [a.dtype if isinstance(a, Tensor) else a for a in arguments]
    return tensor.to(next((t for t in types if isinstance(t, torch.dtype)), tensor.dtype))


def holds_tensors(result: Any) -> bool:
    """Whether the result of a node is a tensor or a sequence with tensors, rather than a size or another constant."""
    return isinstance(result, Tensor) or (isinstance(result, tuple | list) and any(map(holds_tensors, result)))


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _is_asserted(frame: FrameType) -> bool:
    """Whether the code asks for a condition in order to assert it."""
    instructions = list(dis.get_instructions(frame.f_code))
    here = next(i for i, instruction in enumerate(instructions) if instruction.offset >= frame.f_lasti)
    after = [instruction.opname for instruction in instructions[here : here + 3]]
    return any("IF_TRUE" in name for name in after) and "LOAD_ASSERTION_ERROR" in after
