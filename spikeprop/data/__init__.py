"""Data sets on local disk: Digits (part of scikit-learn), MNIST, FashionMNIST, CIFAR10, CIFAR100, ImageNet, WebDataset; and, for
segmentation, DigitsOnPhotographs."""

from spikeprop.data.base import ImageData, InMemorySplit, LabelledData
from spikeprop.data.imagenet import FolderSplit, ImageNet
from spikeprop.data.in_memory import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
from spikeprop.data.segmentation import DigitsOnPhotographs
from spikeprop.data.webdataset import WebDataset
from spikeprop.runtime.batches import Split

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Digits",
    "DigitsOnPhotographs",
    "FashionMNIST",
    "FolderSplit",
    "ImageData",
    "ImageNet",
    "InMemorySplit",
    "LabelledData",
    "Split",
    "WebDataset",
]
