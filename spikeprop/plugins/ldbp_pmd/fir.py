"""``fir``: periodic complex FIR filtering with its gradient, the linear part of a learned step.

y[n] = sum_t h[t] x[n + c - t] with c = (T - 1) / 2, so odd filters add no delay. The adjoint is the same loop with conj(h)
reversed. On the CPU both are compiled loops in the time domain; on other devices, and as a reference in the tests, sums of
rolled samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprop.plugins.ldbp_pmd import kernels

GROUP = 4  # the loops process this number of taps together


def fir(x: Tensor, taps: Tensor) -> Tensor:
    """Filter periodic rows.

    Args:
        x: (B, P, N) complex.
        taps: (P, T) or (1, T), real or complex of the same precision; T odd.

    Returns:
        (B, P, N).

    Raises:
        ValueError: an even number of taps, or filters for neither one nor all polarisations.

    """
    if taps.shape[-1] % 2 == 0:
        raise ValueError(f"taps is {taps.shape[-1]} long; filters without delay have an odd number")
    if taps.shape[0] not in (1, x.shape[1]):
        raise ValueError(f"taps holds {taps.shape[0]} filters for {x.shape[1]} polarisations; give one or one each")
    taps = taps if taps.is_complex() else torch.complex(taps, torch.zeros_like(taps))
    if x.device.type == "cpu":
        return _Filter.apply(x, taps)  # pyright: ignore
    return fir_reference(x, taps)


def fir_reference(x: Tensor, taps: Tensor) -> Tensor:
    """The same as a sum of rolled samples, differentiated by autograd."""
    middle = taps.shape[-1] // 2
    shifted = [torch.roll(x, t - middle, -1) * taps[:, t, None] for t in range(taps.shape[-1])]
    return torch.stack(shifted).sum(0)


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, taps)
        return _run(x, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore
        x, taps = ctx.saved_tensors
        gradient = gradient.contiguous()
        back = _run(gradient, taps.conj().flip(-1)) if ctx.needs_input_grad[0] else None
        return back, _tap_gradients(x, gradient, taps) if ctx.needs_input_grad[1] else None


def _run(x: Tensor, taps: Tensor) -> Tensor:
    y = torch.empty_like(x)
    h_re, h_im = _padded(taps)
    kernels.filter_rows(_rows(x), h_re, h_im, _rows(y))
    return y


def _padding(taps: int) -> tuple[int, int]:
    """Numbers of zeros before and after the taps, so that the length fits the loops and the centre stays at their c."""
    lacking = -taps % GROUP
    before = (taps + lacking - 1) // 2 - taps // 2
    return before, lacking - before


def _padded(taps: Tensor) -> tuple[Any, Any]:
    padded = torch.nn.functional.pad(torch.view_as_real(taps.detach().resolve_conj()), (0, 0, *_padding(taps.shape[-1])))
    return padded[..., 0].contiguous().numpy(), padded[..., 1].contiguous().numpy()


def _tap_gradients(x: Tensor, gradient: Tensor, taps: Tensor) -> Tensor:
    before, after = _padding(taps.shape[-1])
    found = torch.zeros(2, taps.shape[0], before + taps.shape[1] + after, dtype=torch.float64)
    kernels.tap_gradients(_rows(x), _rows(gradient), found[0].numpy(), found[1].numpy())
    return torch.complex(found[0], found[1])[:, before : before + taps.shape[1]].to(taps)


def _rows(x: Tensor) -> Any:
    return torch.view_as_real(x.detach().resolve_conj()).reshape(-1, 2 * x.shape[-1]).numpy()
