"""The gallery: five small networks as pages, with an index. ``python -m spikeprop.plugins.explain.gallery FOLDER`` writes it.

Each network is also a MODEL for the command line: ``spikeprop explain spikeprop.plugins.explain.gallery:xor``.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.ann import MLP
from spikeprop.convert import MaxActivation, convert
from spikeprop.data import Digits
from spikeprop.learn import Backprop, LearningRule, fit
from spikeprop.plugins.activation_relaxation import ActivationRelaxation
from spikeprop.plugins.explain import TrainingStep, explain
from spikeprop.plugins.interlocking import Interlocking, PooledHead
from spikeprop.runtime.files import write_text
from spikeprop.snn import LIF, Triangle

Made = tuple[Any, ...]


def logistic() -> Made:
    """One layer with one output: the simplest network."""
    torch.manual_seed(1)
    x = torch.tensor([[0.5, -1.0], [1.5, 0.5], [-1.0, 0.25], [-0.5, -1.5]])
    return nn.Linear(2, 1), x, torch.tensor([[1.0], [1.0], [0.0], [0.0]]), F.binary_cross_entropy_with_logits


def xor() -> Made:
    """Two inputs and three hidden units solve a task that one layer cannot solve."""
    torch.manual_seed(2)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    return model, x, torch.tensor([[0.0], [1.0], [1.0], [0.0]]), F.binary_cross_entropy_with_logits


class ResidualCNN(nn.Module):
    """A small CNN with batch-norm and a skip connection, for Digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.body, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) to class scores (B, 10)."""
        h = self.pool(F.relu(self.norm(self.stem(x))))
        h = F.relu(h + self.body(h))
        return self.head(F.avg_pool2d(h, 2).flatten(1))


def cnn() -> Made:
    """Convolutions, batch-norm, pooling, and a skip connection, at whose fan-out cotangents are summed."""
    torch.manual_seed(3)
    return ResidualCNN(), *_digits(2)


class AttentionBlock(nn.Module):
    """One block of a transformer; the rows of an image are the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) to class scores (B, 10)."""
        return self.head(self.block(x.squeeze(1)).mean(1))


def attention() -> Made:
    """Multi-head attention, layer-norm, GELU and two skip connections."""
    torch.manual_seed(4)
    return AttentionBlock(), *_digits(2)


def spiking() -> Made:
    """Two layers of leaky integrate-and-fire neurons, trained as an ANN and converted, unrolled through time."""
    torch.manual_seed(5)
    ann = MLP(input_shape=(1, 8, 8), hidden=[12, 8], classes=10)
    batches = Digits().train(64, seed=0)
    fit(ann, Backprop(), batches, torch.optim.Adam(ann.parameters(), lr=3e-3), epochs=5)
    images = [x for x, _ in batches.epoch(0)][:4]
    network = convert(ann, images, LIF(leak=0.95, surrogate=Triangle(height=0.5)), MaxActivation())
    for neuron in network.neurons().values():
        neuron.set_threshold(neuron.v_threshold * 0.5)
    return network, *_digits(1)


def _digits(samples: int) -> tuple[Tensor, Tensor]:
    return next(Digits().test(samples).epoch(0))


@dataclass(frozen=True)
class Entry:
    """A page of the gallery."""

    title: str
    make: Callable[[], Made]
    timesteps: int | None = None
    rules: Callable[[], dict[str, LearningRule]] = field(default=dict)


def _rules() -> dict[str, LearningRule]:
    return {
        "Activation Relaxation": ActivationRelaxation(sweep="jacobi"),  # all at once, which the animation shows
        "Interlocking, local": Interlocking(cuts=2, reach=1, head=PooledHead()),
    }


ENTRIES = {
    "logistic": Entry("Logistic regression", logistic),
    "xor": Entry("XOR by an MLP", xor),
    "cnn": Entry("A small CNN with a skip connection", cnn, rules=_rules),
    "attention": Entry("An attention block", attention),
    "spiking": Entry("Two spiking layers through time", spiking, timesteps=6),
}


def subject_of(name: str) -> TrainingStep:
    """The training step of a page."""
    entry = ENTRIES[name]
    return TrainingStep(name=entry.title, timesteps=entry.timesteps, **dict(zip(("model", "x", "y", "loss"), entry.make())))


def write_gallery(folder: Path) -> dict[str, Any]:
    """Write all pages and the index; returns the data of the pages by name."""
    found = {name: explain(subject_of(name), folder / f"{name}.html", entry.rules()) for name, entry in ENTRIES.items()}
    write_text(folder / "index.html", _index(found))
    return found


def _index(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        f'<li><a href="{name}.html">{html.escape(entry.title)}</a> <p>{html.escape((entry.make.__doc__ or "").strip())} '
        f"{len(found[name]['nodes'])} calls, {found[name]['checks']['edges']} backward edges.</p></li>"
        for name, entry in ENTRIES.items()
    ]
    style = "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem;color-scheme:light dark}"
    title = "Backpropagation, explained by five networks"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>{style}</style></head>'
        f"<body><main><h1>{title}</h1><ul>{''.join(lines)}</ul></main></body></html>\n"
    )


if __name__ == "__main__":
    write_gallery(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/gallery"))
