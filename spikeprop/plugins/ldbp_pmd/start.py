"""A start for the distributed compensation of PMD that does not fail: its linear response is that of the lumped equaliser.

Trainings from random rotations with DGD filters without effect end at SNRs that differ by up to 2 dB, because they find the flat
rotation of the link late. The least-squares 2x2 equaliser H(w) after digital backpropagation is a linear problem with one
solution. Its unitary part is what all PMD steps together should do to a weak signal, so the rotations (random at first, which
gives the steps' delays many axes) and the DGD filters are fitted to it:

    min  mean_w min_phi |R_M D_M(w) ... R_1 D_1(w) - exp(j phi) U(w)|^2 / 4,  D_i = diag(d_i, conj d_i),  H = U P (polar),

with two small terms: |d_i|^2 near 1 at all frequencies, so that noise out of band is not amplified, and d_i near a delta, so
that all steps share the delay; that is where PMD most probably occurred, given its total. Nothing but the training symbols is
used. The training on the samples then moves the delays to where they occur in the fibre. Our own construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.baselines import least_squares
from spikeprop.plugins.ldbp_pmd.blocks import Blocks
from spikeprop.plugins.ldbp_pmd.link import product
from spikeprop.plugins.ldbp_pmd.receiver import LearnedReceiver
from spikeprop.plugins.ldbp_pmd.signals import Signal
from spikeprop.plugins.ldbp_pmd.training import processed, snr_of

FREQUENCIES = 48  # in the band of the signal
MOST = 150  # iterations of L-BFGS
SHORT = 1e-3  # weight of the squared distance of the DGD filters to a delta


def best_start(receivers: Sequence[LearnedReceiver], signal: Signal, train: Blocks, taps: int) -> LearnedReceiver:
    """Start every one of ``receivers`` by its least-squares equaliser with ``taps`` taps; the one with the least error on the
    training blocks."""
    for receiver in receivers:
        fit_to_equalizer(receiver, solved(receiver, signal, train, taps), signal.band)
    return max(receivers, key=lambda receiver: snr_of(receiver, signal, train))


def solved(receiver: LearnedReceiver, signal: Signal, train: Blocks, taps: int) -> Tensor:
    """Weights (2, 2 * taps) of the least-squares equaliser after the receiver."""
    return least_squares(signal.matched(processed(receiver, train.samples), train.power), train.symbols, taps)


def fit_to_equalizer(receiver: LearnedReceiver, weights: Tensor, band: float) -> float:
    """Fit rotations and DGD filters of ``receiver`` in place, from their present values.

    Args:
        receiver: with PMD parameters.
        weights: (2, 2 * taps) of an equaliser that follows this receiver, see ``baselines.least_squares``.
        band: edge of the signal's band, rad per sample at the receiver.

    Returns:
        The root mean square error of an entry of the response.

    """
    w, everywhere = (torch.linspace(-edge, edge, FREQUENCIES, dtype=torch.float64) for edge in (band, math.pi))
    fitted = [p.detach().double().requires_grad_() for p in receiver.pmd_parameters()]
    delta = torch.zeros_like(fitted[0]).detach().index_fill(1, torch.tensor(fitted[0].shape[1] // 2), 1.0)
    with torch.no_grad():
        u, _, v = torch.linalg.svd(_equalizer_response(weights, w) @ pmd_response(fitted[0], fitted[1], w))
        wanted = u @ v
    optimizer = torch.optim.LBFGS(fitted, max_iter=MOST, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def distance() -> Tensor:
        found = pmd_response(fitted[0], fitted[1], w)
        overlap = (wanted.conj() * found).sum((-2, -1)).abs()
        return (found.abs().square().sum((-2, -1)) + 2 - 2 * overlap).mean() / 4

    def loss() -> Tensor:
        optimizer.zero_grad()
        gain = filter_response(fitted[0], everywhere).abs().square()
        total = distance() + (gain - 1).square().mean(1).sum() + SHORT * (fitted[0] - delta).square().sum()
        total.backward()
        return total

    optimizer.step(loss)  # pyright: ignore
    for own, value in zip(receiver.pmd_parameters(), fitted):
        own.data = value.detach().to(own)
    with torch.no_grad():
        return math.sqrt(max(0.0, float(distance())))


def pmd_response(dgd: Tensor, rotation: Tensor, w: Tensor) -> Tensor:
    """Product (F, 2, 2) of all rotations and DGD filters of a receiver at frequencies (F,), rad per sample."""
    a, b = torch.view_as_complex((rotation / rotation.norm(dim=1, keepdim=True)).view(-1, 2, 2)).unbind(1)
    matrices = torch.stack([a, b, -b.conj(), a.conj()], 1).view(-1, 1, 2, 2)
    filters = filter_response(dgd, w)
    return product(matrices * torch.stack([filters, filters.conj()], -1)[:, :, None, :])


def filter_response(taps: Tensor, w: Tensor) -> Tensor:
    """Responses (..., F) of filters (..., T) without delay at frequencies (F,)."""
    n = torch.arange(taps.shape[-1], dtype=w.dtype) - taps.shape[-1] // 2
    return taps.to(torch.complex128) @ torch.exp(-1j * n[:, None] * w)


def _equalizer_response(weights: Tensor, w: Tensor) -> Tensor:
    return filter_response(weights.reshape(2, 2, -1), w).permute(2, 0, 1)
