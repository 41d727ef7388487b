"""Which neuron and which calibrator ``convert`` takes for a number of time steps, when the caller leaves the choice to it.

The rules are those of the measured table in docs/guides/choosing.md: the fewest bits with which accuracy stays near the ANN's,
and the calibrator that is best there within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spikeprop.convert.calibrator import ThresholdCalibrator
from spikeprop.convert.calibrators.least_squares import LeastSquares
from spikeprop.convert.calibrators.light_calibration import LightCalibration
from spikeprop.errors import ConversionError
from spikeprop.snn import GradedIF, Neuron, SignedIF

LEVELS = ((1, 4), (8, 3))  # up to that many steps so many levels; 2 for more
COUNTS = 16  # sums that a neuron can send, T times the largest payload, below which weights are fitted


@dataclass(frozen=True)
class Choice:
    """What ``convert`` runs with.

    Attributes:
        neuron, calibrator: prototype, and what sets the thresholds.
        why: in words; empty where the caller gave both.
    """

    neuron: Neuron
    calibrator: ThresholdCalibrator
    why: str = ""


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
    reasons = []
    if neuron is None:
        neuron, reason = _neuron(steps, binary)
        reasons.append(reason)
    if calibrator is None:
        calibrator, reason = _calibrator(neuron, steps)
        reasons.append(reason)
    return Choice(neuron, calibrator, f"chosen for T = {steps}: " + "; ".join(reasons) if reasons else "")


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
