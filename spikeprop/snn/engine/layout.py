"""Layouts: a synapse as the packed engine runs it, and its weights in the order in which its runs read them.

Most synapses are a chain of dropout, average pooling and one convolution or fully connected layer (``ConvLayout``,
``LinearLayout``); any other chain is ``DenseLayout``. A layout is made once a simulation and shared by all threads.
Suffix legend: P pooled positions, C channels, O output channels, Y and X rows and columns of a kernel.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.snn.engine.buffer_pool import new_tensor
from spikeprop.snn.engine.kernels import cpu, lookup, register_tables, winograd
from spikeprop.snn.engine.kernels.arguments import ConvShape, PackedSpikes
from spikeprop.snn.engine.support import knows_operation
from spikeprop.snn.synapse import SampleDropout, Synapse

Pair = tuple[int, int]
WAITING_BYTES = 8 << 20  # of the gradients of a fully connected layer's currents, for one thread
_being_made = RLock()


class shared_property(cached_property):
    """A cached property that the first thread that needs it makes, on the cores of those that wait for it."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        with _being_made:
            return super().__get__(instance, owner)


@dataclass(frozen=True)
class Chain:
    """A synapse as dropout, pooling, one weighted layer."""

    layer: Any
    pool: int
    dropouts: tuple[tuple[int, SampleDropout, bool], ...]  # (index, module, before the pooling)


def _chain(synapse: Synapse, shape: tuple[int, ...]) -> Chain | None:
    """The chain, or None where the synapse is anything else."""
    ops, pool, dropouts = list(synapse), 1, []
    for i, op in enumerate(ops[:-1]):
        if isinstance(op, SampleDropout):
            dropouts.append((i, op, pool == 1))
        elif isinstance(op, nn.AvgPool2d | nn.AdaptiveAvgPool2d) and pool == 1 and len(shape) == 3:
            pool = _window(op, shape)
            if pool == 0:
                return None
        elif not (isinstance(ops[-1], nn.Linear) and _flattens_all(op)):
            return None
    layer = ops[-1] if ops and all(knows_operation(op) for op in ops) else None
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return Chain(layer, pool, tuple(dropouts)) if plain and len(shape) == 3 else None
    if not isinstance(layer, nn.Linear) or (len(shape) == 3) != any(isinstance(op, nn.Flatten) for op in ops):
        return None
    return Chain(layer, pool, tuple(dropouts)) if len(shape) in (1, 3) else None


def _flattens_all(op: nn.Module) -> bool:
    return isinstance(op, nn.Flatten) and (op.start_dim, op.end_dim) == (1, -1)


def _window(op: nn.Module, shape: tuple[int, ...]) -> int:
    """Side of the square windows that tile the image exactly, or 0."""
    height, width = shape[1:]
    if isinstance(op, nn.AdaptiveAvgPool2d):
        out = op.output_size if isinstance(op.output_size, tuple) else (op.output_size, op.output_size)
        if out[0] is None or out[1] is None or height % out[0] or width % out[1]:
            return 0
        return height // out[0] if height // out[0] == width // out[1] else 0
    assert isinstance(op, nn.AvgPool2d)
    sizes = {_pair(op.kernel_size), _pair(op.stride)}
    side = _pair(op.kernel_size)[0]
    tiles = sizes == {(side, side)} and not any(_pair(op.padding)) and not op.divisor_override
    return side if tiles and height % side == 0 and width % side == 0 else 0


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)


class DenseLayout:
    """Any synapse: its own operations.

    Args:
        synapse: read now.
        freeze: take its settings and tensors as they are now, for a backward pass that runs the operations again.

    Attributes:
        parameters: those of the network that are trained, each with the tensor that stands for it in ``synapse``.
    """

    def __init__(self, synapse: Synapse, *, freeze: bool = False):
        self.synapse, self.parameters = _frozen(synapse) if freeze else (synapse, [])

    def accumulator(self) -> GradientAccumulator:
        """What a thread accumulates the gradients of the parameters in."""
        return GradientAccumulator()


