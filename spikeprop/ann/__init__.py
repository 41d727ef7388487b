"""ANNs that convert: ``MLP``, ``CNN``, ``VGG``, ``FastCNN``, ``ResNet``, ``CIFARResNet``, ``UNet``, ``ViT``; torchvision's
and timm's by name; ONNX's; your own with ``weights`` as people save them.

``SpikingCNN`` and ``SpikingMLP`` have neurons in place of ReLU, for training from scratch.
"""

from spikeprop.ann.cifar_resnet import CIFARResNet
from spikeprop.ann.cnn import CNN, VGG
from spikeprop.ann.fast_cnn import FastCNN
from spikeprop.ann.mlp import MLP
from spikeprop.ann.onnx import OnnxModel
from spikeprop.ann.own import adapt, expand
from spikeprop.ann.resnet import ResNet
from spikeprop.ann.spiking import SpikingCNN, SpikingMLP
from spikeprop.ann.timm import TimmModel
from spikeprop.ann.torchvision import TorchvisionModel
from spikeprop.ann.unet import UNet
from spikeprop.ann.vit import ViT
from spikeprop.ann.weights import load_weights, read_weights

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
    "TimmModel",
    "TorchvisionModel",
    "UNet",
    "ViT",
    "adapt",
    "expand",
    "load_weights",
    "read_weights",
]
