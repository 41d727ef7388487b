"""Oracles that know the PMD of the link: what is lost when it has to be learned.

``digital`` is the exact inverse of the noiseless link, step by step. ``informed`` is a learned receiver without PMD parameters,
after whose dispersion filters the sections that lie in the step are undone exactly.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.blocks import SIMULATED, Link
from spikeprop.plugins.ldbp_pmd.fir import fir
from spikeprop.plugins.ldbp_pmd.kerr import rotate_and_turn
from spikeprop.plugins.ldbp_pmd.link import Sections, angular, invert, mix
from spikeprop.plugins.ldbp_pmd.receiver import LearnedReceiver


def digital(samples: Tensor, link: Link, sections: Sections) -> Tensor:
    """Digital backpropagation with all steps of the simulation and known PMD: (B, 2, 2 K) samples to samples."""
    rate = link.signal.receiver_rate
    return torch.cat([invert(part, link.fibre, link.edges(), rate, sections) for part in samples.split(SIMULATED)])


def informed(receiver: LearnedReceiver, samples: Tensor, link: Link, sections: Sections) -> Tensor:
    """The receiver's steps, each with the inverse of the PMD sections of its length: (B, 2, 2 K) samples to samples."""
    omega = angular(samples, link.signal.receiver_rate)
    steps = len(receiver.kerr) // link.fibre.spans
    with torch.no_grad():
        for i, taps in enumerate(receiver.taps()):
            span, step = divmod(len(receiver.kerr) - 1 - i, steps)
            first, end = _inside(link, span, step, steps)
            samples = fir(samples, taps)
            if end > first:
                undone = sections.between(first, end).jones(omega).mH.permute(1, 2, 0).to(samples)
                samples = torch.fft.ifft(mix(undone, torch.fft.fft(samples)))
            samples = rotate_and_turn(samples, receiver.kerr[i])
    return samples


def _inside(link: Link, span: int, step: int, steps: int) -> tuple[int, int]:
    """The first and one past the last section whose middle lies in a step of a span, both counted from the transmitter."""
    middles = [(a + b) / 2 for a, b in pairwise(link.edges())]
    low, high = (link.fibre.span * k / steps for k in (step, step + 1))
    before = span * len(middles)
    return before + sum(m < low for m in middles), before + sum(m < high for m in middles)
