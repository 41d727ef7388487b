"""Branches: how the packed engine runs a synapse over one chunk of packed spikes, forward and backward.

Most synapses are a chain of dropout, average pooling and one convolution or fully connected layer: ``ConvBranch`` and
``LinearBranch`` run those on words, on the CPU spike by spike where few neurons fire. Any other chain goes through
``DenseBranch``: the synapse's own operations on unpacked values, and autograd for their gradient.
Suffix legend: K steps of a chunk, B batch, S positions, P pooled positions, C channels, O output channels, W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.snn.kernels import cpu
from spikeprop.snn.kernels.gradient import Gradient
from spikeprop.snn.kernels.words import channels_first, channels_last, pack
from spikeprop.snn.synapse import DropoutMasks, SampleDropout, Synapse

# Spikes per value that the weights see, below which adding weights spike by spike is the faster way; on the careful side.
FORWARD_EVENTS = 0.15
BACKWARD_EVENTS = 0.11


@dataclass
class Chunk:
    """A layer's output over K steps: packed spikes with their number, or dense values (K or 1, B, ...)."""

    shape: tuple[int, ...]
    words_KBSW: Tensor | None = None
    count: int = 0
    dense_KB: Tensor | None = None

    @property
    def steps(self) -> int:
        values = self.words_KBSW if self.words_KBSW is not None else self.dense_KB
        assert values is not None
        return len(values)


@dataclass(frozen=True)
class Source:
    """What a branch reads: ``batch`` samples of ``shape``, as words (``packed``) or as values of ``dtype``."""

    batch: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    packed: bool


class Branch:
    """One synapse of one simulation; gradients of its parameters gather in ``grads``."""

    def __init__(self, synapse: Synapse, key: str, masks: DropoutMasks | None, source: Source):
        self.synapse, self.key, self.masks = synapse, key, masks
        self.batch, self.shape, self.dtype = source.batch, source.shape, source.dtype
        self.grads: dict[nn.Parameter, Tensor] = {}

    def forward(self, source: Chunk) -> Tensor:
        """Current (K, B, P, O); K = 1 where the source is one step that stands for all."""
        raise NotImplementedError

    def backward(self, source: Chunk, grad_KBPO: Tensor, want_source: bool) -> Gradient | None:
        """Gather gradients of the parameters; returns that of the source's spikes where it is wanted."""
        raise NotImplementedError

    def finish(self) -> dict[nn.Parameter, Tensor]:
        """The parameters' gradients, after the last chunk."""
        return self.grads

    def _gather(self, parameter: nn.Parameter | None, grad: Tensor | None) -> None:
        if parameter is None or grad is None or not parameter.requires_grad:
            return
        known = self.grads.get(parameter)
        self.grads[parameter] = grad if known is None else known.add_(grad)


class DenseBranch(Branch):
    """The synapse's own operations on dense values."""

    def _values(self, source: Chunk) -> Tensor:
        if source.dense_KB is not None:
            return source.dense_KB.to(self.dtype)
        assert source.words_KBSW is not None
        steps = len(source.words_KBSW)
        values = channels_first(unpacked(source.words_KBSW, source.shape[0], self.dtype), source.shape)
        return values.unflatten(0, (steps, -1))

    def forward(self, source: Chunk) -> Tensor:
        current_KB = self.synapse(self._values(source), self.masks, self.key)
        return channels_last(current_KB.flatten(0, 1), len(current_KB))

    def backward(self, source: Chunk, grad_KBPO: Tensor, want_source: bool) -> Gradient | None:
        values = self._values(source).requires_grad_(want_source)
        parameters = [p for p in self.synapse.parameters() if p.requires_grad]
        wanted = [values, *parameters] if want_source else parameters
        if not wanted:
            return None
        with torch.enable_grad():
            current_KB = self.synapse(values, self.masks, self.key)
        grad = channels_first(grad_KBPO, tuple(current_KB.shape[2:])).unflatten(0, current_KB.shape[:2])
        found = list(torch.autograd.grad(current_KB, wanted, grad))
        grad_values = found.pop(0) if want_source else None
        for parameter, grad in zip(parameters, found):
            self._gather(parameter, grad)
        return Gradient(channels_last(grad_values.flatten(0, 1), len(grad_values))) if grad_values is not None else None


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
        elif not (isinstance(op, nn.Flatten) and isinstance(ops[-1], nn.Linear)):
            return None
    layer = ops[-1] if ops else None
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return Chain(layer, pool, tuple(dropouts)) if plain and len(shape) == 3 else None
    return Chain(layer, pool, tuple(dropouts)) if isinstance(layer, nn.Linear) else None


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


