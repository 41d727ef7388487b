"""Accuracy of an ANN, and of a spiking network at every number of steps of interest from one pass, for use in a program.

The output accumulated after t steps is the network's output at T = t, so one simulation of max(T) steps gives the predictions for
all smaller T; memory does not grow with T. ``evaluate`` does the same for long evaluations, which can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from typing import Any

from torch import Tensor, nn

from spikeprop.errors import EvaluationError, LabelError
from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.predictor import BatchPredictions, Predictor
from spikeprop.evaluate.scores import is_correct
from spikeprop.runtime.batches import Batch, Batches
from spikeprop.runtime.labels import as_labels
from spikeprop.runtime.progress import bar
from spikeprop.snn import SpikingNetwork


def ann_accuracy(model: nn.Module, batches: Batches | Iterable[Batch]) -> float:
    """Top-1 accuracy in percent, in evaluation mode; over positions too where the network has scores (B, K, positions).

    Args:
        model: the network, which is not a spiking one.
        batches: (images, labels), or a split of a data set; ``spikeprop.runtime.labels`` describes the labels.

    Raises:
        LabelError: no pairs of tensors, or labels that do not fit the outputs; of regression too, which has ``ann_error``.
        ValueError: no images.
    """
    if isinstance(model, SpikingNetwork):
        raise EvaluationError("this is a spiking network: use snn_accuracy, with numbers of time steps")
    model.eval()
    (accuracy,) = _percent(Predictor(top=1).predict(model, number, x, y) for number, (x, y) in enumerate(pairs(batches)))
    return accuracy


def snn_accuracy(
    network: SpikingNetwork,
    batches: Batches | Iterable[Batch],
    timesteps: Sequence[int],
    *,
    meter: ActivityMeter | None = None,
    seed: int = 0,
    label: str | None = None,
) -> dict[int, float]:
    """Top-1 accuracy in percent at each number of steps.

    Args:
        network: spiking network; evaluated in evaluation mode.
        batches: (images, labels), or a split of a data set; ``spikeprop.runtime.labels`` describes the labels.
        timesteps: numbers of steps, in any order, each at least 1.
        meter: counts spikes, at the meter's own numbers of steps.
        seed: of the encoder's random numbers, a batch at a time.
        label: text of the progress bar, None for no bar.

    Returns:
        Number of steps to accuracy, ascending.

    Raises:
        LabelError: no pairs of tensors, or labels that do not fit the outputs; of regression too, which has ``snn_error``.
        EvaluationError: not a spiking network.
        ValueError: no images, or timesteps below 1.
    """
    if not isinstance(network, SpikingNetwork):
        raise EvaluationError(f"{type(network).__name__} is not a spiking network: use ann_accuracy, or convert it first")
    wanted = sorted(set(timesteps))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"timesteps {list(timesteps)}: give at least one number, each at least 1")
    predictor = Predictor(timesteps=tuple(wanted), top=1, seed=seed)
    network.eval()
    with bar(label, total=length_hint(batches, 0) or None, leave=False) as shown:

        def predict(number: int, x: Tensor, y: Tensor) -> BatchPredictions:
            predictions = predictor.predict(network, number, x, y, meter)
            shown.update()
            return predictions

        percents = _percent(predict(number, x, y) for number, (x, y) in enumerate(pairs(batches)))
    return dict(zip(wanted, percents))


def pairs(batches: Batches | Iterable[Batch]) -> Iterator[Batch]:
    """The (images, labels) batches of a split, of an iterable, or of one pair.

    Raises:
        LabelError: something else.
    """
    source: Any = batches
    if isinstance(batches, Batches):
        source = batches.epoch(0)
    elif isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
        source = [batches]
    elif isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise LabelError(
            f"batches is {_kind(batches)}: give a list or a DataLoader of (images, labels), or a split of a data set"
        )
    for number, batch in enumerate(source):
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor)):
            raise LabelError(f"batch {number + 1} is {_kind(batch)}: give pairs of tensors (images, labels)")
        x, y = batch[0], as_labels(batch[1])
        if y.ndim == 0 or len(x) != len(y):
            raise LabelError(f"batch {number + 1} has {len(x)} images and {y.numel()} labels: give one label for each image")
        yield x, y


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    inside = f" of {', '.join(type(part).__name__ for part in value)}" if isinstance(value, tuple | list) else ""
    return f"{type(value).__name__}{inside}"


def _percent(predictions: Iterable[BatchPredictions]) -> list[float]:
    """Top-1 accuracy of each column of the predictions."""
    correct, seen = None, 0
    for batch in predictions:
        found = is_correct(batch.best, batch.labels).sum(0)
        correct = found if correct is None else correct + found
        seen += len(batch.labels)
    if correct is None or not seen:
        raise ValueError("no images to evaluate on")
    return (100 * correct.double() / seen).tolist()
