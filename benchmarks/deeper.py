"""A deeper ANN of a known family, for convert.py: the pretrained CIFAR-10 ResNet-20 with blocks inserted, then trained a little.

python benchmarks/deeper.py --depth 56 --steps 100 --out runs/resnet56/ann.safetensors
python benchmarks/convert.py --ann runs/resnet56/ann.safetensors --contenders "graded 3, light" --timesteps 4 --images 10000

A new block has the shortcut of its group, random convolutions, and a last batch-norm whose gains are small, so that it begins
near the identity (the ReLU changes nothing, since its input is positive). Training then moves all of the weights together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from convert import IMAGENET
from torch import nn

from spikeprop import CIFAR10, ann_accuracy
from spikeprop.ann import CIFARResNet
from spikeprop.ann.cifar_resnet import BasicBlock
from spikeprop.learn import save_checkpoint
from spikeprop.runtime.progress import bar

GAIN = 0.1  # of the last batch-norm of a new block


def deeper(depth: int) -> CIFARResNet:
    """The deeper network: the old blocks come first in their groups."""
    known, made = CIFARResNet(weights="resnet20_cifar10_akamaster.safetensors"), CIFARResNet(depth=depth)
    fresh = made.state_dict()
    made.load_state_dict({**fresh, **known.state_dict()})
    for group in (made.layer1, made.layer2, made.layer3):
        for block in list(group)[3:]:
            assert isinstance(block, BasicBlock)
            nn.init.constant_(block.bn2.weight, GAIN)
    return made


def train(ann: nn.Module, steps: int, data: CIFAR10, rate: float) -> None:
    """A few steps of SGD with momentum, the rate falling to 0."""
    optimizer = torch.optim.SGD(ann.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    batches = (batch for epoch in range(steps) for batch in data.train(64, seed=0).epoch(epoch))
    ann.train()
    with bar("train", total=steps) as shown:
        for _, (x, y) in zip(range(steps), batches):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ann(x), y).backward()
            optimizer.step()
            schedule.step()
            shown.update()
    ann.eval()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=56, help="default 56")
    parser.add_argument("--steps", type=int, default=100, help="of training, 64 images each; default 100")
    parser.add_argument("--rate", type=float, default=0.01, help="largest learning rate; default 0.01")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = CIFAR10(mean=IMAGENET["mean"], std=IMAGENET["std"], test_limit=1000)
    ann = deeper(options.depth)
    train(ann, options.steps, data, options.rate)
    print(f"ResNet-{options.depth}: {ann_accuracy(ann, data.test(100).epoch(0)):.2f} % of 1000 test images")
    described = {
        "kind": "ann",
        "ann": {"use": "CIFARResNet", "depth": options.depth},
        "input_shape": list(data.input_shape),
        "data": {"use": "CIFAR10", "mean": data.mean, "std": data.std},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(options.out, ann, described)


if __name__ == "__main__":
    main()
