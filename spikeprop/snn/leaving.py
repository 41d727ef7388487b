"""Samples that leave a running simulation: the state of those that go on.

A simulation of ``SpikingNetwork.unroll`` runs a chunk of steps, gives the output, and goes on when it is asked for the next. In
between, its reader may say which samples are to go on (``Leaving.keep``). Samples do not influence one another, and a random
encoder draws for the complete batch as before, so those that go on are simulated as if nobody had left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikeprop.snn.dynamics import LayerDynamics, map_state


class Leaving:
    """Which samples of a simulation go on.

    Attributes:
        rows: of the samples that were simulated last, those that go on; None for all.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Let only these rows of the last output go on; with no rows the simulation ends."""
        self.rows = rows

    def take(self) -> Tensor | None:
        """The rows, once."""
        rows, self.rows = self.rows, None
        return rows


def kept_rows(state: Any, rows: Tensor, axes: Sequence[int | None]) -> Any:
    """The state of some rows; axes: see ``sample_axes``.

    Raises:
        ValueError: the state holds another number of tensors than after one step.
    """
    left = list(axes)
    if len(left) != len(tensors_of(state)):
        raise ValueError(
            f"a state of {len(tensors_of(state))} tensors held {len(left)} after one step: which of them hold samples is not "
            "known, so samples cannot leave early; keep their number constant"
        )

    def keep(value: Tensor) -> Tensor:
        axis = left.pop(0)
        return value if axis is None else value.index_select(axis, rows)

    return map_state(keep, state)


@torch.no_grad()
def sample_axes(name: str, dynamics: LayerDynamics, shape: tuple[int, ...], like: Tensor) -> list[int | None]:
    """Of each tensor in a layer's state the axis that has as many places as the batch has samples, or None.

    A copy of the layer takes a step with two samples and with three, and what differs is that axis: an axis as long as the
    batch may have nothing to do with it.

    Args:
        name, dynamics: the layer.
        shape: of a sample's current.
        like: for type and device.

    Raises:
        ValueError: a tensor that has no such axis, or several.
    """
    found = []
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        for samples in (2, 3):
            own, currents = copy.deepcopy(dynamics), like.new_zeros(1, samples, *shape)
            state = own.run(currents, own.initial_state(currents[0]))[1]
            found.append([tuple(value.shape) for value in tensors_of(state)])
    axes = [_axis(two, three) for two, three in zip(*found)]
    if len(found[0]) != len(found[1]) or -1 in axes:
        raise ValueError(
            f"layer {name!r}: the state of {type(dynamics).__name__} does not hold samples along one axis of each tensor "
            f"({found[0]} for two samples, of {found[1]} for three), so samples cannot leave early"
        )
    return axes


def tensors_of(state: Any) -> list[Tensor]:
    """All tensors of a state, in the order of ``map_state``."""
    found: list[Tensor] = []
    map_state(lambda value: found.append(value) or value, state)
    return found


def _axis(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    """Where two shapes differ, by 2 and 3; -1 where it is not so."""
    if two == three:
        return None
    differing = [axis for axis, sizes in enumerate(zip(two, three)) if sizes[0] != sizes[1]]
    return differing[0] if len(two) == len(three) and len(differing) == 1 and two[differing[0]] == 2 else -1


def rows_of(rows: Tensor, first: int, last: int) -> Tensor:
    """Of ascending rows those within first..last, counted from ``first``."""
    borders = torch.searchsorted(rows, torch.tensor([first, last], device=rows.device))
    return rows[borders[0] : borders[1]] - first
