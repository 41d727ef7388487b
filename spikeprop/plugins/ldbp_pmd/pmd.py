"""``PolarisationMode``: an experiment on learned digital backpropagation that compensates PMD in its steps (Buetler et al. 2020).

At each launch power the dispersion filters are first trained on the link without PMD; that receiver on that link is the bound.
For each realisation of PMD, training on known symbols continues from it, with DGD filters initialised to a delta and random
rotations, the same for all realisations. Baselines see the same waveforms, and their lumped 2x2 equaliser is trained on the
same symbols. Finally the PMD changes abruptly and the trained receiver is trained further. Only the abstract of the paper could
be read: link, filters, rates, numbers of realisations and this order of training are our choice.
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
from spikeprop.plugins.ldbp_pmd.blocks import Blocks, Link, watts
from spikeprop.plugins.ldbp_pmd.fibre import Fibre
from spikeprop.plugins.ldbp_pmd.link import Sections, draw_sections
from spikeprop.plugins.ldbp_pmd.pictures import draw_pmd
from spikeprop.plugins.ldbp_pmd.receiver import Backward, LearnedReceiver, make_receiver
from spikeprop.plugins.ldbp_pmd.signals import Signal, effective_snr
from spikeprop.plugins.ldbp_pmd.summary import rows, summarise
from spikeprop.plugins.ldbp_pmd.training import Fitting, fit_receiver, load_receiver, processed, snr_of
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
        pretraining: training of the dispersion filters, without PMD.
        training: training for each realisation, and again after a change.
        equalizer: the baselines' 2x2 equaliser.
        train_blocks, test_blocks: simulated blocks for each power and realisation.
        changes: number of tested changes from one realisation to the next.

    """

    seed: int = 0
    realisations: list[int]
    fibre: Fibre
    signal: Signal
    launch_powers_dbm: list[float]
    forward_steps: int
    backward: Backward
    pretraining: Fitting
    training: Fitting
    equalizer: EqualizerSettings = field(default_factory=EqualizerSettings)
    train_blocks: int = 300
    test_blocks: int = 50
    changes: int = 2

    def __post_init__(self) -> None:
        distinct(self, "realisations", "launch_powers_dbm")
        at_least_one(self, "train_blocks", "test_blocks")
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
        """The same experiment with one span, two powers, two realisations and few iterations."""
        few = {"iterations": 3, "batch": 2, "every": 2}
        return dataclasses.replace(
            self, realisations=self.realisations[:2], launch_powers_dbm=self.launch_powers_dbm[:2], changes=1,
            fibre=dataclasses.replace(self.fibre, spans=1), pretraining=dataclasses.replace(self.pretraining, **few),
            training=dataclasses.replace(self.training, **few), train_blocks=4, test_blocks=2,
        )  # fmt: skip

    def run(self, context: Context) -> Report:
        """Run all powers and realisations, then changes; finished stages are read, an interrupted one is resumed."""
        folder, powers = context.folder, self.launch_powers_dbm
        free = {p: folder.stage(f"free_{p:g}", lambda p=p: self._without_pmd(p, context)) for p in powers}
        found = {
            p: [folder.stage(f"pmd_{p:g}_{r}", lambda p=p, r=r: self._with_pmd(p, r, context)) for r in self.realisations]
            for p in powers
        }
        values = summarise(context.name, self.realisations, free, found)
        best = values["best_power_dbm"]
        pairs = list(zip(self.realisations, self.realisations[1:]))[: self.changes]
        changes = [folder.stage(f"change_{a}_{b}", lambda a=a, b=b: self._change(best, a, b, context)) for a, b in pairs]
        values |= {
            "changes": changes,
            "mean_dgd_ps": self.fibre.mean_dgd * 1e12,
            "pmd_parameters": sum(p.numel() for p in self._receiver().pmd_parameters()),
        }
        return save_report(context, values, rows, draw_pmd)

    def _without_pmd(self, power_dbm: float, context: Context) -> dict[str, Any]:
        """Train the dispersion filters on the link without PMD; returns the SNR in dB of all arms."""
        context.notify(f"{power_dbm:g} dBm without PMD")
        data = self._data(power_dbm, None)
        receiver = self._receiver(pmd=False)
        path = self._file(context, power_dbm, None)
        curve = fit_receiver(receiver, self.signal, data, self.pretraining, (self.seed, BATCHES), path)
        found = {name: self._snr(data[1], compensate(data[1].samples)) for name, compensate in self._fixed().items()}
        return {**found, "LDBP, initial": curve[0][1], "LDBP": curve[-1][1]}

    def _with_pmd(self, power_dbm: float, realisation: int, context: Context) -> dict[str, Any]:
        """Train for one realisation; returns the SNR in dB of all arms."""
        context.notify(f"{power_dbm:g} dBm, PMD realisation {realisation}")
        data = self._data(power_dbm, realisation)
        pretrained = load_receiver(self._receiver(pmd=False), self._file(context, power_dbm, None))
        found: dict[str, Any] = {}
        for name, compensate in {**self._fixed(), "LDBP": lambda x: processed(pretrained, x)}.items():
            found |= {f"{name} + {kind}": snr for kind, snr in self._lumped(data, compensate).items()}
        receiver = self._untrained(pretrained)
        path = self._file(context, power_dbm, realisation)
        curve = fit_receiver(receiver, self.signal, data, self.training, (self.seed, BATCHES, realisation), path)
        return {**found, "LDBP-PMD": curve[-1][1], "curve": curve, "dgd_ps": self._sections(realisation).dgd() * 1e12}

    def _change(self, power_dbm: float, old: int, new: int, context: Context) -> dict[str, Any]:
        """Continue the training of the receiver for one realisation with another realisation."""
        context.notify(f"{power_dbm:g} dBm, PMD changes from {old} to {new}")
        receiver = load_receiver(self._receiver(), self._file(context, power_dbm, old))
        before = snr_of(receiver, self.signal, self._data(power_dbm, old, train=False)[1])
        path = context.folder.path / f"change_{old}_{new}.safetensors"
        curve = fit_receiver(
            receiver, self.signal, self._data(power_dbm, new), self.training, (self.seed, BATCHES, old, new), path
        )
        return {"from": old, "to": new, "before": before, "curve": curve}

    def _fixed(self) -> dict[str, Compensation]:
        """Compensations without training."""
        rate, steps = self.signal.receiver_rate, self.backward.steps_per_span
        return {
            "dispersion undone": lambda x: undo_dispersion(x, self.fibre, rate),
            "DBP": lambda x: backpropagate(x, self.fibre, steps, rate),
        }

    def _lumped(self, data: tuple[Blocks, Blocks], compensate: Compensation) -> dict[str, float]:
        """SNR in dB with the 2x2 equaliser, by LMS and by least squares."""
        train, test = (self.signal.matched(compensate(b.samples), b.power) for b in data)
        weights = {
            "LMS": lms(train, data[0].symbols, self.equalizer),
            "least squares": least_squares(train, data[0].symbols, self.equalizer.taps),
        }
        return {kind: effective_snr(data[1].symbols, equalize(test, w)) for kind, w in weights.items()}

    def _snr(self, blocks: Blocks, samples: Tensor) -> float:
        return effective_snr(blocks.symbols, self.signal.detect(samples, blocks.power))

    def _data(self, power_dbm: float, realisation: int | None, train: bool = True) -> tuple[Blocks, Blocks]:
        """Training and test blocks; one training block if ``train`` is False."""
        power, link = watts(power_dbm), self._link()
        sections = None if realisation is None else self._sections(realisation)
        place = (self.launch_powers_dbm.index(power_dbm), 0 if realisation is None else realisation + 1)
        return (
            link.blocks(self.train_blocks if train else 1, power, (self.seed, TRAIN, *place), sections),
            link.blocks(self.test_blocks, power, (self.seed, TEST, *place), sections),
        )

    def _sections(self, realisation: int) -> Sections:
        return draw_sections(self.fibre, self._link().edges(), generator(realisation, SECTIONS))

    def _untrained(self, pretrained: LearnedReceiver) -> LearnedReceiver:
        """A receiver with trained dispersion filters and initial PMD parameters."""
        receiver = self._receiver()
        receiver.load_state_dict(pretrained.state_dict(), strict=False)
        return receiver

    def _link(self) -> Link:
        return Link(self.fibre, self.signal, self.forward_steps, polarisations=2)

    def _receiver(self, pmd: bool = True) -> LearnedReceiver:
        settings = self.backward if pmd else dataclasses.replace(self.backward, dgd_taps=0)
        return make_receiver(self.fibre, settings, self.signal.receiver_rate, 2, generator(self.seed, ROTATIONS))

    @staticmethod
    def _file(context: Context, power_dbm: float, realisation: int | None) -> Path:
        name = f"free_{power_dbm:g}" if realisation is None else f"pmd_{power_dbm:g}_{realisation}"
        return context.folder.path / f"{name}.safetensors"
