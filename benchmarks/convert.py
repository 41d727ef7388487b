"""Conversion without training: accuracy against T of our calibrators and SpikingJelly's recipes, on the same ANN and images.

python benchmarks/convert.py --data CIFAR10 --images 10000 --out results/benchmarks/convert_cifar10.json
python benchmarks/convert.py --data FashionMNIST --ann runs/fashion_mnist_cnn_stdb/ann.safetensors --images 10000 \
    --out results/benchmarks/convert_fashion_mnist.json

The ANN is the pretrained CIFAR-10 ResNet-20 (with weights in $SPIKEPROP_DATA/weights), or that of a run. SpikingJelly does not
support its padded shortcut, so there the same map is a convolution of ones and zeros. A contender whose calibration depends on
T is calibrated for each T; T counts every step, including those of a delayed readout (SpikingJelly's estimate of the delay).
Graded spikes carry several bits, so beside our accuracies stand the bits that a neuron sends for an image, in the mean of 200
images (a spike of n bits has a sign more). The same command again continues. "default" is ``convert(ann, images, timesteps=T)``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import Result, option_parser, parse, save, settings
from peers import NotComparable
from torch import Tensor, nn

from spikeprop import IF, GradedIF, SignedIF, convert
from spikeprop.ann import CIFARResNet
from spikeprop.ann.cifar_resnet import Shortcut
from spikeprop.convert import (
    AdvancedCalibration,
    LeastError,
    LeastSquares,
    LightCalibration,
    Percentile,
    ThresholdBalancing,
    ThresholdCalibrator,
    ThresholdIteration,
)
from spikeprop.data import ImageData
from spikeprop.errors import SpikepropError
from spikeprop.evaluate import ActivityMeter, ann_accuracy, snn_accuracy
from spikeprop.experiment.network_checkpoint import load_network
from spikeprop.recipe import check_component
from spikeprop.runtime.progress import bar
from spikeprop.snn import DifferentialIF, Neuron

Batches = list[tuple[Tensor, Tensor]]
Row = dict[int, float]  # accuracy in percent, by T
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

OURS: dict[str, Callable[[int], ThresholdCalibrator | None]] = {
    "percentile by channel": lambda t: Percentile(per="channel"),
    "threshold balancing": lambda t: ThresholdBalancing(timesteps=100, percentile=99.7),
    "least error": lambda t: LeastError(timesteps=t),
    "light": lambda t: LightCalibration(timesteps=t),
    "advanced": lambda t: AdvancedCalibration(timesteps=t),
    "signed, light": lambda t: LightCalibration(timesteps=t),
    "signed, advanced": lambda t: AdvancedCalibration(timesteps=t),
    "signed, light on spikes": lambda t: LightCalibration(timesteps=t, search="spikes"),
    "signed, advanced on spikes": lambda t: AdvancedCalibration(timesteps=t, search="spikes"),
    "graded 3, light": lambda t: LightCalibration(timesteps=t),
    "graded 4, light": lambda t: LightCalibration(timesteps=t),
    "graded 3, light on spikes": lambda t: LightCalibration(timesteps=t, search="spikes"),
    "graded 4, light on spikes": lambda t: LightCalibration(timesteps=t, search="spikes"),
    "graded 3, threshold iteration": lambda t: ThresholdIteration(timesteps=t),
    "graded 4, threshold iteration": lambda t: ThresholdIteration(timesteps=t),
    "graded 2, light": lambda t: LightCalibration(timesteps=t),
    "graded 5, light": lambda t: LightCalibration(timesteps=t),
    "differential 3, light": lambda t: LightCalibration(timesteps=t),
    "differential 4, light": lambda t: LightCalibration(timesteps=t),
    "signed, least squares": lambda t: LeastSquares(timesteps=t),
    "signed, least squares on spikes": lambda t: LeastSquares(timesteps=t, search="spikes"),
    "graded 3, least squares": lambda t: LeastSquares(timesteps=t),
    "graded 4, least squares": lambda t: LeastSquares(timesteps=t),
    "default": lambda t: None,
    "default, one bit": lambda t: None,
}
COUNTED = 200  # images whose spikes are counted
PASSES = 30  # of local threshold balancing through the calibration images
ONE_FOR_ALL = ("percentile by channel", "threshold balancing")  # these do not depend on T
SPIKINGJELLY: dict[str, dict[str, Any] | None] = {
    "SpikingJelly max": {"mode": "Max"},
    "SpikingJelly 99.9": {"mode": "99.9%"},
    "SpikingJelly 99.9 by channel, half": {"mode": "99.9%", "channel_wise": True, "half_threshold": True},
    "SpikingJelly LTB": None,
}


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Batches]:
    """The ANN, calibration images, and batches of test images with labels."""
    if options.ann is None:
        ann: nn.Module = CIFARResNet(weights="resnet20_cifar10_akamaster.safetensors").eval()
        described: dict[str, object] = {"use": options.data, **IMAGENET}
    else:
        loaded = load_network(options.ann)
        if loaded.description["kind"] != "ann":
            raise NotComparable(f"{options.ann} is a spiking network; give the ANN of its run")
        ann, described = loaded.network, {**loaded.description["data"], "use": options.data}
    settings = {**described, "root": options.root, "test_limit": options.images}
    data = check_component(ImageData, settings, "--data").build()
    draw = int(torch.randint(1 << 30, (), generator=torch.Generator().manual_seed(options.seed)))
    images = torch.cat([x for x, _ in islice(data.train(256, draw).epoch(0), -(-options.calibration // 256))])
    return ann, images[: options.calibration], list(data.test(options.batch).epoch(0))


def neuron_of(name: str) -> Neuron | None:
    """The contender's neuron: "graded 3" has 3 levels."""
    kind, _, rest = name.partition(" ")
    if kind in ("graded", "differential"):
        return (GradedIF if kind == "graded" else DifferentialIF)(levels=int(rest[0]))
    if kind.startswith("default"):
        return None
    return SignedIF() if name.startswith("signed") else IF(v_init=0.5)


