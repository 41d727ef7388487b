"""``LearningRule``: where gradients come from.

The loop owns the optimiser, the schedule and the checkpoints; a rule only fills ``.grad``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LearningRule(ABC):
    """Computes gradients for one batch."""

    @abstractmethod
    def step(self, model: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Leave a gradient in ``.grad`` of each parameter.

        Args:
            model: the network, in training mode.
            x: images (B, ...).
            y: labels (B,), int64.

        Returns:
            {"loss": mean loss (), "scores": class scores (B, K)}, both detached.
        """
