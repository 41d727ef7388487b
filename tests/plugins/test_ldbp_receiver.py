"""The learned receiver: filter design, gradients, exact limits, results of training, and the baseline equalisers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeprop.errors import TrainingCollapsed
from spikeprop.plugins.ldbp_pmd import kerr, training
from spikeprop.plugins.ldbp_pmd.baselines import EqualizerSettings, backpropagate, equalize, least_squares, lms, undo_dispersion
from spikeprop.plugins.ldbp_pmd.blocks import Link, watts
from spikeprop.plugins.ldbp_pmd.drift import Drift, track, turned
from spikeprop.plugins.ldbp_pmd.fibre import Fibre, uniform_steps
from spikeprop.plugins.ldbp_pmd.filters import (
    FilterDesign,
    curvatures,
    dispersion_filter,
    fit_error,
    minimum_taps,
    response,
    symmetric,
)
from spikeprop.plugins.ldbp_pmd.fir import fir, fir_reference
from spikeprop.plugins.ldbp_pmd.link import Sections, draw_sections, haar_su2, propagate
from spikeprop.plugins.ldbp_pmd.oracle import digital, informed
from spikeprop.plugins.ldbp_pmd.receiver import Backward, LearnedReceiver, make_receiver
from spikeprop.plugins.ldbp_pmd.signals import Signal, effective_snr, squared_error
from spikeprop.plugins.ldbp_pmd.start import best_start, fit_to_equalizer, pmd_response, solved
from spikeprop.plugins.ldbp_pmd.training import Fitting, fit_receiver, processed, snr_of, within_one_percent
from spikeprop.runtime.seeding import generator

SIGNAL = Signal(symbol_rate=32, modulation="16-QAM", symbols=64, oversampling=3)
CURVATURE = curvatures(Fibre(), [20e3], SIGNAL.receiver_rate)[0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.norm())


def complex_normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


# filters ----------------------------------------------------------------------------------------------------------------------


def test_dispersion_filters_fit_better_with_more_taps() -> None:
    errors = [
        fit_error(dispersion_filter(CURVATURE, d), CURVATURE, d) for d in (FilterDesign(taps=t, gain=0.9) for t in (9, 15, 21))
    ]
    assert [e["error"] for e in errors] == sorted((e["error"] for e in errors), reverse=True)
    assert errors[0]["error"] < 0.05
    assert errors[2]["error"] < 1e-5
    assert all(e["gain"] <= 0.9 + 1e-6 for e in errors)


def test_gain_bound_is_active_and_reduces_accuracy() -> None:
    errors = [
        fit_error(dispersion_filter(CURVATURE, d), CURVATURE, d) for d in (FilterDesign(taps=15, gain=g) for g in (1e9, 0.6, 0.3))
    ]
    assert errors[0]["gain"] > 1
    assert errors[1]["gain"] == pytest.approx(0.6, rel=1e-6)
    assert errors[0]["error"] < errors[1]["error"] < errors[2]["error"]


def test_a_bounded_filter_is_a_minimum() -> None:
    """No small change with the same gain improves the fit: the Lagrangian grows in random directions."""
    design = FilterDesign(taps=9, gain=0.8)
    half = dispersion_filter(CURVATURE, design)
    best = fit_error(half, CURVATURE, design)
    for seed in range(20):
        moved = half + 1e-3 * complex_normal(len(half), seed=seed)
        low, high = 0.0, 1.0  # scale the changed filter to the gain of the bound
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if fit_error(middle * moved, CURVATURE, design)["gain"] < 0.8 else (low, middle)
        assert fit_error(low * moved, CURVATURE, design)["error"] > best["error"]


def test_taps_are_symmetric_and_match_the_response() -> None:
    half = complex_normal(5)
    w = torch.linspace(-3, 3, 7, dtype=torch.float64)
    n = torch.arange(-4, 5)
    direct = (symmetric(half) * torch.exp(-1j * w[:, None] * n)).sum(1)
    assert torch.equal(symmetric(half), symmetric(half).flip(0))
    assert torch.allclose(response(half, w), direct)


def test_minimum_taps_by_hand() -> None:
    """pi 21.7e-27 80e3 0.6 (21.4e9)^2 = 1.50, so 3, as chaeger/LDBP has; at 64 GHz and 20 km 3.35, so 7."""
    assert minimum_taps(Fibre(), 80e3, 21.4e9, 0.6) == 3
    assert minimum_taps(Fibre(), 20e3, 64e9, 0.6) == 7
    with pytest.raises(
        ValueError, match=r"taps is 5, but the dispersion of a step of 20 km spreads over 7 samples at 64 GHz: use at"
    ):
        make_receiver(Fibre(), Backward(steps_per_span=4, filters=FilterDesign(taps=5)), 64e9, 2)


@pytest.mark.parametrize("taps", [1, 3, 9, 13])
@pytest.mark.parametrize("length", [4, 24])
def test_filtering_equals_its_reference_and_its_gradient_the_finite_differences(taps: int, length: int) -> None:
    for filters in (1, 2):
        x, h = complex_normal(2, 2, length, seed=1).requires_grad_(), complex_normal(filters, taps, seed=2).requires_grad_()
        assert torch.allclose(fir(x, h), fir_reference(x, h))
        assert torch.autograd.gradcheck(fir, (x, h))
    assert torch.allclose(fir(x.conj(), h.real), fir_reference(x.conj().resolve_conj(), h.real + 0j))


def test_filters_without_delay_have_an_odd_length() -> None:
    with pytest.raises(ValueError, match="taps is 4 long"):
        fir(complex_normal(1, 1, 8), complex_normal(1, 4))
    with pytest.raises(ValueError, match="holds 3 filters for 2 polarisations"):
        fir(complex_normal(1, 2, 8), complex_normal(3, 5))


# steps ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polarisations", [1, 2])
def test_rotation_and_kerr_phase_have_the_right_gradient(polarisations: int) -> None:
    x = complex_normal(3, polarisations, 5).requires_grad_()
    matrix = complex_normal(2, 2, seed=3).requires_grad_() if polarisations == 2 else None
    phase = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(kerr.rotate_and_turn(x, phase, matrix), kerr.reference(x, phase, matrix))
    inputs: Any = (x, phase, matrix)
    assert torch.autograd.gradcheck(kerr.rotate_and_turn, inputs)


def small_receiver(**arguments: Any) -> LearnedReceiver:
    receiver = LearnedReceiver(complex_normal(2, 2) / 4, [-0.2, -0.1], **arguments).double()
    for parameter in receiver.pmd_parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator(4))
    return receiver


def test_the_receivers_gradient_by_every_parameter() -> None:
    receiver = small_receiver(dgd_taps=3, train_kerr=True)
    x, names = complex_normal(1, 2, 6, seed=5), [name for name, _ in receiver.named_parameters()]
    assert sorted(names) == ["dgd", "dispersion", "kerr", "rotation"]

    def output(*values: Tensor) -> Any:
        return torch.func.functional_call(receiver, dict(zip(names, values)), (x,))

    assert torch.autograd.gradcheck(output, tuple(p.detach().clone().requires_grad_() for p in receiver.parameters()))


def test_the_second_polarisations_filter_is_the_firsts_reversed() -> None:
    receiver = small_receiver(dgd_taps=5)
    assert receiver.dgd is not None
    x = complex_normal(1, 2, 32, seed=6)
    dispersion = symmetric(torch.view_as_complex(receiver.dispersion[0])).unsqueeze(0)
    one_by_one = fir(fir(x, dispersion), torch.stack([receiver.dgd[0], receiver.dgd[0].flip(0)]))
    assert torch.allclose(fir(x, receiver.taps()[0]), one_by_one)
    w = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    n = torch.arange(-2, 3)
    first, second = ((d * torch.exp(-1j * w * n)).sum(1) for d in (receiver.dgd[0], receiver.dgd[0].flip(0)))
    assert torch.allclose(first.conj(), second)  # delays of opposite sign


def test_rotations_are_normalised_to_su2() -> None:
    matrices = small_receiver(dgd_taps=1).matrices()
    assert matrices is not None
    assert torch.allclose(matrices @ matrices.mH, torch.eye(2, dtype=torch.complex128).expand(2, 2, 2))
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(2, dtype=torch.complex128))
    broken = small_receiver(dgd_taps=1)
    assert broken.rotation is not None
    broken.rotation.data[1] = 0
    with pytest.raises(ValueError, match=r"\|a\|\^2 \+ \|b\|\^2 of step 1 is 0\.0e\+00"):
        broken.matrices()


@pytest.mark.parametrize("polarisations", [1, 2])
def test_long_filters_give_digital_backpropagation(polarisations: int) -> None:
    fibre, power = Fibre(spans=3), watts(6)
    design = FilterDesign(taps=41, bandwidth=0.75, gain=0.9)
    receiver = make_receiver(fibre, Backward(steps_per_span=4, filters=design), SIGNAL.receiver_rate, polarisations)
    blocks = Link(fibre, SIGNAL, 60, polarisations).blocks(4, power, (0,))
    exact = SIGNAL.detect(backpropagate(blocks.samples, fibre, 4, SIGNAL.receiver_rate), power)
    with torch.no_grad():
        assert relative(SIGNAL.detect(receiver(blocks.samples), power), exact) < 1e-2
    assert relative(SIGNAL.detect(undo_dispersion(blocks.samples, fibre, SIGNAL.receiver_rate), power), exact) > 0.1


def test_known_rotations_are_inverted_exactly() -> None:
    """Spans without dispersion: the receiver with the inverse rotations is the exact inverse, noise and DGD apart."""
    fibre, edges = Fibre(spans=4, dispersion=0), uniform_steps(Fibre(spans=4), 1)
    sections = Sections(haar_su2(4, generator(7)), torch.zeros(4, dtype=torch.float64))
    symbols = SIGNAL.draw(2, 2, generator(8))
    sent = SIGNAL.modulate(symbols, watts(9))
    received = propagate(sent, fibre, edges, SIGNAL.rate, sections)
    receiver = make_receiver(fibre, Backward(filters=FilterDesign(taps=1), dgd_taps=1), SIGNAL.receiver_rate, 2)
    assert receiver.rotation is not None
    # the receiver rotates before the Kerr phase; both commute
    receiver.rotation.data = torch.view_as_real(sections.rotations.mH[:, 0].flip(0).contiguous()).flatten(1).float()
    with torch.no_grad():
        assert relative(receiver(received), sent) < 1e-5


def test_kerr_coefficients_and_counts() -> None:
    receiver = make_receiver(Fibre(), Backward(), 21.4e9, 1)
    assert sum(p.numel() for p in receiver.parameters()) == 250  # 25 steps of 5 complex numbers
    length = (1 - 10**-1.6) / (0.2 * math.log(10) / 10)
    assert torch.allclose(receiver.kerr, torch.full((25,), -1.3 * length))
    two = make_receiver(Fibre(spans=2), Backward(steps_per_span=2, filters=FilterDesign(taps=9)), 21.4e9, 2)
    assert torch.allclose(two.kerr[:2].sum(), torch.tensor(-1.3 * length * 8 / 9))
    assert two.kerr[0] > two.kerr[1]  # the end of the span, with low power, comes first


# training and baselines -------------------------------------------------------------------------------------------------------


def linear_link(pmd: float = 2.0) -> tuple[Fibre, Any, Any]:
    fibre = Fibre(spans=2, gamma=0, pmd=pmd, noise_factor=4)
    link = Link(fibre, SIGNAL, 20, 2)
    sections = draw_sections(fibre, uniform_steps(fibre, 20), generator(4))
    train, test = (link.blocks(n, watts(0), (10, k), sections) for k, n in enumerate((150, 30)))
    return fibre, train, test


def test_lumped_equaliser_compensates_linear_pmd_and_lms_approaches_least_squares() -> None:
    fibre, train, test = linear_link()
    a, b = (SIGNAL.matched(undo_dispersion(d.samples, fibre, SIGNAL.receiver_rate), d.power) for d in (train, test))
    free = Fibre(spans=2, gamma=0, noise_factor=4)
    clean = Link(free, SIGNAL, 20, 2).blocks(30, watts(0), (10, 1))
    bound = effective_snr(clean.symbols, SIGNAL.detect(undo_dispersion(clean.samples, free, SIGNAL.receiver_rate), clean.power))
    plain = effective_snr(test.symbols, b[..., ::2])
    solved = effective_snr(test.symbols, equalize(b, least_squares(a, train.symbols, 15)))
    adapted = effective_snr(test.symbols, equalize(b, lms(a, train.symbols, EqualizerSettings())))
    assert plain < 5
    assert solved == pytest.approx(bound, abs=0.3)
    assert solved - 0.5 < adapted <= solved + 0.05


def test_least_squares_is_stationary() -> None:
    fibre, train, _ = linear_link()
    seen = SIGNAL.matched(undo_dispersion(train.samples, fibre, SIGNAL.receiver_rate), train.power)
    weights = least_squares(seen, train.symbols, 7).to(torch.complex128).requires_grad_()
    error = (equalize(seen.to(torch.complex128), weights) - train.symbols).abs().square().mean()
    (gradient,) = torch.autograd.grad(error, weights)
    assert gradient.abs().max() < 1e-5


def settings(**values: Any) -> Fitting:
    return Fitting(**{"iterations": 60, "batch": 16, "lr": 0.0, "rotation_lr": 0.03, "dgd_lr": 0.01, "every": 20, **values})


def pmd_receiver(fibre: Fibre, seed: int = 11) -> LearnedReceiver:
    backward = Backward(steps_per_span=4, filters=FilterDesign(taps=15, gain=0.65), dgd_taps=5)
    return make_receiver(fibre, backward, SIGNAL.receiver_rate, 2, generator(seed, 0))


def test_training_compensates_pmd_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fibre, train, test = linear_link()
    data = (train, test)
    whole = pmd_receiver(fibre)
    how = settings(iterations=50, decay=10, warmup=5)
    course = fit_receiver(whole, SIGNAL, data, how, (0,), tmp_path / "whole.safetensors")
    curve = course.curve
    assert [i for i, _ in curve] == [0, 20, 40, 60]
    assert (course.plateau, len(course.errors)) == (50, 60)
    assert curve[0][1] < 5
    assert curve[-1][1] > curve[0][1] + 10
    assert curve[-1][1] == snr_of(whole, SIGNAL, test)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    original, count = training._advance, iter(range(1000))

    def stopped(*arguments: Any) -> float:
        if next(count) == 33:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "_advance", stopped)
    path = tmp_path / "stopped.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_receiver(pmd_receiver(fibre), SIGNAL, data, how, (0,), path)
    monkeypatch.setattr(training, "_advance", original)
    again = pmd_receiver(fibre)
    assert fit_receiver(again, SIGNAL, data, how, (0,), path) == course
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    assert torch.equal(whole.dispersion, pmd_receiver(fibre).dispersion)  # its rate is 0


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    fibre, train, test = linear_link()
    with pytest.raises(TrainingCollapsed, match=r"loss is (nan|inf): lower training\.lr"):
        fit_receiver(pmd_receiver(fibre), SIGNAL, (train, test), settings(dgd_lr=1e30), (0,), tmp_path / "a.safetensors")


def with_equalizer(fibre: Fibre, train: Any) -> tuple[LearnedReceiver, Tensor]:
    """A receiver with a lumped equaliser and its least-squares weights."""
    backward = Backward(steps_per_span=4, filters=FilterDesign(taps=15, gain=0.65), equalizer_taps=15)
    receiver = make_receiver(fibre, backward, SIGNAL.receiver_rate, 2)
    return receiver, solved(receiver, SIGNAL, train, 15)


def test_an_equaliser_inside_the_receiver_is_the_one_after_it() -> None:
    fibre, train, test = linear_link()
    receiver, weights = with_equalizer(fibre, train)
    after = equalize(SIGNAL.matched(processed(receiver, test.samples), test.power), weights)
    receiver.set_equalizer(weights)
    assert relative(SIGNAL.detect(processed(receiver, test.samples), test.power), after) < 1e-5


def test_the_start_has_the_equalisers_response_and_its_snr() -> None:
    """From random rotations the SNR is below 5 dB; after the fit it is that of the lumped equaliser, without any training."""
    fibre, train, test = linear_link()
    plain, weights = with_equalizer(fibre, train)
    lumped = effective_snr(test.symbols, equalize(SIGNAL.matched(processed(plain, test.samples), test.power), weights))
    receiver = pmd_receiver(fibre)
    assert snr_of(receiver, SIGNAL, test) < 5
    assert fit_to_equalizer(receiver, solved(receiver, SIGNAL, train, 15), SIGNAL.band) < 0.05
    started = snr_of(receiver, SIGNAL, test)
    assert started > lumped - 1
    others = [pmd_receiver(fibre, seed) for seed in (11, 12)]
    best = best_start(others, SIGNAL, train, 15)
    assert snr_of(best, SIGNAL, train) == max(snr_of(r, SIGNAL, train) for r in others) >= snr_of(receiver, SIGNAL, train)


def test_the_fitted_response_is_that_of_the_steps() -> None:
    """One polarised wave through all steps without dispersion and Kerr effect, against the product of matrices."""
    receiver = small_receiver(dgd_taps=5)
    assert receiver.dgd is not None
    assert receiver.rotation is not None
    receiver.dispersion.data.zero_()[:, 0, 0] = 1
    receiver.kerr.zero_()
    w = 2 * math.pi * torch.tensor([0.0, 3 / 32, -5 / 32], dtype=torch.float64)
    response = pmd_response(receiver.dgd.detach(), receiver.rotation.detach(), w)
    wave = torch.exp(1j * w[:, None, None] * torch.arange(32)) * torch.tensor([[[0.6 + 0j], [0.8j]]])
    assert relative(receiver(wave), torch.einsum("fij,fjn->fin", response, wave)) < 1e-12


def test_oracles_undo_known_pmd() -> None:
    """Without noise and Kerr effect, each is exact up to the dispersion filters of the learned receiver."""
    fibre = Fibre(spans=2, gamma=0, pmd=2.0, noise_factor=0)
    link = Link(fibre, SIGNAL, 20, 2)
    sections = draw_sections(fibre, link.edges(), generator(9))
    blocks = link.blocks(6, watts(0), (10, 0), sections)
    receiver = make_receiver(
        fibre, Backward(steps_per_span=4, filters=FilterDesign(taps=41, bandwidth=0.75, gain=0.9)), SIGNAL.receiver_rate, 2
    )
    assert effective_snr(blocks.symbols, SIGNAL.detect(digital(blocks.samples, link, sections), blocks.power)) > 80
    assert effective_snr(blocks.symbols, SIGNAL.detect(informed(receiver, blocks.samples, link, sections), blocks.power)) > 30
    assert effective_snr(blocks.symbols, SIGNAL.detect(processed(receiver, blocks.samples), blocks.power)) < 5


def test_a_drifting_link_is_followed(tmp_path: Path) -> None:
    fibre = Fibre(spans=2, gamma=0, pmd=2.0, noise_factor=4)
    link = Link(fibre, SIGNAL, 20, 2)
    sections = draw_sections(fibre, link.edges(), generator(9))
    moved = turned(sections, 3.0, generator(1))
    relative_turn = moved.rotations @ sections.rotations.mH  # by half of the angle on the Poincare sphere
    half_trace = torch.diagonal(relative_turn, dim1=1, dim2=2).sum(1).real / 2
    assert torch.allclose(half_trace, torch.full_like(half_trace, math.cos(math.radians(1.5))))
    receiver = pmd_receiver(fibre)
    train = link.blocks(60, watts(0), (10, 0), sections)
    fit_to_equalizer(receiver, solved(receiver, SIGNAL, train, 15), SIGNAL.band)
    how = settings(batch=8, rotation_lr=2e-3, dgd_lr=5e-4)
    drift = Drift(degrees=3.0, updates=4, iterations=20, blocks=24)
    found = track(drift, receiver, link, sections, watts(0), how, 0, tmp_path / "drift.safetensors")
    assert len(found["after"]) == 4
    assert found["fixed"][0] == found["before"][0]
    assert found["after"][-1] > found["fixed"][-1] + 1


def test_loss_does_not_depend_on_the_phase_of_a_block() -> None:
    x, y = complex_normal(2, 2, 8), complex_normal(2, 2, 8, seed=1).requires_grad_()
    turn = torch.exp(1j * torch.tensor([0.4, 2.0], dtype=torch.float64)).view(2, 1, 1)
    assert torch.allclose(squared_error(x, y), squared_error(x, y * turn))
    assert torch.autograd.gradcheck(lambda y: squared_error(x, y), (y,))


def test_one_percent_of_the_peak() -> None:
    assert within_one_percent([(0, 1.0), (10, 19.7), (20, 19.8), (30, 20.0), (40, 19.0)]) == 20
    assert within_one_percent([(0, -2.0), (10, -1.0)]) == 10


def test_rates_rise_stay_and_fall_by_a_cosine() -> None:
    how = Fitting(iterations=100, decay=100, decay_to=0.2, warmup=4)
    assert [how.share(i, None) for i in (0, 1, 3, 90)] == pytest.approx([0.25, 0.5, 1, 1])
    assert [how.share(i, 70) for i in (70, 120, 170)] == pytest.approx([1, 0.6, 0.2])
    assert Fitting().share(700, None) == 1


def test_constant_rates_end_at_a_plateau() -> None:
    """10 log10(2) = 3.01 dB between the windows, then 0.04 dB."""
    how = Fitting(iterations=9, window=2, plateau_db=0.05)
    assert [n for n in range(1, 10) if how.at_plateau([2, 2, 1, 1, 0.99, 0.99, 0.9, 0.9, 0.9][:n])] == [6, 9]
    assert not Fitting(iterations=9, window=2).at_plateau([1.0] * 8)  # no rule: all iterations


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FilterDesign(taps=8), "taps is 8; symmetric filters have an odd number"),
        (lambda: FilterDesign(bandwidth=1.2), r"bandwidth is 1\.2; it must lie in \(0, 1\]"),
        (lambda: FilterDesign(gain=0.0), r"gain is 0\.0"),
        (lambda: Backward(steps_per_span=0), "steps_per_span is 0"),
        (lambda: Backward(steps_per_span=2**31), "steps_per_span is 2147483648; it must lie in 1 to 100,000"),
        (
            lambda: make_receiver(Fibre(spans=10**6), Backward(steps_per_span=9), 1e10, 1),
            r"spans \* backward.steps_per_span is 9000000",
        ),
        (lambda: FilterDesign(taps=1001), "taps is 1001; .* below 1,000"),
        (lambda: Backward(dgd_taps=4), "dgd_taps is 4; give an odd number"),
        (lambda: EqualizerSettings(step=2.0), r"step is 2\.0; normalised LMS is stable for 0 < step < 2"),
        (lambda: EqualizerSettings(taps=2), "taps is 2; the equaliser has an odd"),
        (lambda: EqualizerSettings(passes=0), "passes is 0"),
        (lambda: Fitting(batch=0), "batch is 0"),
        (lambda: Fitting(rotation_lr=-1.0), r"rotation_lr is -1\.0"),
        (lambda: Fitting(decay_to=2.0), r"decay_to is 2\.0"),
        (lambda: Fitting(window=0), "window is 0"),
        (lambda: Fitting(plateau_db=-1.0), r"plateau_db is -1\.0; it cannot be negative; use 0"),
        (lambda: Backward(equalizer_taps=2), "equalizer_taps is 2; give an odd number below 1,000, or 0 for no equaliser"),
        (lambda: make_receiver(Fibre(), Backward(equalizer_taps=3), 1e10, 1), "equalizer_taps needs two polarisations"),
        (lambda: Drift(degrees=0.0), r"degrees is 0\.0; it must be positive"),
        (lambda: Drift(updates=0), "updates is 0"),
    ],
)
def test_impossible_settings_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
