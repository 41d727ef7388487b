"""What makes fine-tuning work: one choice changed at a time, on a small FastCNN and CIFAR-10 at half its width and height.

python benchmarks/finetuning.py --out results/benchmarks/finetuning.json
python benchmarks/finetuning.py --contenders base "distill 0.9" --out results/benchmarks/finetuning.json

One ANN (cached) is converted for T = 2 and fine-tuned by BPTT for 200 steps, for each of several seeds, which draw the images of
the calibration, the batches and the dropout. Every contender differs from "base" in what its name says. All are tested on the
same images, so differences between contenders are paired. The same command again continues.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import machine, option_parser, parse, settings
from networks import CACHE
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import spikeprop as sp
from spikeprop.ann import FastCNN
from spikeprop.data import CIFAR10
from spikeprop.evaluate import ann_accuracy, snn_accuracy
from spikeprop.learn import BPTT, Backprop, Cosine, CrossEntropy, Distillation, Loss, Triangular, Whitening, fit
from spikeprop.runtime.files import write_json
from spikeprop.snn import ATan, FastSigmoid, Neuron, NeuronState, spike
from spikeprop.snn.synapse import SampleDropout

SIDE, WIDTHS = 16, (16, 32, 32)


@dataclass(frozen=True)
class Choice:
    """How the network is converted and fine-tuned.

    Attributes:
        calibrator: from which the training starts.
        scale: factor on the calibrated thresholds.
        reset_gradient: the gradient passes through the spike in the reset too.
        surrogate: of the neurons.
        train_threshold: thresholds are trained too.
        dropout: before the last layer.
        optimizer, lr: of the training.
        read: the loss is of the "sum" over the steps, of their "mean", or of each step.
        smoothing: of the labels.
        distill, temperature: weight of the ANN's scores, 0 for none.
        batch_norm: keep batch-norm behind every convolution, started so that it changes nothing.
        epochs: over the training images.
    """

    calibrator: Callable[..., sp.ThresholdCalibrator] = sp.LeastSquares
    scale: float = 1.0
    reset_gradient: bool = False
    surrogate: sp.Surrogate = field(default_factory=lambda: sp.Triangle(height=0.3))
    train_threshold: bool = True
    dropout: float = 0.0
    optimizer: str = "Adam"
    lr: float = 1e-4
    read: str = "sum"
    smoothing: float = 0.0
    distill: float = 0.0
    temperature: float = 2.0
    batch_norm: bool = False
    epochs: int = 1


BASE = Choice()  # what cifar10_fast_stdb had
CONTENDERS: dict[str, Choice] = {
    "base": BASE,
    "mean": replace(BASE, read="mean"),
    "distill 0.9": replace(BASE, distill=0.9),
    "Adam 3e-4": replace(BASE, lr=3e-4),
    "Adam 1e-3": replace(BASE, lr=1e-3),
    "triangle 1": replace(BASE, surrogate=sp.Triangle(height=1.0)),
    "STDB": replace(BASE, surrogate=sp.STDB(alpha=0.3, beta=0.01)),
    "narrow": replace(BASE, surrogate=FastSigmoid(slope=25.0)),
    "arctangent": replace(BASE, surrogate=ATan(alpha=2.0)),
    "light calibration": replace(BASE, calibrator=sp.LightCalibration),
    "gradient through the reset": replace(BASE, reset_gradient=True),
    "batch-norm kept": replace(BASE, batch_norm=True),
    "label smoothing 0.1": replace(BASE, smoothing=0.1),
    "mean, label smoothing 0.1": replace(BASE, read="mean", smoothing=0.1),
    "distill 0.5": replace(BASE, distill=0.5),
    "distill 1": replace(BASE, distill=1.0),
    "mean, distill 0.9": replace(BASE, read="mean", distill=0.9),
    "each step": replace(BASE, read="each step"),
    "SGD 1e-2": replace(BASE, optimizer="SGD", lr=1e-2),
    "distill 0.9, Adam 3e-4": replace(BASE, distill=0.9, lr=3e-4),
    "mean, distill 0.9, Adam 1e-3": replace(BASE, read="mean", distill=0.9, lr=1e-3),
    "Adam 3e-5": replace(BASE, lr=3e-5),
    "thresholds fixed": replace(BASE, train_threshold=False),
    "thresholds x 0.8": replace(BASE, scale=0.8),
    "thresholds x 1.25": replace(BASE, scale=1.25),
    "dropout 0.1": replace(BASE, dropout=0.1),
    "3 epochs": replace(BASE, epochs=3),
}


class ThroughReset(Neuron):
    """IF whose gradient passes through the spike in the reset as well."""

    @classmethod
    def of(cls, neuron: Neuron) -> ThroughReset:
        """With the threshold of another neuron, trained or not."""
        own = cls(1.0, 1.0, "subtract", float(neuron.v_init), neuron.surrogate, ("threshold",))
        own.set_threshold(neuron.v_threshold)
        own.v_threshold.requires_grad_(neuron.v_threshold.requires_grad)
        return own

    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        u = state.v + current
        spikes = spike(u, self.v_threshold, self.surrogate)
        return spikes, NeuronState(u - self.v_threshold * spikes, None)


class Images:
    """Labelled images in memory, in batches of another order each epoch, half of them mirrored."""

    def __init__(self, x: Tensor, y: Tensor, batch: int):
        self.x, self.y, self.batch = x, y, batch

    def __len__(self) -> int:
        return len(self.x) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x))
        for number in range(len(self)):
            rows = order[number * self.batch : (number + 1) * self.batch]
            x = self.x[rows]
            yield torch.where((torch.rand(len(rows)) < 0.5).view(-1, 1, 1, 1), x.flip(3), x), self.y[rows]


def read_images(train: int, test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 3, 16, 16) and labels."""
    data = CIFAR10(
        mean=[0.4914, 0.4822, 0.4465], std=[0.2023, 0.1994, 0.2010], crop=0, flip=False, train_limit=train, test_limit=test
    )
    found: list[Tensor] = []
    for split in (data.train(500, seed=0), data.test(500)):
        x, y = zip(*split.epoch(0))
        found += [F.avg_pool2d(torch.cat(x), 32 // SIDE), torch.cat(y)]
    return found[0], found[1], found[2], found[3]


def trained_ann(x: Tensor, y: Tensor, epochs: int, seed: int, cache: Path) -> FastCNN:
    """The ANN, from the cache where it is there."""
    torch.manual_seed(seed)
    ann, file = FastCNN(input_shape=(3, SIDE, SIDE), widths=WIDTHS), cache / f"finetuning_{len(x)}_{epochs}_{seed}.safetensors"
    if file.exists():
        ann.load_state_dict(load_file(file))
        return ann.eval()
    optimizer = torch.optim.SGD(
        [p for p in ann.parameters() if p.requires_grad], lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule, callbacks = Triangular(start=0.2, peak=0.25, end=0.02), [Whitening(images=2000, epsilon=5e-4)]
    rule = Backprop(label_smoothing=0.1)
    cache.mkdir(parents=True, exist_ok=True)
    progress: Any = {"checkpoint": file.with_suffix(".progress"), "checkpoint_seconds": 20.0}
    fit(ann, rule, Images(x, y, 128), optimizer, epochs=epochs, schedule=schedule, seed=seed, callbacks=callbacks, **progress)
    save_file(ann.state_dict(), file)
    return ann


def converted(ann: FastCNN, choice: Choice, x: Tensor, T: int) -> sp.SpikingNetwork:
    """The network that every choice with this calibrator and this scale starts from."""
    calibrator = choice.calibrator(timesteps=T)
    network = sp.convert(ann, [x], sp.IF(v_init=0.5, trainable=("threshold",)), calibrator=calibrator)
    for neuron in network.neurons().values():
        neuron.set_threshold(neuron.v_threshold.detach() * choice.scale)
    return network


def changed(network: sp.SpikingNetwork, choice: Choice, x: Tensor, T: int) -> sp.SpikingNetwork:
    """The network that is fine-tuned."""
    network = copy.deepcopy(network)
    for name, neuron in network.neurons().items():
        neuron.surrogate = choice.surrogate
        neuron.v_threshold.requires_grad_(choice.train_threshold)
        if choice.reset_gradient:
            layer: Any = network.layers[name]
            layer.neuron = ThroughReset.of(neuron)
    if choice.dropout:
        *_, last = [layer for _, layer in network.named_layers()]
        synapse: Any = last.synapses[0]
        synapse.ops.insert(len(synapse.ops) - 1, SampleDropout(choice.dropout))
    if choice.batch_norm:
        keep_batch_norm(network, x, T)
    return network


def keep_batch_norm(network: sp.SpikingNetwork, x: Tensor, T: int) -> None:
    """Add to every layer of images a batch-norm of its current, whose gain and shift undo the statistics of these images."""
    norms: list[Any] = []
    for _, layer in network.named_layers():
        synapse: Any = layer.synapses[0]
        ops = synapse.ops
        if isinstance(ops[-1], nn.Conv2d):
            ops.append(nn.BatchNorm2d(ops[-1].out_channels, momentum=1.0))
            norms.append(ops[-1])
    for norm in norms:  # a layer after the other: the statistics of each are those behind undone ones
        for other in norms:
            other.train(other is norm)
        with torch.no_grad():
            network(x[:256], T)
            norm.momentum = 0.1
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(norm.running_mean)
        norm.eval()


def rule_of(choice: Choice, ann: FastCNN, T: int) -> BPTT:
    loss: Loss = CrossEntropy(label_smoothing=choice.smoothing)
    if choice.distill:
        loss = Distillation(weight=choice.distill, temperature=choice.temperature, loss=loss, teacher=ann)
    return BPTT(timesteps=T, loss=loss, average=choice.read == "mean", each_step=choice.read == "each step")


Known = dict[tuple[Any, ...], tuple[sp.SpikingNetwork, dict[int, float]]]  # networks as converted, and their accuracies


def one(choice: Choice, ann: FastCNN, data: Sequence[Tensor], options: argparse.Namespace, seed: int, known: Known) -> Any:
    """Accuracies before and after, by T, and seconds of a training step."""
    torch.manual_seed(seed)
    x, y, x_test, y_test = data
    T, test = options.timesteps, list(zip(x_test.split(500), y_test.split(500)))
    some, rows = x[torch.randperm(len(x))[: options.calibration]], torch.randperm(len(x))[: options.tuning]
    key = (choice.calibrator, choice.scale, seed)
    if key not in known:
        start = converted(ann, choice, some, T)
        known[key] = start, snn_accuracy(start, test, timesteps=sorted({1, 2, T}))
    start, before = known[key]
    network = changed(start, choice, some, T)
    kinds: Any = {"Adam": torch.optim.Adam, "SGD": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)}
    optimizer, schedule = kinds[choice.optimizer](network.parameters(), lr=choice.lr), Cosine(warmup=0.05)
    batches, began = Images(x[rows], y[rows], options.batch), time.process_time()
    history = fit(network, rule_of(choice, ann, T), batches, optimizer, epochs=choice.epochs, schedule=schedule, seed=seed)
    seconds = (time.process_time() - began) / (len(batches) * choice.epochs)
    after = snn_accuracy(network, test, timesteps=sorted({1, 2, T}))
    return {"before": before, "after": after, "train": history[-1]["accuracy"], "loss": history[-1]["loss"], "step_s": seconds}


def table(found: dict[str, list[dict[str, Any]]], ann: float, T: int) -> str:
    """Mean and standard deviation over seeds."""

    def cell(values: list[float]) -> str:
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return f"{statistics.mean(values):6.2f} ±{spread:5.2f}"

    lines = [f"ANN {ann:.2f} %; accuracy in percent, mean and deviation of the seeds"]
    others = [str(t) for t in (1, 2) if t != T]
    heads = [f"T = {T} before", f"T = {T}", "gain", *(f"T = {t}" for t in others)]
    lines.append(f"{'':<28}" + "".join(f"{head:>15}" for head in heads) + f"{'training':>10}")
    for name, runs in found.items():
        if runs:
            before, after = ([run[when][str(T)] for run in runs] for when in ("before", "after"))
            values = [before, after, [b - a for a, b in zip(before, after)], *([run["after"][t] for run in runs] for t in others)]
            train = statistics.mean(run["train"] for run in runs)
            lines.append(f"{name:<28}" + "".join(f"{cell(value):>15}" for value in values) + f"{train:10.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    sizes = {"images": 20_000, "test": 10_000, "epochs": 12, "tuning": 6_400, "batch": 32, "calibration": 128}
    parser = option_parser(__doc__, list(CONTENDERS), timesteps=2, **sizes, seeds=3, threads=1)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of the trained ANN, default {CACHE}")
    options = parse(parser, argv)
    torch.set_num_threads(options.threads)
    data = read_images(options.images, options.test)
    ann = trained_ann(*data[:2], options.epochs, options.seed, options.cache)
    (accuracy,) = [float(ann_accuracy(ann, list(zip(data[2].split(500), data[3].split(500)))))]
    own = {k: v for k, v in settings(options).items() if k not in ("seeds", "threads", "cache")}
    found: dict[str, Any] = {}
    known: Known = {}
    if options.out and options.out.exists():
        kept = json.loads(options.out.read_text())
        if kept["settings"] != own:
            sys.exit(f"{options.out} has results of other settings: {kept['settings']}")
        found = kept["results"]
    for seed in range(options.seeds):
        for name in options.contenders:
            runs = found.setdefault(name, [])
            if len(runs) <= seed:
                runs.append(json.loads(json.dumps(one(CONTENDERS[name], ann, data, options, seed, known))))
                print(f"seed {seed} {name}: {runs[-1]}", file=sys.stderr, flush=True)
                if options.out:
                    about = {"benchmark": "finetuning", "settings": own, "machine": machine(), "ann": accuracy}
                    write_json(options.out, {**about, "results": found})
    print(table(found, accuracy, options.timesteps))


if __name__ == "__main__":
    main()
