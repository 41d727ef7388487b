"""Accuracy of an ANN, and of a spiking network at every number of steps of interest from one pass, for use in a program.

The output accumulated after t steps is the network's output at T = t, so one simulation of max(T) steps gives the predictions for
all smaller T; memory does not grow with T. ``evaluate`` does the same for long evaluations, which can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

from torch import nn

from spikeprop.errors import DataError, EvaluationError, LabelError
from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.predictor import BatchPredictions, Predictor, check_steps
from spikeprop.evaluate.scores import Predictions, is_correct
from spikeprop.runtime.batches import Batch
from spikeprop.runtime.given import count_batches, read_batches
from spikeprop.runtime.labels import IGNORED
from spikeprop.runtime.progress import bar
from spikeprop.snn import SpikingNetwork


def ann_accuracy(model: nn.Module, batches: Any, *, output: str | None = None) -> float:
    """Top-1 accuracy in percent, in evaluation mode; over positions too where the network has scores (B, K, positions).

    Args:
        model: evaluated in evaluation mode.
        batches: (examples, labels): a list or DataLoader of them, one pair, a data set (its test split), or a split.
        output: name of the output that is evaluated, of a network with several.

    Raises:
        DataError: what was passed cannot be read as examples.
        LabelError: no labels, or labels that do not fit the outputs; of regression too, which has ``ann_error``.
        ValueError: no images.
    """
    (accuracy,) = _percent(_of_ann(model, batches, output, "snn_accuracy"))
    return accuracy


def ann_mean_iou(model: nn.Module, batches: Any, *, output: str | None = None) -> float:
    """Mean intersection over union in percent, of the classes of all positions; arguments and errors of ``ann_accuracy``."""
    (found,) = _predictions(_of_ann(model, batches, output, "snn_mean_iou")).mean_iou()
    return found


def _of_ann(model: nn.Module, batches: Any, output: str | None, instead: str) -> Iterator[BatchPredictions]:
    if isinstance(model, SpikingNetwork):
        raise EvaluationError(f"this is a spiking network: use {instead}, with numbers of time steps")
    if not isinstance(model, nn.Module):
        raise EvaluationError(f"the model is a {type(model).__name__}; pass a torch module")
    model.eval()
    predictor = Predictor(top=1, output=output)
    for number, (x, y) in enumerate(labelled_batches(model, batches, integers=True)):
        yield predictor.predict(model, number, x, y)


def snn_accuracy(
    network: SpikingNetwork,
    batches: Any,
    timesteps: Sequence[int] | None = None,
    *,
    meter: ActivityMeter | None = None,
    seed: int = 0,
    label: str | None = None,
    output: str | None = None,
) -> dict[int, float]:
    """Top-1 accuracy in percent at each number of steps; over positions too where the network has scores (B, K, positions).

    Args:
        network: spiking network; evaluated in evaluation mode.
        batches: (images, labels): a list or DataLoader of them, one pair, a data set (its test split), or a split; sequences are
            (B, T, ...), or ``Sequences`` where their lengths differ; ``runtime/labels.py`` describes the labels.
        timesteps: numbers of steps, in any order, each at least 1; None for all steps of sequences, which have their own.
        meter: counts spikes, at the meter's own numbers of steps.
        seed: of the encoder's random numbers, a batch at a time.
        label: text of the progress bar, None for no bar.
        output: name of the output that is evaluated, of a network with several.

    Returns:
        Number of steps to accuracy, ascending; without ``timesteps`` that of the longest sequence.

    Raises:
        LabelError: no pairs of tensors, or labels that do not fit the outputs; of regression too, which has ``snn_error``.
        EvaluationError: not a spiking network, still samples without ``timesteps``, or sequences of which the longest has fewer
            steps.
        ValueError: no images, or timesteps below 1.
        DataError: what was passed cannot be read as images with labels.
    """
    if not isinstance(network, SpikingNetwork):
        raise EvaluationError(f"{type(network).__name__} is not a spiking network: use ann_accuracy, or convert it first")
    wanted = [] if timesteps is None else wanted_timesteps(timesteps)
    predictor = Predictor(timesteps=tuple(wanted), top=1, seed=seed, output=output)
    longest: list[int] = []
    accuracies = _percent(_of_snn(network, batches, predictor, meter, label, longest))
    return dict(zip(wanted or [max(longest)], accuracies))


def snn_mean_iou(
    network: SpikingNetwork, batches: Any, timesteps: Sequence[int], *, seed: int = 0, output: str | None = None
) -> dict[int, float]:
    """Mean intersection over union in percent, of the classes of all positions, at each number of steps.

    Arguments and errors are those of ``snn_accuracy``.
    """
    if not isinstance(network, SpikingNetwork):
        raise EvaluationError(f"{type(network).__name__} is not a spiking network: use ann_mean_iou, or convert it first")
    wanted = wanted_timesteps(timesteps)
    predictor = Predictor(timesteps=tuple(wanted), top=1, seed=seed, output=output)
    return dict(zip(wanted, _predictions(_of_snn(network, batches, predictor, None, None)).mean_iou()))


def _of_snn(
    network: SpikingNetwork,
    batches: Any,
    predictor: Predictor,
    meter: ActivityMeter | None,
    label: str | None,
    steps: list[int] | None = None,
) -> Iterator[BatchPredictions]:
    """The predictions a batch at a time; ``steps`` gets those of each batch's longest sequence."""
    network.eval()
    longest = 0
    with bar(label, total=count_batches(batches, "test") or None, leave=False) as shown:
        for number, (x, y) in enumerate(labelled_batches(network, batches)):
            found = predictor.predict(network, number, x, y, meter)
            longest = max(longest, found.steps)
            if steps is not None:
                steps.append(found.steps)
            yield found
            shown.update()
    check_steps(predictor.timesteps, longest)


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
        yield x.to(dtype) if x.dtype.is_floating_point and dtype is not None else x, y


def _predictions(batches: Iterable[BatchPredictions]) -> Predictions:
    found = list(batches)
    if not found:
        raise ValueError("no images to evaluate on")
    predictions = Predictions.of(found)
    if not len(predictions.labels_N):
        raise _none_counts()
    return predictions


def _none_counts() -> LabelError:
    return LabelError(f"all labels are {IGNORED}, which means no class, so no prediction counts: give some of them classes")


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
        raise _none_counts()
    return (100 * correct.double() / seen).tolist()
