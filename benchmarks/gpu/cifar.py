"""A fast CIFAR-10 run, end to end on the GPU: ANN, conversion, fine-tuning with STDB, accuracy and seconds of each.

Not the paper's training (300 epochs): a few epochs of a network with batch-norm, which conversion folds into the weights. Without
the data set under $SPIKEPROP_DATA the images are synthetic, one pattern a class with noise, and the record says so: then the
accuracies say that the stages work, and nothing about CIFAR-10.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.parts import Context
from spikeprop import BPTT, CIFAR10, CNN, IF, Backprop, Direct, MaxActivation, ann_accuracy, convert, fit, snn_accuracy
from spikeprop.data import InMemorySplit, Split
from spikeprop.errors import SpikepropError
from spikeprop.learn import Cosine

BATCH, EPOCHS, FINE_TUNING, TIMESTEPS = 250, 8, 1, 8
CLASSES, SYNTHETIC = 10, (10_000, 2_000)  # images of a stand-in, to train and to test
SMALL = (40, 20)


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A record a stage."""
    train, test, source = _images(context)
    yield {"stage": "data", "data": source, "seconds": 0.0, "train": train(0).images.shape[0], "test": test.images.shape[0]}
    autocast = None if context.small else torch.bfloat16
    torch.manual_seed(0)
    plan, hidden = ([8, "A", 8, "A"], [16]) if context.small else ([64, "A", 128, 128, "A", 256, 256, "A"], [512])
    ann = CNN(input_shape=(3, 32, 32), classes=CLASSES, plan=plan, hidden=hidden, batch_norm=True, dropout=0, hidden_dropout=0.3)
    ann.to(context.device)
    sgd = torch.optim.SGD(ann.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    epochs, schedule = 1 if context.small else EPOCHS, Cosine(warmup=0.2)
    seconds = _seconds(lambda: fit(ann, Backprop(), train(0), sgd, epochs=epochs, schedule=schedule, autocast=autocast))
    yield {"stage": "ANN", "epochs": epochs, "seconds": seconds, "accuracy": ann_accuracy(ann, test.epoch(0))}

    images = [x.to(context.device) for x, _ in _first(train(1), 4)]
    start = time.perf_counter()
    snn = convert(ann, images, IF(v_init=0.5), MaxActivation(), encoder=Direct())
    steps = (TIMESTEPS, 2 * TIMESTEPS)
    seconds = time.perf_counter() - start
    yield {"stage": "converted", "seconds": seconds, "accuracy": _by_steps(snn_accuracy(snn, test.epoch(0), steps))}

    adam = torch.optim.Adam(snn.parameters(), lr=1e-4, amsgrad=True)
    rule = BPTT(timesteps=TIMESTEPS)
    seconds = _seconds(lambda: fit(snn, rule, train(2), adam, epochs=FINE_TUNING, schedule=Cosine(), autocast=autocast))
    accuracy = _by_steps(snn_accuracy(snn, test.epoch(0), steps))
    yield {"stage": "fine-tuned", "timesteps": TIMESTEPS, "epochs": FINE_TUNING, "seconds": seconds, "accuracy": accuracy}


def _images(context: Context) -> tuple[Callable[[int], Any], Any, str]:
    """Training batches by seed, test batches, and what they are."""
    try:
        if context.small:
            raise SpikepropError("the small form")
        data = CIFAR10()
        return lambda seed: data.train(BATCH, seed), data.test(BATCH), "CIFAR-10"
    except SpikepropError as error:
        train, test = (_synthetic(count, seed) for seed, count in enumerate(SMALL if context.small else SYNTHETIC))
        batch = min(BATCH, len(train[0]) // 2)
        source = f"SYNTHETIC, one pattern a class with noise ({error})"
        return lambda seed: InMemorySplit(*train, batch, 0.5, 0.5, seed=seed), InMemorySplit(*test, batch, 0.5, 0.5), source


def _synthetic(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels: a smooth pattern for each class, the same for every seed, and noise."""
    shapes, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed + 1)
    patterns = F.interpolate(torch.rand(CLASSES, 3, 4, 4, generator=shapes), (32, 32), mode="bicubic")
    labels = torch.arange(count) % CLASSES
    images = patterns[labels] + 0.3 * torch.randn(count, 3, 32, 32, generator=noise)
    return (images.clamp(0, 1) * 255).byte(), labels


def _first(split: Split, count: int) -> list[tuple[Tensor, Tensor]]:
    return [pair for _, pair in zip(range(count), split.epoch(0))]


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _by_steps(accuracy: dict[int, float]) -> dict[str, float]:
    return {str(steps): percent for steps, percent in accuracy.items()}
