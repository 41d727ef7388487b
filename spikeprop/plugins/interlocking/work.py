"""``Work``: one segment's part of interlocking backpropagation on one (micro-)batch, the same in one process and in many.

Segments are counted 0 .. K-1; l_j is the loss of segment j's head, that of the last segment the network's own. Activations pass
from segment to segment without their history. With a reach of n, segment i's parameters follow the gradient of l_t(i),
t(i) = min(i + n - 1, K - 1), and of no other loss; a head follows that of its own (Gomez et al. 2022). So segment i needs the
cotangents of its output for losses i + 1 .. t(i) from the segment above, and passes those of its input for losses i .. t(i - 1)
on to the segment below. A loss that no segment is to follow is not computed: heads below segment n - 1 would learn for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeprop.learn import Loss
from spikeprop.learn.segments import Segment, works_in_place


def reach_of(reach: int | None, segments: int) -> int:
    """The reach n for so many segments; None is all of them."""
    return segments if reach is None else min(reach, segments)


@dataclass(frozen=True)
class Place:
    """Where a segment stands.

    Attributes:
        segment: its number i.
        segments: K.
        reach: n.
    """

    segment: int
    segments: int
    reach: int

    @property
    def target(self) -> int:
        """The loss that its parameters follow."""
        return min(self.segment + self.reach - 1, self.segments - 1)

    @property
    def has_loss(self) -> bool:
        """Whether some segment follows its loss."""
        return self.segment == self.segments - 1 or self.segment >= self.reach - 1

    def received(self) -> list[int]:
        """Losses whose cotangents come from the segment above."""
        return [j for j in range(self.segment + 1, self.target + 1) if Place(j, self.segments, self.reach).has_loss]

    def sent(self) -> list[int]:
        """Losses whose cotangents go to the segment below."""
        return [] if self.segment == 0 else Place(self.segment - 1, self.segments, self.reach).received()

    def others(self) -> list[int]:
        """Losses of later segments whose cotangents this segment computes, to update its parameters or to pass on."""
        return [j for j in sorted({*self.sent(), self.target}) if j != self.segment]

    @property
    def ahead(self) -> int:
        """Forward passes that it must be ahead of the cotangents from above, for nobody to wait longer than for its target."""
        return self.target - self.segment

    def messages(self, microbatches: int) -> list[tuple[int, int]]:
        """(micro-batch, loss) of the cotangents that it sends below, in the order in which it does."""
        return [(m, j) for kind, m, j in self.order(microbatches) if kind == "V" and j in self.sent()]

    def order(self, microbatches: int, ahead: int | None = None) -> list[tuple[str, int, int]]:
        """What it does for a batch: ("F", micro-batch, -1) and ("V", micro-batch, loss), its own loss as soon as it can."""
        ahead = min(self.ahead if ahead is None else ahead, microbatches - 1)
        order: list[tuple[str, int, int]] = []
        for step in range(microbatches + ahead):
            if step < microbatches:
                order.append(("F", step, -1))
                order += [("V", step, self.segment)] if self.has_loss and not (ahead and not self.others()) else []
            if step >= ahead:
                order += [("V", step - ahead, j) for j in self.others()]
                order += [("V", step - ahead, self.segment)] if self.has_loss and ahead and not self.others() else []
        return order


class Work:
    """One segment on one batch: forward once, then as many vector-Jacobian products as there are losses.

    Args:
        place: of the segment.
        segment: what it computes.
        head: its auxiliary head; None for the last segment and for one whose loss no segment follows.
        loss: of scores and labels.
        share: of the whole batch that this one is.
    """

    def __init__(self, place: Place, segment: Segment, head: nn.Module | None, loss: Loss, share: float = 1.0):
        self.place, self.segment, self.head, self.loss, self.share = place, segment, head, loss, share

    def forward(self, x: Tensor) -> Tensor:
        """The segment's output, detached."""
        self.input = x.detach().requires_grad_(self.place.segment > 0 and x.is_floating_point())
        with torch.enable_grad():
            self.output: Tensor = self.segment.module(self.input.clone() if works_in_place(self.segment.module) else self.input)
        return self.output.detach()

    def own_cotangent(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(the segment's loss, cotangent of its output for it); the head's gradient is added to its ``.grad``."""
        h = self.output.detach().requires_grad_()
        parameters = [p for p in self.head.parameters() if p.requires_grad] if self.head is not None else []
        with torch.enable_grad():
            loss = self.loss(h if self.head is None else self.head(h), y)
            cotangent, *grads = torch.autograd.grad(loss * self.share, [h, *parameters])
        _add(parameters, grads)
        return loss.detach(), cotangent

    def backward(self, j: int, cotangent: Tensor) -> Tensor | None:
        """One vector-Jacobian product; it adds to the parameters' ``.grad`` if they follow loss j.

        Returns:
            the cotangent of the input for loss j, if the segment below needs it.
        """
        wanted = [self.input] if j in self.place.sent() else []
        updated = self.segment.parameters() if j == self.place.target else []
        if not (wanted or updated):
            return None
        grads = torch.autograd.grad(self.output, [*wanted, *updated], cotangent, retain_graph=True, allow_unused=True)
        _add(updated, grads[len(wanted) :])
        return grads[0] if wanted else None


def _add(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(parameters, grads, strict=True):
        if g is not None:
            p.grad = g if p.grad is None else p.grad + g
