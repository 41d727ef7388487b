"""Derivative cards: each operation's derivative is derived twice, and is typeset and evaluated from one source.

``CARDS`` has the cards by name; ``mlp_gradients`` computes the gradients of an MLP, dL/dW = z_bar^T x and dL/dx = z_bar W layer
by layer, from the cards alone; ``spikeprop.plugins.explain`` shows them beside the numbers of a network. Sources: P. David,
"All the backpropagation derivatives"; Roberts & Roberts 2020 (QR); Rathi et al. 2020 (spiking neurons). Cards fill no slot of a
recipe.
"""

from spikeprop.plugins.derivatives import adaptive, attention, cells, elementwise, indexing, layers, losses, spiking
from spikeprop.plugins.derivatives.card import Card, Equation
from spikeprop.plugins.derivatives.formula import Formula
from spikeprop.plugins.derivatives.mlp import mlp_gradients

_ROOMS = (losses, elementwise, indexing, layers, attention, cells, spiking, adaptive)
CARDS: dict[str, Card] = {card.key: card for room in _ROOMS for card in room.CARDS}

__all__ = ["CARDS", "Card", "Equation", "Formula", "mlp_gradients"]
