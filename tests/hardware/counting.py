"""An independent count of what a network takes on a chip: plain loops over sets of rows and columns, from tables of the papers.

VGG-16: Simonyan & Zisserman 2015, configuration D, at 32x32 with four poolings (Rathi et al. 2020). MobileNetV2: Sandler et al.
2018, table 2. Nothing of spikeprop is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Axis = list[set[int]]  # for each target, the sources that it reads


@dataclass(frozen=True)
class Counted:
    """One layer, whose neurons read ``inputs`` channels each, at the places that ``rows`` and ``columns`` hold."""

    channels: int
    inputs: int
    rows: Axis
    columns: Axis
    grouped: bool = False  # each channel reads its own

    @property
    def complete(self) -> bool:
        """Whether each neuron reads every source."""
        return not self.grouped and all(one == axis[0] for axis in (self.rows, self.columns) for one in axis)

    @property
    def neurons(self) -> int:
        return self.channels * len(self.rows) * len(self.columns)

    @property
    def synapses(self) -> int:
        return self.channels * self.inputs * sum(map(len, self.rows)) * sum(map(len, self.columns))

    @property
    def fan_in(self) -> int:
        return self.inputs * max(map(len, self.rows)) * max(map(len, self.columns))

    def bytes_of_neurons(self) -> list[int]:
        """In C-order: 12 bytes, and 1 for a synapse, 2 where its target must be named."""
        each = 1 if self.complete else 2
        return [12 + each * self.inputs * len(y) * len(x) for _ in range(self.channels) for y in self.rows for x in self.columns]

    def bytes_in_all(self) -> int:
        return 12 * self.neurons + self.synapses * (1 if self.complete else 2)


def cores(bytes_of_neurons: list[int], most_bytes: int, most_neurons: int) -> int:
    """Neurons put into cores one after another."""
    count, filled, held = 1, 0, 0
    for size in bytes_of_neurons:
        if filled + size > most_bytes or held == most_neurons:
            count, filled, held = count + 1, 0, 0
        filled, held = filled + size, held + 1
    return count


def window(length: int, kernel: int, stride: int = 1, padding: int = 0) -> Axis:
    """A convolution or pooling along one axis."""
    starts = range(-padding, length + padding - kernel + 1, stride)
    return [{at for at in range(start, start + kernel) if 0 <= at < length} for start in starts]


def chain(first: Axis, second: Axis) -> Axis:
    """What the targets of the second read of the sources of the first."""
    return [set().union(*(first[at] for at in reads)) for reads in second]


def vgg16() -> tuple[list[Counted], int]:
    """The layers, and the multiply-accumulates of the ANN, padding counted."""
    found, macs, channels, size = [], 0, 3, 32
    pooled: Axis = window(32, 1)
    for item in [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]:
        if item == "M":
            pooled, size = window(size, 2, 2), size // 2
            continue
        axis = chain(pooled, window(size, 3, 1, 1))
        found.append(Counted(int(item), channels, axis, axis))
        macs += int(item) * channels * 9 * size * size
        channels, pooled = int(item), window(size, 1)
    inputs = channels * size * size
    for outputs in (4096, 4096, 10):
        found.append(Counted(outputs, inputs, [{0}], [{0}]))
        macs += inputs * outputs
        inputs = outputs
    return found, macs


def mobilenet_v2(size: int, classes: int) -> tuple[list[Counted], int]:
    """A projection has no neurons: what a block expands it reads from the depthwise layers of all blocks on its residual path."""
    half = size // 2
    found, macs = [Counted(32, 3, window(size, 3, 2, 1), window(size, 3, 2, 1))], 32 * 27 * half * half
    stream, channels, size = [32], 32, half  # depthwise channels that reach the sum which the next block reads
    for expansion, outputs, repeats, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(repeats):
            stride, hidden = first_stride if block == 0 else 1, channels * expansion
            if expansion > 1:
                found.append(Counted(hidden, sum(stream), window(size, 1), window(size, 1)))
                macs += channels * hidden * size * size
            axis = window(size, 3, stride, 1)
            found.append(Counted(hidden, 1, axis, axis, grouped=True))
            size = len(axis)
            macs += hidden * 9 * size * size + hidden * outputs * size * size
            stream = [*stream, hidden] if stride == 1 and channels == outputs else [hidden]
            channels = outputs
    found.append(Counted(1280, sum(stream), window(size, 1), window(size, 1)))
    macs += channels * 1280 * size * size
    everywhere: Axis = [set(range(size))]
    found.append(Counted(classes, 1280, everywhere, everywhere))
    return found, macs + 1280 * classes


def least_and_most_cores(layer: Counted, most_bytes: int) -> tuple[int, int]:
    """Bounds where a loop over neurons would be long: no core is filled beyond, nor left with room for another neuron."""
    largest = 12 + layer.fan_in * (1 if layer.complete else 2)
    return math.ceil(layer.bytes_in_all() / most_bytes), math.ceil(layer.bytes_in_all() / (most_bytes - largest)) + 1
