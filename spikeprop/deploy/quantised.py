"""Fine-tuning in the chip's integers: gradients are taken at weights rounded as ``quantize`` will round them.

    m = clip(round(w * f), -128, 127);   forward and backward at w' = m / f;   dL/dw = dL/dw' where m was not clipped, else 0

(fewer bits: -2^(bits-1) to 2^(bits-1) - 1, ternary -1, 0 and 1; f by channel where the layer fires),
the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432; for weights in integers Jacob et al. 2018). Scales and
exponents are those that spikeprop-hardware's ``quantize`` finds for the current network, searched again every ``refresh`` steps;
the rules of rounding are defined there, and after each search every number is compared with the integers found there. Thresholds,
biases, leaks, start potentials and a real-valued input are rounded likewise.

A hidden layer runs in its own integer units, in which a potential of 1 is one unit of the chip, so float32 holds every sum
exactly and a potential equals its threshold here exactly when it does on the chip. Spikes are the chip's, except for three
things that are not modelled: a connection with an exponent below -1 drops bits of its sums, a leak rounds the potential toward
zero in each step, and the mean of a window of 9 pixels, for example, is not exact.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from spikeprop_hardware import lay_out, quantize
from spikeprop_hardware.grids import mantissas
from spikeprop_hardware.integer import BIAS, DECAY_UNITY, THETA_LIMIT, IntegerPopulation
from torch import Tensor, nn

from spikeprop.deploy.comparison import input_limit_of
from spikeprop.deploy.writing import to_nir
from spikeprop.errors import HardwareError
from spikeprop.learn import BPTT
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import (
    ALIF,
    PLIF,
    ChannelPad,
    CubaLIF,
    Direct,
    Frames,
    Gain,
    GradedIF,
    Integrator,
    Layer,
    SpikingNetwork,
    Synapse,
)
from spikeprop.snn.folding import needs_folding
from spikeprop.snn.layer import OUTPUT


@dataclass(frozen=True, kw_only=True)
class QuantisedBPTT(BPTT):
    """BPTT at rounded weights. Its scales are part of a training's checkpoint, so that a resumed run goes on to the bit.

    Attributes:
        refresh: training steps after which the scales are searched again, which takes as long as ``quantize``.
        input_limit: largest absolute input; default what the encoder can represent, or the largest of the current batch.
        bits: of weights, 2 to 8 or "ternary"; or by layer, others 8.
        per_channel: an exponent for each channel, as of ``quantize``.
    """

    refresh: int = 100
    input_limit: float | None = None
    bits: int | Literal["ternary"] | dict[str, int | Literal["ternary"]] = 8
    per_channel: bool = False
    _held: _Held = field(default_factory=lambda: _Held(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refresh < 1:
            raise ValueError(f"refresh is {self.refresh}; the scales hold for at least 1 step")
        for bits in self.bits.values() if isinstance(self.bits, Mapping) else [self.bits]:
            try:
                mantissas(bits)  # type: ignore[arg-type]
            except HardwareError as error:
                raise ValueError(str(error)) from error

    @property
    def single_backward(self) -> bool:
        return False  # it changes the network's parameters during a step

    def step(self, model: SpikingNetwork, x: Any, y: Tensor) -> dict[str, Tensor]:
        held, grids = self._held, self._held.of(model)
        if grids is None:
            limit = self.input_limit if self.input_limit is not None else input_limit_of(model, x)
            grids = find_grids(model, limit, self.timesteps, self.bits, self.per_channel)
            held.grids, held.left = grids, self.refresh
        held.left -= 1
        with rounded(model, grids):
            return super().step(model, grids.round_input(model, x), y)

    def state_dict(self) -> dict[str, Tensor]:
        text = json.dumps([None if self._held.grids is None else asdict(self._held.grids), self._held.left])
        return super().state_dict() | {"grids": torch.tensor(list(text.encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = dict(state)
        found, self._held.left = json.loads(bytes(own.pop("grids").tolist()))
        self._held.grids, self._held.model = None if found is None else _grids_of(found), None
        super().load_state_dict(own)


@dataclass
class _Held:
    """The scales in use, the network that they are of (None: the next that is trained), and the steps that they serve yet."""

    grids: Grids | None = None
    left: int = 0
    model: weakref.ref[Any] | None = None

    def of(self, model: Any) -> Grids | None:
        """The scales of a network, where there are any and they still serve."""
        if self.model is not None and self.model() is not model:
            self.grids = None
        self.model = weakref.ref(model)
        return self.grids if self.left > 0 else None


@dataclass(frozen=True)
class LayerGrid:
    """How one layer is rounded: its scale, or those of its channels; by branch a connection's exponent, or those of its channels,
    and input scale; its biases' exponent, the range of its mantissas, and the number of axes of a sample."""

    scale: float | list[float]
    exponents: tuple[Any, ...]
    input_scales: tuple[float, ...]
    bias_exponent: int
    held: tuple[int, int]
    axes: int


