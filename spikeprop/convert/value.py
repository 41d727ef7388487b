"""Values of a traced network: sums of branches, and the linear operations on them.

A branch is a source (the image, or a layer of neurons) and the chain of linear operations applied to its spikes; a value is a
sum of branches. Linear operations distribute over the sum. A concatenation is a sum too, of values padded with zero channels.
Affine maps of channels (batch-norm) are folded into the layer before them if there is one (Rueckauer et al. 2017, sec. 2.2). A
constant that is added to a sum, such as a bias, is added to one branch only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from spikeprop.snn import ChannelPad, Gain, SampleDropout, weights
from spikeprop.snn.gather import Shift, same_numbers
from spikeprop.snn.synapse import WEIGHTED, Weighted


@dataclass(frozen=True)
class LinearBranch:
    """Linear operations applied to one source's spikes.

    Attributes:
        source: name of the source.
        ops: in order.
        label: path of the last module with weights, which names the layer.
        kept: of a network that is trained as it is: modules are the caller's network's own, not copies of them, so weights that
            are used twice stay one; and nothing is folded into them.
    """

    source: str
    ops: tuple[nn.Module, ...] = ()
    label: str = ""
    kept: bool = False

    @property
    def last(self) -> nn.Module | None:
        """The operation applied last."""
        return self.ops[-1] if self.ops else None

    def then(self, op: nn.Module, label: str = "") -> LinearBranch:
        """The branch with one more operation."""
        return replace(self, ops=(*self.ops, op), label=label or self.label)

    def without_last(self) -> LinearBranch:
        """The branch before its last operation."""
        return replace(self, ops=self.ops[:-1])


Value = tuple[LinearBranch, ...]


def is_spikes(value: Value, channels: int) -> bool:
    """Whether a value is the spikes of layers (or the image), alone or concatenated, and not a sum of them."""
    return all(not b.ops or (len(b.ops) == 1 and isinstance(b.last, ChannelPad)) for b in value) and _disjoint(value, channels)


def without_dropout(value: Value) -> tuple[Value, list[float]]:
    """A value without the dropouts at its end, and the probabilities of these."""
    dropped = [b.last.p for b in value if isinstance(b.last, SampleDropout)]
    return tuple(b.without_last() if isinstance(b.last, SampleDropout) else b for b in value), dropped


def append(value: Value, op: nn.Module) -> Value:
    """Apply an operation that acts on each channel alone, such as pooling, to every branch."""

    def appended(branch: LinearBranch) -> LinearBranch:
        own = op if branch.kept else copy.deepcopy(op)
        if isinstance(branch.last, ChannelPad):  # zero channels stay zero
            return branch.without_last().then(own).then(branch.last)
        return branch.then(own)

    return tuple(appended(b) for b in value)


def flatten(value: Value) -> Value:
    """Flatten a sample to one axis."""
    return tuple(b if isinstance(b.last, nn.Flatten) else b.then(nn.Flatten()) for b in value)


def compose(value: Value, op: nn.Module) -> Value:
    """Apply any linear operation to every branch."""
    return tuple(b.then(op if b.kept else copy.deepcopy(op)) for b in value)


def append_weighted(value: Value, layer: Weighted, label: str, axes: int) -> Value:
    """Apply a layer with weights: each branch has its own copy of them, the first one the bias; ``axes`` of a sample."""
    reads_channels = weights.by_channel(layer, axes - 1) and getattr(layer, "groups", 1) == 1
    return tuple(
        b.then(layer, label) if b.kept else _appended(b, _copy(layer, bias=i == 0), label, reads_channels)
        for i, b in enumerate(value)
    )


def _appended(branch: LinearBranch, layer: Weighted, label: str, reads_channels: bool) -> LinearBranch:
    """A layer that reads channels reads only those of a concatenation that the branch fills."""
    place = branch.last
    if not isinstance(place, ChannelPad) or not reads_channels:
        return branch.then(layer, label)
    weights.read_only(layer, slice(place.before, weights.input_count(layer) - place.after))
    return branch.without_last().then(layer, label)


def _copy(layer: Weighted, bias: bool) -> Weighted:
    own = copy.deepcopy(layer)
    if not bias:
        own.register_parameter("bias", None)
    return own


def concatenate(values: Sequence[tuple[Value, int]]) -> Value:
    """Values concatenated along the channels; each comes with its number of channels."""
    ends = list(accumulate(channels for _, channels in values))
    parts = []
    for (value, channels), end in zip(values, ends):
        parts += [_placed(b, end - channels, ends[-1] - end) for b in value]
    return tuple(parts)


def pad_channels(value: Value, before: int, after: int) -> Value:
    """Add zero channels before and after."""
    return tuple(_placed(b, before, after) for b in value)


def _placed(branch: LinearBranch, before: int, after: int) -> LinearBranch:
    if isinstance(branch.last, ChannelPad):
        before, after = before + branch.last.before, after + branch.last.after
        branch = branch.without_last()
    return branch.then(ChannelPad(before, after)) if before or after else branch


def scale(value: Value, factor: float, *, learnt: bool = False) -> Value:
    """A multiple of a value, folded into the layer before it if there is one; a ``learnt`` 1 is a factor like another."""

    def scaled(branch: LinearBranch) -> LinearBranch:
        if branch.kept or not isinstance(branch.last, WEIGHTED):
            return branch.then(Gain(torch.tensor(factor, dtype=torch.float64)))  # cast to the network's type at the end
        layer = copy.deepcopy(branch.last)
        layer.weight.data.mul_(factor)
        if layer.bias is not None:
            layer.bias.data.mul_(factor)
        return branch.without_last().then(layer)

    return tuple(scaled(b) for b in value) if factor != 1 or learnt else value


def affine(value: Value, gain_C: Tensor, shift_C: Tensor, positions: tuple[int, ...]) -> Value:
    """``gain * value + shift`` by channel; ``positions`` is the shape of one channel, () for a vector."""
    count = len(gain_C)
    mine = [_filled(b, count) for b in value]
    if _disjoint(value, count) and sum(part.stop - part.start for part in mine) == count:
        return tuple(_affine(b, gain_C[part], shift_C[part], positions) for b, part in zip(value, mine))
    others = (_affine(b, gain_C[part], None, positions) for b, part in zip(value[1:], mine[1:]))
    return (_affine_of_all(value[0], gain_C, shift_C, positions), *others)


def shift(value: Value, number: float, shape: tuple[int, ...], like: Tensor) -> Value:
    """A value of samples of ``shape`` plus a number; ``like``: of the weights' type and device."""
    if not shape:
        return compose(shift(compose(value, same_numbers((1,))), number, (1,), like), same_numbers(()))
    ones_C = torch.ones(shape[0], dtype=like.dtype, device=like.device)
    return affine(value, ones_C, number * ones_C, shape[1:])


