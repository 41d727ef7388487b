"""What a batch's labels mean for a network's scores, decided once for losses, training metrics and accuracies.

Shape and dtype decide, never the values alone. With scores (B, K, ...), where ``...`` are positions (none for images):

    class indices    integers (B, ...) or (B, 1, ...), 0 to K - 1; ``IGNORED`` (-100, as in torch): no class
    probabilities    floats (B, K, ...) that are not negative and sum to 1: soft labels; the true class is the most probable one
    one-hot          the same in integers or bool
    binary           K = 1 or scores (B,): one logit; labels 0 and 1 in (B, ...) or (B, 1, ...); class 1 above a logit of 0

Everything else is refused: in particular floats where class indices are expected, and real-valued targets, which are regression.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spikeprop.errors import LabelError
from spikeprop.runtime.ordinary import unusual

IGNORED = -100  # torch's ``ignore_index``: in no loss and no accuracy
SUM_TOLERANCE = 1e-2  # of probabilities; bfloat16 has three digits
REGRESSION = "for regression use ann_error or snn_error, and train with SquaredError"


@dataclass(frozen=True)
class Labels:
    """Labels that fit their scores.

    Attributes:
        kind: how ``values`` are meant.
        values: class indices (B, ...) int64; probabilities in the scores' shape; binary: 0.0 and 1.0 in the scores' shape.
    """

    kind: Literal["classes", "probabilities", "binary"]
    values: Tensor

    def classes(self) -> Tensor:
        """True class of every example and position (B, ...) int64; ``IGNORED`` where there is none."""
        if self.kind == "classes":
            return self.values
        if self.kind == "probabilities":
            return self.values.argmax(1)
        return (self.values if self.values.ndim == 1 else self.values.squeeze(1)).long()

    def correct(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Number () of correct predictions, and of labels that count."""
        truth = self.classes()
        return (predicted(scores) == truth).sum(), (truth != IGNORED).sum()


def read_labels(scores: Tensor, y: Any, *, ignorable: bool = True) -> Labels:
    """The labels of a batch for the scores of a network.

    Args:
        scores: (B, K, ...), or (B,) of one logit.
        y: labels in one of the forms above.
        ignorable: whether ``IGNORED`` is a label.

    Raises:
        LabelError: another number of examples, another shape, classes outside 0 to K - 1, or targets that are not classes.
    """
    y = as_labels(y).to(scores.device)
    if scores.ndim == 0 or y.ndim == 0 or len(y) != len(scores):
        raise LabelError(f"the network has scores {_shape(scores)}, the labels are {_shape(y)}: give one label for each example")
    if scores.ndim == 1 or scores.shape[1] == 1:
        return _binary(scores, y)
    if y.shape == scores.shape:
        return _probabilities(scores, y)
    positions = (len(scores), *scores.shape[2:])
    fits = y.shape == positions or y.shape == (positions[0], 1, *positions[1:])
    if not (fits or (y.ndim == 1 and math.prod(positions) == len(y))):
        raise LabelError(
            f"labels {_shape(y)} do not fit scores {_shape(scores)}: give class indices {positions} as integers, "
            f"or probabilities {_shape(scores)}; {REGRESSION}"
        )
    if y.is_floating_point():
        raise LabelError(
            f"labels {_shape(y)} are {_dtype(y)}, and the network has {scores.shape[1]} outputs: class indices are integers, "
            f"use labels.long(); soft labels have the scores' shape {_shape(scores)}; {REGRESSION}"
        )
    _check_range(y, scores.shape[1], ignorable)
    return Labels("classes", y.reshape(positions).long())


def predicted(scores: Tensor) -> Tensor:
    """Predicted class of every example and position (B, ...) int64: the first of the largest scores, or 1 above a logit of 0."""
    if scores.ndim > 1 and scores.shape[1] > 1:
        return scores.argmax(1)
    return ((scores if scores.ndim == 1 else scores.squeeze(1)) > 0).long()


def by_example(scores: Tensor) -> Tensor:
    """Scores (N, K) of N examples or positions; one logit z becomes the two scores (0, z), so that class 0 is first at z = 0."""
    if scores.ndim == 1 or scores.shape[1] == 1:
        logit = scores.reshape(-1, 1)
        return torch.cat([torch.zeros_like(logit), logit], 1)
    return scores.movedim(1, -1).flatten(0, -2) if scores.ndim > 2 else scores