class WeightedBranch(Branch):
    """Dropout, average pooling and one convolution or fully connected layer."""

    def __init__(self, synapse: Synapse, key: str, masks: DropoutMasks | None, source: Source, chain: Chain):
        super().__init__(synapse, key, masks, source)
        self.layer, self.pool = chain.layer, chain.pool
        self.size = (self.shape[1], self.shape[2]) if len(self.shape) == 3 else (1, 1)
        self.pooled_shape = (self.shape[0], self.size[0] // self.pool, self.size[1] // self.pool)
        self.scale_BSC = self._dropout(chain) if synapse.training and masks is not None else None
        self.mask_BSW = pack(self.scale_BSC) if self.scale_BSC is not None else None
        kept = max(1.0, float(self.scale_BSC.max())) if self.scale_BSC is not None else 1.0
        self.kept = 1 / kept  # fraction of the spikes that dropout lets through
        self.gain = kept / self.pool**2  # what one of them is worth

    def _dropout(self, chain: Chain) -> Tensor | None:
        """Product of the dropout masks, (B, S, C), at the source's resolution."""
        total = None
        for i, module, before in chain.dropouts:
            if module.p == 0:
                continue
            assert self.masks is not None
            shape = self.shape if before or len(self.shape) == 1 else self.pooled_shape
            like = torch.empty(self.batch, *shape, dtype=self.layer.weight.dtype, device=self.layer.weight.device)
            mask = self.masks.get(f"{self.key}/{i}", module.p, like)
            if not before and self.pool > 1:
                mask = mask.repeat_interleave(self.pool, 2).repeat_interleave(self.pool, 3)
            mask = channels_last(mask, 1)[0]
            total = mask if total is None else total * mask
        return total

    def _spikes(self, source: Chunk) -> cpu.Spikes:
        assert source.words_KBSW is not None
        return cpu.Spikes(source.words_KBSW, self.size, self.shape[0], self.pool, self.scale_BSC, self.mask_BSW)

    def _few(self, source: Chunk, limit: float) -> bool:
        """Whether so few neurons fire that adding their weights one by one is the faster way."""
        if source.words_KBSW is None or source.words_KBSW.device.type != "cpu":
            return False
        steps, batch, positions = source.words_KBSW.shape[:3]
        return source.count * self.kept < limit * steps * batch * positions / self.pool**2 * self.shape[0]

    def _values(self, source: Chunk) -> Tensor:
        """What the weights see, dense, (K, B, P, C)."""
        if source.dense_KB is not None:
            values = channels_last(source.dense_KB.flatten(0, 1).to(self.dtype), len(source.dense_KB))
        elif source.words_KBSW is not None and source.words_KBSW.device.type == "cpu":
            return cpu.pooled(self._spikes(source), self.dtype)
        else:
            assert source.words_KBSW is not None
            values = unpacked(source.words_KBSW, self.shape[0], self.dtype)
        if self.scale_BSC is not None:
            values = values * self.scale_BSC
        if self.pool == 1:
            return values
        return channels_last(F.avg_pool2d(channels_first(values, self.shape), self.pool), len(values))

    def _gradient(self, grad_KBPC: Tensor) -> Gradient:
        """Of the source's spikes, from that of the values that the weights see."""
        return Gradient(grad_KBPC, self.size[1], self.pool, self.scale_BSC)


class ConvBranch(WeightedBranch):
    """A convolution: dense by torch, or spike by spike."""

    def __init__(self, synapse: Synapse, key: str, masks: DropoutMasks | None, source: Source, chain: Chain):
        super().__init__(synapse, key, masks, source, chain)
        layer = self.layer
        self.options = [_pair(v) for v in (layer.stride, layer.padding, layer.dilation)]
        self.plain = self.options[0] == (1, 1) and self.options[2] == (1, 1)
        self.weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = layer.bias.detach() if layer.bias is not None else None
        self._events: cpu.EventConv | None = None

    @property
    def events(self) -> cpu.EventConv:
        """The kernel that goes spike by spike, made when first needed."""
        if self._events is None:
            self._events = cpu.EventConv(self.weight, self.options[1])
        return self._events

    def _out_size(self) -> tuple[int, int]:
        stride, padding, dilation = self.options
        kernel = self.weight.shape[2:]
        sides = [
            (side + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i, side in enumerate(self.pooled_shape[1:])
        ]
        return sides[0], sides[1]

    def forward(self, source: Chunk) -> Tensor:
        steps = source.steps
        if not (self.plain and self._few(source, FORWARD_EVENTS)):
            images, (stride, padding, dilation) = channels_first(self._values(source), self.pooled_shape), self.options
            return channels_last(F.conv2d(images, self.weight, self.bias, stride, padding, dilation), steps)
        height, width = self._out_size()
        out = torch.zeros(steps, self.batch, height * width, len(self.weight), dtype=self.dtype)
        self.events.forward(self._spikes(source), (height, width), out)
        return _affine(out, self.gain, self.bias)

    def backward(self, source: Chunk, grad_KBPO: Tensor, want_source: bool) -> Gradient | None:
        if self.bias is not None:
            self._gather(self.layer.bias, grad_KBPO.sum((0, 1, 2)))
        if self.layer.weight.requires_grad:
            if self.plain and self._few(source, BACKWARD_EVENTS):
                self.events.weight_grad(self._spikes(source), grad_KBPO, self._out_size())
            else:
                images = channels_first(self._values(source), self.pooled_shape)
                self._gather(self.layer.weight, self._torch_grad(images, grad_KBPO, 1))
        if not want_source:
            return None
        like = torch.empty(
            len(grad_KBPO) * self.batch,
            *self.pooled_shape,
            dtype=self.dtype,
            device=grad_KBPO.device,
            memory_format=torch.channels_last,
        )
        return self._gradient(channels_last(self._torch_grad(like, grad_KBPO, 0), len(grad_KBPO)))

    def _torch_grad(self, images: Tensor, grad_KBPO: Tensor, which: int) -> Tensor:
        """torch's own gradient of a convolution: 0 of its input, 1 of its weights."""
        grad = channels_first(grad_KBPO, (len(self.weight), *self._out_size()))
        wanted = [which == 0, which == 1, False]
        return torch.ops.aten.convolution_backward(grad, images, self.weight, None, *self.options, False, [0, 0], 1, wanted)[
            which
        ]

    def finish(self) -> dict[nn.Parameter, Tensor]:
        if self._events is not None:
            self._gather(self.layer.weight, self._events.finish(self.gain))
            self._events = None
        return self.grads


class LinearBranch(WeightedBranch):
    """A fully connected layer: dense by torch, or spike by spike; its weights lie as (inputs, outputs) for both."""

    def __init__(self, synapse: Synapse, key: str, masks: DropoutMasks | None, source: Source, chain: Chain):
        super().__init__(synapse, key, masks, source, chain)
        weight = self.layer.weight.detach().view(len(self.layer.weight), self.shape[0], -1)
        self.weight_PCO = weight.permute(2, 1, 0).contiguous()
        self.bias = self.layer.bias.detach() if self.layer.bias is not None else None
        self.grad_PCO: Tensor | None = None

    def forward(self, source: Chunk) -> Tensor:
        outputs = len(self.layer.weight)
        if not self._few(source, FORWARD_EVENTS):
            current = self._values(source).flatten(0, 1).flatten(1) @ self.weight_PCO.flatten(0, 1)
            return _affine(current.view(source.steps, self.batch, 1, outputs), 1.0, self.bias)
        out = torch.zeros(source.steps, self.batch, 1, outputs, dtype=self.dtype)
        cpu.event_linear(self._spikes(source), self.weight_PCO, out)
        return _affine(out, self.gain, self.bias)

    def backward(self, source: Chunk, grad_KBPO: Tensor, want_source: bool) -> Gradient | None:
        grad_IO = grad_KBPO.flatten(0, 2)
        if self.bias is not None:
            self._gather(self.layer.bias, grad_IO.sum(0))
        if self.layer.weight.requires_grad:
            if self.grad_PCO is None:
                self.grad_PCO = torch.zeros_like(self.weight_PCO)
            if self._few(source, BACKWARD_EVENTS):
                cpu.event_linear_weight_grad(self._spikes(source), grad_IO, self.grad_PCO)
            else:
                values = self._values(source).flatten(0, 1).flatten(1)
                self.grad_PCO.view(-1, grad_IO.shape[1]).addmm_(values.T, grad_IO, alpha=1 / self.gain)
        if not want_source:
            return None
        grad = grad_IO @ self.weight_PCO.flatten(0, 1).T
        return self._gradient(grad.view(len(grad_KBPO), self.batch, -1, self.shape[0]))

    def finish(self) -> dict[nn.Parameter, Tensor]:
        if self.grad_PCO is not None:
            self._gather(self.layer.weight, self.grad_PCO.mul_(self.gain).permute(2, 1, 0).flatten(1))
            self.grad_PCO = None
        return self.grads


def _affine(current: Tensor, gain: float, bias: Tensor | None) -> Tensor:
    """gain * current + bias, in place."""
    if gain != 1:
        current *= gain
    if bias is not None:
        current += bias
    return current


def make_branch(synapse: Synapse, key: str, masks: DropoutMasks | None, source: Source) -> Branch:
    """The branch that runs a synapse on its source."""
    chain = _chain(synapse, source.shape)
    if chain is None:
        return DenseBranch(synapse, key, masks, source)
    kind = ConvBranch if isinstance(chain.layer, nn.Conv2d) else LinearBranch
    return kind(synapse, key, masks, source, chain)


def unpacked(words_KBSW: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Spikes (K, B, S, C) on the words' device."""
    if words_KBSW.device.type == "cpu":
        return cpu.unpack(words_KBSW, channels, dtype)
    from spikeprop.snn.kernels.words import unpack

    return unpack(words_KBSW, channels, dtype)