def _frozen(synapse: Synapse) -> tuple[Synapse, list[tuple[nn.Parameter, Tensor]]]:
    """The synapse with settings and buffers of its own, and leaves that share the parameters' memory; and which is whose."""
    leaves: dict[nn.Parameter, Tensor] = {}
    ops = []
    for op in synapse:
        own = copy.copy(op)
        own._parameters, own._buffers = dict(op._parameters), {k: b if b is None else b.clone() for k, b in op._buffers.items()}
        for name, parameter in op._parameters.items():
            if parameter is not None:
                leaf = leaves.setdefault(parameter, nn.Parameter(parameter.detach(), parameter.requires_grad))
                own._parameters[name] = leaf  # type: ignore[assignment]
        ops.append(own)
    return Synapse(ops).train(synapse.training), [(p, leaf) for p, leaf in leaves.items() if p.requires_grad]


class WeightedLayout(DenseLayout):
    """Dropout, average pooling and one layer with weights.

    Attributes:
        few: fraction of the usual limit on spikes, below which it goes spike by spike.
    """

    few: float

    def __init__(self, synapse: Synapse, shape: tuple[int, ...], chain: Chain):
        super().__init__(synapse)
        self.pool, self.dropouts = chain.pool, [(i, op.p, before) for i, op, before in chain.dropouts if synapse.training]
        self.threads = torch.get_num_threads()  # those of the simulation, each of which runs torch alone
        self.weight, self.trained_bias = chain.layer.weight, chain.layer.bias  # parameters that get the gradients
        self.trains_weight = chain.layer.weight.requires_grad
        self.bias: Tensor | None = chain.layer.bias.detach() if chain.layer.bias is not None else None
        self.size: Pair = (shape[1], shape[2]) if len(shape) == 3 else (1, 1)
        self.pooled_shape = (shape[0], self.size[0] // self.pool, self.size[1] // self.pool)
        self.kept = math.prod(1 - p for _, p, _ in self.dropouts)  # fraction of the spikes that dropout lets through
        self.gain = 1 / (self.kept or 1.0) / self.pool**2  # what one of them counts
        weight = chain.layer.weight
        self.affine = cpu.Affine(self.gain, self.bias if self.bias is not None else weight.new_zeros(len(weight)).detach())


class ConvLayout(WeightedLayout):
    """A convolution of one group."""

    def __init__(self, synapse: Synapse, shape: tuple[int, ...], chain: Chain, reach: ConvShape):
        super().__init__(synapse, shape, chain)
        layer, self.conv_shape = chain.layer, reach
        self.weight_OCYX = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        self.stride, self.padding, self.dilation, self.out_size = reach.stride, reach.padding, reach.dilation, reach.out_size
        inside = all(pad < side for pad, side in zip(self.padding, layer.kernel_size))  # what the event kernels' border holds
        self.plain = self.stride == (1, 1) and self.dilation == (1, 1) and inside
        self.few = _few(columns=layer.kernel_size[1], outputs=len(layer.weight))
        self.winograd = self.weight_OCYX.device.type == "cpu" and winograd.serves(
            self.weight_OCYX, self.stride, self.padding, self.dilation, self.pooled_shape[1:]
        )

    def accumulator(self) -> GradientAccumulator:
        return ConvGradientAccumulator(self)

    @shared_property
    def sparse_weight(self) -> Tensor:
        """For the gradient of few active inputs, (Y, X, O, C); made when first needed."""
        return self.weight_OCYX.permute(2, 3, 0, 1).contiguous()

    @shared_property
    def winograd_weight(self) -> Tensor:
        """For the gradient of the input by Winograd's algorithm; made when first needed."""
        return winograd.transformed(self.weight_OCYX, self.threads)

    @shared_property
    def tables(self) -> lookup.Tables | None:
        """For looking up the sums of groups of channels, where that serves; made when first needed."""
        serves = self.weight_OCYX.device.type == "cpu" and self.dilation == (1, 1) and self.pool == 1
        return lookup.make_tables(self.weight_OCYX, signed=False) if serves else None

    @shared_property
    def signed_tables(self) -> lookup.Tables | None:
        """The same for signed spikes, whose tables are larger: where they were measured to be faster than a dense product."""
        outputs, _, rows, columns = self.weight_OCYX.shape
        serves = self.weight_OCYX.device.type == "cpu" and self.dilation == (1, 1) and self.pool == 1
        serves = serves and outputs in (32, 64) and rows * columns >= 9
        return lookup.make_tables(self.weight_OCYX, signed=True) if serves else None

    @shared_property
    def register_tables(self) -> register_tables.RegisterTables | None:
        """Tables in registers, of bits."""
        serves = self.dilation == (1, 1) and self.pool == 1
        return register_tables.make_tables(self.weight_OCYX, signed=False) if serves else None

    @shared_property
    def signed_register_tables(self) -> register_tables.RegisterTables | None:
        """The same of signed spikes."""
        serves = self.dilation == (1, 1) and self.pool == 1
        return register_tables.make_tables(self.weight_OCYX, signed=True) if serves else None

    @shared_property
    def event_weight(self) -> Tensor:
        """For going spike by spike; made when first needed."""
        return cpu.event_weight(self.weight_OCYX)

    @shared_property
    def tap_weight(self) -> Tensor | None:
        """The same, tap after tap."""
        return cpu.tap_weight(self.weight_OCYX)


class LinearLayout(WeightedLayout):
    """A fully connected layer; dense products read its weights as torch keeps them.

    Attributes:
        out_positions: 1, or of a convolution its positions; outputs are ordered by position, then channel.
    """

    out_positions = 1

    def __init__(self, synapse: Synapse, shape: tuple[int, ...], chain: Chain):
        super().__init__(synapse, shape, chain)
        self.weight_ON = self._matrix()
        self.few = 1.0 if len(self.weight_ON) >= 64 else 0.6

    def _matrix(self) -> Tensor:
        return self.weight.detach().contiguous()

    def accumulator(self) -> GradientAccumulator:
        return LinearGradientAccumulator(self)

    def folded(self, grad_ON: Tensor) -> Tensor:
        """The weights' gradient in their own shape."""
        return grad_ON

    @shared_property
    def event_weight(self) -> Tensor:
        """For going spike by spike."""
        return cpu.linear_weight(self.weight_ON, self.pooled_shape[0], self.threads)


class SmallConvLayout(LinearLayout):
    """A convolution of images with fewer positions than its kernel has taps, as a fully connected layer.

    Most taps would read padding: on images of 2 x 2 a kernel of 3 x 3 multiplies by 16 weights of 36.
    """

    def __init__(self, synapse: Synapse, shape: tuple[int, ...], chain: Chain, reach: ConvShape):
        self._reach, self.out_positions = reach, math.prod(reach.out_size)
        super().__init__(synapse, shape, chain)
        self.bias = self.bias.repeat(self.out_positions) if self.bias is not None else None
        self.affine = cpu.Affine(self.gain, self.affine.bias_O.repeat(self.out_positions))

    @staticmethod
    def serves(reach: ConvShape, weight: Tensor) -> bool:
        """Whether this is fewer multiplications, on the CPU."""
        return weight.device.type == "cpu" and math.prod(reach.size) < math.prod(reach.kernel)

    def _matrix(self) -> Tensor:
        return cpu.conv_matrix(self.weight.detach(), self._reach)

    def folded(self, grad_ON: Tensor) -> Tensor:
        return cpu.conv_matrix_grad(grad_ON, tuple(self.weight.shape), self._reach)


def _few(columns: int, outputs: int) -> float:
    """Fraction of the usual limit on spikes, below which a convolution goes spike by spike.

    A spike adds runs of columns x outputs numbers: short runs cost more a number, and a kernel of one column has a dense product
    that is hard to beat. Measured on the layers of common networks, on the careful side.
    """
    if columns == 1:
        return 0.0
    return max(0.55, min(1.0, columns * outputs / 96))


class GradientAccumulator:
    """Gradients of one synapse's parameters, accumulated by one thread."""

    def __init__(self) -> None:
        self.grads: dict[nn.Parameter, Tensor] = {}

    def add(self, parameter: nn.Parameter, grad: Tensor) -> None:
        """Add to a parameter's gradient; ``grad`` becomes ours."""
        known = self.grads.get(parameter)
        self.grads[parameter] = grad if known is None else known.add_(grad)

    def merge(self, other: Any) -> None:
        """Add what another thread has accumulated for the same synapse."""
        for parameter in list(other.grads):
            self.add(parameter, other.grads.pop(parameter))

    def settle(self, others: Sequence[Any] = ()) -> None:
        """Turn what waits here, and with the accumulators of other threads, into gradients."""

    def finish(self) -> dict[nn.Parameter, Tensor]:
        """Gradient of each parameter."""
        return self.grads


class ConvGradientAccumulator(GradientAccumulator):
    """The weights' gradient, where it comes spike by spike, in a layout of its own; a spike that is kept counts as 1."""

    def __init__(self, layout: ConvLayout):
        super().__init__()
        self.layout = layout
        self.events = cpu.EventConvGrad(tuple(layout.weight_OCYX.shape), layout.padding)

    def merge(self, other: ConvGradientAccumulator) -> None:
        super().merge(other)
        self.events.grads += other.events.grads

    def finish(self) -> dict[nn.Parameter, Tensor]:
        by_events = self.events.finish(self.layout.gain)
        if by_events is not None:
            self.add(self.layout.weight, by_events)
        return self.grads


class LinearGradientAccumulator(GradientAccumulator):
    """The weights' gradient. What it is made of waits: the complete weights are gone through seldom, and on all threads."""

    def __init__(self, layout: LinearLayout):
        super().__init__()
        self.layout = layout
        self._events: list[tuple[PackedSpikes, Tensor]] = []
        self._dense: list[tuple[Callable[[], Tensor], Tensor]] = []

    def add_events(self, spikes: PackedSpikes, grad_IO: Tensor) -> None:
        """Add that of ``spikes``, a kept one counted as 1, from the gradient of the current; both stay as they are."""
        self._events.append((spikes, grad_IO))
        self._settle_if_large()

    def add_dense(self, values_IN: Callable[[], Tensor], grad_IO: Tensor) -> None:
        """Add that of values, which lie channel first and are made when they are needed."""
        self._dense.append((values_IN, grad_IO))
        self._settle_if_large()

    def _settle_if_large(self) -> None:
        waiting = sum(grad.nbytes for _, grad in (*self._events, *self._dense))
        if waiting > max(WAITING_BYTES, self.layout.weight_ON.nbytes // 4):
            self.settle()

    def settle(self, others: Sequence[Any] = ()) -> None:
        for other in others:
            for mine, theirs in ((self._events, other._events), (self._dense, other._dense)):
                mine += theirs
                theirs.clear()
        if self._events:
            out_ON, known = self._total()
            cpu.event_linear_weight_grad(self._events, self.layout.gain, out_ON, adds=known)
            self._events.clear()
        for values_IN, grad_IO in self._dense:
            out_ON, known = self._total()
            if grad_IO.dtype != out_ON.dtype:  # autocast's
                out_ON.copy_(out_ON + grad_IO.T @ values_IN() if known else grad_IO.T @ values_IN())
            elif known:
                out_ON.addmm_(grad_IO.T, values_IN())
            else:
                torch.mm(grad_IO.T, values_IN(), out=out_ON)
        self._dense.clear()

    def finish(self) -> dict[nn.Parameter, Tensor]:
        total = self.grads.get(self.layout.weight)
        if total is not None:
            self.grads[self.layout.weight] = self.layout.folded(total)
        return self.grads

    def _total(self) -> tuple[Tensor, bool]:
        """The gradient, and whether it holds anything yet."""
        total, weight_ON = self.grads.get(self.layout.weight), self.layout.weight_ON
        if total is not None:
            return total, True
        total = self.grads[self.layout.weight] = new_tensor(tuple(weight_ON.shape), weight_ON.dtype, weight_ON.device)
        return total, False


Layout = DenseLayout | ConvLayout | LinearLayout


def make_layout(synapse: Synapse, shape: tuple[int, ...], *, freeze: bool = False) -> Layout:
    """The layout of a synapse that reads samples of ``shape``; freeze: for a backward pass, which needs it as it is now."""
    chain = _chain(synapse, shape)
    if chain is None:
        return DenseLayout(synapse, freeze=freeze)
    if isinstance(chain.layer, nn.Linear):
        return LinearLayout(synapse, shape, chain)
    reach = _conv_shape(chain, shape)
    small = SmallConvLayout.serves(reach, chain.layer.weight)
    return (SmallConvLayout if small else ConvLayout)(synapse, shape, chain, reach)


def _conv_shape(chain: Chain, shape: tuple[int, ...]) -> ConvShape:
    layer, size = chain.layer, (shape[1] // chain.pool, shape[2] // chain.pool)
    stride, padding, dilation = (_pair(v) for v in (layer.stride, layer.padding, layer.dilation))
    out = [
        (side + 2 * pad - reach * (taps - 1) - 1) // step + 1
        for side, pad, reach, taps, step in zip(size, padding, dilation, layer.kernel_size, stride)
    ]
    return ConvShape(size, (out[0], out[1]), layer.kernel_size, stride, padding, dilation)
