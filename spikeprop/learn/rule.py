"""``LearningRule``: computes gradients.

The loop owns the optimiser, the schedule and the checkpoints; a rule only fills ``.grad``. A rule that needs parameters of its
own (auxiliary heads, backward weights, traces) makes them in ``prepare``, when the network is known, and keeps them in
``own``: the same optimiser trains them, and the loop's checkpoints save and resume them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn

from spikeprop.learn.loss import Objective


@dataclass(frozen=True, kw_only=True)
class LearningRule(ABC):
    """Computes gradients for one batch.

    Attributes:
        own: modules of the rule's own, by name; empty for most rules. Not a setting: the rule fills it in ``prepare``.
    """

    own: nn.ModuleDict = field(init=False, default_factory=nn.ModuleDict, repr=False, compare=False)

    @property
    def single_backward(self) -> bool:
        """Whether all gradients come from one backward pass through one call of the network."""
        return False

    @property
    def complete_batches(self) -> bool:
        """Whether ``step`` gives the network all of its examples in one call; else batch-norm sees only some of them."""
        return True

    @abstractmethod
    def step(self, model: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Leave a gradient in ``.grad`` of each parameter.

        Args:
            model: the network, in training mode.
            x: examples (B, ...); of rules that simulate also sequences (B, T, ...), or ``Sequences`` of unequal length.
            y: labels (B,), int64; or what the rule's loss takes.

        Returns:
            {"loss": mean loss (), "scores": class scores (B, K)}, both detached; further entries are scalars () that the loop
            averages over the epoch into its metrics.
        """

    def prepare(self, model: nn.Module, x: Tensor) -> None:  # noqa: B027 - most rules have nothing to make
        """Make the rule's own modules on the network's device, before the optimiser is made; the network does not change.

        Args:
            model: the network to train.
            x: a batch of its inputs, which shows the shapes.
        """

    @property
    def needs_teacher(self) -> bool:
        """Whether its loss reads another network's scores (``Distillation``), and there is no such network yet."""
        loss = getattr(self, "loss", None)
        return isinstance(loss, Objective) and loss.needs_teacher

    def taught_by(self, teacher: nn.Module) -> Self:
        """The rule with this teacher, where its loss needs one; before ``prepare``."""
        return self.with_loss(self.loss.taught_by(teacher)) if self.needs_teacher else self  # type: ignore[attr-defined]

    def with_loss(self, loss: Objective) -> Self:
        """The same rule, with the same modules of its own, and another loss."""
        rule = copy.copy(self)
        object.__setattr__(rule, "loss", loss)
        return rule

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the rule's own, which the optimiser trains beside the network's."""
        return self.own.parameters()

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimiser's groups, as torch.optim takes them; by default one of all trained parameters, the network's last."""
        return [{"params": [p for p in (*self.parameters(), *model.parameters()) if p.requires_grad]}]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of the rule's own, by name."""
        return self.own.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of ``state_dict``, after ``prepare``."""
        self.own.load_state_dict(dict(state))
