"""snnTorch: leaky neurons learn MNIST by a surrogate gradient."""

import os

import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

STEPS = 25


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 1000), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(1000, 10), snn.Leaky(beta=0.95)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Spikes and potentials of the output, (T, B, 10) each."""
        v1, v2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, potentials = [], []
        for _ in range(STEPS):
            spike, v1 = self.lif1(self.fc1(x.flatten(1)), v1)
            spike, v2 = self.lif2(self.fc2(spike), v2)
            spikes.append(spike)
            potentials.append(v2)
        return torch.stack(spikes), torch.stack(potentials)


def main(images: int, tests: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    root, to_tensor = os.environ["SPIKEPROP_DATA"], transforms.ToTensor()
    train = Subset(datasets.MNIST(root, train=True, transform=to_tensor), range(images))
    test = Subset(datasets.MNIST(root, train=False, transform=to_tensor), range(tests))

    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    for x, y in DataLoader(train, 128, shuffle=True):
        optimizer.zero_grad()
        _, potentials = network(x)
        loss = sum((nn.functional.cross_entropy(v, y) for v in potentials), torch.zeros(()))
        loss.backward()
        optimizer.step()

    right = 0
    with torch.no_grad():
        for x, y in DataLoader(test, 100):
            spikes, _ = network(x)
            right += int((spikes.sum(0).argmax(1) == y).sum())
    return {f"T = {STEPS}": 100 * right / tests}
