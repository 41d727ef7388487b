"""Samples that leave a running simulation: the state of those that go on, and their input.

A simulation of ``SpikingNetwork.unroll`` runs a chunk of steps, gives the output, and goes on when it is asked for the next. In
between, its reader may say which samples are to go on (``Leaving.keep``). Samples do not influence one another, and a random
encoder draws for the complete batch as before, so those that go on are simulated as if nobody had left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeprop.snn.dynamics import map_state
from spikeprop.snn.encoder import Encoder


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


class RunningInput:
    """The encoded input of the samples that are still simulated.

    Args:
        encoder: from image to input.
        x_B: all images.
    """

    def __init__(self, encoder: Encoder, x_B: Tensor):
        self._encoder, self._x_B = encoder, x_B
        self._rows: Tensor | None = None  # of those that are left, where draws are for all

    def __call__(self, steps: int) -> Tensor:
        """The next ``steps`` steps (steps or 1, b, ...)."""
        x_KB = self._encoder(self._x_B, steps)
        return x_KB if self._rows is None else x_KB[:, self._rows]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of what is left."""
        if self._encoder.constant:
            self._x_B = self._x_B[rows]
        else:
            self._rows = rows if self._rows is None else self._rows[rows]


def kept_rows(state: Any, rows: Tensor, samples: int) -> Any:
    """The state of some rows of ``samples``: of every tensor in it whose first axis is the batch."""
    return map_state(lambda value: value[rows] if value.dim() and len(value) == samples else value, state)


def rows_of(rows: Tensor, first: int, last: int) -> Tensor:
    """Of ascending rows those within first..last, counted from ``first``."""
    borders = torch.searchsorted(rows, torch.tensor([first, last], device=rows.device))
    return rows[borders[0] : borders[1]] - first
