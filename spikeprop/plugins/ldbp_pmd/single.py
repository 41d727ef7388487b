"""``SinglePolarisation``: an experiment on learned digital backpropagation in one polarisation.

The published settings are those of isit.ini in chaeger/LDBP (Haeger & Pfister 2018): effective SNR from 20.9 to 22.5 dB
according to its jobscript, with the noise doubled. Differences: our pulses are exact on the period, symmetric forward steps use
their exact nonlinear length, and training blocks come from a fixed set, test blocks from another.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from spikeprop.evaluate import Report
from spikeprop.evaluate.intervals import in_words, mean_interval
from spikeprop.experiment.context import Context
from spikeprop.plugins.ldbp_pmd.baselines import backpropagate, undo_dispersion
from spikeprop.plugins.ldbp_pmd.blocks import Blocks, Link, watts
from spikeprop.plugins.ldbp_pmd.fibre import Fibre
from spikeprop.plugins.ldbp_pmd.pictures import draw_training
from spikeprop.plugins.ldbp_pmd.receiver import Backward, LearnedReceiver, make_receiver
from spikeprop.plugins.ldbp_pmd.signals import Signal
from spikeprop.plugins.ldbp_pmd.training import Fitting, fit_receiver
from spikeprop.plugins.reports import save_report
from spikeprop.runtime.checks import at_least_one, distinct

PUBLISHED = {"initial": 20.9, "trained": 22.5}  # dB; comment in the jobscript of chaeger/LDBP
PUBLISHED_LINK = Fibre(noise_factor=2.0), Signal(), 0.0  # of isit.ini: fibre, signal, launch power in dBm
FINE = 20  # steps per span of the fine digital backpropagation
TRAIN, TEST = 1, 2  # purposes of seeds


@dataclass(frozen=True, kw_only=True)
class SinglePolarisation:
    """Learned digital backpropagation, one polarisation.

    Attributes:
        seeds: seeds of symbols, noise and batches; one run per seed.
        fibre, signal: the link.
        launch_power_dbm: mean power of the signal.
        forward_steps: logarithmic simulation steps per span.
        backward: steps and filters of the receiver.
        training: settings of the training.
        train_blocks, test_blocks: simulated blocks for each seed.

    """

    seeds: list[int]
    fibre: Fibre = field(default_factory=Fibre)
    signal: Signal = field(default_factory=Signal)
    launch_power_dbm: float = 0.0
    forward_steps: int = 50
    backward: Backward = field(default_factory=Backward)
    training: Fitting = field(default_factory=Fitting)
    train_blocks: int = 2000
    test_blocks: int = 400

    def __post_init__(self) -> None:
        distinct(self, "seeds")
        at_least_one(self, "train_blocks", "test_blocks")
        if self.backward.dgd_taps or self.fibre.pmd:
            raise ValueError("backward.dgd_taps and fibre.pmd need two polarisations; use PolarisationMode, or 0 for both")
        self._link().check(watts(self.launch_power_dbm))
        self._receiver()

    def check(self, *, here: bool = False) -> None:
        """Nothing to check: all settings are checked when they are read."""

    def smoke(self) -> SinglePolarisation:
        """The same experiment with two spans, few blocks and three iterations."""
        training = dataclasses.replace(self.training, iterations=3, batch=4, every=2)
        fibre = dataclasses.replace(self.fibre, spans=2)
        return dataclasses.replace(self, seeds=self.seeds[:2], fibre=fibre, training=training, train_blocks=8, test_blocks=4)

    def run(self, context: Context) -> Report:
        """Run all seeds; finished ones are read from the folder, an interrupted one is resumed."""
        runs = [context.folder.stage(f"seed_{seed}", lambda s=seed: self._learn(s, context)) for seed in self.seeds]
        arms = {name: mean_interval([run[name] for run in runs]) for name in runs[0] if name != "curve"}
        values = {
            "name": context.name,
            "seeds": self.seeds,
            "effective_snr_db": arms,
            "runs": runs,
            "published_db": PUBLISHED if (self.fibre, self.signal, self.launch_power_dbm) == PUBLISHED_LINK else None,
            "parameters": sum(p.numel() for p in self._receiver().parameters()),
        }
        return save_report(context, values, _rows, draw_training)

    def _learn(self, seed: int, context: Context) -> dict[str, Any]:
        power, link, receiver = watts(self.launch_power_dbm), self._link(), self._receiver()
        context.notify(f"seed {seed}: {self.train_blocks + self.test_blocks} blocks through {self.fibre.spans} spans")
        data = link.blocks(self.train_blocks, power, (seed, TRAIN)), link.blocks(self.test_blocks, power, (seed, TEST))
        path = context.folder.path / f"seed_{seed}.safetensors"
        curve = fit_receiver(receiver, self.signal, data, self.training, (seed,), path).curve
        return {**self._baselines(data[1]), "LDBP, initial": curve[0][1], "LDBP, trained": curve[-1][1], "curve": curve}

    def _baselines(self, blocks: Blocks) -> dict[str, float]:
        rate, steps = self.signal.receiver_rate, self.backward.steps_per_span
        found = {"dispersion undone": undo_dispersion(blocks.samples, self.fibre, rate)}
        for name, count in ((f"DBP, {steps} a span", steps), (f"DBP, {FINE} a span", FINE)):
            found[name] = backpropagate(blocks.samples, self.fibre, count, rate)
        return {name: self.signal.snr(blocks.symbols, self.signal.detect(x, blocks.power)) for name, x in found.items()}

    def _link(self) -> Link:
        return Link(self.fibre, self.signal, self.forward_steps, polarisations=1)

    def _receiver(self) -> LearnedReceiver:
        return make_receiver(self.fibre, self.backward, self.signal.receiver_rate, polarisations=1)


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(f"effective SNR, {name}", in_words(arm, unit=" dB")) for name, arm in values["effective_snr_db"].items()]
    published = values["published_db"]
    if published:  # of this very link
        rows.append(("published, isit.ini of chaeger/LDBP", f"{published['initial']} dB to {published['trained']} dB"))
    return [*rows, ("real parameters", f"{values['parameters']:,}")]
