"""Conversion without training of pretrained ImageNet networks: agreement of the spiking network's top-1 with the ANN's.

python benchmarks/agreement.py --timesteps 8 --contenders default --out results/benchmarks/agreement_squeezenet_T8.json
python benchmarks/agreement.py --network efficientnet_lite0 --timesteps 32 --contenders "default, one bit" --out FILE

The photographs are those of a folder in ImageNet's layout (--root, default $SPIKEPROP_DATA/imagenet-sample; only val/ is read).
A network calibrated on the photographs with even numbers is tested on those with odd numbers, and vice versa, so each
photograph is tested once by a network that was not calibrated on it. Weights: squeezenet1_0_imagenet.safetensors or
efficientnet_lite0_imagenet.safetensors in $SPIKEPROP_DATA/weights. "default" is ``convert(ann, images, timesteps=T)``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from common import parse, save
from efficientnet_lite0 import EfficientNetLite0
from torch import Tensor, nn

from spikeprop import IF, GradedIF, SignedIF, SpikingNetwork, convert
from spikeprop.ann import TorchvisionModel
from spikeprop.convert import LeastError, LeastSquares, LightCalibration, MaxActivation, ThresholdCalibrator
from spikeprop.data import ImageNet
from spikeprop.errors import SpikepropError
from spikeprop.runtime.progress import bar
from spikeprop.snn import Neuron

WAYS: dict[str, tuple[Callable[[], Neuron], Callable[[int], ThresholdCalibrator]]] = {
    "signed, least error": (SignedIF, lambda t: LeastError(timesteps=t)),
    "signed, light": (SignedIF, lambda t: LightCalibration(timesteps=t)),
    "signed, least squares": (SignedIF, lambda t: LeastSquares(timesteps=t)),
    **{f"graded {n}, light": (partial(GradedIF, levels=n), lambda t: LightCalibration(timesteps=t)) for n in (3, 4, 5)},
    **{f"graded {n}, max": (partial(GradedIF, levels=n), lambda t: MaxActivation(per="channel")) for n in (4, 5, 6, 7)},
    "graded 3, least squares": (partial(GradedIF, levels=3), lambda t: LeastSquares(timesteps=t)),
    "signed, least squares on spikes": (SignedIF, lambda t: LeastSquares(timesteps=t, search="spikes")),
    "least error": (lambda: IF(v_init=0.5), lambda t: LeastError(timesteps=t)),
    "light": (lambda: IF(v_init=0.5), lambda t: LightCalibration(timesteps=t)),
}
DEFAULTS = {"default": False, "default, one bit": True}  # binary
MOMENTS = {"squeezenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "efficientnet_lite0": ([0.5] * 3, [0.5] * 3)}


def load(network: str) -> nn.Module:
    """The ANN with its published weights."""
    if network == "squeezenet":
        return TorchvisionModel(name="squeezenet1_0", weights="squeezenet1_0_imagenet.safetensors").eval()
    return EfficientNetLite0(
        Path(os.environ.get("SPIKEPROP_DATA", ".")) / "weights/efficientnet_lite0_imagenet.safetensors"
    ).eval()


def photographs(root: Path, limit: int, network: str = "squeezenet") -> Tensor:
    """Normalised as the network wants them."""
    return _labelled(root, limit, network)[0]


def _labelled(root: Path, limit: int, network: str) -> tuple[Tensor, Tensor]:
    mean, std = MOMENTS[network]
    data = ImageNet(root=str(root), mean=mean, std=std, test_limit=limit, workers=0)
    images, labels = zip(*data.test(10).epoch(0))
    return torch.cat(images), torch.cat(labels)


def converted(ann: nn.Module, images: Tensor, way: str, timesteps: int) -> SpikingNetwork:
    """Calibrated on the images."""
    if way in DEFAULTS:
        return convert(ann, [images], timesteps=timesteps, binary=DEFAULTS[way])
    neuron, calibrator = WAYS[way]
    return convert(ann, [images], neuron(), calibrator(timesteps))


@torch.no_grad()
def agreement(ann: nn.Module, images: Tensor, way: str, timesteps: int, batch: int) -> int:
    """Images whose top-1 class is the ANN's, over both halves."""
    same = 0
    for half in (0, 1):
        network = converted(ann, images[half::2], way, timesteps)
        tested = images[1 - half :: 2].split(batch)
        with bar(f"{way}, half {half + 1}", total=len(tested)) as shown:
            for x in tested:
                same += int((network(x, timesteps).argmax(1) == ann(x).argmax(1)).sum())
                shown.update()
    return same


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=MOMENTS, default="squeezenet", help="default squeezenet")
    parser.add_argument("--root", type=Path, help="default $SPIKEPROP_DATA/imagenet-sample")
    parser.add_argument("--images", type=int, default=100, help="default 100")
    parser.add_argument("--timesteps", type=int, default=64, help="default 64")
    parser.add_argument("--batch", type=int, default=5, help="default 5")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--contenders", nargs="+", choices=[*DEFAULTS, *WAYS], default=["signed, least error"])
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parse(parser, argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        root = options.root or Path(os.environ.get("SPIKEPROP_DATA", ".")) / "imagenet-sample"
        images, labels = _labelled(root, options.images, options.network)
        ann = load(options.network)
    except (SpikepropError, OSError) as error:
        parser.error(str(error))
    with torch.no_grad():
        right = sum(int((ann(x).argmax(1) == y).sum()) for x, y in zip(images.split(10), labels.split(10)))
    print(f"{options.network}: the ANN has {right} of {len(images)} right")
    found: dict[str, int] = {}
    for way in options.contenders:
        torch.manual_seed(options.seed)
        found[way] = agreement(ann, images, way, options.timesteps, options.batch)
        print(f"{way}: {found[way]} of {len(images)} at T = {options.timesteps}", flush=True)
        # After each, since they take a while.
        save(__file__, options, contenders=list(found), ann_right=right, agree=found, images=len(images))


if __name__ == "__main__":
    main()
