"""Which attributes of a module its NIR node carries; a module with any other attribute off its default is refused.

A writer lists what it writes (``CARRIED``). Every other argument of the module's constructor must have its default value, since
the file could not say it and the network that is read back would be another one. ``MOOT`` names attributes that mean nothing in
a given module, such as a padding mode without padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from spikeprop.errors import NirError
from spikeprop.snn import ALIF, IF, LIF, PLIF, ChannelPad, CubaLIF, Gain, GradedIF, Integrator, SignedIF

IGNORED = {"self", "device", "dtype", "inplace"}
TRAINING = {"surrogate", "trainable"}  # of neurons: no spike depends on them
POOL = {"kernel_size", "stride", "padding"}
CONV = {"in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"}
CARRIED: dict[type, set[str]] = {
    nn.Conv1d: CONV,
    nn.Conv2d: CONV,
    nn.Linear: {"in_features", "out_features", "bias"},
    nn.AvgPool1d: POOL,
    nn.AvgPool2d: POOL,
    nn.AdaptiveAvgPool2d: {"output_size"},
    nn.MaxPool2d: POOL | {"ceil_mode"},
    nn.Flatten: set(),
    ChannelPad: {"before", "after"},
    Gain: {"gain"},
    IF: {"v_threshold", "reset", "v_init", *TRAINING},
    LIF: {"v_threshold", "leak", "reset", "v_init", *TRAINING},
    PLIF: {"tau", "decay_input", "v_threshold", "reset", "v_init", *TRAINING},
    CubaLIF: {"v_threshold", "leak", "synaptic_leak", "reset", "v_init", *TRAINING},
    ALIF: {"v_threshold", "leak", "adaptation", "adaptation_leak", "reset", "v_init", *TRAINING},
    Integrator: {"leak", "trainable"},
    SignedIF: {"rectify", "v_threshold", "v_init", "surrogate"},
    GradedIF: {"levels", "rectify", "v_threshold", "v_init", "surrogate"},
}
Shape = tuple[int, ...]


def check_carried(module: nn.Module, layer: str, before: Shape = (), after: Shape = ()) -> None:
    """Refuse a module that its node would not stand for.

    Args:
        module: of a type in ``CARRIED``.
        layer: its layer's name.
        before, after: shapes of one sample that it reads and makes.

    Raises:
        NirError: an attribute that the node does not carry and that is not at its default; or hooks, or a forward of its own.
    """
    kind = type(module)
    name = f"layer {layer!r}: {kind.__name__}"
    moot = MOOT[kind](module, before, after) if kind in MOOT else set()
    for argument, parameter in inspect.signature(kind.__init__).parameters.items():
        if argument in IGNORED or argument in CARRIED[kind] or argument in moot:
            continue
        value = getattr(module, argument, parameter.default)
        if value != parameter.default:
            raise NirError(
                f"{name} has {argument} = {value!r}, which its NIR node cannot say (only {argument} = {parameter.default!r}); "
                "train with that, or express it with other layers"
            )
    refuse_hooks(module, name)


def refuse_hooks(module: nn.Module, name: str) -> None:
    """Refuse what a module does beyond its class.

    Raises:
        NirError: it has hooks, or a forward of its own.
    """
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise NirError(f"{name} has a hook or a forward of its own, which a NIR file cannot hold; remove it before writing")


def _no_padding(module: Any) -> bool:
    return module.padding in (0, (0,), (0, 0), [0, 0])


MOOT: dict[type, Callable[[Any, Shape, Shape], set[str]]] = {
    nn.Conv1d: lambda conv, before, after: {"padding_mode"} if _no_padding(conv) else set(),
    nn.Conv2d: lambda conv, before, after: {"padding_mode"} if _no_padding(conv) else set(),
    nn.AvgPool1d: lambda pool, before, after: {"count_include_pad"} if _no_padding(pool) else set(),
    # a sum where the divisor is 1, which has a node of its own, and padding counts as zeros
    nn.AvgPool2d: lambda pool, before, after: (
        ({"count_include_pad"} if _no_padding(pool) else set())
        | ({"divisor_override", "count_include_pad"} if pool.divisor_override == 1 else set())
    ),
    nn.Flatten: lambda op, before, after: {"start_dim", "end_dim"} if len(after) == 1 else set(),
}
