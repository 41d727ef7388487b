"""Interlocking backpropagation (Gomez et al. 2022): segments learn from the loss a few segments ahead, in one process or many."""

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
