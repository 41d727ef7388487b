"""Sweeps: one recipe with many values. Every trial is an ordinary run folder, made by its own `spikeprop run`."""

from spikeprop.sweep.plan import SweepAxis, SweepPlan, parse_axis, split_values
from spikeprop.sweep.sweep import Sweep, Trial

__all__ = ["Sweep", "SweepAxis", "SweepPlan", "Trial", "parse_axis", "split_values"]
