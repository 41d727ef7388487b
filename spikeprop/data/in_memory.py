"""Data sets that fit in memory: scikit-learn's digits; MNIST, Fashion-MNIST and CIFAR as torchvision lays them out."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from spikeprop.data.base import Flip, ImageData, InMemorySplit, Padding, limited
from spikeprop.data.cifar_pickles import read_batch
from spikeprop.errors import MissingDataError


@dataclass(frozen=True, kw_only=True)
class InMemoryData(ImageData):
    """Base of the data sets below, which only implement how to read a split.

    Attributes:
        padding: of ``crop``: "zero", or "reflect" for the image's own pixels.
        cutout: side in pixels of a square around a random pixel that training sets to the normalised images' zero (DeVries &
            Taylor 2017, arXiv:1708.04552); 0 for none.
    """

    padding: Padding = "zero"
    cutout: int = 0

    scale: ClassVar[float] = 255.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cutout < 0:
            raise ValueError(f"cutout is {self.cutout}; use 0 for none")
        if self.padding == "reflect" and self.crop >= min(self.input_shape[1:]):
            raise ValueError(f"crop is {self.crop}; images of {self.input_shape[1:]} can reflect fewer pixels than they have")

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) uint8 and labels (N,) int64 of a split."""

    def train(self, batch_size: int, seed: int) -> InMemorySplit:
        images, labels = limited(*self.read(True), self.train_limit)
        return InMemorySplit(
            images, labels, batch_size, self.mean, self.std, self.scale, seed=seed,
            crop=self.crop, flip=self.flip, padding=self.padding, cutout=self.cutout,
        )  # fmt: skip

    def test(self, batch_size: int) -> InMemorySplit:
        images, labels = limited(*self.read(False), self.test_limit)
        return InMemorySplit(images, labels, batch_size, self.mean, self.std, self.scale)


@dataclass(frozen=True, kw_only=True)
class Digits(InMemoryData):
    """The 1,797 handwritten 8x8 digits of scikit-learn (UCI "optdigits"); every fifth image is a test image."""

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
class _TorchvisionData(InMemoryData):
    """A data set that torchvision reads.

    Attributes:
        download: whether torchvision may download the files.
    """

    download: bool = False
    files: ClassVar[str]

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        folder, name = self.folder(), type(self).__name__
        try:
            images, labels = self.read_files(folder, train)
            if images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape or len(images) != len(labels):
                raise ValueError(f"images of shape {tuple(images.shape)} and {len(labels)} labels")
            if not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                raise ValueError(f"a label beyond {self.classes - 1}")
        except Exception as error:
            raise MissingDataError(
                f"{name}: cannot read {self.files} under {folder} ({type(error).__name__}: {error}). The files are missing, "
                "truncated or damaged. Copy them there, point data.root or SPIKEPROP_DATA at them, or add data.download=true to "
                "the command, and they are downloaded"
            ) from error
        return images, labels

    def read_files(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Images and labels of a split, as torchvision reads them."""
        from torchvision import datasets

        dataset = getattr(datasets, type(self).__name__)(root=str(folder), train=train, download=self.download)
        return torch.as_tensor(dataset.data).unsqueeze(1), torch.as_tensor(dataset.targets).long()


@dataclass(frozen=True, kw_only=True)
class _CIFAR(_TorchvisionData):
    """CIFAR's files are pickles: torchvision gives their names and hashes, ``read_batch`` reads them."""

    label: ClassVar[str]

    def read_files(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets
        from torchvision.datasets.utils import download_and_extract_archive

        official = getattr(datasets, type(self).__name__)
        files = official.train_list if train else official.test_list
        if self.download and not all((folder / official.base_folder / name).is_file() for name, _ in files):
            download_and_extract_archive(official.url, str(folder), filename=official.filename, md5=official.tgz_md5)
        parts = [read_batch(folder / official.base_folder / name, md5, self.label, self.classes) for name, md5 in files]
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


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
class CIFAR10(_CIFAR):
    """CIFAR-10, 50,000 + 10,000 images of 3x32x32; normalised to [-1, 1] so that Poisson coding does not saturate."""

    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    crop: int = 4
    flip: Flip = True
    input_shape: ClassVar = (3, 32, 32)
    classes: ClassVar = 10
    names: ClassVar = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    files: ClassVar = "cifar-10-batches-py/{data_batch_1..5,test_batch}"
    label: ClassVar = "labels"


@dataclass(frozen=True, kw_only=True)
class CIFAR100(_CIFAR):
    """CIFAR-100, 50,000 + 10,000 images of 3x32x32; normalised to [-1, 1]."""

    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    crop: int = 4
    flip: Flip = True
    input_shape: ClassVar = (3, 32, 32)
    classes: ClassVar = 100
    files: ClassVar = "cifar-100-python/{train,test}"
    label: ClassVar = "fine_labels"
