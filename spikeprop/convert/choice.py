"""Which neuron and which calibrator ``convert`` takes for a number of time steps, when the caller leaves the choice to it.

The rules are those of the measured table in docs/guides/choosing.md: the fewest bits with which accuracy stays near the ANN's,
and the calibrator that is best there within seconds. How many levels that takes depends on the network too (a thousand classes
lie closer together than ten), so ``convert`` compares predictions with the ANN's afterwards. If a share e of them differs, more
than the share ENOUGH allows, it takes log2(e / (1 - ENOUGH)) more levels, since a level halves the size of a spike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from spikeprop.convert.calibrator import ThresholdCalibrator
from spikeprop.convert.calibrators.least_squares import LeastSquares
from spikeprop.convert.calibrators.light_calibration import LightCalibration
from spikeprop.errors import ConversionError
from spikeprop.snn import GradedIF, Neuron, SignedIF
from spikeprop.snn.signed import MOST_LEVELS

LEVELS = ((1, 4), (8, 3))  # up to that many steps so many levels; 2 for more
ENOUGH = 0.95  # share of the images for which the network should predict as the ANN
COUNTS = 16  # sums that a neuron can send, T times the largest payload, below which weights are fitted


@dataclass(frozen=True)
class Choice:
    """What ``convert`` runs with.

    Attributes:
        neuron, calibrator: prototype, and what sets the thresholds.
        why: in words; empty where the caller gave both.
        timesteps: that it was chosen for; None where the caller gave both.
        own: names of what the caller gave, "neuron" or "calibrator".
    """

    neuron: Neuron
    calibrator: ThresholdCalibrator
    why: str = ""
    timesteps: int | None = None
    own: frozenset[str] = frozenset()

    def finer(self, agreement: float) -> Choice | None:
        """With as many more levels as an agreement with the ANN asks for; None where it is enough or the caller decides."""
        neuron, steps = self.neuron, self.timesteps
        if steps is None or "neuron" in self.own or type(neuron) is not GradedIF or agreement >= ENOUGH:
            return None
        more = max(1, math.ceil(math.log2((1 - agreement) / (1 - ENOUGH))))
        finer = GradedIF(levels=min(neuron.levels + more, MOST_LEVELS))
        if finer.levels == neuron.levels:
            return None
        if "calibrator" in self.own:
            return replace(self, neuron=finer)
        calibrator, reason = _calibrator(finer, steps)
        return replace(self, neuron=finer, calibrator=calibrator, why=f"then {finer.levels} levels: {reason}")


def choose(
    neuron: Neuron | None, calibrator: ThresholdCalibrator | None, timesteps: int | None, *, binary: bool = False
) -> Choice:
    """Complete what the caller gave.

    Args:
        neuron, calibrator: None for the choice.
        timesteps: that the network is to run for; None where the calibrator has them.
        binary: spikes of one bit, with a sign.

    Raises:
        ConversionError: no number of steps, one that differs from the calibrator's, or ``binary`` beside a neuron.
    """
    if binary and neuron is not None:
        raise ConversionError(f"binary=True chooses the neuron, and neuron is {type(neuron).__name__}; give one of the two")
    if neuron is not None and calibrator is not None and timesteps is None:
        return Choice(neuron, calibrator)
    steps = _steps(calibrator, timesteps)
    given = {"neuron": neuron, "calibrator": calibrator}
    own = frozenset(name for name, value in given.items() if value is not None)
    reasons = []
    if neuron is None:
        neuron, reason = _neuron(steps, binary)
        reasons.append(reason)
    if calibrator is None:
        calibrator, reason = _calibrator(neuron, steps)
        reasons.append(reason)
    why = f"chosen for T = {steps}: " + "; ".join(reasons) if reasons else ""
    return Choice(neuron, calibrator, why, steps, own)


def _steps(calibrator: ThresholdCalibrator | None, timesteps: Any) -> int:
    """The number of steps that the caller gave, here or with the calibrator."""
    own: Any = getattr(calibrator, "timesteps", None)
    if timesteps is None and own is None:
        raise ConversionError("for how many time steps? Pass timesteps=8 to convert, or a neuron and a calibrator")
    if timesteps is None:
        return int(own)
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise ConversionError(f"timesteps is {timesteps!r}; a simulation needs a whole number of steps, at least 1")
    if own not in (None, timesteps):
        kind = type(calibrator).__name__
        raise ConversionError(f"timesteps is {timesteps}, and {kind} calibrates for {own}; give one of the two")
    return timesteps


def _neuron(steps: int, binary: bool) -> tuple[Neuron, str]:
    if binary:
        return SignedIF(), "SignedIF, since binary=True keeps to spikes of one bit and a sign"
    levels = next((levels for most, levels in LEVELS if steps <= most), 2)
    return GradedIF(levels=levels), (
        f"GradedIF with {levels} levels, the fewest bits that stay near the ANN at so many steps (binary=True for one bit)"
    )


def _calibrator(neuron: Neuron, steps: int) -> tuple[ThresholdCalibrator, str]:
    counts = steps * neuron.payload
    if counts < COUNTS:
        uneven = neuron.payload == 1 and steps > 1  # what comes late cannot be sent at once
        return LeastSquares(timesteps=steps, search="spikes" if uneven else "rate"), (
            f"LeastSquares{' on spikes' if uneven else ''}, which fits the weights, since a neuron can send only {counts} "
            "different sums"
        )
    search, on = ("spikes", " on spikes") if counts < 2 * COUNTS else ("rate", "")
    return LightCalibration(timesteps=steps, search=search), (
        f"LightCalibration{on}, which is enough where a neuron can send {counts} different sums"
    )
