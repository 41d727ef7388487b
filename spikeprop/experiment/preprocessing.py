"""What a network reads: the shape of its images, and their normalisation.

A file of weights does not say the normalisation, and with another one a network predicts badly without a word. Of torchvision's
and timm's weights it is known. Else common ones, and the images' own statistics, are tried on a few labelled training images, and
the one with the smallest cross-entropy is taken; a common one before the images' own where their difference is one of chance. The
test images have no part in it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.data import ImageData
from spikeprop.errors import RecipeError
from spikeprop.evaluate import count_macs
from spikeprop.experiment.class_order import better_order, missing_classes
from spikeprop.recipe import Component

NORMALISATION = ("mean", "std")
Values = float | list[float]
NONE, OWN = "none (pixels 0 to 1)", "the images' own"
COMMON: dict[str, tuple[Values, Values]] = {
    NONE: (0.0, 1.0),
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
MOST_ORDERS = 1_000_000  # of classes, to find those that the data lack
WRONG = 1.0  # difference of the cross-entropy that is no chance
CHANCE = 2.0  # standard errors of such a difference that may be one


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
    if "size" in open_to and not data.arguments.get("transforms") and _fault(ann, shape):
        side = _side(ann, shape)
        found |= {} if side is None else {"size": side}
    return found


@torch.no_grad()
def check_shape(ann: nn.Module, data: ImageData, name: str) -> None:
    """Raises RecipeError if a network cannot read the images, with the side that it reads if that is a usual one.

    Args:
        ann: in evaluation mode.
        data: as they are given to it.
        name: of the network.
    """
    shape = data.input_shape
    fault = _fault(ann, shape)
    if fault:
        side = _side(ann, shape)
        remedy = f". It reads {shape[0]}x{side}x{side}: leave data.size out, or set data.size={side}" if side is not None else ""
        raise RecipeError(
            f"ann: {name} cannot read the images of data: {type(data).__name__}, which are {'x'.join(map(str, shape))}: "
            f"{fault}{remedy}"
        )


def _fault(ann: nn.Module, shape: tuple[int, ...]) -> str:
    """Why a network cannot read an image of this shape; empty where it can."""
    try:
        ann(torch.zeros(1, *shape))
    except Exception as error:  # a forward may raise anything
        return str(error) or type(error).__name__
    return ""


def _side(ann: nn.Module, shape: tuple[int, ...]) -> int | None:
    """The first usual side of square images that a network reads."""
    return next((side for side in SIDES if not _fault(ann, (shape[0], side, side))), None)


@torch.no_grad()
def chosen_normalisation(ann: nn.Module, data: Component[Any], given: Mapping[str, Values]) -> tuple[dict[str, Values], str]:
    """Mean and std, and why in words.

    Args:
        ann: in evaluation mode.
        data: of images; its own mean and std are used only where one of them is given.
        given: mean, std or both, by the user; they are kept, and compared with the others.

    Returns:
        settings of the data set, and a text with the accuracy on training images, and a warning where the network predicts badly
        or its classes are in another order.
    """
    raw: ImageData = data.replace(mean=0.0, std=1.0).build()
    tried = candidates(raw)
    if given:
        own = data.build()
        tried = {"yours": (given.get("mean", own.mean), given.get("std", own.std)), **tried}
    pixels, labels = _images(raw, ann, len(tried))
    if OWN not in tried and len(pixels) > 1:
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
        tried[OWN] = (_rounded(mean), _rounded(std))
    fits = {name: _fit(ann, (pixels - _channels(mean)) / _channels(std), labels) for name, (mean, std) in tried.items()}
    best = _best(fits)
    chosen = "yours" if given else best
    if fits[chosen].loss != fits[chosen].loss:  # another number of outputs than classes: the recipe's check says so
        return dict(given), "not tried, since the network's outputs are not the data's classes"
    text = f"{_values(*tried[chosen])} ({_called(chosen, pixels)}, cross-entropy {fits[chosen].loss:.3g}): "
    text += f"{fits[chosen].correct:.0f} % of {len(labels)} training images are predicted correctly"
    others = [
        f"{_called(name, pixels)} {fits[name].correct:.0f} % ({fits[name].loss:.3g})"
        for name in sorted(fits, key=lambda n: fits[n].loss)
        if name != chosen
    ]
    text += f"; tried too, by cross-entropy: {', '.join(others[:3])}" if others else ""
    text += "; the images' own are better by chance at most" if OWN in fits and fits[best].loss > fits[OWN].loss else ""
    another = better_order(fits[chosen].scores, labels, raw.class_names())
    doubt = f". WARNING: {another}" if another else _doubt(
        fits[chosen].loss - fits[best].loss, fits[chosen].correct, raw.classes, f"{best}: {_values(*tried[best])}"
    )  # fmt: skip
    return dict(zip(NORMALISATION, tried[chosen], strict=True)), text + doubt


@torch.no_grad()
def unfitting_classes(ann: nn.Module, data: Component[Any], outputs: int) -> str:
    """Which classes the data lack that a network of more outputs has, in words; empty where that cannot be told.

    Args:
        ann: in evaluation mode.
        data: of images, normalised as they will be or as their default is.
        outputs: of the network.
    """
    raw: ImageData = data.replace(mean=0.0, std=1.0).build()
    if not raw.classes < outputs or raw.classes * (outputs - raw.classes) ** 2 > MOST_ORDERS:
        return ""
    tried = {**candidates(raw), "own": (data.build().mean, data.build().std)}
    pixels, labels = _images(raw, ann, len(tried))
    fits = {name: _fit(ann, (pixels - _channels(mean)) / _channels(std), labels) for name, (mean, std) in tried.items()}
    return max(missing_classes(fit.scores, labels, raw.class_names()) for fit in fits.values())[1]


@dataclass(frozen=True)
class _Fit:
    """Of some images: scores (N, K), cross-entropies (N,), not a number where there are none, and percent correct."""

    scores: Tensor
    losses: Tensor
    correct: float

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        mean = float(self.losses.mean())
        return 1e9 if abs(mean) == float("inf") else mean


def _best(fits: Mapping[str, _Fit]) -> str:
    """The smallest cross-entropy; a common normalisation before the images' own, if these are better by chance at most."""
    best = min(fits, key=lambda name: fits[name].loss)
    common = min((name for name in fits if name != OWN), key=lambda name: fits[name].loss)
    if best == OWN:
        gained = fits[common].losses - fits[OWN].losses
        if float(gained.mean()) <= CHANCE * float(gained.std()) / len(gained) ** 0.5:
            return common
    return best


