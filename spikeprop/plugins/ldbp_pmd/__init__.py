"""Learned digital backpropagation (LDBP) for optical links, with distributed compensation of polarisation-mode dispersion (PMD).

``link`` simulates the fibre (split-step Fourier, Manakov-PMD), ``receiver`` is the trainable time-domain inverse, ``single``
and ``pmd`` are the experiments. Sources: Haeger & Pfister 2018 (arXiv:1804.02799; code chaeger/LDBP, one polarisation) and
Buetler, Haeger, Pfister, Liga & Alvarado 2020 (arXiv:2010.12313), of which we could read the abstract alone: every parameter of
the PMD link and its training is our choice.
"""

from spikeprop.plugins.ldbp_pmd.pmd import PolarisationMode
from spikeprop.plugins.ldbp_pmd.single import SinglePolarisation

__all__ = ["PolarisationMode", "SinglePolarisation"]
