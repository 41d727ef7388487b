"""How the packed engine runs one synapse over one chunk of packed spikes, forward and backward.

``ConvSynapseRun`` and ``LinearSynapseRun`` run a chain of dropout, average pooling and one layer with weights on words. On the
CPU they work spike by spike where few neurons fire. ``DenseSynapseRun`` runs any other chain: the synapse's own operations on
unpacked values, and autograd for their gradient.
Suffix legend: K steps of a chunk, B batch, S positions, P pooled positions, C channels, O output channels, W words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import (
    cpu,
    dense,
    lookup,
    packed_kernels,
    payload_loops,
    register_tables,
    sparse_backward,
    tap_loops,
    winograd,
)
from spikeprop.snn.engine.kernels.arguments import PackedSpikes
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.sparse_backward import Active
from spikeprop.snn.engine.kernels.words import channels_first, channels_last, pack
from spikeprop.snn.engine.layout import (
    ConvGradientAccumulator,
    ConvLayout,
    DenseLayout,
    GradientAccumulator,
    LinearGradientAccumulator,
    LinearLayout,
    WeightedLayout,
)
from spikeprop.snn.layer import INPUT
from spikeprop.snn.synapse import DropoutMasks, Gain

# Share of values that are spikes, below which going spike by spike is faster. Measured; set a little low.
FORWARD_EVENTS, LINEAR_FORWARD_EVENTS = 0.4, 0.28
# The same of spikes with a sign or a payload, in wide layers and in others: than a dense product, and than tables.
FORWARD_PAYLOADS, FORWARD_PAYLOADS_NARROW = 0.65, 0.45
FORWARD_SIGNS, FORWARD_SIGNS_NARROW = 0.4, 0.18
WIDE = 64  # channels read, and written
BACKWARD_EVENTS, BACKWARD_EVENTS_WINOGRAD = 0.3, 0.45  # the second times the share of the direct products' seconds
LINEAR_BACKWARD_EVENTS = 0.5  # of a fully connected layer: a dense product of few rows writes all its weights' gradient each time
EVENT_OUTPUTS = 32  # output channels; of fewer, tables are faster than going spike by spike at any rate
# Cost of the pairs of active neurons, as a share of the dense product's, below which the input's gradient goes pair by pair.
SPARSE_INPUT, SPARSE_INPUT_WINOGRAD, SPARSE_LINEAR_INPUT = 0.9, 0.55, 0.9
LIMITS = [name for name in globals() if name.startswith(("SPARSE_", "FORWARD_", "BACKWARD_", "LINEAR_"))]  # what tests force

AnyLayout = TypeVar("AnyLayout", bound=DenseLayout)
AnyWeighted = TypeVar("AnyWeighted", bound=WeightedLayout)


@dataclass
class SourceValues:
    """A layer's output over K steps: packed spikes, spikes with a sign or a payload as int8, or dense values (K or 1, B, ...).

    Attributes:
        shape: of a sample.
        count: number of spikes, packed or int8, that are not 0.
        active: on the way back, the neurons whose gradient is needed; None for all.
        unit: none of the int8 is beyond -1 and 1.
    """

    shape: tuple[int, ...]
    words_KBSW: Tensor | None = None
    count: int = 0
    dense_KB: Tensor | None = None
    small_KBSC: Tensor | None = None
    unit: bool = False
    active: Active | None = None

    @property
    def steps(self) -> int:
        return len(self._held)

    @property
    def _held(self) -> Tensor:
        held = next(t for t in (self.words_KBSW, self.small_KBSC, self.dense_KB) if t is not None)
        return held

    def cut(self, first: int, last: int) -> SourceValues:
        """The steps first..last; the number of spikes is estimated in proportion."""
        if (first, last) == (0, self.steps) or (self.dense_KB is not None and len(self.dense_KB) == 1):
            return self
        words, dense, small = (t if t is None else t[first:last] for t in (self.words_KBSW, self.dense_KB, self.small_KBSC))
        return SourceValues(self.shape, words, self.count * (last - first) // self.steps, dense, small, self.unit, self.active)

    @property
    def largest(self) -> float:
        """No value is larger in magnitude; infinity where the values are no whole numbers."""
        if self.small_KBSC is None or self.unit:
            return 1 if self.dense_KB is None else math.inf
        low, high = self.small_KBSC.aminmax()
        return max(-int(low), int(high))

    def channels_last(self, dtype: torch.dtype) -> Tensor:
        """The values (K or 1, B, S, C)."""
        if self.words_KBSW is not None:
            return unpacked(self.words_KBSW, self.shape[0], dtype)
        if self.small_KBSC is not None:
            return self.small_KBSC.to(dtype)
        assert self.dense_KB is not None
        return channels_last(self.dense_KB.flatten(0, 1).to(dtype), len(self.dense_KB))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The values (K or 1, B, ...)."""
        if self.dense_KB is not None:
            return self.dense_KB.to(dtype)
        return channels_first(self.channels_last(dtype), self.shape).unflatten(0, self._held.shape[:2])


