"""Helpers of the calibrators: rows of values a layer or a channel, and checks of settings."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Per = Literal["layer", "channel"]


def rows(values: Tensor, per: Per) -> Tensor:
    """Values (B, C, ...) as one row (1, N), or as one a channel (C, N)."""
    return values.reshape(1, -1) if per == "layer" else values.transpose(0, 1).flatten(1)


def from_rows(scale_R: Tensor, per: Per, like: Tensor) -> Tensor:
    """One value a row in a shape that multiplies ``like`` (B, C, ...): a number, or one a channel (C, 1, 1)."""
    return scale_R.reshape(()) if per == "layer" else scale_R.reshape(-1, *(1,) * (like.dim() - 2))


def check_percentile(percentile: float) -> None:
    """Raises ValueError outside (0, 100]."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it lies in (0, 100]")


def check_grid(grid: int) -> None:
    """Raises ValueError below one fraction."""
    if grid < 1:
        raise ValueError(f"grid is {grid}; the search needs at least 1 fraction")


def check_steps(timesteps: int, what: str) -> None:
    """Raises ValueError below one step."""
    if timesteps < 1:
        raise ValueError(f"timesteps is {timesteps}; {what} at least 1 step")
