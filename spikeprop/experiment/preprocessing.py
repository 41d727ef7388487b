"""What a network reads: the shape of its images, and their normalisation.

A file of weights does not say the normalisation, and with another one a network predicts badly without a word. Of torchvision's
and timm's weights it is known. Else common ones, and the images' own statistics, are tried on a few labelled training images, and
the one with the smallest cross-entropy is taken. The test images have no part in it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.data import ImageData
from spikeprop.evaluate import count_macs
from spikeprop.recipe import Component

NORMALISATION = ("mean", "std")
Values = float | list[float]
COMMON: dict[str, tuple[Values, Values]] = {
    "none (pixels 0 to 1)": (0.0, 1.0),
    "a half": (0.5, 0.5),
    "pixels 0 to 255": (0.0, 1 / 255),
}
COLOUR: dict[str, tuple[Values, Values]] = {
    "ImageNet's": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "CIFAR-10's": ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
}
GREY: dict[str, tuple[Values, Values]] = {"MNIST's": (0.1307, 0.3081)}
PILLOW = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # numbers of interpolations
SIDES = (8, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
MOST_IMAGES, LEAST_IMAGES = 256, 32
MOST_MACS = 2e11  # in all, some seconds
WRONG = 1.0  # difference of the cross-entropy that is no chance


def known_transform(ann: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean, std, size and transforms of the images of torchvision's or timm's own weights; None for others.

    Args:
        ann: settings of slot ``ann``.
    """
    if ann.get("use") == "TorchvisionModel" and ann.get("weights"):
        from torchvision import models

        known = models.get_model_weights(ann["name"]).__members__ if ann["name"] in models.list_models() else {}
        if ann["weights"] not in known:
            return None
        transform = known[ann["weights"]].transforms()
        cut = [{"use": "Resize", "size": transform.resize_size}, {"use": "CenterCrop", "size": transform.crop_size}]
        cut[0] |= {} if transform.interpolation.value == "bilinear" else {"interpolation": PILLOW[transform.interpolation.value]}
        found = {"mean": list(transform.mean), "std": list(transform.std), "size": transform.crop_size[0]}
        return found | {"transforms": cut}
    if ann.get("use") == "TimmModel" and ann.get("weights") == "pretrained":
        try:
            import timm
            from timm.data import resolve_model_data_config
        except ImportError:  # the component says what to install
            return None
        found = resolve_model_data_config(timm.create_model(ann["name"], pretrained=False))
        side = found["input_size"][-1]
        return {"mean": list(found["mean"]), "std": list(found["std"]), "size": side, **_timm_cut(found, side)}
    return None


def _timm_cut(found: Mapping[str, Any], side: int) -> dict[str, Any]:
    """How timm cuts the images of an evaluation: resized to side / crop_pct, then their middle; empty of another way."""
    mode, kind = found.get("crop_mode") or "center", found.get("interpolation") or "bicubic"
    if mode not in ("center", "squash") or kind not in PILLOW:
        warnings.warn(
            f"timm's weights want images with crop_mode={mode!r}, interpolation={kind!r}, for which there is no transform here: "
            "give data.transforms",
            stacklevel=2,
        )
        return {}
    large = math.floor(side / (found.get("crop_pct") or 0.875))
    resize: dict[str, Any] = {"use": "Resize", "size": [large, large] if mode == "squash" else [large]}
    resize |= {} if kind == "bilinear" else {"interpolation": PILLOW[kind]}
    return {"transforms": [resize, {"use": "CenterCrop", "size": [side, side]}]}


@torch.no_grad()
def fitting_shape(ann: nn.Module, data: Component[Any]) -> dict[str, int]:
    """Channels and side of the images that a network reads, where the data set can give them and the user does not.

    Empty where the images fit as they are, and where none of the usual sides does: then the recipe's check says what is wrong.

    Args:
        ann: in evaluation mode.
        data: of images.
    """
    open_to = [key for key in ("channels", "size") if key in data.parameters() and data.arguments.get(key) is None]
    found: dict[str, int] = {}
    first = next((m for m in ann.modules() if isinstance(m, nn.Conv2d)), None)
    shape = data.build().input_shape
    if "channels" in open_to and first is not None and first.in_channels in (1, 3) and first.in_channels != shape[0]:
        found["channels"] = first.in_channels
        shape = (first.in_channels, *shape[1:])
    if "size" in open_to and not data.arguments.get("transforms") and not _reads(ann, shape):
        found |= next(({"size": side} for side in SIDES if _reads(ann, (shape[0], side, side))), {})
    return found


