"""A recipe as a run: the two pipelines, their settings, what every experiment is given, run folders and network checkpoints."""

from spikeprop.experiment.pipeline import HybridConversion
from spikeprop.experiment.scratch import SpikingTraining

__all__ = ["HybridConversion", "SpikingTraining"]
