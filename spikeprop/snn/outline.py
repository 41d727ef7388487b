"""``outline``: a spiking network by its shapes alone, for ``fits`` and the budget of a chip; networks on the meta device too.

What a chip or NIR has no form of is kept by its name, so that all of it can be told at once.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import Any
from zlib import crc32

import numpy as np
import torch
from spikeprop_hardware.targets.fitting import Fit
from spikeprop_hardware.targets.fitting import fits as fits_outline
from spikeprop_hardware.targets.outline import Operation, Outline, OutlinedConnection, OutlinedLayer, outlined
from spikeprop_hardware.targets.pattern import Pattern, placed, same, sliding
from torch import Tensor, nn

from spikeprop.errors import SimulationError
from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.cuba import CubaLIF
from spikeprop.snn.folding import folded, needs_folding
from spikeprop.snn.gather import Gather, Shift
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.neuron import IF, LIF, PLIF, Neuron
from spikeprop.snn.normalisation import NORMS
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.readout import Integrator, ReadoutDynamics
from spikeprop.snn.signed import GradedIF, SignedIF
from spikeprop.snn.synapse import ChannelPad, Gain, SampleDropout, Synapse

KINDS: dict[type, str] = {
    IF: "IF", LIF: "LIF", PLIF: "LIF", CubaLIF: "CubaLIF", ALIF: "ALIF", GradedIF: "GradedIF", SignedIF: "GradedIF",
    SpikingMaxPool: "max", ReadoutDynamics: "readout", Integrator: "readout",
}  # fmt: skip
KNOWN = f"use one of {', '.join(dict.fromkeys(kind for kind in KINDS.values() if kind[0].isupper()))}"
OTHERWISE = "put ReLU, pooling and BatchNorm in place of it in the ANN, and train again"
Shape = tuple[int, ...]


def outline(network: Any) -> Outline:
    """The outline of a ``SpikingNetwork``, which is left as it is: of the one that is exported, without batch-norm."""
    with suppress(SimulationError):  # what cannot be folded is told by its name
        network = folded(network) if needs_folding(network) else network
    shapes = network.shapes()
    found = Outline(tuple(network.input_shape), INPUT, encoder=type(network.encoder).__name__, read=network.read)
    found.real_input, found.signed_input = not network.encoder.spikes, bool(getattr(network.encoder, "signed", False))
    for name, layer in network.named_layers():
        found.populations.append(_layer(name, layer, shapes))
    last = found.populations[-1]
    found.output = last.name
    if network.read in ("last", "max") and isinstance(last, OutlinedLayer) and last.kind == "readout" and not last.leaks:
        last.leaks = (0.0,)  # its potential is each step's value
    found.place()
    return found


def fits(network: Any, target: Any) -> Fit:
    """``SpikingNetwork.fits``."""
    return fits_outline(outline(network), target)


def _layer(name: str, layer: Layer, shapes: dict[str, Shape]) -> OutlinedLayer:
    lags = [0] * len(layer.sources) + [1] * len(layer.feedback_sources)
    connections = [
        _connection(source, synapse, shapes[source], lag, layer)
        for lag, (_, source, synapse) in zip(lags, chain(layer.branches(), layer.feedback_branches()))
    ]
    dynamics: Any = layer.dynamics
    kind = KINDS.get(type(dynamics)) or _named(dynamics)
    advice = "" if type(dynamics) in KINDS else KNOWN if isinstance(dynamics, Neuron) else OTHERWISE
    return outlined(
        name, shapes[name], connections, kind=kind, advice=advice, to_zero=getattr(dynamics, "reset", "") == "zero",
        levels=int(getattr(dynamics, "levels", 0)), pools=isinstance(dynamics, SpikingMaxPool), leaks=_leaks(dynamics),
        synaptic_leak=_known(dynamics.synaptic_leak, 1.0) if isinstance(dynamics, CubaLIF) else None,
        v_init=_known(dynamics.v_init, 0.0) if isinstance(dynamics, Neuron) else 0.0,
        adaptation=torch.ones(1).numpy() if isinstance(dynamics, ALIF) else None,
    )  # fmt: skip


def _named(dynamics: Any) -> str:
    """What a layer computes that is no neuron: the innermost function or module by name."""
    inner = getattr(dynamics, "module", None) or getattr(dynamics, "function", None)
    if inner is not None and inner is not dynamics:
        return _named(inner) if isinstance(inner, nn.Module) else getattr(inner, "__name__", str(inner))
    return type(dynamics).__name__


def _leaks(dynamics: Any) -> tuple[float, ...]:
    """Factors of a step that are known: on the meta device none are."""
    found: set[float] = set()
    for name in ("leak", "synaptic_leak"):
        value = getattr(dynamics, name, None)
        if isinstance(value, Tensor) and value.device.type != "meta":
            found |= set(value.detach().unique().tolist())
    return tuple(sorted(found))


def _known(value: Tensor, otherwise: float) -> Any:
    """The different numbers of a tensor; on the meta device there is none."""
    return (torch.full((1,), otherwise) if value.device.type == "meta" else value.detach().cpu().unique()).numpy()


def _connection(source: str, synapse: Synapse, shape: Shape, lag: int, layer: Layer) -> OutlinedConnection:
    operations, pattern, pools = [], same(shape) if len(shape) <= 3 else None, isinstance(layer.dynamics, SpikingMaxPool)
    steps = [*synapse, layer.dynamics.window] if pools else [*synapse]  # type: ignore[union-attr]
    for op in steps:
        if isinstance(op, (SampleDropout, Shift, *NORMS)):
            continue
        operation = _operation(op, shape)
        joined = _pattern(op, operation)
        pattern = None if pattern is None or joined is None else _after(pattern, joined, operation)
        operations.append(operation)
        shape = operation.after
    matrix: Any = pattern
    return OutlinedConnection(source, matrix, lag=lag, operations=tuple(operations))


def _after(pattern: Pattern, joined: Pattern, operation: Operation) -> Pattern | None:
    """A dense layer reads whatever reaches any of the values before it, whose form is not that of one vector perhaps."""
    if operation.kind == "Linear":
        return pattern.merged(operation.after[0])
    if operation.kind in ("shape", "Scale"):
        return pattern
    return pattern.then(joined) if pattern.reaches == joined.reads else None


def _operation(op: nn.Module, shape: Shape) -> Operation:
    with torch.no_grad():
        like = next(chain(op.parameters(), op.buffers()), torch.zeros((), device="meta"))
        after = tuple(op(torch.zeros(1, *shape, device=like.device, dtype=like.dtype)).shape[1:])
    rest: dict[str, Any] = {"before": shape, "after": after}
    if isinstance(op, nn.Linear | nn.Conv1d | nn.Conv2d):
        rest |= {"weights": op.weight.numel(), "bias": op.bias is not None, "key": _identity(op.weight)}
    if isinstance(op, nn.Linear):
        kind = "Linear" if len(shape) == 1 else "Linear over tokens"
        return Operation(kind=kind, **rest)
    if isinstance(op, nn.Conv1d | nn.Conv2d):
        sizes = {key: _pair(getattr(op, key), after) for key in ("kernel_size", "stride", "dilation")}
        padding = _pair(op.padding, after, 0) if not isinstance(op.padding, str) else _same_padding(op, sizes)
        return Operation(
            kind=type(op).__name__, kernel=sizes["kernel_size"], stride=sizes["stride"], dilation=sizes["dilation"],
            padding=padding, groups=op.groups, **rest,
        )  # fmt: skip
    if isinstance(op, nn.AvgPool1d | nn.AvgPool2d | nn.MaxPool1d | nn.MaxPool2d):
        kernel = _pair(op.kernel_size, after)
        stride = _pair(op.stride if op.stride is not None else op.kernel_size, after)
        kind = "max" if isinstance(op, nn.MaxPool1d | nn.MaxPool2d) else "average"
        kind = "sum" if getattr(op, "divisor_override", None) == 1 else kind
        kind = _unsaid(op) or kind
        return Operation(kind=kind, kernel=kernel, stride=stride, padding=_pair(op.padding, after, 0), **rest)
    if isinstance(op, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d) and not any(a % b for a, b in zip(shape[1:], after[1:])):
        window = _pair(tuple(a // b for a, b in zip(shape[1:], after[1:])), after)
        return Operation(kind="average", kernel=window, stride=window, **rest)
    if isinstance(op, Gain):
        return Operation(kind="Scale", weights=op.gain.numel(), **rest)
    if isinstance(op, nn.Flatten) or (isinstance(op, Gather) and op.ordered):
        return Operation(kind="shape", **rest)
    return Operation(kind="place" if isinstance(op, ChannelPad) else type(op).__name__, **rest)


def _unsaid(op: nn.Module) -> str:
    """The setting of an average pooling that no file of a chip holds; "" where there is none."""
    if not isinstance(op, nn.AvgPool1d | nn.AvgPool2d):
        return ""
    divisor = getattr(op, "divisor_override", None)
    counted = op.count_include_pad or divisor == 1 or not np.any(op.padding)
    found = {"ceil_mode": op.ceil_mode, "count_include_pad": not counted, "divisor_override": divisor not in (None, 1)}
    other = next((name for name, set_ in found.items() if set_), "")
    return other and f"{type(op).__name__} with {other}"


def _identity(weight: Tensor) -> int:
    """Equal of equal weights; on the meta device of the same."""
    if weight.device.type == "meta":
        return id(weight)
    return crc32(weight.detach().cpu().contiguous().numpy().tobytes()) or 1


def _pattern(op: nn.Module, operation: Operation) -> Pattern | None:
    before, after = operation.before, operation.after
    if operation.kind in ("shape", "Scale", "Linear"):
        return same((1,))  # ``_after`` needs none
    if not 1 <= len(before) <= 3:
        return None
    if isinstance(op, ChannelPad):
        return placed(before, op.before, after[0])
    if operation.kind not in ("Conv1d", "Conv2d", "average", "sum", "max"):
        return None
    groups = operation.groups if operation.kind.startswith("Conv") else operation.before[0]
    return sliding(before, after, operation.kernel, operation.stride, operation.padding, operation.dilation, groups)


def _pair(value: Any, after: Shape, one: int = 1) -> tuple[int, int]:
    """(height, width); a signal has a height of 1."""
    values = [value] * (len(after) - 1) if isinstance(value, int) else [int(v) for v in value]
    return (one, values[0]) if len(values) == 1 else (values[0], values[1])


def _same_padding(op: Any, sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Above and to the left; of a kernel of even size there is one more below and to the right."""
    if op.padding == "valid":
        return (0, 0)
    high, wide = (d * (k - 1) // 2 for d, k in zip(sizes["dilation"], sizes["kernel_size"]))
    return high, wide