def _affine_of_all(branch: LinearBranch, gain_C: Tensor, shift_C: Tensor, positions: tuple[int, ...]) -> LinearBranch:
    """Gain and shift of all channels, including those that the branch does not fill."""
    if isinstance(branch.last, ChannelPad):
        return _beside(branch, gain_C, shift_C, positions)
    return _affine(branch, gain_C, shift_C, positions)


def _affine(branch: LinearBranch, gain_C: Tensor, shift_C: Tensor | None, positions: tuple[int, ...]) -> LinearBranch:
    """Gain and shift of the channels that the branch fills."""
    if isinstance(branch.last, ChannelPad):
        return _affine(branch.without_last(), gain_C, shift_C, positions).then(branch.last)
    last = branch.last
    if branch.kept:
        return _beside(branch, gain_C, shift_C, positions)
    if isinstance(last, WEIGHTED) and weights.by_channel(last, len(positions)):
        return branch.without_last().then(_folded(last, gain_C, shift_C))
    return _beside(branch, gain_C, shift_C, positions)


def _beside(branch: LinearBranch, gain_C: Tensor, shift_C: Tensor | None, positions: tuple[int, ...]) -> LinearBranch:
    """The affine map as an operation of its own; where weights are kept, one that is not trained."""
    if not branch.kept:
        return branch.then(_diagonal(gain_C, shift_C, positions))
    by_channel = (-1, *(1,) * len(positions))
    if bool((gain_C != 1).any()):
        branch = branch.then(Gain(gain_C.detach().reshape(by_channel)))
    return branch if shift_C is None else branch.then(Shift(shift_C.reshape(by_channel)))


def _folded(layer: Weighted, gain_C: Tensor, shift_C: Tensor | None) -> Weighted:
    own, trained = copy.deepcopy(layer), layer.weight.requires_grad
    weights.scale_outputs(own, gain_C)
    shift_C = shift_C.detach() if shift_C is not None else None
    if own.bias is not None:
        bias = own.bias.detach() * gain_C
        own.bias = nn.Parameter(bias if shift_C is None else bias + shift_C, trained)
    elif shift_C is not None:
        own.bias = nn.Parameter(shift_C.clone(), trained)
    return own


def _diagonal(gain_C: Tensor, shift_C: Tensor | None, positions: tuple[int, ...]) -> nn.Module:
    """The affine map as a layer."""
    layer = weights.diagonal(gain_C, len(positions), bias=shift_C is not None)
    if shift_C is not None:
        layer.bias = nn.Parameter(shift_C.detach().clone())
    return layer


def _filled(branch: LinearBranch, channels: int) -> slice:
    """Which of the ``channels`` a branch fills."""
    place = branch.last
    return slice(place.before, channels - place.after) if isinstance(place, ChannelPad) else slice(0, channels)


def _disjoint(value: Value, channels: int) -> bool:
    """Whether no channel is filled by two branches."""
    parts = sorted((part.start, part.stop) for part in (_filled(b, channels) for b in value))
    return all(before[1] <= after[0] for before, after in pairwise(parts))
