"""Event cameras and cochleas: what events are, how they become frames, how they are varied, and the sets' published layouts."""

from spikeprop.data.events.base import EventData, EventSplit
from spikeprop.data.events.binning import Binning
from spikeprop.data.events.sets import CIFAR10DVS, NMNIST, SHD, SSC, DVSGesture
from spikeprop.data.events.stream import Events
from spikeprop.data.events.tonic_sets import TonicData

__all__ = ["CIFAR10DVS", "NMNIST", "SHD", "SSC", "Binning", "DVSGesture", "EventData", "EventSplit", "Events", "TonicData"]
