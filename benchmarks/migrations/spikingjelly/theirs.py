"""SpikingJelly: a CNN learns MNIST and becomes a network of spikes."""

import os

import torch
from spikingjelly.activation_based import ann2snn, functional
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms


def main(images: int, tests: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    root, to_tensor = os.environ["SPIKEPROP_DATA"], transforms.ToTensor()
    train = Subset(datasets.MNIST(root, train=True, transform=to_tensor), range(images))
    test = Subset(datasets.MNIST(root, train=False, transform=to_tensor), range(tests))
    batches, questions = DataLoader(train, 64, shuffle=True), DataLoader(test, 100)

    parts: list[nn.Module] = []
    for channels in (1, 32, 32):
        parts += [nn.Conv2d(channels, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)]
    ann = nn.Sequential(*parts, nn.Flatten(), nn.Linear(32, 10))

    optimizer = torch.optim.Adam(ann.parameters(), lr=1e-3)
    for _ in range(3):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(ann(x), y).backward()
            optimizer.step()

    snn = (
        ann2snn.Converter(ann2snn.RateCodingRecipe(batches, mode="99.9%", channel_wise=True, half_threshold=True))
        .convert(ann)
        .eval()
    )
    right = {"ANN": 0, "T = 8": 0, "T = 32": 0}
    with torch.no_grad():
        ann.eval()
        for x, y in questions:
            right["ANN"] += int((ann(x).argmax(1) == y).sum())
            functional.reset_net(snn)
            total = torch.zeros(len(x), 10)
            for t in range(1, 33):
                total += snn(x)
                if t in (8, 32):
                    right[f"T = {t}"] += int((total.argmax(1) == y).sum())
    return {name: 100 * count / tests for name, count in right.items()}