@dataclass(frozen=True)
class SourceSpec:
    """What a run reads: ``batch`` samples of ``shape``, as spikes or as values of ``dtype``; and memory for what it makes."""

    batch: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    buffers: BufferPool


class SynapseRun(Generic[AnyLayout]):
    """One synapse of one simulation."""

    def __init__(self, layout: AnyLayout, key: str, masks: DropoutMasks | None, source: SourceSpec):
        self.layout, self.key, self.masks = layout, key, masks
        self.batch, self.shape, self.dtype, self.buffers = source.batch, source.shape, source.dtype, source.buffers

    def forward(self, source: SourceValues) -> Tensor:
        """Current (K, B, P, O); K = 1 where the source is one step that stands for all."""
        raise NotImplementedError

    def add_to(self, total_KBPO: Tensor, source: SourceValues) -> None:
        """Add the current to a sum of currents of as many steps, or of more."""
        current_KBPO = self.forward(source)
        total_KBPO += current_KBPO
        self.buffers.give(current_KBPO)

    def backward(
        self,
        source: SourceValues,
        grad_KBPO: Tensor,
        active: Active | None,
        accumulator: GradientAccumulator,
        want_source: bool,
    ) -> Gradient | None:
        """Accumulate gradients of the parameters; returns that of the source's spikes where it is wanted.

        Args:
            source: what was read.
            grad_KBPO: gradient of the current.
            active: the neurons for which that is not zero; None if it may be for all.
            accumulator: of the parameters' gradients.
            want_source: whether that of the source is wanted.
        """
        raise NotImplementedError


class DenseSynapseRun(SynapseRun[DenseLayout]):
    """The synapse's own operations on dense values."""

    def forward(self, source: SourceValues) -> Tensor:
        current_KB = self.layout.synapse(source.dense(self.dtype), self.masks, self.key)
        current_KBPO = channels_last(current_KB.flatten(0, 1), len(current_KB))
        return current_KBPO.clone() if _share_memory(current_KBPO, source.dense_KB) else current_KBPO

    def add_to(self, total_KBPO: Tensor, source: SourceValues) -> None:
        """Small numbers on a path around a layer are added in one pass over memory."""
        small_KBSC, ops = source.small_KBSC, list(self.layout.synapse)
        gains = [op.gain for op in ops if isinstance(op, Gain)]
        if small_KBSC is None or len(gains) != len(ops) or len(gains) > 1 or small_KBSC.device.type != "cpu":
            super().add_to(total_KBPO, source)
            return
        gain = gains[0] if gains else torch.ones((), dtype=self.dtype)
        if gain.numel() not in (1, self.shape[0]) or total_KBPO.dtype is not self.dtype or gain.dtype is not self.dtype:
            super().add_to(total_KBPO, source)
            return
        cpu.add_scaled(small_KBSC, gain.detach().reshape(-1).expand(self.shape[0]), total_KBPO)

    def backward(
        self,
        source: SourceValues,
        grad_KBPO: Tensor,
        active: Active | None,
        accumulator: GradientAccumulator,
        want_source: bool,
    ) -> Gradient | None:
        synapse, parameters = self.layout.synapse, self.layout.parameters
        values = source.dense(self.dtype).detach().requires_grad_(want_source)
        leaves = [leaf for _, leaf in parameters]
        wanted = [values, *leaves] if want_source else leaves
        if not wanted:
            return None
        with torch.enable_grad():
            current_KB = synapse(values, self.masks, self.key)
        grad = channels_first(grad_KBPO, tuple(current_KB.shape[2:])).unflatten(0, current_KB.shape[:2])
        found = list(torch.autograd.grad(current_KB, wanted, grad.to(current_KB.dtype)))
        grad_values = found.pop(0) if want_source else None
        for (parameter, _), grad in zip(parameters, found):
            accumulator.add(parameter, grad)
        if grad_values is None:
            return None
        grad_KBSC = channels_last(grad_values.flatten(0, 1), len(grad_values))
        return Gradient(grad_KBSC.clone() if _share_memory(grad_KBSC, grad_KBPO) else grad_KBSC)


