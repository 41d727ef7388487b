"""Data sets on local disk: Digits (part of scikit-learn), MNIST, FashionMNIST, CIFAR10, CIFAR100, ImageNet, WebDataset; your own
as ImageFolder, CSVLabels, TensorData, or any torch Dataset by its name; for segmentation, DigitsOnPhotographs; in time,
recordings of event cameras and cochleas, arrays of sequences, and speech."""

from spikeprop.data.base import ImageData, InMemorySplit, LabelledData
from spikeprop.data.events import CIFAR10DVS, NMNIST, SHD, SSC, DVSGesture, EventData, Events, TonicData
from spikeprop.data.image_folder import CSVLabels, ImageFolder
from spikeprop.data.imagenet import FolderSplit, ImageNet
from spikeprop.data.in_memory import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
from spikeprop.data.own import OwnDataset, adapt
from spikeprop.data.segmentation import DigitsOnPhotographs
from spikeprop.data.sequences import DatasetSplit, FrameData, SequenceData, SequenceSplit
from spikeprop.data.speech import SpeechCommands
from spikeprop.data.tensor_data import TensorData
from spikeprop.data.webdataset import WebDataset
from spikeprop.runtime.batches import Sequences, Split

__all__ = [
    "CIFAR10",
    "CIFAR10DVS",
    "CIFAR100",
    "MNIST",
    "NMNIST",
    "SHD",
    "SSC",
    "CSVLabels",
    "DVSGesture",
    "DatasetSplit",
    "Digits",
    "DigitsOnPhotographs",
    "EventData",
    "Events",
    "FashionMNIST",
    "FolderSplit",
    "FrameData",
    "ImageData",
    "ImageFolder",
    "ImageNet",
    "InMemorySplit",
    "LabelledData",
    "OwnDataset",
    "SequenceData",
    "SequenceSplit",
    "Sequences",
    "SpeechCommands",
    "Split",
    "TensorData",
    "TonicData",
    "WebDataset",
    "adapt",
]