def _called(name: str, pixels: Tensor) -> str:
    """The name of a normalisation; of none what it leaves, since a data set may have normalised the images itself."""
    low, high = float(pixels.min()), float(pixels.max())
    return name if name != NONE or (low >= 0 and high <= 1) else f"none; the data give numbers from {low:.3g} to {high:.3g}"


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


def _fit(ann: nn.Module, x: Tensor, labels: Tensor) -> _Fit:
    """How the network predicts the images."""
    like = next(ann.parameters(), x)
    scores = ann(x.to(like.dtype) if like.is_floating_point() else x)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or int(labels.max()) >= scores.shape[1]:
        return _Fit(torch.zeros(len(labels), 1), torch.full((len(labels),), float("nan")), 0.0)
    losses = F.cross_entropy(scores.float(), labels, reduction="none").nan_to_num(nan=float("inf"))
    return _Fit(scores.float(), losses, 100 * float((scores.argmax(1) == labels).float().mean()))


def _channels(value: Values) -> Tensor:
    return torch.tensor(value if isinstance(value, list) else [value]).view(-1, 1, 1)


def _rounded(values: Tensor) -> Values:
    found = [round(float(v), 4) for v in values]
    return found if len(found) > 1 else found[0]


def _values(mean: Values, std: Values) -> str:
    return f"mean {_shown(mean)}, std {_shown(std)}"


def _shown(value: Values) -> str:
    return ",".join(f"{v:.4g}" for v in (value if isinstance(value, list) else [value]))
