"""A recipe as a run: the hybrid pipeline, its settings, what every experiment is given, run folders and network checkpoints."""

from spikeprop.experiment.pipeline import HybridConversion

__all__ = ["HybridConversion"]
