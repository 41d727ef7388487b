"""``MLP``: fully connected ANN without biases, ReLU and dropout between its layers; the smallest network that converts."""

from __future__ import annotations

import math

from torch import Tensor, nn

from spikeprop.ann.activation import Clipped
from spikeprop.ann.cnn import classifier, initialise


class MLP(nn.Module):
    """Fully connected network.

    Args:
        input_shape: shape of one image.
        classes: number of classes.
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.
        activation: prototype, copied for every layer; null is ReLU.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        hidden: list[int],
        dropout: float = 0.2,
        activation: Clipped | None = None,
    ):
        super().__init__()
        self.layers = classifier(math.prod(input_shape), hidden, classes, dropout, activation)
        initialise(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, ...)."""
        return self.layers(x)
