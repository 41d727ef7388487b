"""``TimmModel``: any model of the library timm by name (extra ``timm``), with weights from a local file or timm's own."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.ann.weights import find_weights, load_weights


class TimmModel(nn.Module):
    """A model of timm (PyTorch Image Models).

    Args:
        name: as in ``timm.list_models()``, for example "resnet18"; with a tag, "resnet18.a1_in1k", for timm's own weights.
        weights: a file or folder of weights (or its name in the folder ``weights`` of the data root), "pretrained" for timm's
            own, which are downloaded, or None for random weights. They are not read on the meta device.
        classes: number of outputs.
        channels: of the images.

    Raises:
        ValueError: timm is not installed, or has no such model; the message says what to do.
        CheckpointError: weights that do not fit; the message names the tensors.
    """

    def __init__(self, *, name: str, weights: str | None = None, classes: int = 1000, channels: int = 3):
        super().__init__()
        try:
            timm: Any = importlib.import_module("timm")
        except ImportError as error:
            raise ValueError("models of timm need the library: pip install timm") from error
        if not timm.is_model(name):
            near = ", ".join(difflib.get_close_matches(name, timm.list_models())) or "see timm.list_models()"
            raise ValueError(f"timm has no model {name!r}; nearest: {near}")
        without_values = torch.get_default_device().type == "meta"
        own = weights == "pretrained" and not without_values
        self.model = timm.create_model(name, pretrained=own, num_classes=classes, in_chans=channels)
        if weights not in (None, "pretrained") and not without_values:
            load_weights(self.model, find_weights(weights))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, C, H, W)."""
        return self.model(x)
