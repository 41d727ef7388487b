"""Accuracy of an ANN, and of a spiking network at every number of steps of interest from one pass, for use in a program.

The output accumulated after t steps is the network's output at T = t, so one simulation of max(T) steps gives the predictions for
all smaller T; memory does not grow with T. ``evaluate`` does the same for long evaluations, which can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from spikeprop.errors import DataError, EvaluationError, LabelError
from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.predictor import BatchPredictions, Predictor
from spikeprop.evaluate.scores import is_correct
from spikeprop.runtime.batches import Batch
from spikeprop.runtime.given import count_batches, read_batches
from spikeprop.runtime.labels import IGNORED
from spikeprop.runtime.progress import bar
from spikeprop.snn import SpikingNetwork


def ann_accuracy(model: nn.Module, batches: Any) -> float:
    """Top-1 accuracy in percent, in evaluation mode; over positions too where the network has scores (B, K, positions).

    Args:
        model: evaluated in evaluation mode.
        batches: (examples, labels): a list or DataLoader of them, one pair, a data set (its test split), or a split.

    Raises:
        DataError: what was passed cannot be read as examples.
        LabelError: no labels, or labels that do not fit the outputs; of regression too, which has ``ann_error``.
        ValueError: no images.
    """
    if isinstance(model, SpikingNetwork):
        raise EvaluationError("this is a spiking network: use snn_accuracy, with numbers of time steps")
    if not isinstance(model, nn.Module):
        raise EvaluationError(f"the model is a {type(model).__name__}; pass a torch module")
    model.eval()
    (accuracy,) = _percent(
        Predictor(top=1).predict(model, number, x, y)
        for number, (x, y) in enumerate(labelled_batches(model, batches, integers=True))
    )
    return accuracy


def snn_accuracy(
    network: SpikingNetwork,
    batches: Any,
    timesteps: Sequence[int],
    *,
    meter: ActivityMeter | None = None,
    seed: int = 0,
    label: str | None = None,
) -> dict[int, float]:
    """Top-1 accuracy in percent at each number of steps.

    Args:
        network: spiking network; evaluated in evaluation mode.
        batches: (images, labels): a list or DataLoader of them, one pair, a data set (its test split), or a split;
            ``runtime/labels.py`` describes the labels.
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
        DataError: what was passed cannot be read as images with labels.
    """
    if not isinstance(network, SpikingNetwork):
        raise EvaluationError(f"{type(network).__name__} is not a spiking network: use ann_accuracy, or convert it first")
    wanted = wanted_timesteps(timesteps)
    predictor = Predictor(timesteps=tuple(wanted), top=1, seed=seed)
    network.eval()
    with bar(label, total=count_batches(batches, "test") or None, leave=False) as shown:

        def predict(number: int, x: Tensor, y: Tensor) -> BatchPredictions:
            predictions = predictor.predict(network, number, x, y, meter)
            shown.update()
            return predictions

        percents = _percent(predict(number, x, y) for number, (x, y) in enumerate(labelled_batches(network, batches)))
    return dict(zip(wanted, percents))


def wanted_timesteps(timesteps: Sequence[int]) -> list[int]:
    """Numbers of steps, ascending.

    Raises:
        DataError: not a list of whole numbers, each at least 1.
    """
    if not isinstance(timesteps, Iterable) or not all(isinstance(t, Integral) and not isinstance(t, bool) for t in timesteps):
        raise DataError(f"timesteps is {timesteps!r}; give whole numbers in a list, for example [8]")
    wanted = sorted({int(t) for t in timesteps})
    if not wanted or wanted[0] < 1:
        raise DataError(f"timesteps {wanted}: give at least one number, each at least 1")
    return wanted


def labelled_batches(model: nn.Module, batches: Any, integers: bool = False) -> Iterator[Batch]:
    """(Examples, labels), a batch at a time, in the network's type of numbers (NumPy's arrays are float64).

    Args:
        model: network that will read them.
        batches: as ``runtime/given.py`` says.
        integers: examples may be integers, such as tokens.

    Raises:
        LabelError: no labels, or another number of them.
        DataError: what was passed cannot be read as examples.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for number, (x, y) in enumerate(read_batches(batches, split="test", integers=integers), 1):
        if len(x) == 0:
            continue
        if y is None:
            raise LabelError(f"batch {number} has no labels; give (examples, labels)")
        if y.ndim == 0 or len(x) != len(y):
            raise LabelError(f"batch {number} has {len(x)} examples and {y.numel()} labels: give one label for each example")
        yield x.to(dtype) if x.is_floating_point() and dtype is not None else x, y


def _percent(predictions: Iterable[BatchPredictions]) -> list[float]:
    """Top-1 accuracy of each column of the predictions."""
    correct, seen = None, 0
    for batch in predictions:
        found = is_correct(batch.best, batch.labels).sum(0)
        correct = found if correct is None else correct + found
        seen += len(batch.labels)
    if correct is None:
        raise ValueError("no images to evaluate on")
    if not seen:
        raise LabelError(f"all labels are {IGNORED}, which means no class, so no prediction counts: give some of them classes")
    return (100 * correct.double() / seen).tolist()
