"""What a receiver's symbols are worth in bits: generalised mutual information (GMI) and bit error rate (BER) of Gray-coded QAM.

Each axis of square QAM is amplitude-shift keying with s levels and log2 s Gray-coded bits. After the carrier's phase the best
real scale h is removed, and the residual of variance v per axis is taken as Gaussian and white, so that with q(y | x) =
exp(-(y - x)^2 / 2 v) and X_b the levels whose k-th bit is b,

    GMI = sum over axes and bits k of (1 + mean log2 (sum_{x in X_b} q(y | x) / sum_x q(y | x))),   b the bit that was sent,

the rate of bit-metric decoding (Alvarado et al. 2018, J. Lightwave Technol. 36(2)). BER is that of the nearest level.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.signals import Signal, aligned

LEAST = 1e-20  # variance where there is no error, so that nothing is divided by zero


def quality(signal: Signal, symbols: Tensor, detected: Tensor) -> dict[str, Any]:
    """Effective SNR in dB and, of QAM, "gmi" in bit per symbol and polarisation, and "errors" of "bits".

    Args:
        signal: modulation, and the window of the carrier phase.
        symbols, detected: (B, P, K).

    """
    found: dict[str, Any] = {"snr": signal.snr(symbols, detected)}
    if signal.modulation == "gaussian":
        return found
    side = signal.side
    sent, seen = (_axes(x).double() for x in (symbols, aligned(symbols, detected, signal.phase_window)))
    seen = seen / ((sent @ seen) / (sent @ sent))
    variance = max(float((seen - sent).square().mean()), LEAST)
    levels = (2 * torch.arange(side, dtype=torch.float64) - (side - 1)) / signal.scale
    codes = torch.arange(side) ^ (torch.arange(side) >> 1)
    there, here = (_nearest(x, levels) for x in (sent, seen))
    likelihood = -(seen[:, None] - levels).square() / (2 * variance)
    gmi, count = 0.0, side.bit_length() - 1
    for k in range(count):
        bits = (codes >> k) & 1
        same = bits == bits[there][:, None]
        right = likelihood.masked_fill(~same, -math.inf).logsumexp(1)
        gmi += 2 * (1 + float((right - likelihood.logsumexp(1)).mean()) / math.log(2))
    wrong = codes[there] ^ codes[here]
    errors = sum(int(((wrong >> k) & 1).sum()) for k in range(count))
    return found | {"gmi": gmi, "errors": errors, "bits": len(sent) * count}


def _axes(symbols: Tensor) -> Tensor:
    return torch.view_as_real(symbols.resolve_conj()).flatten()


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
