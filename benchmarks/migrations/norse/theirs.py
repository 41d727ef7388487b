"""Norse: spikes that encode MNIST, a recurrent layer of leaky neurons, and a leaky readout."""

import os

import norse.torch as norse
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

STEPS = 32


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = norse.ConstantCurrentLIFEncoder(seq_length=STEPS)
        p = norse.LIFParameters(alpha=torch.as_tensor(100.0), v_th=torch.as_tensor(0.5))
        self.layers = norse.SequentialState(norse.LIFRecurrentCell(784, 100, p=p), nn.Linear(100, 10, bias=False), norse.LICell())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, from each readout's highest potential."""
        state, potentials = None, []
        for spikes in self.encode(x.flatten(1)):
            v, state = self.layers(spikes, state)
            potentials.append(v)
        return torch.stack(potentials).amax(0).log_softmax(1)


def main(images: int, tests: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    root = os.environ["SPIKEPROP_DATA"]
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])
    train = Subset(datasets.MNIST(root, train=True, transform=to_tensor), range(images))
    test = Subset(datasets.MNIST(root, train=False, transform=to_tensor), range(tests))

    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(3):
        for x, y in DataLoader(train, 32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.nll_loss(network(x), y).backward()
            optimizer.step()

    right = 0
    with torch.no_grad():
        for x, y in DataLoader(test, 100):
            right += int((network(x).argmax(1) == y).sum())
    return {f"T = {STEPS}": 100 * right / tests}
