"""Inference of converted networks: images/s of ours with signed neurons and of SpikingJelly's Converter, same ANN, in one run.

python benchmarks/converted.py --network resnet20 --timesteps 8 --batch 50 --out results/benchmarks/converted_resnet20.json

"resnet20" and "squeezenet" have published weights (in $SPIKEPROP_DATA/weights) and read CIFAR-10 and photographs; "resnet56" has
random weights. Every contender is calibrated on the images that it classifies, at percentiles of the ANN's activations: the
figure here is speed. The table shows how many predictions equal the ANN's, and of ours the mean spikes a neuron and step.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from agreement import photographs
from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from convert import IMAGENET, without_padding
from peers import faster_layout
from torch import Tensor, nn

from spikeprop import SignedIF, SpikingNetwork, convert
from spikeprop.ann import CIFARResNet, TorchvisionModel
from spikeprop.convert import Percentile
from spikeprop.data import CIFAR10

JELLY, PLAIN = "SpikingJelly", "plain reference"


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """The ANN and images."""
    torch.manual_seed(options.seed)
    if options.network == "squeezenet":
        ann: nn.Module = TorchvisionModel(name="squeezenet1_0", weights="squeezenet1_0_imagenet.safetensors")
        return ann.eval(), photographs(Path(os.environ["SPIKEPROP_DATA"]) / "imagenet-sample", options.batch)
    depth, weights = (20, "resnet20_cifar10_akamaster.safetensors") if options.network == "resnet20" else (56, None)
    ann = CIFARResNet(depth=depth, weights=weights)
    images = next(iter(CIFAR10(mean=IMAGENET["mean"], std=IMAGENET["std"]).test(options.batch).epoch(0)))[0]
    if weights is None:
        with torch.no_grad():
            ann.train()(images)  # statistics of its batch normalisation
    return ann.eval(), images


def spikingjelly(ann: nn.Module, images: Tensor) -> tuple[nn.Module, Callable[[Tensor, int], Tensor]]:
    """Its converted network, and its summed output (B, K) after some steps."""
    from spikingjelly.activation_based import ann2snn, functional

    recipe = ann2snn.RateCodingRecipe([(images, torch.zeros(len(images)))], mode="99.9%")
    network = ann2snn.Converter(recipe).convert(without_padding(ann)).eval()

    def forward(x: Tensor, timesteps: int) -> Tensor:
        functional.reset_net(network)
        total = network(x)
        for _ in range(timesteps - 1):
            total = total + network(x)
        return total

    return network, forward


def infer(options: argparse.Namespace) -> Result:
    """Measure one contender."""
    ann, images = load(options)
    with torch.no_grad():
        wanted = ann(images).argmax(1)
    if options.only == JELLY:
        model, forward = spikingjelly(ann, images)
    else:
        model = forward = convert(ann, [images], SignedIF(), Percentile(per="channel")).eval()
        model.packed = options.only == OURS
    with torch.inference_mode():
        layout = None if options.only == OURS else faster_layout(model, lambda: lambda: forward(images, 1))
        found: list[Tensor] = []
        result = measure(
            lambda: found.append(forward(images, options.timesteps)), options.repeats, prepare=lambda: forward(images[:2], 2)
        )
        if isinstance(model, SpikingNetwork) and options.only == OURS:
            spikes: list[Tensor] = []
            model(images, options.timesteps, observe=lambda name, s: spikes.append((s != 0).double().mean()))
            result["rate"] = float(torch.stack(spikes[1:]).mean())
    agree = 100 * float((found[0].argmax(1) == wanted).double().mean())
    return {**result, "layout": layout, "images_per_s": len(images) / result["median"], "agreement": agree}


COLUMNS = {
    "images/s": lambda r: f"{r['images_per_s']:.1f}",
    "as ANN %": lambda r: f"{r['agreement']:.0f}",
    "spikes": lambda r: f"{r['rate']:.3f}" if "rate" in r else "-",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [OURS, JELLY, PLAIN], timesteps=8, batch=50, repeats=2)
    parser.add_argument("--network", choices=["resnet20", "resnet56", "squeezenet"], default="resnet20", help="default resnet20")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(infer(options)))
        return
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"inference of a converted {options.network}, T = {options.timesteps}, {options.batch} images")
    print(table(results, COLUMNS))
    save(__file__, options, results=results, ratios=ratios(results))


if __name__ == "__main__":
    main()
