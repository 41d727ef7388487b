"""The caller's own module, run on a few images and left as it was; what its submodules read and return."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.convert.plain import HOOKS, unwrapped
from spikeprop.errors import ConversionError

_ONE_AT_A_TIME = threading.RLock()  # several threads may convert one module, whose modes are changed for a moment


def run(ann: nn.Module, x: Tensor) -> Any:
    """The module's result, or an error that says what its forward pass said."""
    try:
        return seeded(lambda: ann(x.clone()))
    except Exception as error:
        raise ConversionError(
            f"{type(ann).__name__} cannot run on calibration images of shape {tuple(x.shape)}: {type(error).__name__}: {error}"
        ) from error


def seeded(work: Callable[[], Any]) -> Any:
    """What draws random numbers draws the same ones in the module and in the graph."""
    torch.manual_seed(0)
    return work()


@contextmanager
def undisturbed(ann: nn.Module, x: Tensor) -> Iterator[None]:
    """Evaluation mode, full precision, and afterwards everything as it was: modes, tensors, attributes, random numbers."""
    with _ONE_AT_A_TIME, _undisturbed(ann, x):
        yield


@contextmanager
def _undisturbed(ann: nn.Module, x: Tensor) -> Iterator[None]:
    modules = list(ann.modules())
    hooked = any(not isinstance(h, HOOKS) for m in modules for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values()))
    tensors = [*ann.buffers(), *(ann.parameters() if hooked else ())]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    attributes = [(own, dict(own)) for m in modules for own in (vars(m), m._parameters, m._buffers)]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[x.device] if x.is_cuda else []))
        if x.device.type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(x.device.type, enabled=False))
        if any(unwrapped(m) is not m or vars(m).get("_compiled_call_impl") is not None for m in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # a few images are not worth compiling for
        try:
            for module in modules:
                if module.training:
                    module.training = False
            yield
        finally:
            for own, content in attributes:
                _restore(own, content)
            for tensor, before in kept:
                if not torch.equal(tensor.detach(), before):
                    tensor.detach().copy_(before)


def _restore(own: dict[str, Any], content: dict[str, Any]) -> None:
    for name in own.keys() - content.keys():
        del own[name]
    own.update({name: value for name, value in content.items() if name not in own or own[name] is not value})


def recorded(ann: nn.Module, x: Tensor) -> tuple[dict[str, list[tuple[Any, Any]]], Any]:
    """Input and output of each call of each submodule, by its path in the plain copy, and the result."""
    mine = threading.get_ident()
    seen: dict[str, list[tuple[Any, Any]]] = {}
    handles = []
    for path, module in paths(ann, "", set()):

        def enter(module: nn.Module, args: Any, path: str = path) -> None:
            if threading.get_ident() == mine:
                seen.setdefault(path, []).append((cloned(args[0]) if args else None, None))

        def leave(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            if threading.get_ident() == mine:
                seen[path][-1] = (seen[path][-1][0], cloned(output))

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        result = run(ann, x)
    finally:
        for handle in handles:
            handle.remove()
    return seen, result


def paths(module: nn.Module, path: str, found: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Modules by the path that they have without wrappers."""
    inner = unwrapped(module)
    if id(inner) in found:
        return
    found.add(id(inner))
    yield path, inner
    for name, child in inner.named_children():
        if name != "parametrizations":
            yield from paths(child, f"{path}.{name}" if path else name, found)


def cloned(value: Any) -> Any:
    """A copy, since an operation in place may change a tensor later."""
    return value.detach().clone() if isinstance(value, Tensor) else value
