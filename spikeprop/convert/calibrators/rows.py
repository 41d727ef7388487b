"""Values of a layer as rows: one for the layer, or one a channel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Per = Literal["layer", "channel"]


def rows(values: Tensor, per: Per, axis: int = 1) -> Tensor:
    """Values (B, C, ...), or with their channels on another axis, as one row (1, N), or as one a channel (C, N)."""
    return values.reshape(1, -1) if per == "layer" else values.movedim(axis, 0).flatten(1)


def some_of_rows(values: Tensor, per: Per, numbers: Tensor, axis: int = 1) -> Tensor:
    """``rows(values, per, axis)[:, numbers]``, (R, N), of which the rest is not made."""
    values = values.movedim(axis, 1)
    values_BCS = values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)
    channels, positions = values_BCS.shape[1:]
    image, position = numbers // positions, numbers % positions
    if per == "channel":
        return values_BCS[image, :, position].T.contiguous()
    return values_BCS[image // channels, image % channels, position].unsqueeze(0)


def largest_of_rows(values: Tensor, per: Per, axis: int = 1) -> Tensor:
    """The largest value of each row, (R,)."""
    return values.amax().reshape(1) if per == "layer" else values.movedim(axis, 1).amax((0, *range(2, values.dim())))


def from_rows(scale_R: Tensor, per: Per, like: Tensor, axis: int = 1) -> Tensor:
    """One value a row in a shape that multiplies ``like`` (B, C, ...): a number, or one a channel (C, 1, 1)."""
    return scale_R.reshape(()) if per == "layer" else scale_R.reshape(-1, *(1,) * (like.dim() - 1 - axis % like.dim()))
