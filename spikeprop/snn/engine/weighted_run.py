"""How the packed engine runs a chain of dropout, average pooling and one layer with weights, on words.

On the CPU it goes spike by spike where few neurons fire, and from active to active neuron where few have a gradient.
Suffix legend: K steps of a chunk, B batch, S positions, P pooled positions, C channels, O output channels, W words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

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
from spikeprop.snn.engine.source_values import SourceSpec, SourceValues
from spikeprop.snn.engine.synapse_run import DenseSynapseRun, SynapseRun
from spikeprop.snn.synapse import DropoutMasks


@dataclass(frozen=True)
class Limits:
    """Which way is the faster one. Measured; set a little low.

    Attributes:
        forward_events, linear_forward_events: share of values that are spikes, below which currents go spike by spike.
        forward_payloads, forward_payloads_narrow: the same of spikes with a payload, in wide layers and in others.
        forward_signs, forward_signs_narrow: the same of 1 and -1, which tables serve too.
        backward_events: the same of a convolution's weight gradient.
        backward_events_winograd: the same, times the share of direct products' seconds that Winograd's algorithm takes.
        linear_backward_events: of a fully connected layer, whose dense product writes all its weights' gradient each time.
        sparse_input, sparse_input_winograd, sparse_linear_input: cost of the pairs of active neurons, as a share of the dense
            product's, below which the input's gradient goes pair by pair.
    """

    forward_events: float = 0.4
    linear_forward_events: float = 0.28
    forward_payloads: float = 0.65
    forward_payloads_narrow: float = 0.45
    forward_signs: float = 0.4
    forward_signs_narrow: float = 0.18
    backward_events: float = 0.3
    backward_events_winograd: float = 0.45
    linear_backward_events: float = 0.5
    sparse_input: float = 0.9
    sparse_input_winograd: float = 0.55
    sparse_linear_input: float = 0.9


LIMITS = Limits()
WIDE = 64  # channels read, and written
EVENT_OUTPUTS = 32  # output channels; of fewer, tables are faster than going spike by spike at any rate

AnyWeighted = TypeVar("AnyWeighted", bound=WeightedLayout)


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
        few = layout.plain and self._few(source, LIMITS.forward_events)
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
        limits = (LIMITS.forward_payloads, LIMITS.forward_payloads_narrow)
        if source.unit and register_tables.available():
            limits = (LIMITS.forward_signs, LIMITS.forward_signs_narrow)
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
        layout, limit = self.layout, LIMITS.backward_events
        if layout.winograd:
            limit = min(limit, LIMITS.backward_events_winograd * winograd.share(*self.weight_OCYX.shape[:2]))
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
        limit = (LIMITS.sparse_input_winograd if layout.winograd else LIMITS.sparse_input) * dense_pairs * steps
        return sparse_backward.conv_pairs(outputs, inputs, layout.conv_shape) * sparse_backward.cost(steps) < limit

    def _torch_grad(self, images: Tensor, grad_KBPO: Tensor, which: int) -> Tensor:
        """torch's own gradient of a convolution: 0 of its input, 1 of its weights."""
        layout = self.layout
        grad = channels_first(grad_KBPO.to(self.compute), (len(self.weight_OCYX), *layout.out_size))
        options = (layout.stride, layout.padding, layout.dilation, False, [0, 0], 1, [which == 0, which == 1, False])
        return torch.ops.aten.convolution_backward(grad, images, self.weight_OCYX, None, *options)[which]


class LinearSynapseRun(WeightedSynapseRun[LinearLayout]):
    """A fully connected layer, or a convolution of a very small image as one: dense, or spike by spike."""

    def __init__(self, layout: LinearLayout, key: str, masks: DropoutMasks | None, source: SourceSpec):
        super().__init__(layout, key, masks, source)
        self.weight_ON = layout.weight_ON.to(self.compute)

    def forward(self, source: SourceValues) -> Tensor:
        bias, shape = self.layout.bias, (source.steps, self.batch, self.layout.out_positions, -1)
        if not self._few(source, LIMITS.linear_forward_events):
            current_IO = dense.matmul(self._inputs(source), self.weight_ON.T)
            return (current_IO if bias is None else current_IO.add_(bias)).view(shape)
        out = self.buffers.take((source.steps, self.batch, 1, len(self.weight_ON)), self.dtype)
        cpu.event_linear(self._spikes(source), self.layout.event_weight, self.layout.affine, out)
        return out.view(shape)

    def backward(
        self,
        source: SourceValues,
        grad_KBPO: Tensor,
        active: Active | None,
        accumulator: GradientAccumulator,
        want_source: bool,
    ) -> Gradient | None:
        layout, grad_IO = self.layout, grad_KBPO.flatten(2).flatten(0, 1)
        if layout.bias is not None:
            accumulator.add(layout.trained_bias, grad_KBPO.sum((0, 1, 2), dtype=self.dtype))
        if layout.trains_weight:
            assert isinstance(accumulator, LinearGradientAccumulator)
            kept_IO = grad_IO if self.buffers.keep(grad_KBPO) else grad_IO.clone()
            if self._few(source, LIMITS.linear_backward_events):
                accumulator.add_events(self._spikes(source), kept_IO)
            else:
                accumulator.add_dense(partial(self._inputs, source), kept_IO.to(self.compute))
        if not want_source:
            return None
        outputs_inputs = self._active_pair(source, grad_KBPO, active.flat() if active is not None else None)
        if outputs_inputs is not None and self._few_pairs(*outputs_inputs, len(grad_KBPO)):
            channels, height, width = layout.pooled_shape
            out_KBPC = self.buffers.take((len(grad_KBPO), self.batch, height * width, channels), self.dtype)
            sparse_backward.linear_input(grad_KBPO.flatten(2), *outputs_inputs, layout.event_weight, out_KBPC, self.buffers)
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
        few = pairs * sparse_backward.cost(steps) < LIMITS.sparse_linear_input * dense_pairs * steps
        return few and self.weight_ON.numel() < sparse_backward.LARGEST


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
