"""``PolarisationMode``: an experiment on learned digital backpropagation that compensates PMD in its steps (Buetler et al. 2020).

At each launch power the dispersion filters are first trained on the link without PMD (``pretraining``). From there every arm is
trained by the same settings (``training``): on the link without PMD, which is the bound, for all iterations; and for each
realisation of PMD, on known symbols and to a plateau, with distributed PMD parameters (started by ``start``) or with a lumped
equaliser after all steps. Other
baselines see the same waveforms; two oracles know the PMD. At the best power some trainings are repeated from other starts, the
PMD changes abruptly and the receiver is trained further, or it drifts. Only the abstract of the paper could be read: link,
filters, rates, start and this order of training are our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.plugins.ldbp_pmd.baselines import (
    EqualizerSettings,
    backpropagate,
    equalize,
    least_squares,
    lms,
    undo_dispersion,
)
from spikeprop.plugins.ldbp_pmd.bits import quality
from spikeprop.plugins.ldbp_pmd.blocks import Blocks, Link, watts
from spikeprop.plugins.ldbp_pmd.drift import Drift, track
from spikeprop.plugins.ldbp_pmd.fibre import Fibre
from spikeprop.plugins.ldbp_pmd.link import Sections, draw_sections
from spikeprop.plugins.ldbp_pmd.oracle import digital, informed
from spikeprop.plugins.ldbp_pmd.pictures import draw_pmd
from spikeprop.plugins.ldbp_pmd.receiver import Backward, LearnedReceiver, make_receiver
from spikeprop.plugins.ldbp_pmd.signals import Signal
from spikeprop.plugins.ldbp_pmd.start import best_start, fit_to_equalizer, solved
from spikeprop.plugins.ldbp_pmd.summary import JOINT, OURS, PUBLISHED, rows, summarise
from spikeprop.plugins.ldbp_pmd.training import Course, Fitting, fit_receiver, load_receiver, processed, snr_of
from spikeprop.plugins.reports import save_report
from spikeprop.runtime.checks import at_least_one, distinct
from spikeprop.runtime.seeding import generator

Compensation = Callable[[Tensor], Tensor]  # (B, P, 2 K) samples to samples
SECTIONS, TRAIN, TEST, BATCHES, ROTATIONS = 1, 2, 3, 4, 5  # purposes of seeds


@dataclass(frozen=True, kw_only=True)
class PolarisationMode:
    """Learned digital backpropagation with distributed compensation of PMD.

    Attributes:
        seed: seed of symbols, noise and batches.
        realisations: seeds of the PMD.
        fibre, signal: the link, with its PMD coefficient.
        launch_powers_dbm: total powers of both polarisations.
        forward_steps: logarithmic simulation steps per span, each with a PMD section.
        backward: steps and filters of the receiver.
        starts: random rotations from which the start of a training is chosen, by its error on the training blocks.
        pretraining: training of the dispersion filters, without PMD.
        training: training of every arm, and of the bound.
        search: training without a start by the equaliser, from random rotations or after a change of PMD.
        equalizer: the baselines' 2x2 equaliser.
        train_blocks, test_blocks: simulated blocks for each power and realisation.
        repeats: realisations, the first ones, that are trained again from other starts and, by ``search``, from random rotations.
        changes: number of tested changes from one realisation to the next.
        drift: a slow change of the first realisation; None for none.

    """

    seed: int = 0
    realisations: list[int]
    fibre: Fibre
    signal: Signal
    launch_powers_dbm: list[float]
    forward_steps: int
    backward: Backward
    starts: int = 3
    pretraining: Fitting
    training: Fitting
    search: Fitting = field(default_factory=lambda: Fitting(lr=5e-4, batch=16, dgd_lr=5e-3))
    equalizer: EqualizerSettings = field(default_factory=EqualizerSettings)
    train_blocks: int = 300
    test_blocks: int = 50
    repeats: int = 0
    changes: int = 2
    drift: Drift | None = None

    def __post_init__(self) -> None:
        distinct(self, "realisations", "launch_powers_dbm")
        at_least_one(self, "train_blocks", "test_blocks", "starts")
        if not 0 <= self.repeats <= len(self.realisations):
            raise ValueError(f"repeats is {self.repeats}; {len(self.realisations)} realisations allow 0 to as many")
        if not 0 <= self.changes < len(self.realisations):
            raise ValueError(
                f"changes is {self.changes}; {len(self.realisations)} realisations allow 0 to {len(self.realisations) - 1}"
            )
        if not self.fibre.pmd or not self.backward.dgd_taps:
            raise ValueError("fibre.pmd and backward.dgd_taps must be positive; without PMD use SinglePolarisation")
        for power in self.launch_powers_dbm:
            self._link().check(watts(power))
        self._receiver()

    def check(self, *, here: bool = False) -> None:
        """Nothing to check: all settings are checked when they are read."""

    def smoke(self) -> PolarisationMode:
        """The same experiment with one span and power, at most two realisations, and few iterations."""
        few = {"iterations": 3, "batch": 2, "every": 2, "window": 1, "warmup": 0, "decay": min(1, self.training.decay)}
        return dataclasses.replace(
            self, realisations=self.realisations[: 1 + min(1, self.changes)], launch_powers_dbm=self.launch_powers_dbm[:1],
            starts=1, repeats=min(1, self.repeats), changes=min(1, self.changes),
            fibre=dataclasses.replace(self.fibre, spans=1),
            **{name: dataclasses.replace(getattr(self, name), **few) for name in ("pretraining", "training", "search")},
            train_blocks=4, test_blocks=2,
            drift=self.drift and dataclasses.replace(self.drift, updates=1, iterations=2, blocks=2),
        )  # fmt: skip

    def run(self, context: Context) -> Report:
        """Run all powers and realisations, then the rest; finished stages are read, an interrupted one is resumed."""
        stage, powers = context.folder.stage, self.launch_powers_dbm
        free = {p: stage(f"free_{p:g}", lambda p=p: self._without_pmd(p, context)) for p in powers}
        found: dict[float, list[dict[str, Any]]] = {p: [] for p in powers}
        for r in self.realisations:
            for p in powers:
                found[p].append(stage(f"pmd_{p:g}_{r}", lambda p=p, r=r: self._with_pmd(p, r, context)))
        values = summarise(context.name, self.realisations, free, found)
        best = values["best_power_dbm"]
        again = [stage(f"again_{r}", lambda r=r: self._again(best, r, context)) for r in self.realisations[: self.repeats]]
        pairs = list(zip(self.realisations, self.realisations[1:]))[: self.changes]
        changes = [stage(f"change_{a}_{b}", lambda a=a, b=b: self._change(best, a, b, context)) for a, b in pairs]
        drift = stage("drift", lambda: self._drift(best, context)) if self.drift else None
        values |= {
            "repeats": again,
            "changes": changes,
            "drift": drift,
            "published": PUBLISHED if self._beside_the_paper() else None,
            "mean_dgd_ps": self.fibre.mean_dgd * 1e12,
            "pmd_parameters": sum(p.numel() for p in self._receiver().pmd_parameters()),
        }
        return save_report(context, values, rows, draw_pmd)

    def _without_pmd(self, power_dbm: float, context: Context) -> dict[str, Any]:
        """Train the dispersion filters on the link without PMD, then as every arm, for the most iterations that an arm can have,
        so that no arm is trained longer than its bound; returns the quality of all arms."""
        context.notify(f"{power_dbm:g} dBm without PMD")
        data, receiver = self._data(power_dbm, None), self._receiver(dgd_taps=0)
        first = self._fit(receiver, data, self.pretraining, self._file(context, "filters", power_dbm))
        longest = dataclasses.replace(self.training, plateau_db=0.0)
        course = self._fit(receiver, data, longest, self._file(context, "free", power_dbm), 1)
        arms = {name: self._quality(data[1], compensate(data[1].samples)) for name, compensate in self._fixed().items()}
        arms["LDBP"] = self._quality(data[1], processed(receiver, data[1].samples))
        return {"arms": arms, "curves": [first.curve, course.curve], "plateaus": {"LDBP": course.plateau}}

    def _with_pmd(self, power_dbm: float, realisation: int, context: Context) -> dict[str, Any]:
        """Train for one realisation; returns the quality of all arms."""
        context.notify(f"{power_dbm:g} dBm, PMD realisation {realisation}")
        data, sections = self._data(power_dbm, realisation), self._sections(realisation)
        bound, filters = self._load("free", power_dbm, context), self._load("filters", power_dbm, context)
        arms: dict[str, Any] = {}
        for name, compensate in {**self._fixed(), "LDBP": lambda x: processed(bound, x)}.items():
            arms |= {f"{name} + {kind}": found for kind, found in self._lumped(data, compensate).items()}
        joint = self._with_filters(filters, dgd_taps=0, equalizer_taps=self.equalizer.taps)
        joint.set_equalizer(solved(joint, self.signal, data[0], self.equalizer.taps))
        path = self._file(context, "joint", power_dbm, realisation)
        plateaus = {JOINT: self._fit(joint, data, self.training, path, realisation).plateau}
        arms[JOINT] = self._quality(data[1], processed(joint, data[1].samples))
        receiver = self._start(filters, data[0])
        course = self._fit(receiver, data, self.training, self._file(context, "pmd", power_dbm, realisation), realisation)
        arms[OURS], plateaus[OURS] = self._quality(data[1], processed(receiver, data[1].samples)), course.plateau
        arms["LDBP, PMD known"] = self._quality(data[1], informed(bound, data[1].samples, self._link(), sections))
        arms["DBP, PMD known"] = self._quality(data[1], digital(data[1].samples, self._link(), sections))
        return {"arms": arms, "curve": course.curve, "plateaus": plateaus, "dgd_ps": sections.dgd() * 1e12}

    def _again(self, power_dbm: float, realisation: int, context: Context) -> dict[str, Any]:
        """Train for one realisation from other starts, and from random rotations."""
        context.notify(f"{power_dbm:g} dBm, PMD realisation {realisation} from other starts")
        data = self._data(power_dbm, realisation)
        filters = self._load("filters", power_dbm, context)
        other, random = self._start(filters, data[0], first=self.starts), self._with_filters(filters)
        found = self._fit(other, data, self.training, self._file(context, "other", power_dbm, realisation), realisation)
        alone = self._fit(random, data, self.search, self._file(context, "random", power_dbm, realisation), realisation)
        return {"realisation": realisation, "other_db": found.snr, "random": alone.curve, "random_plateau": alone.plateau}

    def _change(self, power_dbm: float, old: int, new: int, context: Context) -> dict[str, Any]:
        """Continue the training of the receiver for one realisation with another, with and without a start by the equaliser."""
        context.notify(f"{power_dbm:g} dBm, PMD changes from {old} to {new}")
        trained, started = (load_receiver(self._receiver(), self._file(context, "pmd", power_dbm, old)) for _ in range(2))
        before = snr_of(trained, self.signal, self._data(power_dbm, old, train=False)[1])
        data = self._data(power_dbm, new)
        after = snr_of(trained, self.signal, data[1])
        fit_to_equalizer(started, solved(started, self.signal, data[0], self.equalizer.taps), self.signal.band)
        ways = {"alone": (trained, self.search), "equalizer": (started, self.training)}
        found: dict[str, Any] = {"from": old, "to": new, "before": before, "after": after}
        for way, (receiver, settings) in ways.items():
            course = self._fit(receiver, data, settings, self._file(context, f"change_{way}", power_dbm, new), old, new)
            found[way] = {"curve": course.curve, "plateau": course.plateau}
        return found

    def _drift(self, power_dbm: float, context: Context) -> dict[str, Any]:
        """Let the PMD of the first realisation drift, see ``Drift``."""
        assert self.drift is not None
        first = self.realisations[0]
        receiver = load_receiver(self._receiver(), self._file(context, "pmd", power_dbm, first))
        path = context.folder.path / "drift.safetensors"
        return track(self.drift, receiver, self._link(), self._sections(first), watts(power_dbm), self.training, self.seed, path)

    def _fixed(self) -> dict[str, Compensation]:
        """Compensations without training."""
        rate, steps = self.signal.receiver_rate, self.backward.steps_per_span
        return {
            "dispersion undone": lambda x: undo_dispersion(x, self.fibre, rate),
            "DBP": lambda x: backpropagate(x, self.fibre, steps, rate),
        }

    def _lumped(self, data: tuple[Blocks, Blocks], compensate: Compensation) -> dict[str, Any]:
        """Quality with the 2x2 equaliser, by LMS and by least squares."""
        train, test = (self.signal.matched(compensate(b.samples), b.power) for b in data)
        weights = {
            "LMS": lms(train, data[0].symbols, self.equalizer),
            "least squares": least_squares(train, data[0].symbols, self.equalizer.taps),
        }
        return {kind: quality(self.signal, data[1].symbols, equalize(test, w)) for kind, w in weights.items()}

    def _quality(self, blocks: Blocks, samples: Tensor) -> dict[str, Any]:
        return quality(self.signal, blocks.symbols, self.signal.detect(samples, blocks.power))

    def _data(self, power_dbm: float, realisation: int | None, train: bool = True) -> tuple[Blocks, Blocks]:
        """Training and test blocks; one training block if ``train`` is False."""
        power, link = watts(power_dbm), self._link()
        sections = None if realisation is None else self._sections(realisation)
        place = (self.launch_powers_dbm.index(power_dbm), 0 if realisation is None else realisation + 1)
        return (
            link.blocks(self.train_blocks if train else 1, power, (self.seed, TRAIN, *place), sections),
            link.blocks(self.test_blocks, power, (self.seed, TEST, *place), sections),
        )

    def _beside_the_paper(self) -> bool:
        """Whether the paper's figures stand beside ours: the abstract's setting, one channel with a fixed PMD, at full length
        and with 16-QAM and ideal lasers, as the recipe ldbp_pmd reproduces it."""
        fibre, signal = self.fibre, self.signal
        link = (fibre.spans, fibre.span_km, signal.symbol_rate, signal.modulation)
        return link == (10, 80.0, 32.0, "16-QAM") and not (signal.neighbours or signal.linewidth_khz or self.drift)

    def _sections(self, realisation: int) -> Sections:
        return draw_sections(self.fibre, self._link().edges(), generator(realisation, SECTIONS))

    def _link(self) -> Link:
        return Link(self.fibre, self.signal, self.forward_steps, polarisations=2)

    def _receiver(self, draw: int = 0, **changes: int) -> LearnedReceiver:
        settings = dataclasses.replace(self.backward, **changes)
        return make_receiver(self.fibre, settings, self.signal.receiver_rate, 2, generator(self.seed, ROTATIONS, draw))

    def _load(self, name: str, power_dbm: float, context: Context) -> LearnedReceiver:
        """A receiver that was trained without PMD."""
        return load_receiver(self._receiver(dgd_taps=0), self._file(context, name, power_dbm))

    def _with_filters(self, filters: LearnedReceiver, draw: int = 0, **changes: int) -> LearnedReceiver:
        """A receiver with trained dispersion filters and otherwise initial parameters."""
        receiver = self._receiver(draw, **changes)
        receiver.load_state_dict(filters.state_dict(), strict=False)
        return receiver

    def _start(self, filters: LearnedReceiver, train: Blocks, first: int = 0) -> LearnedReceiver:
        """The best of ``starts`` receivers that are started by their equaliser."""
        draws = [self._with_filters(filters, first + k) for k in range(self.starts)]
        return best_start(draws, self.signal, train, self.equalizer.taps)

    def _fit(self, receiver: LearnedReceiver, data: tuple[Blocks, Blocks], settings: Fitting, path: Path, *seed: int) -> Course:
        return fit_receiver(receiver, self.signal, data, settings, (self.seed, BATCHES, *seed), path)

    @staticmethod
    def _file(context: Context, name: str, power_dbm: float, *realisation: int) -> Path:
        return context.folder.path / f"{'_'.join([name, f'{power_dbm:g}', *map(str, realisation)])}.safetensors"
