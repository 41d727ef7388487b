"""Chips as data: what each can hold and compute, and where each number is published; whether a network fits, before training.

``target("speck")`` finds a chip by its name; ``fits(graph, target)`` lists everything that stands between a network and it.
"""

from spikeprop_hardware.targets.generic import Generic
from spikeprop_hardware.targets.loihi import Loihi1, Loihi2
from spikeprop_hardware.targets.names import TARGETS, target
from spikeprop_hardware.targets.speck import Speck
from spikeprop_hardware.targets.target import Joules, Target
from spikeprop_hardware.targets.xylo import Xylo

__all__ = ["TARGETS", "Generic", "Joules", "Loihi1", "Loihi2", "Speck", "Target", "Xylo", "target"]
