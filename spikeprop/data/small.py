"""Data sets that fit in memory: scikit-learn's digits; MNIST, Fashion-MNIST and CIFAR as torchvision lays them out."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spikeprop.data.base import ImageData, InMemorySplit, limited
from spikeprop.errors import MissingDataError


@dataclass(frozen=True, kw_only=True)
class _InMemoryData(ImageData):
    """Shared by the sets below: they only say how to read a split."""

    scale: ClassVar[float] = 255.0

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) uint8 and labels (N,) int64 of a split."""

    def train(self, batch_size: int, seed: int) -> InMemorySplit:
        images, labels = limited(*self.read(True), self.train_limit)
        return InMemorySplit(
            images, labels, batch_size, self.mean, self.std, self.scale, seed=seed, crop=self.crop, flip=self.flip
        )

    def test(self, batch_size: int) -> InMemorySplit:
        images, labels = limited(*self.read(False), self.test_limit)
        return InMemorySplit(images, labels, batch_size, self.mean, self.std, self.scale)


@dataclass(frozen=True, kw_only=True)
class Digits(_InMemoryData):
    """The 1,797 handwritten 8x8 digits that scikit-learn carries (UCI "optdigits"); every fifth image is a test image."""

    scale: ClassVar[float] = 16.0
    input_shape: ClassVar = (1, 8, 8)
    classes: ClassVar = 10

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        test = torch.arange(len(labels)) % 5 == 0
        chosen = ~test if train else test
        return images[chosen], labels[chosen]


@dataclass(frozen=True, kw_only=True)
class _TorchvisionData(_InMemoryData):
    """A set that torchvision reads.

    Attributes:
        download: let torchvision fetch the files; off unless asked for.
    """

    download: bool = False
    files: ClassVar[str]

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets

        folder, name = self.folder(), type(self).__name__
        try:
            dataset = getattr(datasets, name)(root=str(folder), train=train, download=self.download)
        except Exception as error:
            raise MissingDataError(
                f"{name}: cannot read {self.files} under {folder} ({type(error).__name__}: {error}). The files are missing, "
                "truncated or damaged. Copy them there, point data.root or SPIKEPROP_DATA at them, or let torchvision fetch "
                "them with data.download=true"
            ) from error
        images = torch.as_tensor(dataset.data)
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(dataset.targets).long()


@dataclass(frozen=True, kw_only=True)
class MNIST(_TorchvisionData):
    """MNIST, 60,000 + 10,000 images of 28x28."""

    input_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    files: ClassVar = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(_TorchvisionData):
    """Fashion-MNIST, 60,000 + 10,000 images of 28x28."""

    input_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    names: ClassVar = (
        "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip
    files: ClassVar = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"


@dataclass(frozen=True, kw_only=True)
class CIFAR10(_TorchvisionData):
    """CIFAR-10, 50,000 + 10,000 images of 3x32x32; normalised to [-1, 1] so that Poisson coding does not saturate."""

    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    crop: int = 4
    flip: bool = True
    input_shape: ClassVar = (3, 32, 32)
    classes: ClassVar = 10
    names: ClassVar = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    files: ClassVar = "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"


@dataclass(frozen=True, kw_only=True)
class CIFAR100(_TorchvisionData):
    """CIFAR-100, 50,000 + 10,000 images of 3x32x32; normalised to [-1, 1]."""

    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    crop: int = 4
    flip: bool = True
    input_shape: ClassVar = (3, 32, 32)
    classes: ClassVar = 100
    files: ClassVar = "cifar-100-python/{train,test,meta}"
