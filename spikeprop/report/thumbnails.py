"""Images of a data set as small PNG pictures in a data URI, for a self-contained page."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor

LARGEST = 96  # pixels a side; larger images are made smaller


def thumbnail(image: Tensor, mean: float | list[float], std: float | list[float]) -> str:
    """A normalised image (C, H, W) with 1 or 3 channels as "data:image/png;base64,..."; the normalisation is inverted.

    Raises:
        ValueError: another number of channels.
    """
    from PIL import Image

    channels, height, width = image.shape
    if channels not in (1, 3):
        raise ValueError(f"the image has {channels} channels; a picture has 1 or 3")
    shift, scale = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
    bytes_CHW = ((image.float() * scale + shift).clamp(0, 1) * 255).round().to(torch.uint8)
    array = bytes_CHW[0].numpy() if channels == 1 else bytes_CHW.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    if max(height, width) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