def _reads(ann: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        ann(torch.zeros(1, *shape))
    except Exception:  # a forward may raise anything
        return False
    return True


@torch.no_grad()
def chosen_normalisation(ann: nn.Module, data: Component[Any], given: Mapping[str, Values]) -> tuple[dict[str, Values], str]:
    """Mean and std, and why in words.

    Args:
        ann: in evaluation mode.
        data: of images; its own mean and std are used only where one of them is given.
        given: mean, std or both, by the user; they are kept, and compared with the others.

    Returns:
        settings of the data set, and a text with the accuracy on training images.
    """
    raw: ImageData = data.replace(mean=0.0, std=1.0).build()
    tried = candidates(raw)
    if given:
        own = data.build()
        tried = {"yours": (given.get("mean", own.mean), given.get("std", own.std)), **tried}
    pixels, labels = _images(raw, ann, len(tried))
    if "the images' own" not in tried and len(pixels) > 1:
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
        tried["the images' own"] = (_rounded(mean), _rounded(std))
    losses, correct = {}, {}
    for name, (mean, std) in tried.items():
        losses[name], correct[name] = _fit(ann, (pixels - _channels(mean)) / _channels(std), labels)
    best = min(losses, key=lambda name: losses[name])
    chosen = "yours" if given else best
    if losses[chosen] != losses[chosen]:  # another number of outputs than classes: the recipe's check says so
        return dict(given), "not tried, since the network's outputs are not the data's classes"
    text = (
        f"{_values(*tried[chosen])} ({chosen}): {correct[chosen]:.0f} % of {len(labels)} training images are predicted correctly"
    )
    others = [f"{name} {correct[name]:.0f} %" for name in sorted(losses, key=lambda n: losses[n]) if name != chosen]
    text += f"; tried too: {', '.join(others[:3])}" if others else ""
    return dict(zip(NORMALISATION, tried[chosen], strict=True)), text + _doubt(
        losses[chosen] - losses[best], correct[chosen], raw.classes, f"{best}: {_values(*tried[best])}"
    )


def _doubt(lost: float, correct: float, classes: int, best: str) -> str:
    """What is said where the network predicts badly with the chosen normalisation."""
    if lost > WRONG:
        return f". WARNING: it fits far worse than {best}; with that, pass --mean and --std"
    if classes > 1 and correct < 200 / classes and correct < 60:
        return ". WARNING: near chance: are these its weights, its classes in this order, and images of its size?"
    return ""


def candidates(data: ImageData) -> dict[str, tuple[Values, Values]]:
    """Normalisations to try, by name."""
    more = {1: GREY, 3: COLOUR}.get(data.input_shape[0], {})
    return {**COMMON, **more}


def _images(data: ImageData, ann: nn.Module, tried: int) -> tuple[Tensor, Tensor]:
    """Training images with their labels, as many as take seconds."""
    count = int(MOST_MACS / max(1, count_macs(ann, data.input_shape) * (tried + 1)))
    batch = data.train(min(MOST_IMAGES, max(LEAST_IMAGES, count)), 0).epoch(0)
    return next(iter(batch))


def _fit(ann: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross-entropy, not a number where there is none, and percent of correct predictions."""
    like = next(ann.parameters(), x)
    scores = ann(x.to(like.dtype) if like.is_floating_point() else x)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or int(labels.max()) >= scores.shape[1]:
        return float("nan"), 0.0
    loss = F.cross_entropy(scores.float(), labels)
    finite = float(loss) if bool(loss.isfinite()) else 1e9
    return finite, 100 * float((scores.argmax(1) == labels).float().mean())


def _channels(value: Values) -> Tensor:
    return torch.tensor(value if isinstance(value, list) else [value]).view(-1, 1, 1)


def _rounded(values: Tensor) -> Values:
    found = [round(float(v), 4) for v in values]
    return found if len(found) > 1 else found[0]


def _values(mean: Values, std: Values) -> str:
    return f"mean {_shown(mean)}, std {_shown(std)}"


def _shown(value: Values) -> str:
    return ",".join(f"{v:.4g}" for v in (value if isinstance(value, list) else [value]))
