"""Adjoint differentiation for Monte-Carlo risk: a price and its derivative by every parameter, in about the time of two prices.

For each mini-batch of paths, the payoff V is differentiated backwards along the paths, dV/dtheta = sum over steps of (dV/dx_k)
(dx_k/dtheta); means over independent groups of paths give the standard errors. Source: Savine, Modern Computational Finance,
2018.

``risk(model, product, paths)`` takes the models ``BlackScholes``, ``Dupire``, ``ImpliedDupire``, ``Heston``, ``SABR``,
``Bachelier``, ``HullWhite``, several of them ``Correlated``, or one with a counterparty's ``Credit`` (slot ``Model``); the
products ``European``, ``UpAndOut``, ``Basket``, ``Autocall``, ``Bermudan`` or any payoff in PyTorch (``Scripted``), or a
``Book`` of them (slot ``Product``); and the paths ``PseudoRandom`` or ``Sobol`` (slot ``Paths``). ``choose_width`` picks the
width of a smoothed event. ``twin`` learns prices from pathwise derivatives.
Experiments: the recipes aad_barrier (``BarrierRisk``) and aad_differential (``DifferentialLearning``).
"""

from spikeprop.plugins.aad.correlated import Correlated
from spikeprop.plugins.aad.credit import Credit
from spikeprop.plugins.aad.engine import bump, price, prices, risk, risks, simulated
from spikeprop.plugins.aad.exercise import Bermudan
from spikeprop.plugins.aad.implied import ImpliedDupire
from spikeprop.plugins.aad.local_volatility import Dupire
from spikeprop.plugins.aad.models import Bachelier, BlackScholes, Model
from spikeprop.plugins.aad.paths import Paths, PseudoRandom, Sobol
from spikeprop.plugins.aad.products import Autocall, Basket, Book, European, Product, Scripted, UpAndOut, above
from spikeprop.plugins.aad.rates import HullWhite
from spikeprop.plugins.aad.report import Audit, Estimate, Price, Risk
from spikeprop.plugins.aad.smoothing import Smoothing, choose_width
from spikeprop.plugins.aad.stochastic_volatility import SABR, Heston

__all__ = [
    "SABR",
    "Audit",
    "Autocall",
    "Bachelier",
    "Basket",
    "Bermudan",
    "BlackScholes",
    "Book",
    "Correlated",
    "Credit",
    "Dupire",
    "Estimate",
    "European",
    "Heston",
    "HullWhite",
    "ImpliedDupire",
    "Model",
    "Paths",
    "Price",
    "Product",
    "PseudoRandom",
    "Risk",
    "Scripted",
    "Smoothing",
    "Sobol",
    "UpAndOut",
    "above",
    "bump",
    "choose_width",
    "price",
    "prices",
    "risk",
    "risks",
    "simulated",
]
