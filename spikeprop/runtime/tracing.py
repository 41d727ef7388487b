"""``OwnTracer``: torch.fx's tracer, without its effect on other threads.

To record calls of modules, ``torch.fx.Tracer.trace`` replaces ``nn.Module.__call__`` and ``__getattr__`` in the complete process,
so a module that runs in another thread meanwhile is taken for a part of the trace and fails. Here the replacements ask which
thread calls them: all threads but the one that traces get the original methods. One thread traces at a time.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ClassVar

from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _autowrap_check, _patch_wrapped_functions, _Patcher

_CALL: Any = nn.Module.__call__
_GETATTR: Any = nn.Module.__getattr__
_ONE_AT_A_TIME = threading.RLock()
_here = threading.local()  # .trace: that of this thread, if it traces


class OwnTracer(fx.Tracer):
    """A tracer that may be used while other threads run modules, or trace."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a module's forward."""
        if concrete_args is not None:
            raise NotImplementedError("concrete_args")
        with _ONE_AT_A_TIME, _Patcher() as patcher:
            before = getattr(_here, "trace", None)
            _here.trace = _Trace(self, patcher)
            try:
                with _Replaced():
                    return self._traced(root, patcher)
            finally:
                _here.trace = before

    def _traced(self, root: nn.Module, patcher: _Patcher) -> fx.Graph:
        self.root, self.root_module_name = root, type(root).__name__
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.tensor_attrs = {
            value: f"{path}.{name}" if path else name
            for path, module in root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        self.graph = fx.Graph(tracer_cls=type(self))
        forward = type(root).forward
        if not isinstance(inspect.unwrap(forward), FunctionType):
            raise TypeError(f"the forward of {type(root).__name__} is a {type(forward).__name__}, not a Python function")
        globals_ = inspect.unwrap(forward).__globals__
        function, arguments = self.inputs(forward)
        self.wrapped(patcher)
        for names in (globals_, *(vars(module) for module in self._autowrap_search)):
            self.entered(patcher, names)
        self.create_node("output", "output", (self.create_arg(self.run_traced(function, arguments)),), {})
        self.submodule_paths = None
        return self.graph

    def wrapped(self, patcher: _Patcher) -> None:
        """Functions that are marked by ``torch.fx.wrap`` become nodes."""
        _patch_wrapped_functions(patcher)  # these replacements call the original unless an argument is a part of a trace

    def inputs(self, forward: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
        """What is called to trace, and its arguments: a placeholder for each of forward's."""
        return self.create_args_for_root(forward, True)

    def run_traced(self, function: Callable[..., Any], arguments: list[Any]) -> Any:
        """The network's own code runs inside."""
        return function(*arguments)

    def entered(self, patcher: _Patcher, names: dict[str, Any]) -> None:
        """Code with these global names is about to run: its calls of math's functions are recorded."""
        _autowrap_check(patcher, names, self._autowrap_function_ids)


class _Trace:
    """What the replaced methods do in the thread that traces."""

    def __init__(self, tracer: OwnTracer, patcher: _Patcher):
        self.tracer, self.patcher = tracer, patcher
        self.parameters: dict[str, Any] = {}

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return _CALL(module, *args, **kwargs)

        self.tracer.entered(self.patcher, getattr(getattr(module, "forward", module), "__globals__", {}))
        return self.tracer.call_module(module, forward, args, kwargs)

    def attribute(self, name: str, value: Any) -> Any:
        return self.tracer.getattr(name, value, self.parameters)


@contextmanager
def suspended() -> Iterator[None]:
    """Modules that this thread runs meanwhile do not become a part of its trace."""
    before, _here.trace = getattr(_here, "trace", None), None
    try:
        yield
    finally:
        _here.trace = before


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    trace = getattr(_here, "trace", None)
    return _CALL(module, *args, **kwargs) if trace is None else trace.call(module, args, kwargs)


def _getattr(module: nn.Module, name: str) -> Any:
    value, trace = _GETATTR(module, name), getattr(_here, "trace", None)
    return value if trace is None else trace.attribute(name, value)


class _Replaced:
    """The two methods of ``nn.Module`` are replaced; what somebody else put in their place since is left alone."""

    ours: ClassVar[dict[str, Callable[..., Any]]] = {"__call__": _call, "__getattr__": _getattr}

    def __enter__(self) -> None:
        self.before = {name: vars(nn.Module)[name] for name in self.ours}
        for name, method in self.ours.items():
            setattr(nn.Module, name, method)

    def __exit__(self, *_: object) -> None:
        for name, method in self.ours.items():
            if vars(nn.Module)[name] is method:
                setattr(nn.Module, name, self.before[name])
