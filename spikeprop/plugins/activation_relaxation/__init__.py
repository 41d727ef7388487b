"""Activation Relaxation (Millidge et al. 2020): backprop's gradient as the fixed point of a local dynamics of activations."""

from spikeprop.plugins.activation_relaxation.rule import ActivationRelaxation

__all__ = ["ActivationRelaxation"]
