"""Values of a traced network: sums of branches, and what linear operations make of them.

A branch is a source (the image, or a layer of neurons) and the chain of linear operations applied to its spikes; a value is a
sum of branches. Everything linear distributes over the sum, so a concatenation is a sum too: each part is placed among zero
channels. Affine maps of channels (batch-norm) fold into the layer before them where there is one (Rueckauer et al. 2017,
sec. 2.2). What is added to a whole sum, a bias, is added to one branch only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from spikeprop.snn import ChannelPad, Gain, SampleDropout


@dataclass(frozen=True)
class LinearBranch:
    """Linear operations applied to one source's spikes."""

    source: str
    ops: tuple[nn.Module, ...] = ()
    label: str = ""  # path of the last layer with weights, which names the stage

    @property
    def last(self) -> nn.Module | None:
        """The operation applied last."""
        return self.ops[-1] if self.ops else None

    def then(self, op: nn.Module, label: str = "") -> LinearBranch:
        """The branch with one more operation."""
        return LinearBranch(self.source, (*self.ops, op), label or self.label)

    def without_last(self) -> LinearBranch:
        """The branch before its last operation."""
        return replace(self, ops=self.ops[:-1])


Value = tuple[LinearBranch, ...]


def is_spikes(value: Value, channels: int) -> bool:
    """Whether a value is what layers fire (or the image), alone or side by side: nothing has been added up."""
    return all(not b.ops or (len(b.ops) == 1 and isinstance(b.last, ChannelPad)) for b in value) and _disjoint(value, channels)


def without_dropout(value: Value) -> tuple[Value, list[float]]:
    """A value without the dropouts at its end, and their probabilities."""
    dropped = [b.last.p for b in value if isinstance(b.last, SampleDropout)]
    return tuple(b.without_last() if isinstance(b.last, SampleDropout) else b for b in value), dropped


def append(value: Value, op: nn.Module) -> Value:
    """Apply an operation on each channel by itself, such as a pooling, to every branch."""

    def appended(branch: LinearBranch) -> LinearBranch:
        if isinstance(branch.last, ChannelPad):  # the zero channels need not go through it
            return branch.without_last().then(copy.deepcopy(op)).then(branch.last)
        return branch.then(copy.deepcopy(op))

    return tuple(appended(b) for b in value)


def flatten(value: Value) -> Value:
    """One axis of all that a sample has."""
    return tuple(b if isinstance(b.last, nn.Flatten) else b.then(nn.Flatten()) for b in value)


def append_weighted(value: Value, layer: nn.Conv2d | nn.Linear, label: str) -> Value:
    """Apply a convolution or linear layer: each branch has its own copy of the weights, the first one the bias."""
    return tuple(_read_part(b, _copy(layer, bias=i == 0), label) for i, b in enumerate(value))


def _read_part(branch: LinearBranch, layer: nn.Conv2d | nn.Linear, label: str) -> LinearBranch:
    """Of concatenated channels a layer reads only those that the branch fills."""
    place = branch.last
    if not isinstance(place, ChannelPad) or getattr(layer, "groups", 1) != 1:
        return branch.then(layer, label)
    mine = slice(place.before, layer.weight.shape[1] - place.after)
    layer.weight = nn.Parameter(layer.weight.detach()[:, mine].clone(), layer.weight.requires_grad)
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = layer.weight.shape[1]
    else:
        layer.in_features = layer.weight.shape[1]
    return branch.without_last().then(layer, label)


def _copy(layer: nn.Conv2d | nn.Linear, bias: bool) -> nn.Conv2d | nn.Linear:
    own = copy.deepcopy(layer)
    if not bias:
        own.register_parameter("bias", None)
    return own


def concatenate(values: Sequence[tuple[Value, int]]) -> Value:
    """Values side by side along the channels; each comes with its number of channels."""
    ends = list(accumulate(channels for _, channels in values))
    parts = []
    for (value, channels), end in zip(values, ends):
        parts += [_placed(b, end - channels, ends[-1] - end) for b in value]
    return tuple(parts)


