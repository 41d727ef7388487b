"""Learning rules whose weights know less than backprop's, in the same slot ``rule`` of training (``LearningRule``).

    PredictiveCoding          errors of predictions relax to backprop's       Whittington & Bogacz 2017; Millidge et al. 2020
    EquilibriumPropagation    the contrast of two equilibria                  Scellier & Bengio 2017
    FeedbackAlignment         fixed random weights bring the error back       Lillicrap et al. 2016
    DirectFeedbackAlignment   from the output to every layer                  Nokland 2016
    TargetPropagation         learnt inverses bring targets back              Lee et al. 2015
    ForwardForward            goodness in two forward passes                  Hinton 2022
    ReadoutOnly               the control: the last layer alone

``RulesCompared`` trains one network by all of them; the recipe is rules_compared.
"""

from spikeprop.plugins.local_rules.equilibrium import EquilibriumPropagation
from spikeprop.plugins.local_rules.feedback import DirectFeedbackAlignment, FeedbackAlignment, ReadoutOnly
from spikeprop.plugins.local_rules.forward_forward import ForwardForward
from spikeprop.plugins.local_rules.predictive_coding import PredictiveCoding
from spikeprop.plugins.local_rules.target_propagation import TargetPropagation

__all__ = [
    "DirectFeedbackAlignment",
    "EquilibriumPropagation",
    "FeedbackAlignment",
    "ForwardForward",
    "PredictiveCoding",
    "ReadoutOnly",
    "TargetPropagation",
]
