"""``TensorData``: images and labels that are already arrays, in files .npz, .npy, .pt or .safetensors, read within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spikeprop.data.base import ImageData, InMemorySplit, limited
from spikeprop.data.sequences import npz_names, read_npz
from spikeprop.errors import MissingDataError
from spikeprop.runtime.files import read_tensors
from spikeprop.runtime.places import nearest_path
from spikeprop.runtime.torch_files import Inert, read_torch

TEST_NAMES = (("x_test", "y_test"), ("test_images", "test_labels"), ("test_x", "test_y"), ("X_test", "y_test"))
NAMES = (
    ("x_train", "y_train"), ("train_images", "train_labels"), ("train_x", "train_y"), ("X_train", "y_train"),
    ("images", "labels"), ("images", "targets"), ("x", "y"), ("X", "y"), ("data", "targets"), ("data", "labels"),
    ("data", "target"), ("arr_0", "arr_1"),
)  # fmt: skip
COLOURS = (1, 3, 4)  # sizes of a dimension of channels
Pair = tuple[Tensor, Tensor]
Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class TensorData(ImageData):
    """Images (N, H, W), (N, C, H, W) or (N, H, W, C), and labels (N,) of integers.

    Bytes are divided by 255; numbers with a point are used as they are, unless ``scale`` is given.

    Attributes:
        train_file: .npz, .npy, .pt or .safetensors; a path, or its name in ``root``.
        test_file: another one with the test images; without it ``x_test`` and ``y_test`` of ``train_file``, or every
            ``holdout``-th image of a class.
        train_labels, test_labels: files of the labels, where images and labels are two files.
        images, labels: names of the arrays in a file; default the usual ones (images, labels; x, y; x_train, y_train; ...). Where
            they have "train" in them, the test examples of the same file have the same names with "test".
        layout: "NCHW" or "NHWC"; "auto" where the sizes say which it is.
        scale: images are divided by it; null for 255 with bytes, and 1 otherwise.
        holdout: see ``test_file``.
        names: of the classes; default their numbers.
    """

    train_file: str = "train.npz"
    test_file: str | None = None
    train_labels: str | None = None
    test_labels: str | None = None
    images: str | None = None
    labels: str | None = None
    layout: Literal["auto", "NCHW", "NHWC"] = "auto"
    scale: float | None = None
    holdout: int = 5
    names: list[str] = field(default_factory=list)  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; images are divided by it, so it must be positive")
        if self.holdout < 2:
            raise ValueError(f"holdout is {self.holdout}; every so many-th image is a test image: at least 2")
        if self.test_labels is not None and self.test_file is None:
            raise ValueError("test_labels belong to the images of test_file: give it too")

    @property
    def input_shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(self._parts[0][0].shape[1:])  # type: ignore[return-value]

    @property
    def classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.names) or 1 + max(int(labels.max()) for _, labels in self._parts)

    def found(self) -> dict[str, Any]:
        return {"names": self.class_names()}

    def train(self, batch_size: int, seed: int) -> InMemorySplit:
        images, labels = limited(*self._parts[0], self.train_limit)
        scale = self._scale(images)
        return InMemorySplit(images, labels, batch_size, self.mean, self.std, scale, seed=seed, crop=self.crop, flip=self.flip)

    def test(self, batch_size: int) -> InMemorySplit:
        images, labels = limited(*self._parts[1], self.test_limit)
        return InMemorySplit(images, labels, batch_size, self.mean, self.std, self._scale(images))

    @property
    def divisor(self) -> float:
        """What images are divided by."""
        return self._scale(self._parts[0][0])

    def _scale(self, images: Tensor) -> float:
        return self.scale or (255.0 if images.dtype == torch.uint8 else 1.0)

    @cached_property
    def _parts(self) -> tuple[Pair, Pair]:
        """Training and test images with their labels."""
        path = self._path("train_file")
        content = self._content(path)
        train, in_file = self._pair(path, content, "train_labels", self._pairs(NAMES)), self._test_pairs()
        if self.test_file is not None:
            path = self._path("test_file")
            content = self._content(path)
            test = self._pair(path, content, "test_labels", self._pairs((*TEST_NAMES, *NAMES)))
        elif any(x in content and y in content for x, y in in_file):
            test = self._pair(path, content, None, in_file)
        else:
            held = _held_out(train[1], self.holdout)
            train, test = (train[0][~held], train[1][~held]), (train[0][held], train[1][held])
        if train[0].shape[1:] != test[0].shape[1:] or not len(train[1]):
            raise MissingDataError(
                f"TensorData: {len(train[1])} training images are {tuple(train[0].shape[1:])}, and test images "
                f"{tuple(test[0].shape[1:])}: give at least two, of one shape"
            )
        if train[0].dtype != test[0].dtype and self.scale is None:
            raise MissingDataError(
                f"TensorData: training images are {train[0].dtype} and test images {test[0].dtype}, so they are divided by "
                "different numbers; write both in one type, or set data.scale to their largest value"
            )
        top = max(int(train[1].max()), int(test[1].max()))
        if self.names and top >= len(self.names):
            raise MissingDataError(f"TensorData: a label is {top}, and data.names has {len(self.names)} classes")
        return train, test

    def _path(self, key: str) -> Path:
        """The file of a setting."""
        name = getattr(self, key)
        own = [Path(self.root).expanduser() / name] if self.root else []
        for path in (*own, Path(name).expanduser(), self.folder() / name):
            if path.is_file():
                return path
        missing = own[0] if own else name
        raise MissingDataError(f"TensorData: there is no file {missing}; set data.{key} or data.root{nearest_path(missing)}")

    def _pairs(self, usual: Names) -> Names:
        """Names of images and labels to look for: those that are given, and the usual ones of what is not."""
        partners = sorted(usual, key=lambda pair: pair[0] != self.images and pair[1] != self.labels)
        return tuple(dict.fromkeys((self.images or x, self.labels or y) for x, y in partners))

    def _test_pairs(self) -> Names:
        """The same of test examples in the file of the training examples."""
        given = [name for name in (self.images, self.labels) if name]
        if any("train" not in name for name in given):
            return ()  # what these are called in testing is not known
        images, labels = ((name or "").replace("train", "test") for name in (self.images, self.labels))
        return tuple(dict.fromkeys((images or x, labels or y) for x, y in TEST_NAMES))

    def _pair(self, path: Path, content: dict[str, Tensor], labels: str | None, pairs: Names) -> Pair:
        """Images and labels of a file, or labels of the file of the setting ``labels``, where that is given."""
        if labels is not None and getattr(self, labels) is not None:
            y_path = self._path(labels)
            named = self._content(y_path)
            x = content.get(self.images or next((x for x, _ in pairs if x in content), next(iter(content))))
            y = named.get(self.labels or next((y for _, y in pairs if y in named), next(iter(named))))
        else:
            x_name, y_name = next(((x, y) for x, y in pairs if x in content and y in content), ("", ""))
            x, y, y_path = content.get(x_name), content.get(y_name), path
        if x is None or y is None:
            raise MissingDataError(
                f"{path} has the arrays {', '.join(content)[:200]}; set data.images and data.labels to their names, or "
                "data.train_labels to the file of the labels"
            )
        return _images(path, x, self.layout, self.scale), _labels(y_path, y, len(x))

    def _content(self, path: Path) -> dict[str, Tensor]:
        """The arrays in a file, by name; of an .npz file those that have one of the usual names, or the name that was given."""
        if path.suffix != ".npz":
            return _content(path)
        usual = {name for pair in (*NAMES, *TEST_NAMES, *self._test_pairs()) for name in pair} | {self.images, self.labels}
        present = npz_names(path)
        names = [name for name in present if name in usual or len(present) == 1]
        if not names:
            raise MissingDataError(
                f"{path} has the arrays {', '.join(present)[:200]}; set data.images and data.labels to their names"
            )
        return {name: torch.from_numpy(array) for name, array in zip(names, read_npz(path, names), strict=True)}


def _held_out(labels: Tensor, every: int) -> Tensor:
    """Which examples (N,) are for testing: every so many-th of each class, from the first on."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        held[torch.nonzero(labels == label).flatten()[::every]] = True
    return held


