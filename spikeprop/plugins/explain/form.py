"""``Form``: a closed form, and how its settings name its arguments (``slots``: the input index of each argument)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Settings = dict[str, Any]
Shares = list[Tensor | None]


@dataclass(frozen=True)
class Form:
    """Forward and backward of a kind, and the key of its card; for "fire" the card depends on the settings."""

    forward: Callable[[list[Tensor], Settings], list[Tensor]]
    backward: Callable[[list[Tensor], list[Tensor], list[Tensor], Settings], Shares]
    card: str


def slots_of(inputs: list[Tensor], s: Settings) -> list[Tensor | None]:
    """The named arguments; None for those that were not given."""
    return [None if slot is None else inputs[slot] for slot in s["slots"]]


def placed(shares: Shares, inputs: list[Tensor], s: Settings) -> Shares:
    """Cotangents of the named arguments, in the order of the inputs."""
    found: Shares = [None] * len(inputs)
    for slot, share in zip(s["slots"], shares):
        if slot is not None:
            found[slot] = share
    return found


def operand(described: Settings, inputs: list[Tensor]) -> Tensor:
    """An operand: an input, or a number."""
    return inputs[described["input"]] if "input" in described else torch.tensor(described["number"], dtype=torch.float64)
