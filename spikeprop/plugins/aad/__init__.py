"""Adjoint differentiation for Monte-Carlo risk: a price and its derivative by every parameter, for about the time of two prices.

``risk(model, product, paths)`` on the models ``BlackScholes``, ``Dupire``, ``ImpliedDupire``, ``Bachelier``, the products
``European``, ``UpAndOut``, ``Basket``, ``Autocall`` or any payoff in PyTorch (``Scripted``), and ``PseudoRandom`` or
``Sobol`` paths. ``differential`` learns prices from pathwise derivatives.
"""

from spikeprop.plugins.aad.engine import bump, price, risk
from spikeprop.plugins.aad.implied import ImpliedDupire
from spikeprop.plugins.aad.local_volatility import Dupire
from spikeprop.plugins.aad.models import Bachelier, BlackScholes, Model
from spikeprop.plugins.aad.paths import Paths, PseudoRandom, Sobol
from spikeprop.plugins.aad.products import Autocall, Basket, European, Product, Scripted, UpAndOut, above
from spikeprop.plugins.aad.report import Estimate, Price, Risk

__all__ = [
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
]
