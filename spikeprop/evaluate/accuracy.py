"""Accuracy of an ANN, and of a spiking network at every number of steps of interest from one pass, for use in a program.

The output accumulated after t steps is the network's output at T = t, so one simulation of max(T) steps gives the predictions for
all smaller T; memory does not grow with T. ``evaluate`` does the same for long evaluations, which can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import length_hint

from torch import Tensor, nn

from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.predictor import BatchPredictions, Predictor
from spikeprop.evaluate.scores import is_correct
from spikeprop.runtime.batches import Batch
from spikeprop.runtime.progress import bar
from spikeprop.snn import SpikingNetwork


def ann_accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Top-1 accuracy in percent, in evaluation mode.

    Raises:
        ValueError: no images.
    """
    model.eval()
    (accuracy,) = _percent(Predictor(top=1).predict(model, number, x, y) for number, (x, y) in enumerate(batches))
    return accuracy


def snn_accuracy(
    network: SpikingNetwork,
    batches: Iterable[Batch],
    timesteps: Sequence[int],
    *,
    meter: ActivityMeter | None = None,
    seed: int = 0,
    label: str | None = None,
) -> dict[int, float]:
    """Top-1 accuracy in percent at each number of steps.

    Args:
        network: spiking network; evaluated in evaluation mode.
        batches: (images, labels).
        timesteps: numbers of steps, in any order, each at least 1.
        meter: counts spikes, at the meter's own numbers of steps.
        seed: of the encoder's random numbers, a batch at a time.
        label: text of the progress bar, None for no bar.

    Returns:
        Number of steps to accuracy, ascending.

    Raises:
        ValueError: no images, or timesteps below 1.
    """
    wanted = sorted(set(timesteps))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"timesteps {list(timesteps)}: give at least one number, each at least 1")
    predictor = Predictor(timesteps=tuple(wanted), top=1, seed=seed)
    network.eval()
    with bar(label, total=length_hint(batches) or None, leave=False) as shown:

        def predict(number: int, x: Tensor, y: Tensor) -> BatchPredictions:
            predictions = predictor.predict(network, number, x, y, meter)
            shown.update()
            return predictions

        percents = _percent(predict(number, x, y) for number, (x, y) in enumerate(batches))
    return dict(zip(wanted, percents))


def _percent(predictions: Iterable[BatchPredictions]) -> list[float]:
    """Top-1 accuracy of each column of the predictions."""
    correct, seen = None, 0
    for batch in predictions:
        found = is_correct(batch.best, batch.labels).sum(0)
        correct = found if correct is None else correct + found
        seen += len(batch.labels)
    if correct is None:
        raise ValueError("no images to evaluate on")
    return (100 * correct.double() / seen).tolist()
