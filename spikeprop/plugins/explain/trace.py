"""``Tracer``: one training step of any torch network, recorded call by call; every call can be run and differentiated again.

The tracer is a mode of torch's own functions: each call that makes a value with a gradient becomes a ``Node``, each tensor a
``Value``. Hooks on the tensors keep the cotangents of the backward pass as autograd computes them; hooks on modules say where a
call was made; hooks on saved tensors count the bytes that it keeps for its backward pass.
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
from spikeprop.plugins.explain.arguments import fill, floating, take

Role = Literal["input", "parameter", "constant", "value"]
ASKING = "has_torch_function"  # how a function of torch's asks whether a mode wants it
OPENED = {F.multi_head_attention_forward}  # compositions of torch that are shown call by call


@dataclass
class Value:
    """A tensor of the step.

    Attributes:
        index: its number.
        name: for people.
        role: where it comes from.
        tensor: its content when it was made, detached.
        needs_grad: whether a cotangent flows to it.
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
        function: itself.
        arguments: positional and keyword ones, with a ``Slot`` for each tensor.
        inputs, outputs: numbers of values.
        module: path of the module that called, and ``kind_of_module`` its class.
        step: of a simulation's time, or None.
        saved: bytes kept for the backward pass that no earlier call kept.
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
    saved: int = 0
    generator: Tensor | None = None

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """The call once more on other tensors; random numbers are drawn as they were."""
        args, kwargs = fill(self.arguments, tensors)
        with torch.random.fork_rng(devices=[]):
            if self.generator is not None:
                torch.set_rng_state(self.generator)
            found = self.function(*args, **kwargs)
        return floating(found)


@dataclass
class Trace:
    """A whole step: values and nodes by number, the loss's value, and parameters' names by value."""

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    loss: int = -1

    def consumers(self) -> dict[int, list[tuple[int, int]]]:
        """(node, slot) of each use of a value along which a cotangent flows."""
        found: dict[int, list[tuple[int, int]]] = {}
        for node in self.nodes:
            for slot, index in enumerate(node.inputs):
                if self.values[index].needs_grad:
                    found.setdefault(index, []).append((node.index, slot))
        return found


class Tracer(TorchFunctionMode):
    """Records what happens inside of it.

    Args:
        model: whose parameters, buffers and modules are told by name.

    Attributes:
        trace: what was recorded.
        step: of the simulation's time that is being computed, or None.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.trace = Trace()
        self.step: int | None = None
        self._known: dict[int, tuple[int, int]] = {}  # id of a tensor to (value, version)
        self._alive: list[Any] = []  # an id is a tensor's only as long as it lives
        self._names = {id(t): (name, "parameter") for name, t in model.named_parameters()}
        self._names |= {id(t): (name, "constant") for name, t in model.named_buffers()}
        self._modules = {m: name for name, m in model.named_modules()}
        self._stack: list[nn.Module] = []
        self._busy: Node | None = None  # the call that is running
        self._quiet = False  # what is called is the call's own business, or the tracer's
        self._saved = {p.untyped_storage().data_ptr() for p in model.parameters()}

    @contextlib.contextmanager
    def recording(self) -> Iterator[Trace]:
        """The mode, with hooks on modules, saved tensors and autograd functions, all of which go when it ends."""
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
        """Number of the value that a recorded tensor is."""
        return self._known[id(tensor)][0]

    def add_input(self, tensor: Tensor, name: str) -> None:
        """Name a tensor that goes in from outside."""
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
        found: list[Tensor] = []
        template = take(args, found), take(kwargs, found)
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in found)):
            return func(*args, **kwargs)
        inputs = [self._value_of(t) for t in found]
        node = Node(len(self.trace.nodes), name, func, template, inputs, generator=torch.get_rng_state())
        versions = {id(t): t._version for t in found}
        self._busy = node
        result = func(*args, **kwargs)
        self._busy = None
        outputs = [t for t in floating(result) if t.requires_grad]
        self._refuse_partial(name, found, outputs, versions)
        if all(versions.get(id(t)) == t._version for t in outputs):
            return result  # nothing with a gradient was made, or the input itself came back
        self.trace.nodes.append(node)
        node.module, node.kind_of_module, node.step = *self._place(), self.step
        node.outputs = [self._add(t, f"{name} {node.index}", "value").index for t in outputs]
        return result

    def _refuse_partial(self, name: str, found: list[Tensor], outputs: list[Tensor], versions: dict[int, int]) -> None:
        """A write into part of a tensor makes a value that no call returned."""
        written = [t for t in found if versions[id(t)] != t._version and t.requires_grad]
        if name == "__setitem__" or any(t._is_view() for t in written) or any(all(t is not o for o in outputs) for t in written):
            raise ExplainError(
                f"{name} writes into a part of a tensor, which cannot be shown call by call; build a new one (torch.where, cat)"
            )

    def _open(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a composition with its calls recorded, instead of it: it must not be asked again whether a mode wants it."""
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
        known = self._known.get(id(tensor))
        if known is not None and known[1] == tensor._version:
            return known[0]
        if tensor.requires_grad and not tensor.is_leaf:
            made = type(tensor.grad_fn).__name__
            raise ExplainError(
                f"a tensor comes from outside of what is shown, or was changed in place through a view (made by {made})"
            )
        name, role = self._names.get(id(tensor), ("constant", "constant"))
        return self._add(tensor, name, role).index  # type: ignore[arg-type]

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
                self._alive.append(tensor.detach())  # an address is a storage's only as long as it lives
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
        """As if the module's own forward were running."""
        self._stack.append(module)
        try:
            yield
        finally:
            self._stack.pop()


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name
