"""Inference of a spiking network: images/s compared with the peers on the same weights, thresholds and encoded input, in one run.

python benchmarks/infer.py --checkpoint runs/RECIPE/finetuned.safetensors --images 500 --out results/benchmarks/infer.json

Without a checkpoint the network is a VGG5 with random weights on random images. Every contender classifies the same images with
the same random numbers of the encoder; the table shows how many predictions equal those of the plain loop. They need not all be
equal, because another order of floating-point sums occasionally moves a spike. Encoding is part of the time of every contender.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from common import OURS, Result, Results, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from networks import random_images, vgg5
from peers import PEERS, Forward, NotComparable, contender, faster_layout, layers
from torch import Tensor

from spikeprop.data import ImageData
from spikeprop.errors import SpikepropError
from spikeprop.evaluate import ActivityMeter
from spikeprop.experiment.network_checkpoint import load_network
from spikeprop.recipe import check_component
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

PLAIN = "plain loop"


def load(options: argparse.Namespace) -> tuple[SpikingNetwork, list[Tensor], Tensor | None]:
    """The network, batches of images, and their labels where the images are real."""
    if options.checkpoint is None:
        network = vgg5(options.seed)
        return network, list(random_images(options.images).split(options.batch)), None
    loaded = load_network(options.checkpoint)
    if not isinstance(loaded.network, SpikingNetwork):
        raise NotComparable(f"{options.checkpoint} is an ANN; give the finetuned or converted checkpoint of its run")
    chosen = {"use": options.data} if options.data else {}
    given = {**loaded.description["data"], **chosen, "root": options.root, "test_limit": options.images}
    test = check_component(ImageData, given, "--data").build().test(options.batch)
    images, labels = zip(*test.epoch(0))
    return loaded.network, list(images), torch.cat(labels)


def predict(forward: Forward, batches: list[Tensor], timesteps: int, seed: int) -> Tensor:
    """The class of every image; each batch has its own draws of the encoder."""
    found = []
    for number, x in enumerate(batches):
        seed_torch(seed, number)
        found.append(forward(x, timesteps).argmax(1))
    return torch.cat(found)


def firing_rates(network: SpikingNetwork, x: Tensor, timesteps: int) -> dict[str, float]:
    """Mean spikes per neuron and step of each layer; for the input its non-zero values."""
    meter = ActivityMeter(network, timesteps)
    network(x, timesteps, observe=meter.start(len(x)))
    return meter.rates()


def infer(options: argparse.Namespace) -> Result:
    """Measure one contender."""
    network, batches, labels = load(options)
    batches = [x.to(options.device) for x in batches]
    model, forward = contender(options.only, network.to(options.device).eval())
    model.eval()
    predicted: list[Tensor] = []

    def classify() -> None:
        predicted[:] = [predict(forward, batches, options.timesteps, options.seed).cpu()]

    with torch.inference_mode():
        layout = None
        if options.only != OURS:
            layout = faster_layout(model, lambda: lambda: forward(batches[0], max(1, options.timesteps // 10)))
        result = measure(classify, options.repeats, prepare=lambda: forward(batches[0][:1], 2), device=options.device)
    result |= {"layout": layout, "images_per_s": sum(map(len, batches)) / result["median"], "predictions": predicted[0].tolist()}
    if labels is not None:
        result["accuracy"] = 100 * float((predicted[0] == labels).double().mean())
    if options.only == OURS:
        with torch.no_grad():
            result["rates"] = firing_rates(network.cpu(), batches[0].cpu(), options.timesteps)
    return result


def agree(results: Results) -> None:
    """Put percent of predictions that equal the plain loop's in the place of the predictions."""
    found = {name: torch.tensor(result.pop("predictions")) for name, result in results.items() if result is not None}
    for name, predicted in found.items():
        result = results[name]
        assert result is not None
        result["agreement"] = 100 * float((predicted == found[PLAIN]).double().mean()) if PLAIN in found else None


COLUMNS = {
    "images/s": lambda r: f"{r['images_per_s']:.1f}",
    "agree %": lambda r: "-" if r["agreement"] is None else f"{r['agreement']:.1f}",
    "accuracy %": lambda r: f"{r['accuracy']:.2f}" if "accuracy" in r else "-",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [OURS, *PEERS], timesteps=100, batch=50, images=100, repeats=3)
    parser.add_argument("--checkpoint", type=Path, help="finetuned or converted.safetensors of a run")
    parser.add_argument("--data", help="with a checkpoint: data set; default the one that it was trained on")
    parser.add_argument("--root", help="folder of the data; default $SPIKEPROP_DATA")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(infer(options)))
        return
    try:
        network, _, _ = load(options)
        layers(network)
    except (NotComparable, SpikepropError) as error:
        parser.error(str(error))
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    agree(results)
    shown = options.checkpoint or "a spiking VGG5 with random weights"
    print(f"inference of {shown}, T = {options.timesteps}, {options.images} images in batches of {options.batch}")
    print(table(results, COLUMNS))
    ours = results.get(OURS)
    if ours is not None:
        print("spikes per neuron and step: " + ", ".join(f"{name} {rate:.3f}" for name, rate in ours["rates"].items()))
    save(__file__, options, results=results, ratios=ratios(results))


if __name__ == "__main__":
    main()
