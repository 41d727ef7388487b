"""Adjoint differentiation for Monte-Carlo risk: a price and its derivative by every parameter, in about the time of two prices.

For each mini-batch of paths, the payoff V is differentiated backwards along the paths, dV/dtheta = sum over steps of (dV/dx_k)
(dx_k/dtheta); means over independent groups of paths give the standard errors. Source: Savine, Modern Computational Finance,
2018.

``risk(model, product, paths)`` takes the models ``BlackScholes``, ``Dupire``, ``ImpliedDupire``, ``Bachelier`` (slot
``Model``), the products ``European``, ``UpAndOut``, ``Basket``, ``Autocall`` or any payoff in PyTorch (``Scripted``; slot
``Product``), and the paths ``PseudoRandom`` or ``Sobol`` (slot ``Paths``). ``twin`` learns prices from pathwise derivatives.
Experiments: the recipes aad_barrier (``BarrierRisk``) and aad_differential (``DifferentialLearning``).
"""

from spikeprop.plugins.aad.engine import bump, price, risk, simulated
from spikeprop.plugins.aad.implied import ImpliedDupire
from spikeprop.plugins.aad.local_volatility import Dupire
from spikeprop.plugins.aad.models import Bachelier, BlackScholes, Model
from spikeprop.plugins.aad.paths import Paths, PseudoRandom, Sobol
from spikeprop.plugins.aad.products import Autocall, Basket, European, Product, Scripted, UpAndOut, above
from spikeprop.plugins.aad.report import Audit, Estimate, Price, Risk

__all__ = [
    "Audit",
    "Autocall",
    "Bachelier",
    "Basket",
    "BlackScholes",
    "Dupire",
    "Estimate",
    "European",
    "ImpliedDupire",
    "Model",
    "Paths",
    "Price",
    "Product",
    "PseudoRandom",
    "Risk",
    "Scripted",
    "Sobol",
    "UpAndOut",
    "above",
    "bump",
    "price",
    "risk",
    "simulated",
]
