"""ANNs that convert well: ``MLP``, ``CNN``, the paper's ``VGG`` and ``ResNet``, and torchvision's by name."""

from spikeprop.ann.cnn import CNN, VGG
from spikeprop.ann.mlp import MLP
from spikeprop.ann.resnet import ResNet
from spikeprop.ann.torchvision import TorchvisionModel

__all__ = ["CNN", "MLP", "VGG", "ResNet", "TorchvisionModel"]
