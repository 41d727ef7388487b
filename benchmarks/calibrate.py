"""Calibration of a converted CIFAR ResNet for a given T: seconds and images/s, and those of another checkout of spikeprop.

python benchmarks/calibrate.py --depth 56 --images 128 --calibrator light --before ../spikeprop-old
python benchmarks/calibrate.py --depth 56 --images 128 --calibrator advanced --iterations 30 --before ../spikeprop-old

The ResNet-20 has its published weights (in $SPIKEPROP_DATA/weights). Others have random weights, and batch-norm statistics of the
images, which are CIFAR-10's. Conversion without calibration is part of the time (some tenths of a second).

In float32 another order of summation moves a spike here and there, which may move a threshold to the next of 50 candidates, and
every layer after it sees other spikes. So it is with ``--dtype float64`` that the thresholds of two checkouts are compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from torch import Tensor, nn

from spikeprop import IF, SignedIF, convert
from spikeprop.ann import CIFARResNet
from spikeprop.convert import AdvancedCalibration, LeastError, LightCalibration, ThresholdCalibrator
from spikeprop.data import ImageData
from spikeprop.recipe import check_component

BEFORE = "before"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NEURONS = {"IF": lambda: IF(v_init=0.5), "SignedIF": SignedIF}


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """The ANN and the calibration images."""
    data = check_component(ImageData, {"use": "CIFAR10", **IMAGENET}, "data").build()
    images = next(iter(data.train(options.images, options.seed).epoch(0)))[0]
    torch.manual_seed(options.seed)
    trained = "resnet20_cifar10_akamaster.safetensors" if options.depth == 20 else None
    ann = CIFARResNet(depth=options.depth, weights=trained)
    if trained is None:
        for module in ann.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over the batches seen
        with torch.no_grad():
            ann.train()(images[:64])
    dtype = getattr(torch, options.dtype)
    return ann.eval().to(dtype), images.to(dtype)


def calibrator(options: argparse.Namespace) -> ThresholdCalibrator:
    """With the options' T."""
    if options.calibrator == "advanced":
        return AdvancedCalibration(timesteps=options.timesteps, iterations=options.iterations)
    return {"light": LightCalibration, "least error": LeastError}[options.calibrator](timesteps=options.timesteps)


def calibrate(options: argparse.Namespace) -> Result:
    """Measure one conversion; libraries and kernels are loaded before."""
    torch.set_num_threads(options.threads)
    ann, images = load(options)
    thresholds: dict[str, Any] = {}

    def action(x: Tensor = images) -> None:
        network = convert(ann, [x], NEURONS[options.neuron](), calibrator(options))
        thresholds.update({name: neuron.v_threshold.flatten().tolist() for name, neuron in network.neurons().items()})

    small = argparse.Namespace(**{**vars(options), "iterations": 2})

    def prepare() -> None:
        convert(ann, [images[:4]], NEURONS[options.neuron](), calibrator(small))

    found = measure(action, options.repeats, prepare=prepare, warm_ups=0)
    return {**found, "images_per_s": options.images / found["median"], "thresholds": thresholds}


def equal_thresholds(one: dict[str, list[float]], other: dict[str, list[float]]) -> tuple[int, int]:
    """How many thresholds are equal, bit for bit, and how many there are."""
    pairs = [pair for name in one for pair in zip(one[name], other[name], strict=True)]
    return sum(a == b for a, b in pairs), len(pairs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [OURS, BEFORE], images=128, timesteps=16, iterations=300, depth=56, repeats=1, threads=2)
    parser.add_argument("--calibrator", choices=["light", "advanced", "least error"], default="light", help="default light")
    parser.add_argument("--neuron", choices=list(NEURONS), default="IF", help="default IF")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default float32")
    parser.add_argument("--before", type=Path, help="another checkout, to be measured too")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(calibrate(options)))
        return
    given = {name: value for name, value in settings(options).items() if name != "before"}
    results = {OURS: in_own_process(__file__, OURS, given)}
    if options.before:
        path = f"{options.before.resolve()}:{options.before.resolve() / 'hardware'}"
        results[BEFORE] = in_own_process(__file__, BEFORE, given, {"PYTHONPATH": path})
    both = [result["thresholds"] for result in results.values() if result is not None]
    equal = equal_thresholds(*both) if len(both) == 2 else None
    for result in results.values():
        if result is not None:
            del result["thresholds"]
    about = f"{options.calibrator} calibration of a ResNet-{options.depth}, {options.neuron}, T = {options.timesteps}"
    print(f"{about}, {options.images} images, {options.threads} threads, {options.dtype}")
    print(table(results, {"images/s": lambda r: f"{r['images_per_s']:.1f}"}))
    if equal is not None:
        print(f"thresholds equal bit for bit: {equal[0]} of {equal[1]}")
    save(__file__, options, results=results, ratios=ratios(results), equal_thresholds=equal)


if __name__ == "__main__":
    main()
