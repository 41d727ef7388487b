"""Images of a data set as small PNG pictures in a data URI, for a self-contained page; of sequences, frames beside each other.

A frame of events of two polarities is shown as brightness changes: grey where nothing happened, lighter where ON events and
darker where OFF events are more. Other values that are not images are shown from their least (black) to their largest (white).
"""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 96  # pixels a side; larger images are made smaller
STRIP, SIDE, CHANNELS = 10, 68, 140  # most frames of a strip, most pixels of a side of one, and of a cochlea's channels


def strip(frames_T: Tensor) -> tuple[str, list[int]]:
    """Frames (T, C, H, W), at most 10 of them at even distances, as one picture; and their numbers.

    Channels without places, (T, N), are one picture: time to the right, channels upwards, neighbours joined where there are many.
    """
    if frames_T.dim() != 4:
        values_NT = frames_T.flatten(1).T.float()
        rows = F.adaptive_avg_pool2d(values_NT[None], (min(CHANNELS, len(values_NT)), values_NT.shape[1]))[0]
        return _png(_stretched(rows.flip(0)), 2), list(range(len(frames_T)))
    count = min(STRIP, len(frames_T))
    numbers = [i * len(frames_T) // count for i in range(count)]
    shown = frames_T[numbers].float()
    if shown.shape[1] == 2:
        change = shown[:, 1] - shown[:, 0]
        grey = 0.5 + 0.5 * change / change.abs().max().clamp(min=1e-9)
    else:
        grey = _stretched(shown.mean(1))
    edge = torch.ones(count, grey.shape[1], 1)
    pictures = torch.cat([grey, edge], 2).transpose(0, 1).flatten(1)[:, :-1]
    return _png(pictures, max(1, SIDE // grey.shape[1])), numbers


def _stretched(values: Tensor) -> Tensor:
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp(min=1e-9)


def _png(grey_HW: Tensor, scale: int) -> str:
    from PIL import Image

    picture = Image.fromarray((grey_HW * 255).round().to(torch.uint8).numpy())
    return _uri(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST))


def _uri(picture: Any) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


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
    return _uri(picture)
