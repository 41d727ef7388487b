"""``spikeprop explain``: one training step of any torch network as an offline page, every edge of its backward pass in numbers.

``trace_step`` records the step, ``page_data`` turns it into JSON, ``replay`` computes the gradients from that JSON alone.
"""

from spikeprop.plugins.explain.data import page_data
from spikeprop.plugins.explain.replay import replay
from spikeprop.plugins.explain.step import Step, Subject, trace_step

__all__ = ["Step", "Subject", "page_data", "replay", "trace_step"]
