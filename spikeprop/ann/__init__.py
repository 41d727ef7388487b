"""ANNs that convert: ``MLP``, ``CNN``, ``VGG``, ``FastCNN``, ``ResNet``, ``CIFARResNet``, ``UNet``, ``ViT``; torchvision's
by name; ONNX's.

``SpikingCNN`` and ``SpikingMLP`` have neurons in place of ReLU, for training from scratch.
"""

from spikeprop.ann.cifar_resnet import CIFARResNet
from spikeprop.ann.cnn import CNN, VGG
from spikeprop.ann.fast_cnn import FastCNN
from spikeprop.ann.mlp import MLP
from spikeprop.ann.onnx import OnnxModel
from spikeprop.ann.resnet import ResNet
from spikeprop.ann.spiking import SpikingCNN, SpikingMLP
from spikeprop.ann.torchvision import TorchvisionModel
from spikeprop.ann.unet import UNet
from spikeprop.ann.vit import ViT

__all__ = [
    "CNN",
    "MLP",
    "VGG",
    "CIFARResNet",
    "FastCNN",
    "OnnxModel",
    "ResNet",
    "SpikingCNN",
    "SpikingMLP",
    "TorchvisionModel",
    "UNet",
    "ViT",
]