class Found:
    """What was measured so far, written after each number of steps; a file of the same settings is continued.

    Attributes:
        ann: accuracy of the ANN.
        accuracy, bits, notes: by contender and T; notes tell what was chosen where the choice was left to ``convert``.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.ann = options, math.nan
        self.accuracy: dict[str, Row] = {}
        self.bits: dict[str, Row] = {}
        self.notes: dict[str, dict[int, str]] = {}
        kept = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
        if json.dumps(kept.get("settings")) == json.dumps(settings(options)):
            self.ann = kept["ann"]
            for mine, name in ((self.accuracy, "accuracy"), (self.bits, "bits_per_neuron"), (self.notes, "chosen")):
                mine |= {contender: {int(t): value for t, value in row.items()} for contender, row in kept[name].items()}

    def lacks(self, name: str, timesteps: Sequence[int]) -> list[int]:
        """The numbers of steps at which a contender was not measured yet."""
        return [t for t in timesteps if t not in self.accuracy.get(name, {})]

    def add(self, name: str, accuracy: Row, bits: Row | None = None, note: dict[int, str] | None = None) -> None:
        """Keep a contender's figures at some T."""
        for mine, new in ((self.accuracy, accuracy), (self.bits, bits), (self.notes, note)):
            if new:
                mine[name] = {**mine.get(name, {}), **new}  # type: ignore[dict-item]
        found: Result = {"ann": self.ann, "accuracy": self.accuracy, "bits_per_neuron": self.bits, "chosen": self.notes}
        above = gaps(self.accuracy, self.options.timesteps)
        save(__file__, self.options, contenders=list(self.accuracy), **found, points_above_the_best_peer=above)


