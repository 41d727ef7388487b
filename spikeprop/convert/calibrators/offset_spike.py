"""Offset spikes on top of any calibrator (Hao et al. 2023; the shift itself is in ``snn/offset.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spikeprop.convert.calibrator import ThresholdCalibrator, run_calibrator
from spikeprop.convert.shard import UNSHARDED, CalibrationShard
from spikeprop.snn import SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class OffsetSpike(ThresholdCalibrator):
    """Any calibrator, and ``pre_run`` steps at the start of a simulation that shift the initial potentials (Hao et al. 2023).

    For QCFS networks in few steps, at the price of ``pre_run`` steps more.

    The latency of the network includes these steps; the authors count them separately.

    Attributes:
        calibrator: sets the thresholds; the authors' networks are QCFS networks (``LearnedCeiling``).
        pre_run: number of these steps.
    """

    calibrator: ThresholdCalibrator
    pre_run: int = 4

    def __post_init__(self) -> None:
        if self.pre_run < 1:
            raise ValueError(f"pre_run is {self.pre_run}; offsets are learnt in at least 1 step")

    @property
    def supports_distributed(self) -> bool:
        return self.calibrator.supports_distributed

    @property
    def calibrated_for(self) -> int | None:
        return self.calibrator.calibrated_for

    def calibrate(self, network: SpikingNetwork, x: Tensor, shard: CalibrationShard = UNSHARDED) -> dict[str, Tensor]:
        thresholds = run_calibrator(self.calibrator, network, x, shard)
        network.readout.set(pre_run=self.pre_run)  # the output is counted from the end of the pre-run
        return thresholds