def as_labels(y: Any) -> Tensor:
    """Labels as a tensor.

    Raises:
        LabelError: neither a tensor nor numbers, or sparse, complex, quantised or without values.
    """
    try:
        labels = y if isinstance(y, Tensor) else torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LabelError(f"labels are {type(y).__name__} ({error}): give a tensor of class indices") from error
    found = unusual(labels)
    if found is not None:
        raise LabelError(f"the tensor of labels {found}")
    return labels


def has_ignored(y: Tensor) -> bool:
    """Whether there are positions without a class."""
    return _facts(y).ignored


def _binary(scores: Tensor, y: Tensor) -> Labels:
    positions = (len(scores), *scores.shape[2:])
    if y.shape not in (scores.shape, positions) and y.shape != (positions[0], 1, *positions[1:]):
        raise LabelError(
            f"labels {_shape(y)} do not fit scores {_shape(scores)} of one logit: give labels {positions} of 0 and 1, "
            "or a network with one output for each class"
        )
    facts = _facts(y)
    if not (facts.zero_or_one or y.numel() == 0):
        raise LabelError(
            f"the network has one output, a logit, and its labels lie from {facts.low:g} to {facts.high:g} ({_dtype(y)}): "
            f"classes of one logit are 0 and 1; for more classes give the network one output each; {REGRESSION}"
        )
    return Labels("binary", y.reshape(scores.shape).to(scores.dtype))


def _probabilities(scores: Tensor, y: Tensor) -> Labels:
    facts = _facts(y)
    sums_to_one = abs(facts.least_sum - 1) <= SUM_TOLERANCE and abs(facts.largest_sum - 1) <= SUM_TOLERANCE
    if not (facts.low >= 0 and sums_to_one) and y.numel():
        raise LabelError(
            f"labels {_shape(y)} have the shape of the scores, so they are one-hot or soft labels, which are not negative "
            f"and sum to 1 over the classes; these start at {facts.low:g} and have "
            f"sums from {facts.least_sum:g} to {facts.largest_sum:g}. "
            f"Normalise them; {REGRESSION}; several true classes for an example are not supported"
        )
    return Labels("probabilities", y.to(scores.dtype))


def _check_range(y: Tensor, classes: int, ignorable: bool) -> None:
    facts = _facts(y)
    if facts.ignored and not ignorable:
        raise LabelError(f"labels hold {IGNORED}, a position without a class, which this loss does not support: use CrossEntropy")
    if y.numel() == 0 or (facts.low >= 0 and facts.high < classes):
        return
    if facts.high == classes and facts.low >= 1:
        remedy = "they seem to count from 1: use labels - 1"
    elif facts.low < 0:
        remedy = f"no class is negative; mark positions without a class with {IGNORED}"
    else:
        remedy = "give the network more outputs, or number the classes from 0"
    raise LabelError(
        f"labels lie from {facts.low:g} to {facts.high:g}, and the network has {classes} outputs "
        f"for classes 0 to {classes - 1}: {remedy}"
    )


@dataclass(frozen=True)
class _Facts:
    """What the values of labels are: smallest and largest (``IGNORED`` aside for integers), and sums over axis 1."""

    low: float
    high: float
    zero_or_one: bool
    ignored: bool = False
    least_sum: float = math.nan
    largest_sum: float = math.nan


_on_host: ContextVar[_Facts | None] = ContextVar("facts of labels on the host", default=None)


@contextmanager
def known_on_host(y: Tensor) -> Iterator[None]:
    """Within this context labels on a GPU are those of ``y`` on the host, whose values are checked instead: no wait."""
    token = _on_host.set(_measure(y) if not y.is_cuda else None)
    try:
        yield
    finally:
        _on_host.reset(token)


def _facts(y: Tensor) -> _Facts:
    known = _on_host.get() if y.is_cuda else None
    return known or _measure(y)


def _measure(y: Tensor) -> _Facts:
    if y.numel() == 0:
        return _Facts(math.nan, math.nan, False)
    values = y.detach()
    ignored = False
    if not y.is_floating_point():
        values = values.long()
        low, high = (int(v) for v in values.aminmax())
        ignored = low == IGNORED
        if ignored:
            kept = values[values != IGNORED]
            low, high = (int(v) for v in kept.aminmax()) if kept.numel() else (0, 0)
        zero_or_one = low >= 0 and high <= 1
    else:
        low, high = (float(v) for v in values.aminmax())
        zero_or_one = bool(((values == 0) | (values == 1)).all())
    sums = values.double().sum(1).aminmax() if y.ndim > 1 else (math.nan, math.nan)
    return _Facts(low, high, zero_or_one and not ignored, ignored, *(float(s) for s in sums))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
