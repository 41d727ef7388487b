"""Derivatives as cards: each derived twice, typeset and evaluated from one source; an MLP's gradients from them alone.

``CARDS`` holds them by name; ``mlp_gradients`` uses them; ``spikeprop.plugins.explain`` shows them beside a network's numbers.
"""

from spikeprop.plugins.derivatives import elementwise, layers, losses, spiking
from spikeprop.plugins.derivatives.card import Card, Equation
from spikeprop.plugins.derivatives.formula import Formula
from spikeprop.plugins.derivatives.mlp import mlp_gradients

CARDS: dict[str, Card] = {card.key: card for card in (*losses.CARDS, *elementwise.CARDS, *layers.CARDS, *spiking.CARDS)}

__all__ = ["CARDS", "Card", "Equation", "Formula", "mlp_gradients"]