class WeightedSynapseRun(SynapseRun[AnyWeighted]):
    """Dropout, average pooling and one convolution or fully connected layer."""

    def __init__(self, layout: AnyWeighted, key: str, masks: DropoutMasks | None, source: SourceSpec):
        super().__init__(layout, key, masks, source)
        self.scale_BSC = self._dropout() if masks is not None else None
        self.mask_BSW = pack(self.scale_BSC) if self.scale_BSC is not None else None
        self.compute = _compute_dtype(layout.weight)

    def _dropout(self) -> Tensor | None:
        """Product of the dropout masks, (B, S, C), at the source's resolution."""
        total, layout = None, self.layout
        for i, p, before in layout.dropouts:
            if p == 0:
                continue
            assert self.masks is not None
            shape = self.shape if before or len(self.shape) == 1 else layout.pooled_shape
            like = torch.empty(self.batch, *shape, dtype=self.dtype, device=layout.weight.device)
            mask = self.masks.get(f"{self.key}/{i}", p, like)
            if not before and layout.pool > 1:
                mask = mask.repeat_interleave(layout.pool, 2).repeat_interleave(layout.pool, 3)
            mask = channels_last(mask, 1)[0]
            total = mask if total is None else total * mask
        return total

    def _spikes(self, source: SourceValues) -> PackedSpikes:
        assert source.words_KBSW is not None
        return PackedSpikes(source.words_KBSW, self.layout.size, self.shape[0], self.layout.pool, self.scale_BSC, self.mask_BSW)

    def _few(self, source: SourceValues, limit: float) -> bool:
        """Whether so few neurons fire that adding their weights one by one is the faster way."""
        if source.words_KBSW is None or source.words_KBSW.device.type != "cpu":
            return False
        steps, batch, positions = source.words_KBSW.shape[:3]
        return (
            source.count * self.layout.kept
            < limit * self.layout.few * steps * batch * positions / self.layout.pool**2 * self.shape[0]
        )

    def _values(self, source: SourceValues) -> Tensor:
        """What the weights see, dense, (K, B, P, C)."""
        if source.words_KBSW is not None:
            return packed_kernels(source.words_KBSW.device).pooled(self._spikes(source), self.compute)
        values = source.channels_last(self.compute)
        if self.scale_BSC is not None:
            values = values * self.scale_BSC.to(self.compute)
        if self.layout.pool == 1:
            return values
        return channels_last(F.avg_pool2d(channels_first(values, self.shape), self.layout.pool), len(values))

    def _active_pair(self, source: SourceValues, grad_KBPO: Tensor, active: Active | None) -> tuple[Active, Active] | None:
        """Outputs and inputs (pooled, masked) with a gradient, where both are known and a sparse product is possible."""
        if active is None or source.active is None or self.compute is not self.dtype or grad_KBPO.dtype is not self.dtype:
            return None
        return active, source.active.pooled(self.layout.size[1], self.layout.pool, self.mask_BSW)

    def _gradient(self, grad_KBPC: Tensor) -> Gradient:
        """Of the source's spikes, from that of the values that the weights see."""
        return Gradient(grad_KBPC, self.layout.size[1], self.layout.pool, self.scale_BSC)


