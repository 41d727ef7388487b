"""Conversion without training of the pretrained ImageNet SqueezeNet: agreement of the spiking network's top-1 with the ANN's.

python benchmarks/agreement.py --timesteps 64 --out results/benchmarks/agreement.json

The photographs are those of a folder in ImageNet's layout (--root, default $SPIKEPROP_DATA/imagenet-sample; only val/ is read).
A network calibrated on the photographs with even numbers is tested on those with odd numbers, and vice versa, so each
photograph is tested once by a network that was not calibrated on it. Weights: squeezenet1_0_imagenet.safetensors in
$SPIKEPROP_DATA/weights.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import parse, save
from torch import Tensor, nn

from spikeprop import IF, SignedIF, convert
from spikeprop.ann import TorchvisionModel
from spikeprop.convert import LeastError, LightCalibration, ThresholdCalibrator
from spikeprop.data import ImageNet
from spikeprop.errors import SpikepropError
from spikeprop.runtime.progress import bar
from spikeprop.snn import Neuron

WAYS: dict[str, tuple[Callable[[], Neuron], Callable[[int], ThresholdCalibrator]]] = {
    "signed, least error": (SignedIF, lambda t: LeastError(timesteps=t)),
    "signed, light": (SignedIF, lambda t: LightCalibration(timesteps=t)),
    "least error": (lambda: IF(v_init=0.5), lambda t: LeastError(timesteps=t)),
    "light": (lambda: IF(v_init=0.5), lambda t: LightCalibration(timesteps=t)),
}


def photographs(root: Path, limit: int) -> Tensor:
    data = ImageNet(root=str(root), mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], test_limit=limit, workers=0)
    return torch.cat([x for x, _ in data.test(10).epoch(0)])


@torch.no_grad()
def agreement(ann: nn.Module, images: Tensor, way: str, timesteps: int, batch: int) -> int:
    """Images whose top-1 class is the ANN's, over both halves."""
    neuron, calibrator = WAYS[way]
    same = 0
    for half in (0, 1):
        network = convert(ann, [images[half::2]], neuron(), calibrator(timesteps))
        tested = images[1 - half :: 2].split(batch)
        with bar(f"{way}, half {half + 1}", total=len(tested)) as shown:
            for x in tested:
                same += int((network(x, timesteps).argmax(1) == ann(x).argmax(1)).sum())
                shown.update()
    return same


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="default $SPIKEPROP_DATA/imagenet-sample")
    parser.add_argument("--images", type=int, default=100, help="default 100")
    parser.add_argument("--timesteps", type=int, default=64, help="default 64")
    parser.add_argument("--batch", type=int, default=5, help="default 5")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--contenders", nargs="+", choices=WAYS, default=["signed, least error"])
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parse(parser, argv)
    try:
        images = photographs(options.root or Path(os.environ.get("SPIKEPROP_DATA", ".")) / "imagenet-sample", options.images)
        ann = TorchvisionModel(name="squeezenet1_0", weights="squeezenet1_0_imagenet.safetensors").eval()
    except SpikepropError as error:
        parser.error(str(error))
    found: dict[str, int] = {}
    for way in options.contenders:
        torch.manual_seed(options.seed)
        found[way] = agreement(ann, images, way, options.timesteps, options.batch)
        print(f"{way}: {found[way]} of {len(images)} at T = {options.timesteps}", flush=True)
        save(__file__, options, contenders=list(found), agree=found, images=len(images))  # after each: they take a while


if __name__ == "__main__":
    main()
