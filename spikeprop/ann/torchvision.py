"""``TorchvisionModel``: any torchvision classifier by name, with weights from torchvision's enum or from a local file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprop.ann.weights import find_weights, load_weights

Pooling = Literal["max", "average"]


class TorchvisionModel(nn.Module):
    """A torchvision model.

    Args:
        name: as in ``torchvision.models.list_models()``, for example "resnet18".
        weights: a name of the model's weights enum ("IMAGENET1K_V1", "DEFAULT"; downloads), a .safetensors or .pth file (or its
            name in the folder ``weights`` of $SPIKEPROP_DATA), or None for random weights. On the meta device, whose tensors have
            no values, they are checked but not read.
        classes: number of outputs; with weights of the enum it must be the model's own.
        pooling: "max" leaves the model as it is; "average" replaces ``nn.MaxPool2d`` by average pooling, for training:
            it converts to a linear operation, which NIR and every chip have, while max pooling of spikes needs counters.

    Raises:
        ValueError: an unknown model or unknown weights; the message lists the known names.
        CheckpointError: a weights file whose tensors do not fit; the message names them.
    """

    def __init__(self, *, name: str, weights: str | None = None, classes: int = 1000, pooling: Pooling = "max"):
        super().__init__()
        from torchvision import models

        if pooling not in ("max", "average"):
            raise ValueError(f"pooling is {pooling!r}; use 'max' or 'average'")

        known = models.list_models(module=models)
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known)) or "see torchvision.models.list_models()"
            raise ValueError(f"torchvision has no model {name!r}; nearest: {near}")
        from_file = weights is not None and Path(weights).suffix in {".safetensors", ".pth", ".pt"}
        if weights is not None and not from_file:
            _check_weights(name, weights)
        without_values = torch.get_default_device().type == "meta"
        self.model = models.get_model(name, weights=None if from_file or without_values else weights, num_classes=classes)
        if from_file and not without_values:
            assert weights is not None
            load_weights(self.model, find_weights(weights))
        if pooling == "average":
            _average_instead_of_max(self.model)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, 3, H, W)."""
        return self.model(x)


def _average_instead_of_max(model: nn.Module) -> None:
    for parent in [*model.modules()]:
        for name, pool in parent.named_children():
            if isinstance(pool, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode))


def _check_weights(name: str, weights: str) -> None:
    from torchvision import models

    known = [*models.get_model_weights(name).__members__]
    if weights not in known:
        raise ValueError(f"{name} has no weights {weights!r}; known: {', '.join(known)}, or a .safetensors or .pth file")