def ours(name: str, ann: nn.Module, images: Tensor, test: Batches, found: Found) -> None:
    """Measure accuracy at each T, and bits that a neuron sends for an image."""
    timesteps = found.lacks(name, found.options.timesteps)
    for steps in [timesteps] if name in ONE_FOR_ALL and timesteps else [[t] for t in timesteps]:
        given = {"timesteps": steps[0], "binary": name.endswith("one bit")} if name.startswith("default") else {}
        network = convert(ann, [images], neuron_of(name), OURS[name](steps[0]), **given)
        meter, few = ActivityMeter(network, steps), -(-COUNTED // len(test[0][0]))
        snn_accuracy(network, test[:few], steps, meter=meter)
        accuracy = snn_accuracy(network, test, steps, label=f"{name}, T = {steps}")
        note = {steps[0]: "; ".join(network.notes)} if network.notes else None
        found.add(name, accuracy, {t: meter.bits(t) for t in steps}, note)


class _AsConvolution(nn.Module):
    """A padded shortcut as a convolution of ones and zeros."""

    def __init__(self, shortcut: Shortcut, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels + 2 * shortcut.added, 1, shortcut.stride, bias=False)
        self.conv.weight.data.zero_()
        self.conv.weight.data[shortcut.added + torch.arange(channels), torch.arange(channels)] = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def without_padding(ann: nn.Module) -> nn.Module:
    """The same function without F.pad."""
    ann = copy.deepcopy(ann)
    for module in ann.modules():
        if isinstance(getattr(module, "shortcut", None), Shortcut):
            module.shortcut = _AsConvolution(module.shortcut, module.conv1.in_channels)  # type: ignore[arg-type, union-attr]
        if isinstance(module, CIFARResNet):
            module.forward = lambda x, m=module: m.linear(  # type: ignore[method-assign]
                nn.functional.adaptive_avg_pool2d(m.layer3(m.layer2(m.layer1(m.relu(m.bn1(m.conv1(x)))))), 1).flatten(1)
            )
    return ann


def spikingjelly(
    name: str, ann: nn.Module, images: Tensor, test: Batches, timesteps: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Accuracy at each T, read out from the first step on, and with the library's delayed readout."""
    from spikingjelly.activation_based import ann2snn, functional

    loader = [(x, torch.zeros(len(x))) for x in images.split(100)]
    chosen = SPIKINGJELLY[name]
    if chosen is not None:
        recipe = ann2snn.RateCodingRecipe(loader, **chosen)
    else:  # its thresholds grow slowly from 0 with each batch, so the images are repeated
        recipe = ann2snn.LocalThresholdBalancingRecipe(loader * PASSES)
    network = ann2snn.Converter(recipe).convert(without_padding(ann)).eval()
    starts = {t: min(t - 1, int(ann2snn.estimate_delay_start(network, loader, "cpu", t))) for t in timesteps}
    plain, delayed, seen = dict.fromkeys(timesteps, 0), dict.fromkeys(timesteps, 0), 0
    with torch.no_grad(), bar(name, total=len(test)) as shown:
        for x, y in test:
            functional.reset_net(network)
            total, before = torch.zeros(()), {}
            for t in range(max(timesteps) + 1):
                before |= {wanted: total for wanted, start in starts.items() if start == t}
                if t in plain:
                    plain[t] += int((total.argmax(1) == y).sum())
                    delayed[t] += int(((total - before[t]).argmax(1) == y).sum())
                if t < max(timesteps):
                    total = total + network(x)
            seen += len(y)
            shown.update()
    percent = [{t: 100 * n / seen for t, n in counts.items()} for counts in (plain, delayed)]
    return {name: percent[0], f"{name}, delayed": percent[1]}


def table(results: dict[str, Row], bits: dict[str, Row], timesteps: Sequence[int]) -> str:
    """One line per contender, one column per T: accuracy, and bits that a neuron sends for an image."""

    def cell(name: str, t: int) -> str:
        if t not in results[name]:
            return "-"
        return f"{results[name][t]:.2f}" + (f" / {bits[name][t]:.2f}" if name in bits else "")

    lines = [f"{'% / bits a neuron; graded n: T x n levels':<45}" + "".join(f"{'T = ' + str(t):>15}" for t in timesteps)]
    lines += [f"{name:<45}" + "".join(f"{cell(name, t):>15}" for t in timesteps) for name in results]
    return "\n".join(lines)


def gaps(results: dict[str, dict[int, float]], timesteps: Sequence[int]) -> dict[int, float]:
    """Our best accuracy less SpikingJelly's best, in points, at the T at which there are both."""
    found = {}
    for t in timesteps:
        peers = [row[t] for name, row in results.items() if name.startswith("SpikingJelly") and t in row]
        mine = [row[t] for name, row in results.items() if not name.startswith("SpikingJelly") and t in row]
        if peers and mine:
            found[t] = max(mine) - max(peers)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [*OURS, *SPIKINGJELLY], images=1000, calibration=512, batch=100)
    parser.add_argument("--data", default="CIFAR10", help="default CIFAR10")
    parser.add_argument("--root", help="folder of the data; default $SPIKEPROP_DATA")
    parser.add_argument("--ann", type=Path, help="ann.safetensors of a run; default the pretrained CIFAR-10 ResNet-20")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--threads", type=int)
    options = parse(parser, argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        ann, images, test = load(options)
    except (NotComparable, SpikepropError) as error:
        parser.error(str(error))
    found = Found(options)
    found.ann = ann_accuracy(ann, test) if math.isnan(found.ann) else found.ann
    print(f"ANN {found.ann:.2f} % of {sum(len(y) for _, y in test)} images; {len(images)} calibration images")
    for name in options.contenders:
        torch.manual_seed(options.seed)
        if name in OURS:
            ours(name, ann, images, test, found)
        elif found.lacks(name, options.timesteps):
            for measured, row in spikingjelly(name, ann, images, test, options.timesteps).items():
                found.add(measured, row)
        own = {n: row for n, row in found.accuracy.items() if n.startswith(name)}
        print(table(own, found.bits, options.timesteps), flush=True)
    results = found.accuracy
    print(table(results, found.bits, options.timesteps))
    above = [f"{gap:+.2f} at T = {t}" for t, gap in gaps(results, options.timesteps).items()]
    print("points above the best peer: " + ", ".join(above))


if __name__ == "__main__":
    main()