class ConvSynapseRun(WeightedSynapseRun[ConvLayout]):
    """A convolution: dense by torch, or spike by spike."""

    def __init__(self, layout: ConvLayout, key: str, masks: DropoutMasks | None, source: SourceSpec):
        super().__init__(layout, key, masks, source)
        self.weight_OCYX = layout.weight_OCYX.to(self.compute)

    def forward(self, source: SourceValues) -> Tensor:
        layout, steps = self.layout, source.steps
        if self._few_payloads(source):
            return self._by_payloads(source)
        few = layout.plain and self._few(source, FORWARD_EVENTS)
        if not (few and len(self.weight_OCYX) >= EVENT_OUTPUTS):
            found = self._looked_up(source)
            if found is not None:
                return found
        if not few:
            images = channels_first(self._values(source), layout.pooled_shape)
            bias = layout.bias.to(self.compute) if layout.bias is not None else None
            current = F.conv2d(images, self.weight_OCYX, bias, layout.stride, layout.padding, layout.dilation)
            return channels_last(current, steps)
        height, width = layout.out_size
        out = self.buffers.take((steps, self.batch, height * width, len(self.weight_OCYX)), self.dtype)
        spikes_a_tap = source.count * layout.kept / (steps * self.batch * math.prod(layout.pooled_shape[1:]))
        by_tap = spikes_a_tap >= tap_loops.LEAST_SPIKES and layout.tap_weight is not None
        weight = layout.tap_weight if by_tap else layout.event_weight
        assert weight is not None
        spikes = self._spikes(source)
        cpu.event_conv(spikes, weight, layout.padding, layout.affine, (height, width), out, by_tap=by_tap)
        return out

    def _few_payloads(self, source: SourceValues) -> bool:
        """Whether going spike by spike serves values of int8, and is the faster way."""
        layout, small_KBSC = self.layout, source.small_KBSC
        if small_KBSC is None or small_KBSC.device.type != "cpu" or self.dtype is not torch.float32 or self.scale_BSC is not None:
            return False
        outputs, channels, _, columns = self.weight_OCYX.shape
        if not layout.plain or layout.pool > 1 or columns == 1 or outputs < EVENT_OUTPUTS or layout.tap_weight is None:
            return False
        limits = (FORWARD_PAYLOADS, FORWARD_PAYLOADS_NARROW)
        if source.unit and register_tables.available():
            limits = (FORWARD_SIGNS, FORWARD_SIGNS_NARROW)
        wide = channels >= WIDE and outputs % WIDE == 0
        return source.count < limits[0 if wide else 1] * small_KBSC.numel()

    def _by_payloads(self, source: SourceValues) -> Tensor:
        layout = self.layout
        assert source.small_KBSC is not None
        assert layout.tap_weight is not None
        out = self.buffers.take((source.steps, self.batch, math.prod(layout.out_size), len(self.weight_OCYX)), self.dtype)
        small_ISC = source.small_KBSC.flatten(0, 1)
        payload_loops.conv(
            small_ISC, layout.size, layout.tap_weight, layout.padding, layout.affine, layout.out_size, out.flatten(0, 1)
        )
        return out

    def _looked_up(self, source: SourceValues) -> Tensor | None:
        """By sums of weights from tables, of packed or signed spikes; None where there are none, or they do not serve."""
        layout, words = self.layout, source.words_KBSW
        spikes = words if words is not None else source.small_KBSC if source.unit else None
        if self.scale_BSC is not None or spikes is None:
            return None
        spikes_ISX, signed = spikes.flatten(0, 1), words is None
        way: Any = register_tables
        tables = None
        if register_tables.serves(len(spikes_ISX), math.prod(layout.out_size)):
            tables = layout.signed_register_tables if signed else layout.register_tables
        if tables is None:
            way, tables = lookup, layout.signed_tables if signed else layout.tables
        if tables is None:
            return None
        out = self.buffers.take((source.steps, self.batch, math.prod(layout.out_size), len(self.weight_OCYX)), self.dtype)
        geometry = (layout.stride, layout.padding, layout.affine, layout.out_size)
        way.conv(spikes_ISX, layout.size, tables, *geometry, out.flatten(0, 1))
        return out

    def backward(
        self,
        source: SourceValues,
        grad_KBPO: Tensor,
        active: Active | None,
        accumulator: GradientAccumulator,
        want_source: bool,
    ) -> Gradient | None:
        layout = self.layout
        if layout.bias is not None:
            accumulator.add(layout.trained_bias, grad_KBPO.sum((0, 1, 2), dtype=self.dtype))
        if layout.trains_weight:
            assert isinstance(accumulator, ConvGradientAccumulator)
            self._weight_grad(source, grad_KBPO, accumulator)
        return self._gradient(self._source_grad(source, grad_KBPO, active)) if want_source else None

    def _weight_grad(self, source: SourceValues, grad_KBPO: Tensor, accumulator: ConvGradientAccumulator) -> None:
        layout, limit = self.layout, BACKWARD_EVENTS
        if layout.winograd:
            limit = min(limit, BACKWARD_EVENTS_WINOGRAD * winograd.share(*self.weight_OCYX.shape[:2]))
        if layout.plain and self._few(source, limit):
            accumulator.events.weight_grad(self._spikes(source), grad_KBPO, layout.out_size)
            return
        values_KBPC, size = self._values(source), layout.pooled_shape[1:]
        if layout.winograd:
            values_ISC, grad_ISO = values_KBPC.flatten(0, 1), grad_KBPO.flatten(0, 1)
            grad = winograd.weight_grad(values_ISC, size, grad_ISO, layout.out_size, layout.padding, self.buffers)
        else:
            grad = self._torch_grad(channels_first(values_KBPC, layout.pooled_shape), grad_KBPO, 1).to(self.dtype)
        accumulator.add(layout.weight, grad)

    def _source_grad(self, source: SourceValues, grad_KBPO: Tensor, active: Active | None) -> Tensor:
        """Gradient of the values that the weights see, (K, B, P, C)."""
        layout, steps = self.layout, len(grad_KBPO)
        channels, height, width = layout.pooled_shape
        pair = self._active_pair(source, grad_KBPO, active)
        if pair is not None and self._few_pairs(*pair, steps):
            out_KBPC = self.buffers.take((steps, self.batch, height * width, channels), self.dtype)
            sparse_backward.conv_input(grad_KBPO, *pair, layout.conv_shape, layout.sparse_weight, out_KBPC, self.buffers)
            return out_KBPC
        if layout.winograd:
            out_KBPC = self.buffers.take((steps, self.batch, height * width, channels), self.dtype)
            winograd.input_grad(
                grad_KBPO.flatten(0, 1),
                layout.out_size,
                layout.winograd_weight,
                layout.padding,
                out_KBPC.flatten(0, 1),
                (height, width),
                self.buffers,
            )
            return out_KBPC
        like = torch.empty(
            (steps * self.batch, channels, height, width),
            dtype=self.compute,
            device=grad_KBPO.device,
            memory_format=torch.channels_last,
        )
        return channels_last(self._torch_grad(like, grad_KBPO, 0), steps)

    def _few_pairs(self, outputs: Active, inputs: Active, steps: int) -> bool:
        """Whether pair by pair is faster than a dense product."""
        layout = self.layout
        dense_pairs = self.batch * math.prod(layout.out_size) * layout.weight_OCYX.numel()
        limit = (SPARSE_INPUT_WINOGRAD if layout.winograd else SPARSE_INPUT) * dense_pairs * steps
        return sparse_backward.conv_pairs(outputs, inputs, layout.conv_shape) * sparse_backward.cost(steps) < limit

    def _torch_grad(self, images: Tensor, grad_KBPO: Tensor, which: int) -> Tensor:
        """torch's own gradient of a convolution: 0 of its input, 1 of its weights."""
        layout = self.layout
        grad = channels_first(grad_KBPO.to(self.compute), (len(self.weight_OCYX), *layout.out_size))
        options = (layout.stride, layout.padding, layout.dilation, False, [0, 0], 1, [which == 0, which == 1, False])
        return torch.ops.aten.convolution_backward(grad, images, self.weight_OCYX, None, *options)[which]