def pad_channels(value: Value, before: int, after: int) -> Value:
    """Zero channels before and after."""
    return tuple(_placed(b, before, after) for b in value)


def _placed(branch: LinearBranch, before: int, after: int) -> LinearBranch:
    if isinstance(branch.last, ChannelPad):
        before, after = before + branch.last.before, after + branch.last.after
        branch = branch.without_last()
    return branch.then(ChannelPad(before, after)) if before or after else branch


def scale(value: Value, factor: float) -> Value:
    """A multiple of a value, folded into the layer before where there is one."""

    def scaled(branch: LinearBranch) -> LinearBranch:
        if not isinstance(branch.last, nn.Conv2d | nn.Linear):
            return branch.then(Gain(torch.tensor(factor, dtype=torch.float64)))  # the network's type is given at the end
        layer = copy.deepcopy(branch.last)
        layer.weight.data.mul_(factor)
        if layer.bias is not None:
            layer.bias.data.mul_(factor)
        return branch.without_last().then(layer)

    return tuple(scaled(b) for b in value) if factor != 1 else value


def affine(value: Value, gain_C: Tensor, shift_C: Tensor, positions: tuple[int, ...]) -> Value:
    """``gain * value + shift`` by channel; ``positions`` is the shape of one channel, () for a vector."""
    count = len(gain_C)
    mine = [_filled(b, count) for b in value]
    if _disjoint(value, count) and sum(part.stop - part.start for part in mine) == count:
        return tuple(_affine(b, gain_C[part], shift_C[part], positions) for b, part in zip(value, mine))
    others = (_affine(b, gain_C[part], None, positions) for b, part in zip(value[1:], mine[1:]))
    return (_whole_affine(value[0], gain_C, shift_C, positions), *others)


def _whole_affine(branch: LinearBranch, gain_C: Tensor, shift_C: Tensor, positions: tuple[int, ...]) -> LinearBranch:
    """Gain and shift of all channels, those that the branch does not fill included."""
    if isinstance(branch.last, ChannelPad):
        return branch.then(_diagonal(gain_C, shift_C, positions))
    return _affine(branch, gain_C, shift_C, positions)


def _affine(branch: LinearBranch, gain_C: Tensor, shift_C: Tensor | None, positions: tuple[int, ...]) -> LinearBranch:
    """Gain and shift of the channels that the branch fills."""
    if isinstance(branch.last, ChannelPad):
        return _affine(branch.without_last(), gain_C, shift_C, positions).then(branch.last)
    if isinstance(branch.last, nn.Conv2d | nn.Linear):
        return branch.without_last().then(_folded(branch.last, gain_C, shift_C))
    return branch.then(_diagonal(gain_C, shift_C, positions))


def _folded(layer: nn.Conv2d | nn.Linear, gain_C: Tensor, shift_C: Tensor | None) -> nn.Conv2d | nn.Linear:
    own, trained = copy.deepcopy(layer), layer.weight.requires_grad
    own.weight = nn.Parameter(own.weight.detach() * gain_C.view(-1, *(1,) * (own.weight.dim() - 1)), trained)
    shift_C = shift_C.detach() if shift_C is not None else None
    if own.bias is not None:
        bias = own.bias.detach() * gain_C
        own.bias = nn.Parameter(bias if shift_C is None else bias + shift_C, trained)
    elif shift_C is not None:
        own.bias = nn.Parameter(shift_C.clone(), trained)
    return own


def _diagonal(gain_C: Tensor, shift_C: Tensor | None, positions: tuple[int, ...]) -> nn.Module:
    """The affine map as a layer: a convolution 1x1 with a group for each channel, or a diagonal matrix."""
    count, options = len(gain_C), {"bias": shift_C is not None, "device": gain_C.device, "dtype": gain_C.dtype}
    layer: nn.Conv2d | nn.Linear
    if positions:
        layer = nn.Conv2d(count, count, 1, groups=count, **options)
        layer.weight = nn.Parameter(gain_C.detach().view(-1, 1, 1, 1).clone())
    else:
        layer = nn.Linear(count, count, **options)
        layer.weight = nn.Parameter(torch.diag(gain_C.detach()))
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
