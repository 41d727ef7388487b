"""``SpikeCounter``: how many spikes the layers of a network send, and how many synapses these reach (SynOps).

SynOps count, for each spike, the synapses that it reaches; the fan-out is exact for every neuron, also at borders. An average
pooling counts as part of the synapse that follows it, as on the chip. A graded spike, which carries n bits and a sign, counts n
times: its product with a weight is n additions of the shifted weight. Bits sent are one a spike, or n and one for a sign. What
layers that compute send counts as numbers of 32 bits; their functions are not counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from spikeprop.snn.folding import evaluated
from spikeprop.snn.layer import INPUT
from spikeprop.snn.normalisation import NORMS
from spikeprop.snn.pooling import window_sums
from spikeprop.snn.synapse import Synapse

if TYPE_CHECKING:
    from spikeprop.snn.network import SpikingNetwork


class SpikeCounter:
    """Counts spikes of a network over the first steps of each simulation, for every number of steps of interest at once.

    A layer's spikes must be unpacked to be counted, which takes several times as long as its simulation. Of many images, observe
    only a sample.

    Args:
        network: the network that will be observed; counted is what runs, with batch-norm in its weights.
        timesteps: steps to count, or several numbers of steps.

    Attributes:
        timesteps: the largest of them.
        marks: all of them, ascending.
        images: images counted.
    """

    def __init__(self, network: SpikingNetwork, timesteps: int | Iterable[int]):
        self.network = network = evaluated(network)
        self.marks = sorted({timesteps} if isinstance(timesteps, int) else set(timesteps))
        self.timesteps = self.marks[-1]
        self.fan_out = {name: maps.double() for name, maps in fan_out(network).items()}
        self.payloads = payloads(network)
        self.images = 0
        self._counts = self._zeros()

    def _zeros(self) -> Tensor:
        """(spikes, synaptic events, image steps) by mark and layer."""
        return torch.zeros(3, len(self.marks), len(self.fan_out), dtype=torch.float64)

    def start(self, images: int, lengths: Tensor | None = None) -> Callable[[str, Tensor], None]:
        """Observer for one simulation of ``images`` images; of sequences (B,) only their own ``lengths`` are counted."""
        self.images += images
        seen = dict.fromkeys(self.fan_out, 0)
        column = {name: i for i, name in enumerate(self.fan_out)}

        def observe(name: str, spikes_TB: Tensor) -> None:
            if name not in seen:  # a sum that several layers read, which the network that runs elsewhere does not have
                return
            for mark, part in segments(self.marks, seen[name], len(spikes_TB)):
                fired_TB, steps = spikes_TB[part] != 0, images * (part.stop - part.start)
                if lengths is not None:
                    step_T = torch.arange(seen[name] + part.start, seen[name] + part.stop, device=fired_TB.device)
                    own_TB = step_T[:, None] < lengths.to(fired_TB.device)
                    fired_TB, steps = fired_TB & own_TB.view(*own_TB.shape, *(1,) * (fired_TB.dim() - 2)), int(own_TB.sum())
                count = fired_TB.sum((0, 1), dtype=torch.float32).double()
                self.fan_out[name] = self.fan_out[name].to(count.device)
                found = [float(count.sum()), float((count * self.fan_out[name]).sum()), float(steps)]
                self._counts[:, mark:, column[name]] += torch.tensor(found, dtype=torch.float64)[:, None]
            seen[name] += len(spikes_TB)

        return observe

    def take(self) -> Tensor:
        """Remove and return the counts since the last ``take``, (3, marks, layers); ``put`` adds them again."""
        counts, self._counts, self.images = self._counts, self._zeros(), 0
        return counts

    def put(self, counts: Tensor, images: int) -> None:
        """Add counts that were taken."""
        self._counts += counts
        self.images += images

    def rates(self, timesteps: int | None = None) -> dict[str, float]:
        """Mean spikes a neuron a step that was seen, by layer; the input counts its non-zero values."""
        spikes, _, steps = self._at(timesteps)
        neurons = torch.tensor([maps.numel() for maps in self.fan_out.values()])
        return dict(zip(self.fan_out, (spikes / (steps.clamp(min=1) * neurons)).tolist()))

    def synops(self, timesteps: int | None = None) -> dict[str, float]:
        """Synaptic operations an image, by the layer that sends the spikes; as many as it has bits for a graded spike."""
        events = dict(zip(self.fan_out, (self._at(timesteps)[1] / max(1, self.images)).tolist()))
        return {name: count * self.payloads[name].bits for name, count in events.items()}

    def bits(self, timesteps: int | None = None) -> float:
        """Bits that a neuron sends for an image, in the mean over all neurons: of its spikes, the payload and the sign."""
        spikes = dict(zip(self.fan_out, self._at(timesteps)[0].tolist()))
        layers = [(name, carried.bits + carried.sign) for name, carried in self.payloads.items() if name != INPUT]
        neurons = sum(self.fan_out[name].numel() for name, _ in layers)
        return sum(spikes[name] * bits for name, bits in layers) / max(1, self.images * neurons)

    def _at(self, timesteps: int | None) -> Tensor:
        return self._counts[:, self.marks.index(self.timesteps if timesteps is None else timesteps)]


class Payload(NamedTuple):
    """What a spike of a layer carries: bits of the largest number, 1 of ordinary neurons, and whether there is a sign."""

    bits: int
    sign: bool


def payloads(network: SpikingNetwork) -> dict[str, Payload]:
    """The payload of each layer's spikes; those of max pooling are their sources'."""
    found, layers = {INPUT: Payload(1, False)}, dict(network.named_layers())
    for name, dynamics in network.dynamics().items():
        passed = [found[source] for source in layers[name].sources if dynamics.passes_on]
        bits, signs = zip((dynamics.payload_bits, dynamics.signed), *passed)
        found[name] = Payload(max(bits), any(signs))
    return found


def segments(marks: Sequence[int], first: int, steps: int) -> Iterator[tuple[int, slice]]:
    """A chunk of ``steps`` steps from step ``first`` on, cut at the marks: (index of the mark that ends it, slice of the chunk).

    Steps after the last mark are left out.
    """
    begin = 0
    for i, mark in enumerate(marks):
        end = min(mark - first, steps)
        if end > begin:
            yield i, slice(begin, end)
            begin = end


def fan_out(network: SpikingNetwork) -> dict[str, Tensor]:
    """How many synapses each neuron (and input) feeds: name to map of one sample's shape.

    With all weights 1, the derivative of the summed output with respect to an input is the number of its paths. Synapses that
    lead back count as well.
    """
    maps: dict[str, Tensor] = {}
    shapes = network.shapes()
    for _, layer in network.named_layers():
        for _, source, synapse in chain(layer.branches(), layer.feedback_branches()):
            ones = _ones(synapse)
            with torch.enable_grad():
                probe = torch.zeros(1, 1, *shapes[source], requires_grad=True)
                (grad,) = torch.autograd.grad(layer.dynamics.connected(ones(probe)).sum(), probe)
            maps[source] = maps.get(source, 0) + grad[0, 0]
    return maps


def _ones(synapse: Synapse) -> Synapse:
    """The synapse with every weight 1 and sums instead of averages, so that it counts connections."""
    counted = copy.deepcopy(synapse).cpu().float()
    for i, op in enumerate(counted.ops):
        for parameter in op.parameters():
            parameter.data.fill_(1.0)
        if isinstance(op, NORMS):
            counted.ops[i] = nn.Identity()
        elif isinstance(op, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
            counted.ops[i] = _WindowSum(op)
        elif isinstance(op, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
            counted.ops[i] = _AdaptiveSum(op)
        elif isinstance(op, nn.Upsample):
            counted.ops[i] = _InterpolationPaths(op)
        elif hasattr(op, "gain"):
            op.gain.fill_(1.0)  # type: ignore[operator]
    return counted


class _WindowSum(nn.Module):
    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return window_sums(x, self.pool)


class _AdaptiveSum(nn.Module):
    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x)
        return y * (x.shape[2:].numel() / y.shape[2:].numel())


class _InterpolationPaths(nn.Module):
    """The interpolation with a weight of 1 wherever it has one that is not 0; it works along each axis by itself."""

    def __init__(self, interpolation: nn.Upsample):
        super().__init__()
        self.interpolation = interpolation

    def forward(self, x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        for axis, size in enumerate(sizes, 2):
            each = torch.eye(size).reshape(size, 1, *(size if a == axis else 1 for a in range(2, x.dim())))
            weights = self.interpolation(each.expand(size, 1, *sizes)).movedim(axis, -1).flatten(1, -2)[:, 0]
            x = (x.movedim(axis, -1) @ (weights != 0).float()).movedim(-1, axis)
        return x
