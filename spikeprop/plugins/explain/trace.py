"""``Tracer``: records one training step of any torch network call by call; every call can be repeated and differentiated.

The tracer is a torch function mode: each call that makes a value with a gradient becomes a ``Node``, each tensor a ``Value``.
Hooks on tensors record the cotangents of autograd's backward pass; hooks on modules record where a call was made; hooks on
saved tensors count the bytes that a call keeps for its backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spikeprop.errors import ExplainError
from spikeprop.plugins.explain.arguments import complex_of, fill, floating, take, tensors_of
from spikeprop.plugins.explain.derived import Derived
from spikeprop.plugins.explain.source import calling_line
from spikeprop.plugins.explain.writes import SETTING, assigned, repeats, value_of

Role = Literal["input", "parameter", "constant", "value"]
ASKING = "has_torch_function"  # with this function, torch checks whether a mode handles a call
OPENED = {F.multi_head_attention_forward}  # composite torch functions that are shown call by call


@dataclass
class Value:
    """A tensor of the step.

    Attributes:
        index: its number.
        name: displayed name.
        role: its origin.
        tensor: detached copy of its content when it was made.
        needs_grad: whether it has a cotangent.
        cotangent: dL/d tensor, from autograd's own backward pass.
    """

    index: int
    name: str
    role: Role
    tensor: Tensor
    needs_grad: bool
    cotangent: Tensor | None = None


@dataclass
class Node:
    """A call.

    Attributes:
        index: its number, in order of execution.
        name: of the function.
        function: the function.
        arguments: positional and keyword arguments, with a ``Slot`` for each tensor.
        inputs, outputs: numbers of values.
        module: path of the calling module, and ``kind_of_module`` its class.
        step: time step of a simulation, or None.
        source: file, line number and text of the line that made the call: the user's own, or else that of torch's module.
        saved: bytes kept for the backward pass and not kept by an earlier call.
        generator: state of the random generator before the call.
    """

    index: int
    name: str
    function: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: list[int]
    outputs: list[int] = field(default_factory=list)
    module: str = ""
    kind_of_module: str = ""
    step: int | None = None
    source: tuple[str, int, str] | None = None
    saved: int = 0
    generator: Tensor | None = None

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """Repeat the call with other tensors and the same random numbers."""
        args, kwargs = fill(self.arguments, tensors)
        with torch.random.fork_rng(devices=[]):
            if self.generator is not None:
                torch.set_rng_state(self.generator)
            found = self.function(*args, **kwargs)
        return floating(found)


@dataclass
class Trace:
    """A recorded step.

    Attributes:
        values, nodes: by number.
        loss: number of the loss.
        followed: constants that are computed from other values, with the call and the numbers of its inputs (``derived``).
        fixed: constants that are computed from the step's numbers in another way, with the call.
        left: calls by which numbers left torch, as for an ``if``.
    """

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    loss: int = -1
    followed: dict[int, tuple[str, list[int]]] = field(default_factory=dict)
    fixed: dict[int, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def consumers(self) -> dict[int, list[tuple[int, int]]]:
        """(node, slot) of each use of each value with a cotangent."""
        found: dict[int, list[tuple[int, int]]] = {}
        for node in self.nodes:
            for slot, index in enumerate(node.inputs):
                if self.values[index].needs_grad:
                    found.setdefault(index, []).append((node.index, slot))
        return found


class Tracer(TorchFunctionMode):
    """Records the calls inside of its context.

    Args:
        model: gives the names of parameters, buffers and modules.

    Attributes:
        trace: the recorded step.
        step: present time step of a simulation, or None.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.trace = Trace()
        self.step: int | None = None
        self._known: dict[int, tuple[int, int]] = {}  # id of a tensor to (value, version)
        self._derived = Derived(self._present, self._is_own)
        self.trace.left = self._derived.left
        self._alive: list[Any] = []  # keeps tensors alive, because ids are reused
        self._names = {id(t): (name, "parameter") for name, t in model.named_parameters()}
        self._names |= {id(t): (name, "constant") for name, t in model.named_buffers()}
        self._modules = {m: name for name, m in model.named_modules()}
        self._stack: list[nn.Module] = []
        self._busy: Node | None = None  # the call that is running
        self._quiet = False  # True inside of a recorded call and inside of the tracer
        self._saved = {p.untyped_storage().data_ptr() for p in model.parameters()}

    @contextlib.contextmanager
    def recording(self) -> Iterator[Trace]:
        """The mode with hooks on modules, saved tensors and autograd functions, all of which are removed at the end."""
        handles = []
        for module in self._modules:
            handles.append(module.register_forward_pre_hook(self._enter_module))
            handles.append(module.register_forward_hook(self._leave_module, always_call=True))
        original = torch.autograd.Function.__dict__["apply"]
        tracer = self

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            call = original.__get__(None, cls)
            return call(*args, **kwargs) if tracer._quiet else tracer._record(call, cls.__name__, args, kwargs)

        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._count_saved, lambda tensor: tensor), self:
                yield self.trace
        finally:
            torch.autograd.Function.apply = original
            for handle in handles:
                handle.remove()

    def index_of(self, tensor: Tensor) -> int:
        """Number of the value of a recorded tensor."""
        return self._known[id(tensor)][0]

    def add_input(self, tensor: Tensor, name: str) -> None:
        """Record an input tensor with its name."""
        self._add(tensor, name, "input")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._quiet:
            return func(*args, **(kwargs or {}))
        if func in OPENED:
            return self._open(func, args, kwargs or {})
        return self._record(func, _name_of(func), args, kwargs or {})

    def _record(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        self._quiet = True
        try:
            return self._recorded(func, name, args, kwargs)
        finally:
            self._quiet, self._busy = False, None

    def _recorded(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name == SETTING:
            args = (*args[:2], value_of(args[0], args[2]))
        found: list[Tensor] = []
        template = take(args, found), take(kwargs, found)
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in found)):
            before = [t._version for t in found]
            result = func(*args, **kwargs)
            self._derived.note(name, found, self._plain(result, found, before), result)
            return result
        if name == SETTING and repeats(args[0], args[1]):
            raise ExplainError(
                "a write names an entry several times, and which of the values stays is not defined: write each entry once "
                "(h[:, 0] = x), or add them up (h.index_add(...))"
            )
        inputs = [self._value_of(t) for t in found]
        node = Node(len(self.trace.nodes), name, func, template, inputs, generator=torch.get_rng_state())
        versions, before = {id(t): t._version for t in found}, [t._version for t in found]
        self._busy = node
        result = _apart(func(*args, **kwargs))
        self._busy = None
        self._derived.note(name, found, self._plain(result, found, before), result)
        targets = found[:1] if name == SETTING else found  # what is assigned may be a view of it, which becomes stale
        written = [t for t in targets if versions[id(t)] != t._version and t.requires_grad]
        outputs = written if name == SETTING else [t for t in floating(result) if t.requires_grad]
        self._refuse_complex(name, [*found, *complex_of(result)])
        self._refuse_unknown_write(name, written, outputs)
        if all(versions.get(id(t)) == t._version for t in outputs):
            return result  # no new value with a gradient was made
        if name == SETTING:
            node.name, node.function = "write", assigned
        self.trace.nodes.append(node)
        node.module, node.kind_of_module, node.step = *self._place(), self.step
        node.source = calling_line()
        node.outputs = [self._add(t, f"{node.name} {node.index}", "value").index for t in outputs]
        return result

    @staticmethod
    def _plain(result: Any, read: list[Tensor], before: list[int]) -> list[Tensor]:
        """The results without a gradient, and the tensors without one that were written."""
        written = [t for t, version in zip(read, before) if t._version != version]
        return [t for t in (*tensors_of(result), *written) if not t.requires_grad]

    def _present(self, tensor: Tensor) -> int | None:
        known = self._known.get(id(tensor))
        return known[0] if known is not None and known[1] == tensor._version else None

    def _is_own(self, tensor: Tensor) -> bool:
        known = self._present(tensor)
        named = self._names.get(id(tensor), ("", ""))[1] == "parameter"
        return named or (known is not None and self.trace.values[known].role != "constant")

    def _refuse_complex(self, name: str, tensors: list[Tensor]) -> None:
        if any(t.is_complex() and t.requires_grad for t in tensors):
            place, kind = self._place()
            raise ExplainError(
                f"{name} in {place or 'the network'} ({kind or 'no module'}) computes with complex numbers, which explain does "
                "not show; keep real and imaginary part as real tensors"
            )

    def _refuse_unknown_write(self, name: str, written: list[Tensor], outputs: list[Tensor]) -> None:
        """Refuse a write through a view, which changes other tensors too, and one into a tensor that no output is."""
        if any(t._is_view() or all(t is not o for o in outputs) for t in written):
            remedy = (
                "write into a copy (h = h.clone() before h[i] = x)"
                if name == SETTING
                else "write into the tensor itself (h[i] = h[i] + x, not h[i] += x), or make a new one (torch.where, torch.cat)"
            )
            raise ExplainError(f"{name} writes through a view of a tensor, or into several, which cannot be shown; {remedy}")

    def _open(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Record the inner calls of a composite function: its own check for a mode is disabled once."""
        real = getattr(F, ASKING)

        def once(*_: Any) -> bool:
            setattr(F, ASKING, real)
            return False

        setattr(F, ASKING, once)
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            setattr(F, ASKING, real)

    def _value_of(self, tensor: Tensor) -> int:
        known = self._present(tensor)
        if known is not None:
            return known
        if tensor.requires_grad and not tensor.is_leaf:
            made = type(tensor.grad_fn).__name__
            raise ExplainError(
                f"a tensor was made outside of the traced step, or was changed in place through a view (made by {made})"
            )
        name, role = self._names.get(id(tensor), ("constant", "constant"))
        index = self._add(tensor, name, role).index  # type: ignore[arg-type]
        recipe, maker = self._derived.recipe(tensor), self._derived.source(tensor)
        if role == "constant" and recipe is not None:
            self.trace.followed[index] = recipe
        elif role == "constant" and maker is not None:
            self.trace.fixed[index] = maker
        return index

    def _add(self, tensor: Tensor, name: str, role: Role) -> Value:
        value = Value(len(self.trace.values), name, role, tensor.detach().clone(), tensor.requires_grad)
        self.trace.values.append(value)
        self._known[id(tensor)] = value.index, tensor._version
        self._alive.append(tensor)
        if tensor.requires_grad:

            def keep(cotangent: Tensor) -> None:
                value.cotangent = cotangent.detach().clone()

            tensor.register_hook(keep)
        return value

    def _count_saved(self, tensor: Tensor) -> Tensor:
        if self._busy is not None:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._saved:
                self._saved.add(storage.data_ptr())
                self._alive.append(tensor.detach())  # keeps the storage alive, because addresses are reused
                self._busy.saved += storage.nbytes()
        return tensor

    def _place(self) -> tuple[str, str]:
        if not self._stack:
            return "", ""
        return self._modules.get(self._stack[-1], ""), type(self._stack[-1]).__name__

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        self._stack.append(module)

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack and self._stack[-1] is module:
            self._stack.pop()

    @contextlib.contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """Record calls as made by this module."""
        self._stack.append(module)
        try:
            yield
        finally:
            self._stack.pop()


def _apart(result: Any) -> Any:
    """Copies of several outputs where one was made from another, as the h of an LSTM cell from its c.

    The hook of such an output would count what it passes inside of the call to its cotangent, which the call's own backward pass
    counts again.
    """
    made = [t.grad_fn for t in floating(result) if t.requires_grad]
    if type(result) not in (tuple, list) or len(set(made)) < 2:
        return result
    return type(result)(t.clone() if isinstance(t, Tensor) and t.requires_grad else t for t in result)


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name
