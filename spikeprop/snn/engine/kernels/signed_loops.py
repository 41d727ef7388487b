"""Numba loop of signed integrate-and-fire (``snn/signed.py``): one pass over the numbers of a step instead of ten.

Suffix legend: K steps, B batch, N neurons of a sample.
"""

from __future__ import annotations

from typing import Any

from numba import njit

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def scan(current_KBN, theta_N, v_BN, sent_BN, spikes_KBN, first, last):  # type: ignore[no-untyped-def]
    """Advance the samples first..last by K steps; ``v_BN`` and ``sent_BN`` are overwritten. One step may stand for all."""
    steps, neurons = spikes_KBN.shape[0], v_BN.shape[1]
    one, nothing = v_BN.dtype.type(1), v_BN.dtype.type(0)
    for k in range(steps):
        source = k if current_KBN.shape[0] > 1 else 0
        for b in range(first, last):
            current_N, v_N, sent_N, spikes_N = current_KBN[source, b], v_BN[b], sent_BN[b], spikes_KBN[k, b]
            for n in range(neurons):
                u, sent, theta = v_N[n] + current_N[n], sent_N[n], theta_N[n]
                out = one if u > theta else (-one if (u < nothing and sent > nothing) else nothing)
                spikes_N[n] = out
                sent_N[n] = sent + out
                v_N[n] = u - out * theta