class LinearSynapseRun(WeightedSynapseRun[LinearLayout]):
    """A fully connected layer: dense, or spike by spike."""

    def __init__(self, layout: LinearLayout, key: str, masks: DropoutMasks | None, source: SourceSpec):
        super().__init__(layout, key, masks, source)
        self.weight_ON = layout.weight_ON.to(self.compute)

    def forward(self, source: SourceValues) -> Tensor:
        bias, shape = self.layout.bias, (source.steps, self.batch, 1, len(self.weight_ON))
        if not self._few(source, LINEAR_FORWARD_EVENTS):
            current_IO = dense.matmul(self._inputs(source), self.weight_ON.T)
            return (current_IO if bias is None else current_IO.add_(bias)).view(shape)
        out = self.buffers.take(shape, self.dtype)
        cpu.event_linear(self._spikes(source), self.layout.event_weight, self.layout.affine, out)
        return out

    def backward(
        self,
        source: SourceValues,
        grad_KBPO: Tensor,
        active: Active | None,
        accumulator: GradientAccumulator,
        want_source: bool,
    ) -> Gradient | None:
        layout, grad_IO = self.layout, grad_KBPO.flatten(0, 2)
        if layout.bias is not None:
            accumulator.add(layout.trained_bias, grad_IO.sum(0, dtype=self.dtype))
        if layout.trains_weight:
            assert isinstance(accumulator, LinearGradientAccumulator)
            kept_IO = grad_IO if self.buffers.keep(grad_KBPO) else grad_IO.clone()
            if self._few(source, LINEAR_BACKWARD_EVENTS):
                accumulator.add_events(self._spikes(source), kept_IO)
            else:
                accumulator.add_dense(partial(self._inputs, source), kept_IO.to(self.compute))
        if not want_source:
            return None
        outputs_inputs = self._active_pair(source, grad_KBPO, active)
        if outputs_inputs is not None and self._few_pairs(*outputs_inputs, len(grad_KBPO)):
            channels, height, width = layout.pooled_shape
            out_KBPC = self.buffers.take((len(grad_KBPO), self.batch, height * width, channels), self.dtype)
            sparse_backward.linear_input(grad_KBPO.squeeze(2), *outputs_inputs, layout.event_weight, out_KBPC, self.buffers)
            return self._gradient(out_KBPC)
        grad_KBCP = dense.matmul(grad_IO.to(self.compute), self.weight_ON).view(*grad_KBPO.shape[:2], self.shape[0], -1)
        return self._gradient(grad_KBCP.transpose(2, 3).contiguous())

    def _inputs(self, source: SourceValues) -> Tensor:
        """What the weights see, dense, (I, N), channel first."""
        if source.dense_KB is not None and self.layout.pool == 1 and self.scale_BSC is None:
            return source.dense_KB.to(self.compute).flatten(0, 1).flatten(1)
        return self._values(source).transpose(2, 3).flatten(0, 1).flatten(1)

    def _few_pairs(self, outputs: Active, inputs: Active, steps: int) -> bool:
        """Whether pair by pair is faster than a dense product."""
        pairs = int(outputs.count_N @ inputs.count_N.reshape(self.batch, -1).sum(1))
        dense_pairs = self.batch * self.weight_ON.numel()
        few = pairs * sparse_backward.cost(steps) < SPARSE_LINEAR_INPUT * dense_pairs * steps
        return few and self.weight_ON.numel() < sparse_backward.LARGEST


