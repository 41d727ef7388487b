"""``RLIF``: leaky integrate-and-fire neurons that read their own spikes of the step before, all to all.

u[t] = leak v[t-1] + I[t] + W o[t-1]
"""

from __future__ import annotations

from typing import Any

from torch import nn

from spikeprop.snn.in_place import Recurrent
from spikeprop.snn.neuron import LIF


class RLIF(Recurrent):
    """``Recurrent(LIF(**settings), nn.Linear(n, n, bias=False))``, in a module that ``spikeprop.spiking`` reads.

    Args:
        n: neurons, of a vector.
        **settings: as of ``LIF``.
    """

    def __init__(self, n: int, **settings: Any):
        super().__init__(LIF(**settings), nn.Linear(n, n, bias=False))
