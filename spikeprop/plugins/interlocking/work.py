"""``Work``: the computation of one segment for one (micro-)batch, the same in one process and in many.

Segments are numbered 0 .. K-1; l_j is the loss of segment j's head (of the last segment: the network's own loss). Activations
are detached between segments. With a reach of n, the parameters of segment i follow the gradient of l_t(i), t(i) = min(i + n -
1, K - 1), and of no other loss; a head follows its own loss (Gomez et al. 2022). So segment i receives from segment i + 1 the
cotangents of its output for the losses i + 1 .. t(i), and sends to segment i - 1 the cotangents of its input for the losses i
.. t(i - 1). Losses that no segment follows (of the segments below n - 1) are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeprop.learn import Loss
from spikeprop.learn.segments import Segment, works_in_place


def reach_of(reach: int | None, segments: int) -> int:
    """The reach n for this number of segments; None is all segments."""
    return segments if reach is None else min(reach, segments)


@dataclass(frozen=True)
class Place:
    """Position of a segment.

    Attributes:
        segment: number i of the segment.
        segments: number of segments K.
        reach: n.
    """

    segment: int
    segments: int
    reach: int

    @property
    def target(self) -> int:
        """The loss that its parameters follow, t(i)."""
        return min(self.segment + self.reach - 1, self.segments - 1)

    @property
    def has_loss(self) -> bool:
        """Whether any segment follows its loss."""
        return self.segment == self.segments - 1 or self.segment >= self.reach - 1

    def received(self) -> list[int]:
        """Losses whose cotangents come from the next segment."""
        return [j for j in range(self.segment + 1, self.target + 1) if Place(j, self.segments, self.reach).has_loss]

    def sent(self) -> list[int]:
        """Losses whose cotangents go to the previous segment."""
        return [] if self.segment == 0 else Place(self.segment - 1, self.segments, self.reach).received()

    def others(self) -> list[int]:
        """Losses of later segments whose cotangents this segment uses, for its parameters or for the previous segment."""
        return [j for j in sorted({*self.sent(), self.target}) if j != self.segment]

    @property
    def ahead(self) -> int:
        """Number of forward passes before the first cotangent of a later loss, so that no segment waits longer than for its
        target."""
        return self.target - self.segment

    def messages(self, microbatches: int) -> list[tuple[int, int]]:
        """(micro-batch, loss) of the cotangents that it sends to the previous segment, in sending order."""
        return [(m, j) for kind, m, j in self.order(microbatches) if kind == "V" and j in self.sent()]

    def order(self, microbatches: int, ahead: int | None = None) -> list[tuple[str, int, int]]:
        """Operations for a batch: ("F", micro-batch, -1) and ("V", micro-batch, loss), its own loss as early as possible."""
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
    """One segment on one batch: one forward pass, then one vector-Jacobian product per loss.

    Args:
        place: position of the segment.
        segment: the module to run.
        head: its auxiliary head; None for the last segment and for unused losses.
        loss: loss of scores and labels.
        share: size of this micro-batch as a fraction of the batch.
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
        """(loss of the segment, its cotangent at the output); the gradient of the head is accumulated in ``.grad``."""
        h = self.output.detach().requires_grad_()
        parameters = [p for p in self.head.parameters() if p.requires_grad] if self.head is not None else []
        with torch.enable_grad():
            loss = self.loss(h if self.head is None else self.head(h), y)
            cotangent, *grads = torch.autograd.grad(loss * self.share, [h, *parameters])
        _accumulate(parameters, grads)
        return loss.detach(), cotangent

    def backward(self, j: int, cotangent: Tensor) -> Tensor | None:
        """One vector-Jacobian product; accumulates the parameters' ``.grad`` if they follow loss j.

        Returns:
            the cotangent of the input for loss j, if the previous segment needs it.
        """
        wanted = [self.input] if j in self.place.sent() else []
        updated = self.segment.parameters() if j == self.place.target else []
        if not (wanted or updated):
            return None
        grads = torch.autograd.grad(self.output, [*wanted, *updated], cotangent, retain_graph=True, allow_unused=True)
        _accumulate(updated, grads[len(wanted) :])
        return grads[0] if wanted else None


def _accumulate(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(parameters, grads, strict=True):
        if g is not None:
            p.grad = g if p.grad is None else p.grad + g
