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

from spikeprop.snn import ChannelPad, Gain, SampleDropout


@dataclass(frozen=True)
class LinearBranch:
    """Linear operations applied to one source's spikes."""

    source: str
    ops: tuple[nn.Module, ...] = ()
    label: str = ""  # path of the last module with weights, which names the layer

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
    """Whether a value is the spikes of layers (or the image), alone or concatenated, and not a sum of them."""
    return all(not b.ops or (len(b.ops) == 1 and isinstance(b.last, ChannelPad)) for b in value) and _disjoint(value, channels)


def without_dropout(value: Value) -> tuple[Value, list[float]]:
    """A value without the dropouts at its end, and the probabilities of these."""
    dropped = [b.last.p for b in value if isinstance(b.last, SampleDropout)]
    return tuple(b.without_last() if isinstance(b.last, SampleDropout) else b for b in value), dropped


def append(value: Value, op: nn.Module) -> Value:
    """Apply an operation that acts on each channel alone, such as pooling, to every branch."""

    def appended(branch: LinearBranch) -> LinearBranch:
        if isinstance(branch.last, ChannelPad):  # zero channels stay zero
            return branch.without_last().then(copy.deepcopy(op)).then(branch.last)
        return branch.then(copy.deepcopy(op))

    return tuple(appended(b) for b in value)


def flatten(value: Value) -> Value:
    """Flatten a sample to one axis."""
    return tuple(b if isinstance(b.last, nn.Flatten) else b.then(nn.Flatten()) for b in value)


def append_weighted(value: Value, layer: nn.Conv2d | nn.Linear, label: str) -> Value:
    """Apply a convolution or linear layer: each branch has its own copy of the weights, the first one the bias."""
    return tuple(_read_filled(b, _copy(layer, bias=i == 0), label) for i, b in enumerate(value))


def _read_filled(branch: LinearBranch, layer: nn.Conv2d | nn.Linear, label: str) -> LinearBranch:
    """Append a layer that reads only those of the concatenated channels that the branch fills."""
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


def scale(value: Value, factor: float) -> Value:
    """A multiple of a value, folded into the layer before it if there is one."""

    def scaled(branch: LinearBranch) -> LinearBranch:
        if not isinstance(branch.last, nn.Conv2d | nn.Linear):
            return branch.then(Gain(torch.tensor(factor, dtype=torch.float64)))  # cast to the network's type at the end
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
    return (_affine_of_all(value[0], gain_C, shift_C, positions), *others)


def _affine_of_all(branch: LinearBranch, gain_C: Tensor, shift_C: Tensor, positions: tuple[int, ...]) -> LinearBranch:
    """Gain and shift of all channels, including those that the branch does not fill."""
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
