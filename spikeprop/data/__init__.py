"""Data sets on local disk: Digits (part of scikit-learn), MNIST, FashionMNIST, CIFAR10, CIFAR100, ImageNet, WebDataset."""

from spikeprop.data.base import ImageData, InMemorySplit, LabelledData
from spikeprop.data.imagenet import FolderSplit, ImageNet
from spikeprop.data.shards import WebDataset
from spikeprop.data.small import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
from spikeprop.runtime.batches import Split

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Digits",
    "FashionMNIST",
    "FolderSplit",
    "ImageData",
    "ImageNet",
    "InMemorySplit",
    "LabelledData",
    "Split",
    "WebDataset",
]
