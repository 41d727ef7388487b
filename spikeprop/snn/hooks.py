"""What a module does beyond its class: hooks, and methods replaced on the instance or, for torch's own classes, on the class.

The plain reference calls every module through ``__call__``, which honours all of it. The packed engine calls none, so it serves
only modules without; a hook on a module that nothing calls is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from spikeprop.errors import SimulationError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{kind}") for kind in HOOKS)

METHODS: dict[type[nn.Module], frozenset[str]] = {}  # names of a class's methods


def global_hooks() -> bool:
    """Whether hooks are registered for all modules, as profilers do."""
    return any(GLOBAL_HOOKS)


def untouched(module: nn.Module) -> bool:
    """Whether a module has no hook and none of its methods is replaced on the instance."""
    kind = type(module)
    if kind not in METHODS:
        METHODS[kind] = frozenset(name for name in dir(kind) if callable(getattr(kind, name)))
    return not _hooked(module) and METHODS[kind].isdisjoint(module.__dict__)


def _hooked(module: nn.Module) -> bool:
    own = module.__dict__
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"])


def refuse_uncalled(containers: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse what no simulation can honour: hooks on modules that only hold others, which nothing calls, and absent weights.

    Raises:
        SimulationError: names the module.
    """
    for name, module in containers:
        refuse_absent(name, next(module.parameters(), None))
        if _hooked(module) or "forward" in module.__dict__:
            raise SimulationError(
                f"{name!r} ({type(module).__name__}) has a hook or a forward of its own, but it only holds other modules and is "
                "never called: register the hook on a synapse (network.layers[name].synapses[i]), one of its ops, or the neuron"
            )


def refuse_absent(name: str, tensor: Tensor | None) -> None:
    """Refuse a network on the meta device; ``tensor`` is one of those of the module ``name``.

    Raises:
        SimulationError: names the module, and what to do.
    """
    if tensor is not None and tensor.is_meta:
        raise SimulationError(
            f"{name!r} is on the meta device, which holds shapes without values; make the network on the CPU, or load its "
            "weights: network.to_empty(device='cpu'), then network.load_state_dict(...)"
        )


def refuse_transforms(x_B: Any) -> None:
    """Refuse to run where torch records or transforms the operations instead of running them.

    Args:
        x_B: the network's input.

    Raises:
        SimulationError: names the transformation and what to do instead.
    """
    if torch.jit.is_tracing() or isinstance(x_B, fx.Proxy):
        raise SimulationError(
            "a spiking network cannot be traced (torch.jit.trace, torch.onnx.export, torch.fx): a trace keeps the spikes of its "
            "example input as constants; save it with save_checkpoint, or export it with to_nir"
        )
    if torch.compiler.is_exporting():
        raise SimulationError("a spiking network cannot be exported (torch.export): its steps depend on values; use to_nir")
    if torch._C._are_functorch_transforms_active():
        raise SimulationError(
            "torch.func transforms (grad, vmap, jvp) do not pass through spikes: use functional_call with torch.autograd.grad, "
            "and a loop or a larger batch instead of vmap"
        )
    if forward_ad._current_level >= 0:
        raise SimulationError("forward-mode derivatives (torch.autograd.forward_ad) do not pass through spikes: use backward()")
