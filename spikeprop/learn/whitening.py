"""``Whitening``: a convolution starts as the whitening of the patches that it reads, and stays it.

With x the patches (K numbers each) and E[x x^T] = sum_i e_i v_i v_i^T, the outputs of

    w_i = v_i / sqrt(e_i + epsilon)

are uncorrelated and of one size. The filters are w_1, w_2, ... from the largest e_i on, and after these their negatives, since a
ReLU follows: a layer of 2 K outputs has all of them. Source: Page 2018, "How to Train Your ResNet" (myrtle.ai), and Jordan 2024
(arXiv:2404.00498).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.learn.callback import Callback, TrainingState
from spikeprop.runtime.batches import Batches
from spikeprop.runtime.checks import positive
from spikeprop.runtime.modes import evaluating


class _Read(Exception):
    """The layer's input is known; the rest of the network need not run."""


class Whitening(Callback):
    """Sets a convolution's weights from training images before the first step; they are not trained, its bias is at first.

    Args:
        layer: name of the convolution in the network.
        images: training images whose patches are used, or all if there are fewer.
        epsilon: added to the variances, in the square of the layer's inputs; keeps noise in flat directions small.
        bias_epochs: the bias is trained in the first so many epochs.
    """

    needs_complete_parameters: ClassVar[bool] = True

    def __init__(self, *, layer: str = "whitening", images: int = 5000, epsilon: float = 5e-4, bias_epochs: int = 3):
        self.layer, self.images, self.epsilon, self.bias_epochs = layer, images, epsilon, bias_epochs
        positive(self, "images")
        if not epsilon >= 0:
            raise ValueError(f"epsilon is {epsilon}; it is added to variances, 0 or more")
        if bias_epochs < 0:
            raise ValueError(f"bias_epochs is {bias_epochs}; use 0 for a bias that is not trained")

    def on_start(self, training: TrainingState) -> None:
        conv = self._find(training.model)
        if training.steps_done == 0 and training.batches is not None:
            moment = second_moment(training.model, conv, training.batches, self.images)
            with torch.no_grad():
                conv.weight.copy_(whitening_filters(moment, conv.weight.shape, self.epsilon))
        self._trained = [p for p in conv.parameters() if p.requires_grad]
        conv.weight.requires_grad_(False)
        self._train_bias(conv, training.epoch)

    def on_step(self, training: TrainingState) -> None:
        if training.step == training.steps_per_epoch:
            self._train_bias(self._find(training.model), training.epoch + 1)

    def on_end(self, training: TrainingState) -> None:
        for p in self._trained:
            p.requires_grad_(True)

    def _train_bias(self, conv: nn.Conv2d, epoch: int) -> None:
        if conv.bias is not None and any(p is conv.bias for p in self._trained):
            conv.bias.requires_grad_(epoch < self.bias_epochs)

    def _find(self, model: nn.Module) -> nn.Conv2d:
        convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        if self.layer not in convolutions:
            raise ValueError(
                f"layer is {self.layer!r}, and the network has no such convolution; its first ones: "
                f"{', '.join(list(convolutions)[:5]) or 'none'}"
            )
        conv = convolutions[self.layer]
        size = conv.weight[0].numel()
        if conv.groups != 1 or conv.out_channels > 2 * size:
            raise ValueError(
                f"{self.layer} has {conv.out_channels} outputs and {conv.groups} groups; patches of {size} numbers give at most "
                f"{2 * size} filters, in one group"
            )
        return conv


def whitening_filters(moment: Tensor, shape: torch.Size, epsilon: float) -> Tensor:
    """Filters (O, C, h, w) that whiten patches of second moment (K, K), K = C h w; O up to 2 K."""
    variances, directions = torch.linalg.eigh(moment)
    filters = (directions / (variances.clamp(min=0) + epsilon).sqrt()).T.flip(0)
    if not torch.isfinite(filters).all():
        raise ValueError("the patches do not vary in every direction, so epsilon must be positive")
    return torch.cat([filters, -filters])[: shape[0]].reshape(shape).float()


@torch.no_grad()
def second_moment(model: nn.Module, conv: nn.Conv2d, batches: Batches, images: int) -> Tensor:
    """E[x x^T] (K, K) of the patches x that ``conv`` reads of the first images, in float64 on the layer's device."""
    size = conv.weight[0].numel()
    total, patches = torch.zeros(size, size, dtype=torch.float64, device=conv.weight.device), 0
    for x in _inputs(model, conv, batches, images):
        unfolded = F.unfold(x.float(), conv.kernel_size, conv.dilation, stride=conv.stride)  # type: ignore[arg-type]
        rows = unfolded.double().transpose(1, 2).reshape(-1, size)
        total += rows.T @ rows
        patches += len(rows)
    return total / patches


def _inputs(model: nn.Module, conv: nn.Conv2d, batches: Batches, images: int) -> Iterator[Tensor]:
    """What ``conv`` reads of the first batches, in evaluation mode; the network runs only as far as it."""
    found: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _Read

    handle = conv.register_forward_pre_hook(read)
    try:
        with evaluating(model):
            for x, _ in batches.epoch(0):
                try:
                    model(x[:images].to(conv.weight.device))
                except _Read:
                    yield found.pop()
                images -= len(x)
                if images <= 0:
                    return
    finally:
        handle.remove()
