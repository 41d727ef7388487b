"""``Work``: the computation of one segment for one (micro-)batch, the same in one process and in many.

Segments are numbered 0 .. K-1; l_j is the loss of segment j's head (of the last segment: the network's own loss). Activations
are detached between segments. With a reach of n, segment i sees the losses i .. t(i), t(i) = min(i + n - 1, K - 1). Its
parameters follow the furthest of them (Gomez et al. 2022, as in the authors' code), or the sum or mean of them; a head follows
its own loss. So segment i receives from segment i + 1 the cotangents of its output for the losses i + 1 .. t(i), and sends to
segment i - 1 the cotangents of its input for the losses i .. t(i - 1). Losses that no segment follows (with ``furthest`` those
of the segments below n - 1) are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprop.learn import Loss
from spikeprop.learn.segments import Segment, works_in_place

Combine = Literal["furthest", "mean", "sum"]


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
        combine: what the parameters follow of the losses i .. t(i).
    """

    segment: int
    segments: int
    reach: int
    combine: Combine

    @property
    def target(self) -> int:
        """The furthest loss that it sees, t(i)."""
        return min(self.segment + self.reach - 1, self.segments - 1)

    @property
    def weights(self) -> dict[int, float]:
        """The losses that its parameters follow, with their weights."""
        if self.combine == "furthest":
            return {self.target: 1.0}
        seen = range(self.segment, self.target + 1)
        return dict.fromkeys(seen, 1.0 if self.combine == "sum" else 1 / len(seen))

    @property
    def has_loss(self) -> bool:
        """Whether any segment follows its loss."""
        return self.combine != "furthest" or self.segment == self.segments - 1 or self.segment >= self.reach - 1

    def at(self, segment: int) -> Place:
        """The position of another segment."""
        return replace(self, segment=segment)

    def received(self) -> list[int]:
        """Losses whose cotangents come from the next segment."""
        return [j for j in range(self.segment + 1, self.target + 1) if self.at(j).has_loss]

    def sent(self) -> list[int]:
        """Losses whose cotangents go to the previous segment."""
        return [] if self.segment == 0 else self.at(self.segment - 1).received()

    def others(self) -> list[int]:
        """Losses of later segments whose cotangents this segment uses, for its parameters or for the previous segment."""
        return [j for j in sorted({*self.sent(), *self.weights}) if j != self.segment]

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
        weight = self.place.weights.get(j)
        wanted = [self.input] if j in self.place.sent() else []
        updated = [] if weight is None else self.segment.parameters()
        if not (wanted or updated):
            return None
        grads = torch.autograd.grad(self.output, [*wanted, *updated], cotangent, retain_graph=True, allow_unused=True)
        _accumulate(updated, [g if g is None or weight in (None, 1.0) else g * weight for g in grads[len(wanted) :]])
        return grads[0] if wanted else None


def _accumulate(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(parameters, grads, strict=True):
        if g is not None:
            p.grad = g if p.grad is None else p.grad + g
