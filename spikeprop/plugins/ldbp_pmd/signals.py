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

from spikeprop.runtime.checks import not_negative

SAMPLES_PER_SYMBOL = 2  # at the receiver


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A wavelength channel, its neighbours and the lasers.

    Attributes:
        symbol_rate: GBd.
        modulation: "gaussian", "4-QAM", "16-QAM" or "64-QAM"; unit mean power.
        rolloff: roll-off factor of the RRC pulse.
        symbols: symbols per block and polarisation; even.
        oversampling: samples per symbol in the fibre.
        neighbours: equal channels on each side (WDM), of the same power; the receiver filters them out.
        spacing_ghz: between channels, rounded to the frequencies of a block.
        linewidth_khz: of each of the two lasers (transmitter, local oscillator); their phases are Wiener processes, of which
            mean and drift over a block are removed, because blocks are periodic.
        phase_window: symbols from whose known values one carrier phase is estimated and removed; 0 for all of a block.

    """

    symbol_rate: float = 10.7
    modulation: str = "gaussian"
    rolloff: float = 0.1
    symbols: int = 256
    oversampling: int = 6
    neighbours: int = 0
    spacing_ghz: float = 50.0
    linewidth_khz: float = 0.0
    phase_window: int = 0

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

        not_negative(self, "neighbours", "linewidth_khz", hint="; use 0 for none")
        if not 0 <= self.phase_window <= self.symbols or (self.phase_window and self.symbols % self.phase_window):
            raise ValueError(
                f"phase_window is {self.phase_window}; it must divide the {self.symbols} symbols of a block, or be 0"
            )
        width = (1 + self.rolloff) * self.symbol_rate
        if self.neighbours and self.spacing_ghz < width:
            raise ValueError(
                f"spacing_ghz is {self.spacing_ghz}; channels overlap below (1 + rolloff) symbol_rate = {width:g} GHz"
            )
        band = 2 * self.neighbours * self.spacing_ghz + width
        if self.neighbours and band > self.rate / 1e9:
            raise ValueError(
                f"oversampling is {self.oversampling}: {self.rate / 1e9:g} GHz of samples do not hold {self.channels} channels, "
                f"{band:g} GHz wide; use at least {math.ceil(band / self.symbol_rate)}"
            )

    @property
    def band(self) -> float:
        """Edge of the channel at the receiver, rad per sample."""
        return math.pi * (1 + self.rolloff) / SAMPLES_PER_SYMBOL

    @property
    def side(self) -> int:
        """Levels of an axis of QAM."""
        return math.isqrt(int(self.modulation.partition("-")[0]))

    @property
    def scale(self) -> float:
        """What the odd numbers of an axis of QAM are divided by, for unit mean power."""
        return math.sqrt(2 * (self.side**2 - 1) / 3)

    @property
    def channels(self) -> int:
        """Number of WDM channels."""
        return 2 * self.neighbours + 1

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
        levels = 2 * torch.randint(self.side, (2, *shape), generator=draws) - (self.side - 1)
        return torch.complex(*levels.float()) / self.scale

    def modulate(self, symbols: Tensor, power: float) -> Tensor:
        """Symbols (B, P, K) to samples (B, P, N) in the fibre, with the mean power ``power`` (W) of all polarisations
        together."""
        spectrum = torch.fft.fft(symbols).repeat(1, 1, self.oversampling)
        pulse = rrc(self.symbols, self.oversampling, self.rolloff).to(spectrum.real)
        return torch.fft.ifft(spectrum * pulse) * self.oversampling * math.sqrt(power / symbols.shape[1])

    def transmit(self, symbols: Tensor, power: float, draws: torch.Generator) -> Tensor:
        """The field (B, P, N) that enters the fibre: the channel of ``symbols`` between its neighbours, each of ``power`` (W)."""
        field = self._turned(self.modulate(symbols, power), draws)
        bins = round(self.spacing_ghz / self.symbol_rate * self.symbols)
        for number in (n for n in range(-self.neighbours, self.neighbours + 1) if n):
            other = self._turned(self.modulate(self.draw(symbols.shape[0], symbols.shape[1], draws), power), draws)
            field = field + torch.fft.ifft(torch.roll(torch.fft.fft(other), number * bins, -1))
        return field

    def receive(self, field: Tensor, draws: torch.Generator) -> Tensor:
        """The field (B, P, N) after the fibre, mixed with the local oscillator, to samples (B, P, 2 K)."""
        return self.sample(self._turned(field, draws))

    def _turned(self, field: Tensor, draws: torch.Generator) -> Tensor:
        """Multiply (B, P, N) samples with a laser's phase noise."""
        if not self.linewidth_khz:
            return field
        steps = torch.randn(len(field), 1, field.shape[-1], generator=draws)
        steps = (steps - steps.mean(-1, keepdim=True)) * math.sqrt(2 * math.pi * self.linewidth_khz * 1e3 / self.rate)
        phase = steps.cumsum(-1)
        phase = phase - phase.mean(-1, keepdim=True)
        return field * torch.polar(torch.ones_like(phase), phase)

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

    def error(self, symbols: Tensor, detected: Tensor) -> Tensor:
        """``squared_error`` with the signal's ``phase_window``; this is the loss of the training."""
        return squared_error(symbols, detected, self.phase_window)

    def snr(self, symbols: Tensor, detected: Tensor) -> float:
        """``effective_snr`` with the signal's ``phase_window``, dB."""
        return effective_snr(symbols, detected, self.phase_window)


def rrc(symbols: int, oversampling: int, rolloff: float) -> Tensor:
    """RRC response (N,) at the frequencies of a block, float64, in the order of ``fft``; the squares of its aliases sum to 1."""
    frequency = torch.fft.fftfreq(
        symbols * oversampling, 1 / oversampling, dtype=torch.float64
    ).abs()  # relative to the symbol rate
    if rolloff == 0:
        return (frequency < 0.5).double() + (frequency == 0.5) * math.sqrt(0.5)
    beyond = ((frequency - (1 - rolloff) / 2) / rolloff).clamp(0, 1)
    return torch.cos(math.pi / 2 * beyond)


def aligned(symbols: Tensor, detected: Tensor, window: int = 0) -> Tensor:
    """Rotate the phase of each block of ``detected``, or of each ``window`` of its symbols, to fit the known ones best."""
    window = window or symbols.shape[-1]
    found = detected.unflatten(-1, (-1, window))
    overlap = (symbols.unflatten(-1, (-1, window)).conj() * found).sum((1, 3), keepdim=True)
    return (found * torch.polar(torch.ones_like(overlap.real), -overlap.angle())).flatten(-2)


def squared_error(symbols: Tensor, detected: Tensor, window: int = 0) -> Tensor:
    """Mean squared error after ``aligned``."""
    error = aligned(symbols, detected, window) - symbols
    return (error.real.square() + error.imag.square()).mean()


def effective_snr(symbols: Tensor, detected: Tensor, window: int = 0) -> float:
    """-10 log10 of ``squared_error``, in dB; symbols have unit power. Infinite where there is no error at all."""
    error = float(squared_error(symbols, detected, window))
    return -10 * math.log10(error) if error else math.inf
