"""Training an ANN by ``fit`` compared with a loop written by hand with the same settings: images a second, in one run.

``FastCNN`` much as ``cifar10_fast_graded`` trains it, but by SGD: whitening, Nesterov, rates of biases, lookahead, a triangular
schedule, label smoothing, crops and flips; on random images of CIFAR-10's shape, so no data are needed. The two take turns, so
what else the machine does falls on both. The hand-written loop has its images padded and in floating point in memory, and nothing
besides.

python benchmarks/fit.py --steps 8 --batch 512 --repeats 3 --out results/benchmarks/fit.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from common import OURS, Result, Results, option_parser, parse, save
from torch import Tensor
from torch.nn import functional as F

from spikeprop.ann import FastCNN
from spikeprop.data import InMemorySplit
from spikeprop.learn import Backprop, BiasRate, Callback, Lookahead, TrainingState, Triangular, Whitening, fit, with_rates

BARE = "loop by hand"
LR, DECAY, MOMENTUM, SMOOTHING, BIAS, CROP = 0.75, 1.33043e-3, 0.85, 0.2, 64.0, 2
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Stopwatch(Callback):
    """The time after each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, training: TrainingState) -> None:
        self.times.append(time.perf_counter())


def network(options: argparse.Namespace) -> FastCNN:
    """The network as it starts, the same for both."""
    torch.manual_seed(options.seed)
    return FastCNN(widths=options.widths)


def by_fit(options: argparse.Namespace, images: Tensor, labels: Tensor) -> list[float]:
    """Seconds of each step but the first."""
    model, watch = network(options), Stopwatch()
    rule, rate = Backprop(label_smoothing=SMOOTHING), BiasRate(lr=BIAS, weight_decay=1 / BIAS)
    rates = {"lr": LR, "weight_decay": DECAY}
    groups = with_rates(rate.param_groups(model, rule.param_groups(model)), **rates)
    sgd = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    batches = InMemorySplit(
        images, labels, options.batch, 0.5, 0.25, seed=options.seed, crop=CROP, flip="alternating", padding="reflect"
    )
    fit(
        model, rule, batches, sgd, epochs=1, schedule=Triangular(), callbacks=[Whitening(images=64), Lookahead(), watch],
        autocast=autocast(options), memory_format=FORMATS[options.layout],
    )  # fmt: skip
    return differences(watch.times)


def by_hand(options: argparse.Namespace, images: Tensor, labels: Tensor) -> list[float]:
    """The same of a loop with nothing of spikeprop but the network."""
    model = network(options).to(memory_format=FORMATS[options.layout])  # type: ignore[call-overload]
    model.whitening.weight.requires_grad = False
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim == 1], "lr": BIAS * LR, "weight_decay": DECAY / BIAS},
        {"params": [p for p in trained if p.ndim > 1]},
    ]
    sgd = torch.optim.SGD(groups, lr=LR, weight_decay=DECAY, momentum=MOMENTUM, nesterov=True, fused=True)
    base = [group["lr"] for group in sgd.param_groups]
    padded = F.pad((images.float() / 255 - 0.5) / 0.25, (CROP,) * 4, "reflect")
    flipped, size, times = torch.rand(len(labels)) < 0.5, images.shape[-1], []
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    slow, order = [value.clone() for value in state], torch.randperm(len(labels)).split(options.batch)
    for step, index in enumerate(order):
        x = cropped(padded, index, flipped[index], size)
        for group, lr in zip(sgd.param_groups, base):
            at = step / len(order)
            group["lr"] = lr * (0.2 + 0.8 * at / 0.23 if at < 0.23 else 1 - 0.93 * (at - 0.23) / 0.77)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            scores = model(x)
        loss = F.cross_entropy(scores.float(), labels[index], label_smoothing=SMOOTHING)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        _ = loss.item(), (scores.argmax(1) == labels[index]).sum().item()  # what a progress bar needs
        if (step + 1) % 5 == 0:
            average(state, slow, 0.95**5 * ((step + 1) / len(order)) ** 3)
        times.append(time.perf_counter())
    return differences(times)


def cropped(padded: Tensor, index: Tensor, flipped: Tensor, size: int) -> Tensor:
    """Random crops (B, C, size, size) of padded images, flipped where asked for; in channels-last."""
    left, top = torch.randint(0, 2 * CROP + 1, (2, len(index)))
    rows, columns = top[:, None] + torch.arange(size), left[:, None] + torch.arange(size)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def average(state: list[Tensor], slow: list[Tensor], kept: float) -> None:
    """Lookahead's step."""
    for value, average_ in zip(state, slow):
        average_.lerp_(value, 1 - kept)
        value.copy_(average_)


def differences(times: Sequence[float]) -> list[float]:
    """Seconds between moments."""
    return [after - before for before, after in pairwise(times)]


def autocast(options: argparse.Namespace) -> torch.dtype | None:
    """The lower precision, if any."""
    return torch.bfloat16 if options.precision == "bfloat16" else None


def main(argv: Sequence[str] | None = None) -> None:
    contenders = {OURS: by_fit, BARE: by_hand}
    parser = option_parser(__doc__, list(contenders), steps=8, batch=512, repeats=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 256], help="default 64 256 256")
    parser.add_argument("--layout", choices=FORMATS, default="channels_last", help="default channels_last")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="default bfloat16")
    options = parse(parser, argv)
    rng = torch.Generator().manual_seed(options.seed)
    count = options.steps * options.batch
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, 10, (count,), generator=rng)
    seconds: dict[str, list[float]] = {name: [] for name in options.contenders}
    for _ in range(options.repeats):
        for name in seconds:
            seconds[name] += contenders[name](options, images, labels)
    results: Results = {name: _result(found, options.batch) for name, found in seconds.items()}
    print(f"training FastCNN {options.widths}, batch {options.batch}, {options.precision}, {options.layout}")
    for name, result in results.items():
        print(f"{name:<15}{result['images_per_second']:>8.0f} images/s, median of {len(seconds[name])} steps")  # type: ignore[index]
    ratios = {}
    if len(results) == len(contenders):
        ratios["images_per_second"] = results[OURS]["images_per_second"] / results[BARE]["images_per_second"]  # type: ignore[index]
        print(f"{OURS} / {BARE}: {ratios['images_per_second']:.3f}")
    save(__file__, options, results=results, ratios=ratios)


def _result(seconds: list[float], batch: int) -> Result:
    median = statistics.median(seconds)
    return {"seconds": seconds, "median": median, "images_per_second": batch / median}


if __name__ == "__main__":
    main()
