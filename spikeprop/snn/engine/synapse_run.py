"""How the packed engine runs one synapse over one chunk of packed spikes, forward and backward.

``DenseSynapseRun`` runs any chain: the synapse's own operations on unpacked values, and autograd for their gradient.
``weighted_run.py`` has the chains that end in a convolution or fully connected layer.
Suffix legend: K steps of a chunk, B batch, S positions, P pooled positions, C channels, O output channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import cpu
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.sparse_backward import Active
from spikeprop.snn.engine.kernels.words import channels_first, channels_last
from spikeprop.snn.engine.layout import DenseLayout, GradientAccumulator
from spikeprop.snn.engine.source_values import SourceSpec, SourceValues
from spikeprop.snn.layer import INPUT
from spikeprop.snn.synapse import DropoutMasks, Gain

AnyLayout = TypeVar("AnyLayout", bound=DenseLayout)


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


def _share_memory(one: Tensor, other: Tensor | None) -> bool:
    """An identity returns what it was given; what a run returns may be written over."""
    return other is not None and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


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