@dataclass(frozen=True)
class Grids:
    """How a network is rounded, layer by layer."""

    layers: dict[str, LayerGrid]
    input_scale: float

    def round_input(self, network: SpikingNetwork, x: Any) -> Any:
        """Samples as the chip receives them from ``Direct`` or ``Frames``; spikes of other encoders are whole numbers anyway."""
        if not isinstance(network.encoder, Direct | Frames):
            return x
        if isinstance(x, Sequences):
            return replace(x, values=self.round_input(network, x.values))
        return torch.round(x * self.input_scale) / self.input_scale


def _grids_of(found: dict[str, Any]) -> Grids:
    """Scales as ``asdict`` and JSON have them."""
    layers = {
        name: LayerGrid(
            grid["scale"],
            tuple(grid["exponents"]),
            tuple(grid["input_scales"]),
            grid["bias_exponent"],
            tuple(grid["held"]),
            grid["axes"],
        )
        for name, grid in found["layers"].items()
    }
    return Grids(layers, found["input_scale"])


def find_grids(
    network: SpikingNetwork,
    input_limit: float | None = None,
    timesteps: int | None = None,
    bits: Any = 8,
    per_channel: bool = False,
) -> Grids:
    """The scales and exponents that ``quantize`` finds for a network.

    Raises:
        HardwareError: a layer's weights cannot be rounded one by one: several layers of
            weights in a row without neurons between them, or pooling windows that overlap.
    """
    _refuse_other_state(network)
    by_node = {OUTPUT if n == _last(network) else n: b for n, b in bits.items()} if isinstance(bits, Mapping) else bits
    made = quantize(to_nir(network), input_limit=input_limit, timesteps=timesteps, bits=by_node, per_channel=per_channel).network
    populations = {p.name: p for p in made.populations}
    layers = {}
    for name, layer in network.named_layers():
        p = populations[name if layer.neuron is not None else OUTPUT]
        scales = tuple(made.input_scale if c.source == made.input else 1.0 for c in p.connections)
        form = bits.get(name, 8) if isinstance(bits, Mapping) else bits
        exponents = tuple(_by_channel(c.exponent, p.shape) for c in p.connections)
        layers[name] = LayerGrid(_by_channel(p.scale, p.shape), exponents, scales, p.bias_exponent, mantissas(form), len(p.shape))
    grids = Grids(layers, made.input_scale)
    _check_integers(network, grids, populations)
    return grids


def _last(network: SpikingNetwork) -> str | None:
    """Name of the layer without neurons, whose node is the output."""
    return next((name for name, layer in network.named_layers() if layer.neuron is None), None)


def _by_channel(values: Any, shape: tuple[int, ...]) -> Any:
    """One number for all neurons, or a list with one for each channel."""
    if not isinstance(values, np.ndarray):
        return values
    found = values.reshape(shape[0], -1)[:, 0].tolist()
    return found[0] if len(set(found)) == 1 else found


def _refuse_other_state(network: SpikingNetwork) -> None:
    """What keeps more than a potential, computes its factors, as PLIF, or is shared has rounding of its own."""
    seen: set[int] = set()
    for name, layer in network.named_layers():
        for part in (*layer.synapses, layer.dynamics):
            own = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
            if own & seen:
                raise HardwareError(
                    f"layer {name!r} shares weights or neurons with another path, and each is rounded by a scale of its own, so "
                    "it cannot be fine-tuned in integers; use finetune.rule=BPTT"
                )
            seen |= own
        if isinstance(layer.neuron, ALIF | CubaLIF | PLIF | Integrator) or layer.feedback_sources:
            what = "feedback" if layer.feedback_sources else type(layer.neuron).__name__
            raise HardwareError(f"layer {name!r} has {what}, which cannot be fine-tuned in integers yet; use finetune.rule=BPTT")
    if needs_folding(network):
        raise HardwareError("batch-norm cannot be fine-tuned in integers: fold it first (spikeprop.snn.folding.folded)")


