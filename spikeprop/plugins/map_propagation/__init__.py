"""MAP propagation (Chung 2020): networks of stochastic units that learn from a scalar reward.

    E(h | x, A) = sum_l |h_l - mu_l|^2 / (2 variance_l) - log p(A | h_last)

Hidden layers move down this energy to their most probable values, then each unit follows its own score. Source:
arXiv:2010.07893; ``reference`` has the mathematics. ``MAPPropagation`` fills the slot ``rule`` of training (``LearningRule``)
for classifiers. The experiments ``Control`` (recipes map_cartpole, map_acrobot, map_mountain_car, map_lunar_lander),
``Multiplexer`` and ``Regression`` (map_multiplexer, map_regression) compare it with backprop and REINFORCE.
"""

from spikeprop.plugins.map_propagation.bandits import Multiplexer, Regression
from spikeprop.plugins.map_propagation.control import Control
from spikeprop.plugins.map_propagation.network import TeamSettings
from spikeprop.plugins.map_propagation.rule import MAPPropagation

__all__ = ["Control", "MAPPropagation", "Multiplexer", "Regression", "TeamSettings"]
