"""``Outline``: a network's layers by shapes alone, as ``fits`` and ``budget`` read them, before there are weights.

It is a ``ChipNetwork`` whose connections hold a ``Pattern`` in the place of a matrix, and the operations that make it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikeprop_hardware.network import ChipNetwork, Connection, Population, set_time
from spikeprop_hardware.targets.pattern import Pattern, Shape


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a synapse.

    Attributes:
        kind: "Linear", "Conv1d", "Conv2d", "average", "sum", "Scale", "shape" (no number changes), or any other name of what has
            no node in NIR.
        before, after: shapes of what it reads and makes.
        kernel, stride, padding, dilation: (height, width); of convolutions and poolings.
        groups: of a convolution.
        weights: numbers that it holds, without biases.
        bias: whether it adds one.
        key: equal of operations that share their weights; 0 where that is not known.
    """

    kind: str
    before: Shape
    after: Shape
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weights: int = 0
    bias: bool = False
    key: int = 0


@dataclass
class OutlinedConnection(Connection):
    """A connection with its operations; ``matrix`` is a ``Pattern``, or None where an operation is not known."""

    operations: tuple[Operation, ...] = ()


@dataclass
class OutlinedLayer(Population):
    """A layer.

    Attributes:
        kind: "IF", "LIF", "CubaLIF", "ALIF", "GradedIF", "max", "readout", or any other name of what has no node in NIR.
        leaks: factors of its potentials and currents, as far as they are known.
        advice: what to do about a kind that no chip has.
    """

    kind: str = "IF"
    leaks: tuple[float, ...] = ()
    advice: str = ""


@dataclass
class Outline(ChipNetwork):
    """A network by shapes; ``real_input`` says whether its first layers read numbers, and not spikes, ``signed_input`` whether
    they read spikes of both signs whatever the samples."""

    real_input: bool = False
    signed_input: bool = False
    computable: bool = field(default=True, repr=False)

    def place(self) -> None:
        """Set the delays, and say whether every connection is known."""
        self.stride = set_time(self.populations, self.input)
        self.computable = all(isinstance(c.matrix, Pattern) for p in self.populations for c in p.connections)


def outlined(name: str, shape: Shape, connections: list[OutlinedConnection], **rest: Any) -> OutlinedLayer:
    """A layer of that shape, its numbers left open."""
    size = int(np.prod(shape))
    readout = rest.get("kind") == "readout"
    theta = None if readout else np.broadcast_to(1.0, size)
    held: list[Connection] = list(connections)
    return OutlinedLayer(name, shape, held, np.broadcast_to(0.0, size), 0, theta, **rest)