def _share_memory(one: Tensor, other: Tensor | None) -> bool:
    """An identity returns what it was given; what a run returns may be written over."""
    return other is not None and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """What a layer's products are computed in: its own type, or on CUDA that of autocast."""
    if weight.is_cuda and weight.dtype is torch.float32 and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return weight.dtype


def make_synapse_run(layout: DenseLayout, key: str, masks: DropoutMasks | None, source: SourceSpec) -> SynapseRun[DenseLayout]:
    """The run of a synapse, laid out, on its source."""
    if isinstance(layout, ConvLayout):
        return ConvSynapseRun(layout, key, masks, source)  # type: ignore[return-value]
    if isinstance(layout, LinearLayout):
        return LinearSynapseRun(layout, key, masks, source)  # type: ignore[return-value]
    return DenseSynapseRun(layout, key, masks, source)


def unpacked(words_KBSW: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Spikes (K, B, S, C) on the words' device."""
    return packed_kernels(words_KBSW.device).unpack(words_KBSW, channels, dtype)


def summed_current(
    synapses: Iterable[tuple[str, SynapseRun]],
    values: Mapping[str, SourceValues],
    buffers: BufferPool,
    constant: dict[str, Tensor] | None = None,
) -> tuple[Tensor, bool]:
    """A layer's current (K or 1, B, P, O), the sum over its synapses, and whether its memory may be overwritten.

    Args:
        synapses: (source, run) of each.
        values: what the sources sent.
        buffers: where memory is given back.
        constant: currents of an input that stays the same, by synapse; filled when first computed.
    """
    total, owned = None, False
    for source, synapse in synapses:
        current = constant.get(synapse.key) if constant is not None else None
        if current is None and total is not None and owned and source != INPUT and len(total) >= values[source].steps:
            synapse.add_to(total, values[source])
            continue
        if current is None:
            current = synapse.forward(values[source])
            if source == INPUT and constant is not None:
                constant[synapse.key] = current
        if total is None:
            total, owned = current, constant is None or synapse.key not in constant
        elif owned and len(total) >= len(current):
            total += current
            buffers.give(current)
        else:
            both = (total, current)
            total, owned = total + current, True
            for one in both:
                buffers.give(one)
    assert total is not None
    return total, owned