def _check_integers(network: SpikingNetwork, grids: Grids, populations: dict[str, IntegerPopulation]) -> None:
    """The rounded network, laid out, must have exactly the integers that ``quantize`` made."""
    with rounded(network, grids):
        laid_out = lay_out(to_nir(network))
    for (name, layer), real in zip(network.named_layers(), laid_out.populations):
        if real.pools:
            continue
        p, grid = populations[real.name], grids.layers[name]
        unit = 1.0 if layer.neuron is not None else 1 / p.scale
        bias = p.bias.astype(np.float64) * 2.0**p.bias_exponent / 64 * unit
        same = np.allclose(real.bias, bias, rtol=1e-5, atol=1e-3 * unit)
        for ours, theirs, x in zip(real.connections, p.connections, grid.input_scales):
            least = float(np.min(theirs.factor)) * x * unit
            same &= bool(abs(ours.matrix - theirs.real() * (x * unit)).max() <= 0.01 * least)
        if not same:
            raise HardwareError(
                f"layer {name!r} cannot be fine-tuned in integers: its weights are folded with pooling windows that overlap or "
                "with factors behind them, so that they are not rounded one by one; use finetune.rule=BPTT"
            )


@contextmanager
def rounded(network: SpikingNetwork, grids: Grids) -> Iterator[None]:
    """Within the block the network computes at rounded values; then the old values are restored, and gradients refer to them."""
    values = _TemporaryValues()
    try:
        with torch.no_grad():
            for name, layer in network.named_layers():
                if not layer.dynamics.passes_on:  # counts spikes: nothing to round
                    _round_layer(values, name, layer, grids.layers[name])
        yield
    finally:
        values.restore()


class _TemporaryValues:
    """Replaces values of tensors for a while, and converts gradients at the new values to gradients of the old ones."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, float | Tensor]] = []
        self._replaced: list[tuple[nn.Module, str, Tensor, float | Tensor]] = []
        self._added: list[Synapse] = []

    def set(self, tensor: Tensor, value: Tensor, slope: float | Tensor) -> None:
        """``slope``: derivative of the new value with respect to the old one, 0 where it was clipped."""
        self._kept.append((tensor, tensor.detach().clone(), slope))
        tensor.copy_(value)

    def replace(self, module: nn.Module, name: str, value: Tensor, slope: float | Tensor) -> None:
        """``set`` where one number for all becomes one for each channel."""
        old = getattr(module, name)
        if old.shape == value.shape:
            self.set(old, value, slope)
            return
        self._replaced.append((module, name, old, slope))
        new = value.to(old.dtype)
        setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)

    def add_factor(self, synapse: Synapse, factor: Tensor) -> None:
        """A connection without a layer of weights has one on the chip: a factor on what it brings."""
        synapse.ops.append(Gain(factor))
        self._added.append(synapse)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the old values back; multiply gradients by the slopes."""
        for synapse in self._added:
            synapse.ops.pop(-1)
        for module, name, old, slope in self._replaced:
            gradient = getattr(module, name).grad
            setattr(module, name, old)
            if gradient is not None:
                gradient = (gradient * slope).sum_to_size(old.shape).to(old)
                old.grad = gradient if old.grad is None else old.grad + gradient
        for tensor, value, slope in reversed(self._kept):
            tensor.copy_(value)
            if tensor.grad is not None:
                tensor.grad.mul_(slope)


def _round_layer(values: _TemporaryValues, name: str, layer: Layer, grid: LayerGrid) -> None:
    scale = torch.tensor(grid.scale, dtype=torch.float64, device=layer.scale.device)  # (), or by channel (C,)
    unit = scale if layer.neuron is not None else torch.ones_like(scale)  # on the layer's real numbers; the output stays real
    for (_, _, synapse), exponent, x in zip(layer.branches(), grid.exponents, grid.input_scales):
        step = 2.0 ** (torch.tensor(exponent, dtype=torch.float64, device=scale.device) + 1) * x / scale
        _round_weights(values, name, synapse, step, unit, grid)
    biases = [op.bias for _, _, s in layer.branches() for op in s.weighted() if op.bias is not None]
    _round_biases(values, biases, 2.0**grid.bias_exponent / 64 / scale, unit)
    if layer.neuron is not None:
        _round_neuron(values, layer.neuron, _along(scale, grid.axes))


def _along(values: Tensor, axes: int) -> Tensor:
    """One number as it is; one for each channel along the first of so many axes."""
    return values.reshape(-1, *[1] * (axes - 1)) if values.ndim else values


