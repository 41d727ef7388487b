"""The optical link against closed forms: pulses, dispersion, Kerr phase, noise, PMD statistics, and its exact inverse."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from scipy.stats import kstest, maxwell
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.bits import quality
from spikeprop.plugins.ldbp_pmd.blocks import Link, watts
from spikeprop.plugins.ldbp_pmd.fibre import Fibre, check_steps, logarithmic_steps, uniform_steps
from spikeprop.plugins.ldbp_pmd.link import draw_sections, haar_su2, invert, propagate
from spikeprop.plugins.ldbp_pmd.signals import Signal, aligned, effective_snr, rrc
from spikeprop.runtime.seeding import generator

SIGNAL = Signal(symbol_rate=32, modulation="16-QAM", symbols=64, oversampling=3)
POWER = watts(3.0)


def field(polarisations: int = 2, blocks: int = 3) -> Tensor:
    symbols = SIGNAL.draw(blocks, polarisations, generator(0)).to(torch.complex128)
    return SIGNAL.modulate(symbols, POWER)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("modulation", ["gaussian", "4-QAM", "16-QAM", "64-QAM"])
@pytest.mark.parametrize("rolloff", [0.0, 0.1, 0.5])
def test_symbols_are_recovered_without_a_fibre(modulation: str, rolloff: float) -> None:
    signal = Signal(modulation=modulation, rolloff=rolloff, symbols=512, oversampling=4)
    symbols = signal.draw(20, 2, generator(1))
    sent = signal.modulate(symbols, 0.002)
    assert float(symbols.abs().square().mean()) == pytest.approx(1, abs=0.02)
    assert float(sent.abs().square().sum(1).mean()) == pytest.approx(0.002, rel=0.03)
    assert effective_snr(symbols, signal.detect(signal.sample(sent), 0.002)) > 110
    if modulation != "gaussian":
        assert len(torch.unique(symbols.real)) ** 2 == int(modulation.partition("-")[0])


def test_rrc_has_no_intersymbol_interference_and_the_right_band() -> None:
    pulse = rrc(64, 4, 0.25)
    assert torch.allclose(pulse.square().view(4, 64).sum(0), torch.ones(64, dtype=torch.float64))
    frequency = torch.fft.fftfreq(256, 1 / 4).abs()
    assert torch.all(pulse[frequency >= 0.625] < 1e-12)
    assert torch.all(pulse[frequency <= 0.375] == 1)


def test_phase_of_a_block_is_aligned_to_the_known_symbols() -> None:
    symbols = SIGNAL.draw(2, 2, generator(3))
    turned = symbols * torch.polar(torch.ones(2, 1, 1), torch.tensor([0.3, -2.0]).view(2, 1, 1))
    assert torch.allclose(aligned(symbols, turned), symbols, atol=1e-6)
    assert effective_snr(symbols, 1.1 * turned) == pytest.approx(
        -20 * math.log10(0.1) - 10 * math.log10(_power(symbols)), abs=1e-3
    )


def test_phase_windows_follow_the_carrier() -> None:
    symbols = SIGNAL.draw(2, 2, generator(3))
    steps = torch.polar(torch.ones(64), torch.arange(4).repeat_interleave(16) * 0.4)
    assert effective_snr(symbols, symbols * steps) < 10
    assert effective_snr(symbols, symbols * steps, 16) > 100


def test_neighbours_stay_out_of_the_channel_and_double_no_power() -> None:
    """Three channels without a fibre: each has the power, 50 GHz apart, and the middle one is received exactly."""
    signal = Signal(symbol_rate=32, modulation="64-QAM", symbols=64, oversampling=5, neighbours=1, spacing_ghz=50)
    symbols = signal.draw(40, 2, generator(1))
    sent = signal.transmit(symbols, 0.002, generator(2))
    assert effective_snr(symbols, signal.detect(signal.receive(sent, generator(3)), 0.002)) > 100
    spectrum = torch.fft.fft(sent).abs().square().mean((0, 1))
    total = spectrum.sum()
    frequency = torch.fft.fftfreq(320, 1 / 160)
    for centre in (-50, 0, 50):
        inside = (frequency - centre).abs() <= 18
        assert float(spectrum[inside].sum() / total) == pytest.approx(1 / 3, rel=0.06)
        assert float((spectrum * frequency)[inside].sum() / spectrum[inside].sum()) == pytest.approx(centre, abs=1)
    assert Link(Fibre(), signal, 100, 2).signal.channels == 3


def test_laser_phase_noise_has_the_variance_of_its_linewidth() -> None:
    """Increments over n samples: 2 pi linewidth n / rate, less n / N for the drift that is removed."""
    signal = Signal(symbol_rate=32, symbols=256, oversampling=2, linewidth_khz=1000)
    one = torch.ones(300, 1, 512, dtype=torch.complex64)
    phase = signal.receive(one, generator(0)).angle()[:, 0]
    moved = torch.roll(phase, -32, -1) - phase
    variance = 2 * math.pi * 1e6 * 32 / 64e9 * (1 - 32 / 512)
    assert float(moved.square().mean()) == pytest.approx(variance, rel=0.05)
    assert float(phase.mean(-1).abs().max()) < 1e-5


def test_bits_of_additive_noise_equal_closed_forms() -> None:
    """4-QAM: BER Q(sqrt(SNR)), GMI 2 (1 - E log2(1 + exp(-l))) with l normal of mean 2 SNR and variance 4 SNR."""
    signal, snr = Signal(symbol_rate=32, modulation="4-QAM", symbols=512), 2.0
    symbols = signal.draw(100, 2, generator(0))
    noise = torch.randn(symbols.shape, dtype=torch.complex64, generator=generator(1)) / math.sqrt(snr)
    found = quality(signal, symbols, 0.7 * (symbols + noise))  # the scale plays no role
    assert found["errors"] / found["bits"] == pytest.approx(0.5 * math.erfc(math.sqrt(snr / 2)), rel=0.03)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    lost = float((density * torch.log2(1 + torch.exp(-(2 * snr + 2 * math.sqrt(snr) * x)))).sum())
    assert found["gmi"] == pytest.approx(2 * (1 - lost), abs=0.01)
    assert quality(Signal(), Signal().draw(1, 1, generator(2)), Signal().draw(1, 1, generator(4))).keys() == {"snr"}


def test_gray_coded_neighbours_differ_in_one_bit() -> None:
    """64-QAM with one step to the right: one wrong bit of six, and none where there is no error."""
    signal = Signal(modulation="64-QAM", symbols=64, oversampling=2)
    symbols = signal.draw(20, 2, generator(0))
    right = symbols.real < 6 / signal.scale
    moved = torch.where(right, symbols + 2 / signal.scale, symbols)
    assert quality(signal, symbols, symbols)["errors"] == 0
    assert quality(signal, symbols, symbols)["gmi"] == pytest.approx(6)
    sent = torch.stack([symbols, -symbols])  # what is wrong on one side is removed as a phase or a scale on the other
    seen = torch.stack([moved, -symbols])
    assert quality(signal, sent.flatten(0, 1), seen.flatten(0, 1))["errors"] == int(right.sum())


def _power(symbols: Tensor) -> float:
    return float(symbols.abs().square().mean())


def test_gaussian_pulse_spreads_by_the_closed_form() -> None:
    """U = T0 / sqrt(q) exp(-t^2 / 2q), q = T0^2 - j beta2 z; its width grows by sqrt(1 + (z / L_D)^2)."""
    fibre, width, rate = Fibre(spans=2, span_km=50, gamma=0, loss_db_per_km=0.2), 20e-12, 1e12
    t = (torch.arange(4096, dtype=torch.float64) - 2048) / rate
    found = propagate(
        torch.exp(-(t**2) / (2 * width**2)).to(torch.complex128).view(1, 1, -1), fibre, uniform_steps(fibre, 3), rate
    )
    q = width**2 - 1j * fibre.beta2 * fibre.length
    exact = width / torch.sqrt(torch.tensor(q)) * torch.exp(-(t**2) / (2 * q))
    assert relative(found[0, 0], exact) < 1e-6  # the tails wrap around
    power = found[0, 0].abs().square()
    spread = torch.sqrt((power * t**2).sum() / power.sum())
    ratio = float(spread) / (width / math.sqrt(2))
    assert ratio == pytest.approx(math.sqrt(1 + (abs(fibre.beta2) * fibre.length / width**2) ** 2), rel=1e-6)
    assert ratio > 5


def test_constants_of_standard_fibre() -> None:
    """D = 17 ps/(nm km) is beta2 = -21.7 ps^2/km at 1550 nm; 16 dB and 5 dB make h nu G F / 2 of noise."""
    fibre = Fibre()
    assert fibre.beta2 * 1e27 == pytest.approx(-21.68, abs=0.01)
    assert fibre.noise_density == pytest.approx(6.626e-34 * 193.414e12 * 10**1.6 * 10**0.5 / 2, rel=1e-3)
    assert Fibre(pmd=0.2, spans=5).mean_dgd == pytest.approx(4e-12)


@pytest.mark.parametrize(("polarisations", "factor"), [(1, 1.0), (2, 8 / 9)])
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_without_dispersion_the_kerr_phase_is_that_of_the_effective_length(
    polarisations: int, factor: float, loss: float
) -> None:
    fibre = Fibre(spans=3, span_km=70, dispersion=0, loss_db_per_km=loss)
    u = field(polarisations)
    alpha = loss * math.log(10) / 10  # 1/km
    effective = (1 - math.exp(-alpha * 70)) / alpha if loss else 70
    phase = factor * 1.3 * effective * 3 * u.abs().square().sum(1, keepdim=True)
    found = propagate(u, fibre, logarithmic_steps(fibre, 7), SIGNAL.rate)
    assert relative(found, u * torch.exp(1j * phase)) < 1e-12


def test_noise_is_white_with_the_amplifiers_power() -> None:
    fibre = Fibre(spans=4, noise_factor=1.5, gamma=0)
    found = propagate(torch.zeros(20, 2, 4096, dtype=torch.complex64), fibre, uniform_steps(fibre, 1), 1e11, noise=generator(0))
    assert float(found.abs().square().mean()) == pytest.approx(4 * fibre.noise_density * 1e11, rel=0.02)
    assert Fibre(noise_factor=1.5).noise_density == pytest.approx(1.5 * Fibre().noise_density)


def test_steps_converge_with_their_square() -> None:
    fibre = Fibre(spans=2, span_km=40)
    fine, *coarse = (propagate(field(), fibre, logarithmic_steps(fibre, n), SIGNAL.rate) for n in (400, 20, 40))
    errors = [relative(c, fine) for c in coarse]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_logarithmic_steps_have_equal_loss_integrals() -> None:
    fibre = Fibre()
    edges = logarithmic_steps(fibre, 50)
    shares = [math.exp(-0.4 * fibre.alpha * a) - math.exp(-0.4 * fibre.alpha * b) for a, b in pairwise(edges)]
    assert (edges[0], edges[-1]) == (0, 80e3)
    assert shares == pytest.approx([shares[0]] * 50)
    assert logarithmic_steps(Fibre(loss_db_per_km=0), 4) == [0, 20e3, 40e3, 60e3, 80e3]


def test_inverse_with_known_sections_recovers_the_field() -> None:
    fibre = Fibre(spans=3, pmd=1.0)
    edges = logarithmic_steps(fibre, 12)
    sections = draw_sections(fibre, edges, generator(4))
    u = field()
    received = propagate(u, fibre, edges, SIGNAL.rate, sections)
    assert relative(received, u) > 0.5
    assert relative(invert(received, fibre, edges, SIGNAL.rate, sections), u) < 1e-11
    assert relative(invert(received, fibre, edges, SIGNAL.rate), u) > 0.5  # fails without the sections
    omega = torch.tensor([0.0, 3e10], dtype=torch.float64)
    one_by_one = torch.eye(2, dtype=torch.complex128).expand(2, 2, 2)
    for k in range(len(sections.delays)):
        one_by_one = sections.response(k, omega).permute(2, 0, 1) @ one_by_one
    assert torch.allclose(sections.jones(omega), one_by_one)
    assert float(received.norm()) == pytest.approx(float(u.norm()), rel=1e-12)  # the link is unitary


def test_pmd_is_unitary_at_every_frequency() -> None:
    fibre = Fibre(spans=2, pmd=0.5)
    sections = draw_sections(fibre, logarithmic_steps(fibre, 9), generator(5))
    jones = sections.jones(torch.linspace(-1e11, 1e11, 7, dtype=torch.float64))
    assert torch.allclose(jones @ jones.mH, torch.eye(2, dtype=torch.complex128).expand(7, 2, 2))
    assert torch.allclose(torch.linalg.det(jones), torch.ones(7, dtype=torch.complex128))
    assert (jones[0] - jones[-1]).abs().max() > 0.1


def test_rotations_are_haar_distributed() -> None:
    """|a|^2 of a Haar-random rotation is uniform on [0, 1]."""
    found = haar_su2(4000, generator(6))
    assert kstest(found[:, 0, 0].abs().square().numpy(), "uniform").pvalue > 0.01
    assert kstest(found[:, 0, 1].angle().numpy() / (2 * math.pi) + 0.5, "uniform").pvalue > 0.01


def test_one_section_delays_by_its_delay() -> None:
    fibre = Fibre(spans=1, pmd=1.0)
    sections = draw_sections(fibre, uniform_steps(fibre, 1), generator(7))
    assert sections.dgd() == pytest.approx(math.sqrt(3 * math.pi / 8 * 80) * 1e-12, rel=1e-5)


def test_differential_group_delay_is_maxwellian() -> None:
    """Mean pmd sqrt(length); of a Maxwellian, the scale is mean sqrt(pi / 8)."""
    fibre, draws = Fibre(spans=6, pmd=0.5), generator(8)
    edges = logarithmic_steps(fibre, 8)
    found = torch.tensor([draw_sections(fibre, edges, draws).dgd() for _ in range(600)])
    error = float(found.std()) / math.sqrt(600)
    assert abs(float(found.mean()) - fibre.mean_dgd) < 3 * error
    assert kstest(found.numpy(), maxwell(scale=fibre.mean_dgd * math.sqrt(math.pi / 8)).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss_db_per_km": -0.2}, "loss_db_per_km is -0.2 dB/km; it cannot be negative"),
        ({"gamma": -1.0}, "gamma is -1.0 1/(W km); it cannot be negative"),
        ({"pmd": -0.1}, "pmd is -0.1 ps/sqrt(km); it cannot be negative"),
        ({"noise_factor": math.nan}, "noise_factor is nan; it cannot be negative"),
        ({"span_km": 0.0}, "span_km is 0.0 km; it must be positive"),
        ({"spans": 0}, "spans is 0; it must be positive"),
        ({"dispersion": math.inf}, "dispersion is inf ps/(nm km); it must be finite"),
        ({"noise_figure_db": -1.0}, "noise_figure_db is -1.0 dB; it cannot be negative"),
    ],
)
def test_impossible_fibres_are_refused(values: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Fibre(**values)  # pyright: ignore


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modulation": "8-PSK"}, "modulation is '8-PSK'; use"),
        ({"rolloff": 1.0}, "rolloff is 1.0; it must lie in"),
        ({"symbols": 33}, "symbols is 33; it must be even"),
        ({"oversampling": 1}, "oversampling is 1; the minimum is 2"),
        ({"symbol_rate": 0.0}, "symbol_rate is 0.0 GBd"),
        ({"neighbours": -1}, "neighbours is -1; it cannot be negative; use 0 for none"),
        ({"linewidth_khz": -1.0}, "linewidth_khz is -1.0; it cannot be negative"),
        ({"phase_window": 48}, "phase_window is 48; it must divide the 256 symbols"),
        ({"neighbours": 1, "spacing_ghz": 11.0}, "spacing_ghz is 11.0; channels overlap below"),
    ],
)
def test_impossible_signals_are_refused(values: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Signal(**values)  # pyright: ignore


def test_unstable_steps_are_refused_at_their_bound() -> None:
    """|beta2| (pi rate)^2 h = 2 pi: 3.19 km at 96 GHz."""
    fibre = Fibre()
    bound = 2 * math.pi / (abs(fibre.beta2) * (math.pi * SIGNAL.rate) ** 2)
    check_steps(fibre, [0, 0.999 * bound], SIGNAL.rate, POWER)
    with pytest.raises(
        ValueError, match=r"longest step .* is 3\.19 km, but at 96 GHz .* unstable from 3\.19 km on; use more steps"
    ):
        check_steps(fibre, [0, bound], SIGNAL.rate, POWER)
    with pytest.raises(ValueError, match=r"Kerr phase of a step is 0\.127 rad at 100 mW; the bound is 0\.1 rad"):
        check_steps(fibre, [0, 1e3], SIGNAL.rate, 0.1)
    with pytest.raises(ValueError, match="forward_steps is 0"):
        Link(fibre, SIGNAL, 0, 2).check(POWER)
    with pytest.raises(ValueError, match="forward_steps is 2147483648; it must lie in 1 to 10,000"):
        Link(fibre, SIGNAL, 2**31, 2).check(POWER)


def test_steps_beyond_the_bound_are_unstable() -> None:
    """A strong wave with a little noise: the noise grows only if steps are too long.

    The bound is the resonance at the edge of the band; the dispersion is normal, so there is no physical instability.
    """
    rate, count = 1e11, 512
    fibre = Fibre(spans=1, span_km=400, loss_db_per_km=0, dispersion=-17, gamma=1.3)
    bound = 2 * math.pi / (abs(fibre.beta2) * (math.pi * rate) ** 2)
    noise = 1e-6 * torch.randn(1, 1, count, dtype=torch.complex128, generator=generator(9))
    growth = []
    for step in (0.45 * bound, 1.6 * bound):
        edges = uniform_steps(fibre, round(fibre.span / step))
        found = propagate(torch.full((1, 1, count), math.sqrt(0.02), dtype=torch.complex128) + noise, fibre, edges, rate)
        growth.append(float(found.abs().std() / noise.abs().std()))
    assert growth[0] < 5
    assert growth[1] > 20
