"""Interlocking backpropagation (Gomez et al. 2022): each segment of a network learns from the losses a few segments ahead of it.

With K segments and a reach of n, the parameters of segment i follow the mean, the sum or the last of the losses l_i .. l_t(i),
t(i) = min(i + n - 1, K - 1), where l_j is the loss of segment j's auxiliary head (of the last segment: the network's own loss).
n = 1 is local learning; without limit it is backpropagation. Source: "Interlocking backpropagation: improving depthwise
model-parallelism", JMLR 23(171).

``Interlocking`` fills the slot ``rule`` of training (``LearningRule``); ``AuxiliaryHead`` is the slot of its heads.
``SegmentProcess`` runs one segment per process. Experiments: the recipes cifar10_resnet32_interlocking and
python_transformer_interlocking.
"""

from spikeprop.plugins.interlocking.heads import AuxiliaryHead, ConvHead, PooledHead, TokenHead
from spikeprop.plugins.interlocking.language import CharTransformer, PythonSource
from spikeprop.plugins.interlocking.networks import BasicResNet
from spikeprop.plugins.interlocking.parallel import SegmentProcess
from spikeprop.plugins.interlocking.rule import Interlocking
from spikeprop.plugins.interlocking.work import reach_of

__all__ = [
    "AuxiliaryHead",
    "BasicResNet",
    "CharTransformer",
    "ConvHead",
    "Interlocking",
    "PooledHead",
    "PythonSource",
    "SegmentProcess",
    "TokenHead",
    "reach_of",
]