def _round_weights(values: _TemporaryValues, name: str, synapse: Synapse, step: Tensor, unit: Tensor, grid: LayerGrid) -> None:
    """``step``: the real value of a mantissa of 1; it and ``unit``, its factor, are (), or by channel (C,)."""
    gains = [op for op in synapse if isinstance(op, Gain)]
    weighted = synapse.weighted()
    if len(weighted) > 1 or (not weighted and len(gains) > 1) or (weighted and any(g.gain.numel() != 1 for g in gains)):
        raise HardwareError(
            f"layer {name!r} cannot be fine-tuned in integers: a connection holds {len(weighted)} layers of weights and "
            f"{len(gains)} factors, where one can be rounded; use finetune.rule=BPTT"
        )
    factor = 1.0
    by_channel = not weighted and any(g.gain.numel() != 1 for g in gains)
    for gain in [] if by_channel else gains:  # one for all channels becomes part of the weights
        factor *= float(gain.gain)
        values.set(gain.gain, torch.ones_like(gain.gain), 1.0)
    pooled = float(np.prod([1 / _window(op) for op in synapse]))
    if weighted or by_channel:
        op, tensor = (weighted[0], weighted[0].weight) if weighted else (gains[0], gains[0].gain)
        step, unit = (_of_rows(name, v, synapse, op, tensor) for v in (step, unit))
        held, inside = _held(tensor.detach().double() * factor, step / pooled, grid)
        values.set(tensor, held * unit, inside.to(tensor) * (factor * unit))
    else:  # behind all operations, where its channels are the layer's
        step, unit = _along(step, grid.axes), _along(unit, grid.axes)
        held, _ = _held(torch.as_tensor(factor, dtype=torch.float64, device=step.device), step / pooled, grid)
        values.add_factor(synapse, (held * unit).to(torch.get_default_dtype()))


def _held(weights: Tensor, step: Tensor, grid: LayerGrid) -> tuple[Tensor, Tensor]:
    """Weights on their grid, and which of them are not clipped."""
    wanted = torch.round(weights / step)
    mantissas = wanted.clamp(*grid.held)
    return mantissas * step, mantissas == wanted


def _of_rows(name: str, values: Tensor, synapse: Synapse, op: nn.Module, tensor: Tensor) -> Tensor:
    """Those of the channels that an operation makes, along its tensor's first axis: of all or, in a concatenation, of some."""
    if not values.ndim:
        return values
    behind = list(synapse)[[id(other) for other in synapse].index(id(op)) + 1 :]
    pads = [other for other in behind if isinstance(other, ChannelPad)]
    rows = values[sum(p.before for p in pads) : len(values) - sum(p.after for p in pads)]
    if len(rows) != len(tensor):
        raise HardwareError(
            f"layer {name!r} cannot be fine-tuned in integers: its weights' rows are not its channels, each of which "
            "is rounded by a scale of its own; use finetune.rule=BPTT"
        )
    return _along(rows, tensor.ndim)


def _window(op: nn.Module) -> int:
    """Number of values that an average pooling averages; 1 for an operation that does not pool."""
    if isinstance(op, nn.AdaptiveAvgPool2d):
        raise HardwareError("adaptive pooling cannot be fine-tuned in integers; give it as AvgPool2d")
    if not isinstance(op, nn.AvgPool2d):
        return 1
    size = op.kernel_size
    return size * size if isinstance(size, int) else size[0] * size[1]


def _round_biases(values: _TemporaryValues, biases: list[Tensor], step: Tensor, unit: Tensor) -> None:
    """The layer's bias is their sum, and that is rounded; the first one carries the difference."""
    if not biases:
        return
    total = torch.stack([b.detach().double() for b in biases]).sum(0)
    held = torch.round(total / step).clamp_(*BIAS) * step * unit
    others = sum((b.detach().double() * unit for b in biases[1:]), torch.zeros_like(total))
    for bias, value in zip(biases, [held - others, *(b.detach().double() * unit for b in biases[1:])]):
        values.set(bias, value, unit)


def _round_neuron(values: _TemporaryValues, neuron: Any, scale: Tensor) -> None:
    times = 2 ** (neuron.levels - 1) if isinstance(neuron, GradedIF) else 1  # the chip holds the smallest level of a graded one
    theta = neuron.v_threshold.detach().double() / times * scale
    held = torch.round(theta).clamp_(1, THETA_LIMIT)
    values.replace(neuron, "v_init", torch.round(neuron.v_init.double() * theta * 64) / 64 / held, 1.0)
    values.replace(neuron, "v_threshold", held * times, scale)
    unity = DECAY_UNITY
    leak = 1 - torch.round((1 - neuron.leak.detach().double()) * unity).clamp_(0, unity - 1) / unity
    values.set(neuron.leak, leak, 1.0)
