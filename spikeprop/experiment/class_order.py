"""Do a network's outputs stand for the classes in the order in which the data number them?

A file of weights does not say it, and folders number their classes by sorted names, so a renamed folder makes a good network look
bad. The classes are matched to the outputs that are predicted for them most often (the assignment of largest sum: Kuhn 1955), on
one half of some labelled images; the other half says whether that holds, by McNemar's test, and the other way round. So a chance
fit to few images is not taken for an order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SURE = 3.0  # standard deviations
SHOWN = 10


def order_text(names: Sequence[str]) -> str:
    """Which output is taken for which class, in a line."""
    shown = [f"{number} = {name}" for number, name in enumerate(names)]
    return ", ".join(shown if len(shown) <= SHOWN + 2 else [*shown[:SHOWN], "...", shown[-1]])


def better_order(scores: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """The order of classes that fits a network far better than the data's, in words; empty where there is none.

    Args:
        scores: (N, outputs) of the images.
        labels: (N,).
        names: of the classes.
    """
    predicted, classes = scores.argmax(1), len(names)
    if scores.shape[1] != classes or classes < 2 or len(labels) < 4:
        return ""
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # labels may alternate
    own, other = predicted == labels, torch.zeros_like(labels, dtype=torch.bool)
    for half in (rows % 2 == 0, rows % 2 == 1):
        other[~half] = predicted[~half] == _assigned(predicted[half], labels[half], classes, classes)[labels[~half]]
    always = labels == labels.bincount().argmax()  # a network that predicts one class is as good in some order
    if not (_surely_better(other, own) and _surely_better(other, always)):
        return ""
    output_of = _assigned(predicted, labels, classes, classes)
    correct = 100 * float((predicted == output_of[labels]).double().mean())
    order = [names[int(label)] for label in output_of.argsort()]
    return (
        f"the classes in the order {order_text(order)} would make {correct:.0f} % correct: are folders or names in another order?"
    )


def _surely_better(one: Tensor, other: Tensor) -> bool:
    """Whether more predictions are correct, of the same images, than by chance."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained - lost > SURE * (gained + lost) ** 0.5


def missing_classes(scores: Tensor, labels: Tensor, names: Sequence[str]) -> tuple[float, str]:
    """Which outputs no class of the data fits, where a network has more outputs than they have classes.

    Returns:
        percent of correct predictions without these outputs, and the outputs in words; empty where so few are correct that it
        says nothing.
    """
    predicted, outputs = scores.argmax(1), scores.shape[1]
    taken = _in_order(predicted, labels, outputs, len(names))
    places = []
    for skipped, output in enumerate(sorted({*range(outputs)} - {*taken})):
        follows = output - skipped  # classes whose outputs come before it
        where = [f"after {names[follows - 1]!r}"] if follows else []
        where += [f"before {names[follows]!r}"] if follows < len(names) else []
        places.append(f"{output} ({' and '.join(where)})")
    correct = 100 * float((predicted == torch.tensor(taken)[labels]).double().mean())
    shown = ", ".join(places[:SHOWN]) + (", ..." if len(places) > SHOWN else "")
    text = f"no class fits output{'s' * (len(places) > 1)} {shown}, if the others are in order ({correct:.0f} % correct then)"
    return correct, text if correct > 200 / len(names) or len(names) < 3 else ""


def _counts(predicted: Tensor, labels: Tensor, outputs: int, classes: int) -> Tensor:
    """Images by class and predicted output."""
    return torch.bincount(labels * outputs + predicted, minlength=classes * outputs).view(classes, outputs)


def _assigned(predicted: Tensor, labels: Tensor, outputs: int, classes: int) -> Tensor:
    """The output of each class, all different, with the most images in all; of equal ones the class's own number."""
    from scipy.optimize import linear_sum_assignment

    gain = _counts(predicted, labels, outputs, classes).double() + 1e-6 * torch.eye(classes, outputs, dtype=torch.double)
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])


def _in_order(predicted: Tensor, labels: Tensor, outputs: int, classes: int) -> list[int]:
    """The same with ascending outputs, as where classes are left out of a sorted list: the best, by dynamic programming.

    Of equal ones that with the largest outputs, from the first class on. Time and memory are those of a table of each class's
    possible outputs, ``classes * (outputs - classes + 1)``.
    """
    spare = outputs - classes
    left_out = predicted - labels  # outputs that are left out before the class, if this is its output
    fits = (left_out >= 0) & (left_out <= spare)
    index = labels[fits] * (spare + 1) + left_out[fits]
    best = torch.bincount(index, minlength=classes * (spare + 1)).view(classes, spare + 1)
    for label in range(classes - 2, -1, -1):  # images of this class and the later ones, of which none leaves out fewer
        best[label] += best[label + 1].flip(0).cummax(0).values.flip(0)
    taken, left = [], 0
    for label, images in enumerate(best):
        left += int((images[left:] == images[left:].max()).nonzero()[-1])
        taken.append(label + left)
    return taken