def _content(path: Path) -> dict[str, Tensor]:
    """The arrays in a file, by name."""
    try:
        if path.suffix == ".npy":
            return {"x": torch.from_numpy(np.load(path, mmap_mode="r", allow_pickle=False).copy())}
        found = read_tensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)
    except (OSError, ValueError, TypeError) as error:
        raise MissingDataError(f"{path} is damaged, or has more than arrays of numbers ({error}); write it again") from error
    if isinstance(found, Inert) and isinstance(found.state, dict):  # a TensorDataset
        found = found.state.get("tensors")
    if isinstance(found, Tensor):
        found = {"x": found}
    if isinstance(found, tuple | list) and len(found) == 2:
        found = dict(zip(("x", "y"), found, strict=True))
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        raise MissingDataError(f"{path} has no tensors of images and labels; save a dictionary of both: images, labels")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _images(path: Path, images: Tensor, layout: str, scale: float | None) -> Tensor:
    """Images (N, C, H, W), of bytes or finite numbers."""
    shape = tuple(images.shape)
    if images.dim() not in (3, 4) or not images.numel():
        raise MissingDataError(f"{path}: images have shape {shape}; give (N, H, W), (N, C, H, W) or (N, H, W, C)")
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif layout == "auto":
        if (shape[1] in COLOURS) == (shape[3] in COLOURS):
            raise MissingDataError(f"{path}: images have shape {shape}; set data.layout to NCHW or NHWC")
        layout = "NCHW" if shape[1] in COLOURS else "NHWC"
    images = images.permute(0, 3, 1, 2).contiguous() if layout == "NHWC" and len(shape) == 4 else images
    if images.dtype in (torch.uint8, torch.bool):
        return images.to(torch.uint8) if images.dtype == torch.uint8 else images.float()
    if not images.is_floating_point():
        if scale is None:
            raise MissingDataError(f"{path}: images are {images.dtype}; set data.scale to their largest value")
        return images.float()
    if not bool(images.isfinite().all()):
        raise MissingDataError(f"{path}: images have values that are not finite; write it again without them")
    return images.float()


def _labels(path: Path, labels: Tensor, count: int) -> Tensor:
    """Labels (N,) int64, not negative."""
    labels = labels.squeeze(1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex() or int(labels.min()) < 0:
        raise MissingDataError(
            f"{path}: labels are {labels.dtype} of shape {tuple(labels.shape)}; give integers, a class from 0 on for each of "
            f"{count} images"
        )
    return labels.long()
