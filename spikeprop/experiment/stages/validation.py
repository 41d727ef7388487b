"""``Validation``: accuracy on some test images after each epoch of a training, for the curve beside the training's own.

Nothing is chosen by it, and the training is bit for bit the one without it: random state and modes are put back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spikeprop.evaluate import Predictor, device_of
from spikeprop.evaluate.scores import is_correct
from spikeprop.learn import TrainingState
from spikeprop.runtime.batches import Split
from spikeprop.snn import SpikingNetwork

LEAST, MOST, SHARE, BATCH = 200, 500, 10, 50  # images: at most a tenth of an epoch's, but at least 200, and 500 at the most


class Validation:
    """Measures accuracy in percent on test images at even distances.

    Args:
        split: test images, in batches of ``BATCH``.
        trained_on: images of an epoch.
        timesteps: of a spiking network on still samples; None for an ANN and for sequences.
        seed: of the encoder.
    """

    def __init__(self, split: Split, trained_on: int, timesteps: int | None, seed: int):
        wanted = min(MOST, max(LEAST, trained_on // SHARE))
        count = min(len(split), max(1, wanted // split.batch_size))
        self.split, self.numbers = split, [i * len(split) // count for i in range(count)]
        self.timesteps, self.seed = timesteps, seed

    def __call__(self, training: TrainingState) -> dict[str, Any]:
        """``{"validation": accuracy, "validation_images": of how many}``; nothing for regression.

        Nothing either for weights that are not finite, with which the training itself ends.
        """
        model = training.model
        if training.correct is None or not all(bool(p.isfinite().all()) for p in model.parameters()):
            return {}
        modes, device = [(module, module.training) for module in model.modules()], device_of(model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            accuracy, images = self._measure(model.eval())
        for module, mode in modes:
            module.training = mode
        return {"validation": accuracy, "validation_images": images}

    def _measure(self, model: nn.Module) -> tuple[float, int]:
        steps = (self.timesteps,) if self.timesteps and isinstance(model, SpikingNetwork) else ()
        predictor, correct, positions, images = Predictor(timesteps=steps, top=1, seed=self.seed), 0, 0, 0
        for number in self.numbers:
            x, y = next(self.split.epoch(0, number))
            found = predictor.predict(model, number, x, y)
            correct += int(is_correct(found.best, found.labels)[:, -1].sum())
            positions, images = positions + len(found.labels), images + len(y)
        return 100 * correct / max(1, positions), images
