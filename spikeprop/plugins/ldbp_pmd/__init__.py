"""Learned digital backpropagation (LDBP) for optical links, with distributed compensation of polarisation-mode dispersion (PMD).

The receiver inverts the split-step solution of the Manakov-PMD equation

    dE/dz = -(alpha/2) E - B(z) dE/dt - j (beta2/2) d^2E/dt^2 + j (8/9) gamma |E|^2 E

step by step with short trainable filters. Sources: Haeger & Pfister 2018 (arXiv:1804.02799; code chaeger/LDBP, one
polarisation) and Buetler, Haeger, Pfister, Liga & Alvarado 2020 (arXiv:2010.12313), of which we could read only the abstract:
all parameters of the PMD link and its training are our choice. ``link`` simulates the fibre, ``receiver`` is the trainable
inverse. The experiments ``SinglePolarisation`` (recipe ldbp_single) and ``PolarisationMode`` (recipe ldbp_pmd) fill the slot
``use`` of a recipe.
"""

from spikeprop.plugins.ldbp_pmd.pmd import PolarisationMode
from spikeprop.plugins.ldbp_pmd.single import SinglePolarisation

__all__ = ["PolarisationMode", "SinglePolarisation"]
