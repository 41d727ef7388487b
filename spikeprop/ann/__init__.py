"""ANNs that convert well: ``MLP``, ``CNN``, the paper's ``VGG`` and ``ResNet``, ``CIFARResNet``, ``UNet``, torchvision's."""

from spikeprop.ann.cifar_resnet import CIFARResNet
from spikeprop.ann.cnn import CNN, VGG
from spikeprop.ann.mlp import MLP
from spikeprop.ann.resnet import ResNet
from spikeprop.ann.torchvision import TorchvisionModel
from spikeprop.ann.unet import UNet

__all__ = ["CNN", "MLP", "VGG", "CIFARResNet", "ResNet", "TorchvisionModel", "UNet"]
