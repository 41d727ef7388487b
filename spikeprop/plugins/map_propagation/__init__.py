"""MAP propagation (Chung 2020): learning by reward alone in networks of stochastic units, nearly as fast as backpropagation.

``Control`` runs it against backprop and REINFORCE on gymnasium's environments, ``Multiplexer`` and ``Regression`` on the paper's
two tasks without time; ``MAPPropagation`` is the learning rule for classifiers. ``reference`` has the mathematics.
"""

from spikeprop.plugins.map_propagation.bandits import Multiplexer, Regression
from spikeprop.plugins.map_propagation.control import Control
from spikeprop.plugins.map_propagation.network import TeamSettings
from spikeprop.plugins.map_propagation.rule import MAPPropagation

__all__ = ["Control", "MAPPropagation", "Multiplexer", "Regression", "TeamSettings"]
