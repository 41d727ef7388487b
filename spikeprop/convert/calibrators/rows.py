"""Values of a layer as rows: one for the layer, or one a channel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Per = Literal["layer", "channel"]


def rows(values: Tensor, per: Per, axis: int = 1) -> Tensor:
    """Values (B, C, ...), or with their channels on another axis, as one row (1, N), or as one a channel (C, N)."""
    return values.reshape(1, -1) if per == "layer" else values.movedim(axis, 0).flatten(1)


def from_rows(scale_R: Tensor, per: Per, like: Tensor, axis: int = 1) -> Tensor:
    """One value a row in a shape that multiplies ``like`` (B, C, ...): a number, or one a channel (C, 1, 1)."""
    return scale_R.reshape(()) if per == "layer" else scale_R.reshape(-1, *(1,) * (like.dim() - 1 - axis % like.dim()))
