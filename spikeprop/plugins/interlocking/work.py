"""``Work``: one stage's part of interlocking backpropagation on one (micro-)batch, the same in one process and in many.

Stages are counted 0 .. K-1; l_j is the loss of stage j's head, that of the last stage the network's own. Activations pass from
stage to stage without their history. With a reach of n, stage i's parameters follow the gradient of l_t(i),
t(i) = min(i + n - 1, K - 1), and of no other loss; a head follows that of its own (Gomez et al. 2022). So stage i needs the
cotangents of its output for losses i + 1 .. t(i) from the stage above, and passes those of its input for losses i .. t(i - 1) on
to the stage below. A loss that no stage is to follow is not computed: heads below stage n - 1 would learn for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeprop.learn import Loss
from spikeprop.learn.stages import Stage, works_in_place


def reach_of(reach: int | None, stages: int) -> int:
    """The reach n for so many stages; None is all of them."""
    return stages if reach is None else min(reach, stages)


@dataclass(frozen=True)
class Place:
    """Where a stage stands.

    Attributes:
        stage: its number i.
        stages: K.
        reach: n.
    """

    stage: int
    stages: int
    reach: int

    @property
    def target(self) -> int:
        """The loss that its parameters follow."""
        return min(self.stage + self.reach - 1, self.stages - 1)

    @property
    def has_loss(self) -> bool:
        """Whether some stage follows its loss."""
        return self.stage == self.stages - 1 or self.stage >= self.reach - 1

    def received(self) -> list[int]:
        """Losses whose cotangents come from the stage above."""
        return [j for j in range(self.stage + 1, self.target + 1) if Place(j, self.stages, self.reach).has_loss]

    def sent(self) -> list[int]:
        """Losses whose cotangents go to the stage below."""
        return [] if self.stage == 0 else Place(self.stage - 1, self.stages, self.reach).received()


class Work:
    """One stage on one batch: forward once, then as many vector-Jacobian products as there are losses.

    Args:
        place: of the stage.
        stage: what it computes.
        head: its auxiliary head; None for the last stage and for one whose loss no stage follows.
        loss: of scores and labels.
        share: of the whole batch that this one is.
    """

    def __init__(self, place: Place, stage: Stage, head: nn.Module | None, loss: Loss, share: float = 1.0):
        self.place, self.stage, self.head, self.loss, self.share = place, stage, head, loss, share

    def forward(self, x: Tensor) -> Tensor:
        """The stage's output, detached."""
        self.input = x.detach().requires_grad_(self.place.stage > 0 and x.is_floating_point())
        with torch.enable_grad():
            self.output: Tensor = self.stage.module(self.input.clone() if works_in_place(self.stage.module) else self.input)
        return self.output.detach()

    def own_cotangent(self, y: Tensor) -> tuple[Tensor | None, dict[int, Tensor]]:
        """(loss or None, {stage: cotangent of the output for it}); the head's gradient is added to its ``.grad``."""
        if not self.place.has_loss:
            return None, {}
        h = self.output.detach().requires_grad_()
        parameters = [p for p in self.head.parameters() if p.requires_grad] if self.head is not None else []
        with torch.enable_grad():
            loss = self.loss(h if self.head is None else self.head(h), y)
            cotangent, *grads = torch.autograd.grad(loss * self.share, [h, *parameters])
        _add(parameters, grads)
        return loss.detach(), {self.place.stage: cotangent}

    def backward(self, cotangents: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Add the stage's gradient to ``.grad``.

        Args:
            cotangents: of the output by loss: the stage's own, and those received.

        Returns:
            cotangents of the input by loss, for the stage below.
        """
        passed: dict[int, Tensor] = {}
        below = self.place.sent()
        parameters = self.stage.parameters()
        for j in sorted({*below, self.place.target}):
            wanted = [self.input] if j in below else []
            updated = parameters if j == self.place.target else []
            grads = torch.autograd.grad(self.output, [*wanted, *updated], cotangents[j], retain_graph=True, allow_unused=True)
            if wanted:
                passed[j] = grads[0]  # type: ignore[assignment]
            _add(updated, grads[len(wanted) :])
        del self.output
        return passed


def _add(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(parameters, grads, strict=True):
        if g is not None:
            p.grad = g if p.grad is None else p.grad + g
