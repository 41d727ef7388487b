"""``mlp_gradients``: all gradients of a multilayer perceptron from the cards' closed forms, without autograd.

Layer by layer z = x W^T + b, x' = f(z), then a loss; backwards, the loss's card gives dL/dz, the affine card dL/dW, dL/db and
dL/dx, and the activation's card dL/dz of the previous layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.plugins.derivatives.elementwise import AFFINE, RELU, SIGMOID, TANH
from spikeprop.plugins.derivatives.losses import SIGMOID_BCE, SOFTMAX_CE

ACTIVATIONS = {"relu": RELU, "sigmoid": SIGMOID, "tanh": TANH}


def mlp_gradients(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    *,
    activation: Literal["relu", "sigmoid", "tanh"] = "relu",
    loss: Literal["softmax_ce", "sigmoid_bce"] = "softmax_ce",
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Loss, gradients and the input's cotangent of an MLP; the loss is a mean over samples.

    Args:
        weights, biases: weights (outputs, inputs) and biases (outputs,) of each layer.
        x: inputs (B, inputs).
        y: labels (B,), int64, for "softmax_ce"; targets (B, 1) of 0 and 1 for "sigmoid_bce".
        activation: activation between layers.
        loss: loss of the last layer's outputs.

    Returns:
        the loss (), pairs (dL/dW, dL/db) of the layers, dL/dx.

    Raises:
        ValueError: different numbers of weights and biases, or an unknown activation or loss.
    """
    if len(weights) != len(biases) or not weights:
        raise ValueError(f"{len(weights)} weights and {len(biases)} biases; give one of each for every layer, at least one")
    if activation not in ACTIVATIONS or loss not in ("softmax_ce", "sigmoid_bce"):
        raise ValueError(
            f"activation {activation!r} or loss {loss!r} is unknown; use {', '.join(ACTIVATIONS)}; softmax_ce, sigmoid_bce"
        )
    act = ACTIVATIONS[activation]
    inputs, outputs = [x], []
    for i, (w, b) in enumerate(zip(weights, biases)):
        outputs.append(AFFINE.evaluate("y", {"x": inputs[-1], "W": w, "b": b}))
        if i + 1 < len(weights):
            inputs.append(act.evaluate("y", {"x": outputs[-1]}))
    value, up = _loss(outputs[-1], y, loss)
    found: list[tuple[Tensor, Tensor]] = []
    for i in reversed(range(len(weights))):
        known = {"x": inputs[i], "W": weights[i], "b": biases[i], "y_bar": up}
        found.append((AFFINE.evaluate("W_bar", known), AFFINE.evaluate("b_bar", known)))
        up = AFFINE.evaluate("x_bar", known)
        if i:
            up = act.evaluate("x_bar", {"x": outputs[i - 1], "y": inputs[i], "y_bar": up})
    return value, found[::-1], up


def _loss(z: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Mean loss over samples and its derivative by z."""
    card, prediction = (SOFTMAX_CE, "p") if loss == "softmax_ce" else (SIGMOID_BCE, "a")
    target = F.one_hot(y, z.shape[1]).to(z) if loss == "softmax_ce" else y.to(z)
    known = {"z": z, "y": target, prediction: torch.softmax(z, 1) if prediction == "p" else torch.sigmoid(z)}
    return card.evaluate("L", known) / len(z), card.evaluate("z_bar", known) / len(z)
