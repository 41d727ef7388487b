"""Signals and their evaluation: Gaussian or QAM symbols, root-raised-cosine (RRC) pulses, matched filter, effective SNR.

Blocks are periodic, so pulses and matched filter are exact at the block's frequencies and, without a fibre, return the symbols
up to rounding (chaeger/LDBP truncates the pulse in time instead). Shapes: B blocks, P polarisations, K symbols per block, N
samples per block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES_PER_SYMBOL = 2  # at the receiver


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One wavelength channel.

    Attributes:
        symbol_rate: GBd.
        modulation: "gaussian", "4-QAM", "16-QAM" or "64-QAM"; unit mean power.
        rolloff: roll-off factor of the RRC pulse.
        symbols: symbols per block and polarisation; even.
        oversampling: samples per symbol in the fibre.

    """

    symbol_rate: float = 10.7
    modulation: str = "gaussian"
    rolloff: float = 0.1
    symbols: int = 256
    oversampling: int = 6

    def __post_init__(self) -> None:
        if not self.symbol_rate > 0:
            raise ValueError(f"symbol_rate is {self.symbol_rate} GBd; it must be positive")
        if self.modulation not in ("gaussian", "4-QAM", "16-QAM", "64-QAM"):
            raise ValueError(f"modulation is {self.modulation!r}; use gaussian, 4-QAM, 16-QAM or 64-QAM")
        if not 0 <= self.rolloff < 1:
            raise ValueError(f"rolloff is {self.rolloff}; it must lie in [0, 1)")
        if self.symbols < 2 or self.symbols % 2:
            raise ValueError(f"symbols is {self.symbols}; it must be even and at least 2")
        if self.oversampling < SAMPLES_PER_SYMBOL:
            raise ValueError(
                f"oversampling is {self.oversampling}; the minimum is {SAMPLES_PER_SYMBOL}, the receiver's samples per symbol"
            )

    @property
    def rate(self) -> float:
        """Samples per second in the fibre."""
        return self.oversampling * self.symbol_rate * 1e9

    @property
    def receiver_rate(self) -> float:
        """Samples per second at the receiver."""
        return SAMPLES_PER_SYMBOL * self.symbol_rate * 1e9

    def draw(self, blocks: int, polarisations: int, draws: torch.Generator) -> Tensor:
        """Random symbols (B, P, K) complex64 of unit mean power."""
        shape = (blocks, polarisations, self.symbols)
        if self.modulation == "gaussian":
            return torch.randn(shape, dtype=torch.complex64, generator=draws)
        side = math.isqrt(int(self.modulation.partition("-")[0]))
        levels = 2 * torch.randint(side, (2, *shape), generator=draws) - (side - 1)
        return torch.complex(*levels.float()) / math.sqrt(2 * (side**2 - 1) / 3)

    def modulate(self, symbols: Tensor, power: float) -> Tensor:
        """Symbols (B, P, K) to samples (B, P, N) in the fibre, with the mean power ``power`` (W) of all polarisations
        together."""
        spectrum = torch.fft.fft(symbols).repeat(1, 1, self.oversampling)
        pulse = rrc(self.symbols, self.oversampling, self.rolloff).to(spectrum.real)
        return torch.fft.ifft(spectrum * pulse) * self.oversampling * math.sqrt(power / symbols.shape[1])

    def sample(self, field: Tensor) -> Tensor:
        """Samples (B, P, N) in the fibre to samples (B, P, 2 K) at the receiver, through an ideal low-pass filter."""
        half = SAMPLES_PER_SYMBOL * self.symbols // 2
        spectrum = torch.fft.fft(field)
        kept = torch.cat([spectrum[..., :half], spectrum[..., -half:]], -1)
        return torch.fft.ifft(kept) * (SAMPLES_PER_SYMBOL / self.oversampling)

    def matched(self, samples: Tensor, power: float) -> Tensor:
        """Apply the matched filter to (B, P, 2 K) samples, scaled so that every second one is a symbol; differentiable."""
        pulse = rrc(self.symbols, SAMPLES_PER_SYMBOL, self.rolloff).to(samples.real)
        return torch.fft.ifft(torch.fft.fft(samples) * pulse) / math.sqrt(power / samples.shape[1])

    def detect(self, samples: Tensor, power: float) -> Tensor:
        """Samples (B, P, 2 K) to symbols (B, P, K), by the matched filter."""
        return self.matched(samples, power)[..., ::SAMPLES_PER_SYMBOL]


def rrc(symbols: int, oversampling: int, rolloff: float) -> Tensor:
    """RRC response (N,) at the frequencies of a block, float64, in the order of ``fft``; the squares of its aliases sum to 1."""
    frequency = torch.fft.fftfreq(
        symbols * oversampling, 1 / oversampling, dtype=torch.float64
    ).abs()  # relative to the symbol rate
    if rolloff == 0:
        return (frequency < 0.5).double() + (frequency == 0.5) * math.sqrt(0.5)
    beyond = ((frequency - (1 - rolloff) / 2) / rolloff).clamp(0, 1)
    return torch.cos(math.pi / 2 * beyond)


def aligned(symbols: Tensor, detected: Tensor) -> Tensor:
    """Rotate the phase of each block of ``detected`` to fit the known symbols best; (B, P, K)."""
    overlap = (symbols.conj() * detected).sum((-2, -1), keepdim=True)
    return detected * torch.polar(torch.ones_like(overlap.real), -overlap.angle())


def squared_error(symbols: Tensor, detected: Tensor) -> Tensor:
    """Mean squared error after ``aligned``; this is the loss."""
    error = aligned(symbols, detected) - symbols
    return (error.real.square() + error.imag.square()).mean()


def effective_snr(symbols: Tensor, detected: Tensor) -> float:
    """-10 log10 of ``squared_error``, in dB; symbols have unit power."""
    return -10 * math.log10(float(squared_error(symbols, detected)))
