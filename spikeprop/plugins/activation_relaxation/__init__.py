"""Activation Relaxation (Millidge et al. 2020): backprop's gradient as the fixed point of a local dynamics of activations.

    x_s <- x_s - eta (x_s - sum over readers r of (dh_r/dh_s)^T x_r),   x_output = dL/dh_output

At the fixed point x_s = dL/dh_s, and the parameters of segment s get (dh_s/dtheta)^T x_s. Source: arXiv:2009.05359, equation 5
and algorithm 1. ``ActivationRelaxation`` fills the slot ``rule`` of training (``LearningRule``). Experiments: the recipes
digits_cnn_ar, mnist_mlp_ar and cifar10_cnn_ar.
"""

from spikeprop.plugins.activation_relaxation.rule import ActivationRelaxation

__all__ = ["ActivationRelaxation"]
