"""Plugins: one subject a folder; the files beside the folders are shared.

Recipes name them, as in ``{use: spikeprop.plugins.ActivationRelaxation}``.

No other package of spikeprop imports them. Each name is imported at its first use, so a plugin's dependencies are only loaded
when that plugin is used.
"""

from __future__ import annotations

import importlib
from typing import Any

# name -> module of this package that defines it
_MODULES: dict[str, str] = {
    "ActivationRelaxation": "activation_relaxation",
    "BarrierRisk": "aad.barrier",
    "BasicResNet": "interlocking",
    "CharTransformer": "interlocking",
    "ConvHead": "interlocking",
    "DifferentialLearning": "aad.differential",
    "DirectFeedbackAlignment": "local_rules",
    "EquilibriumPropagation": "local_rules",
    "FeedbackAlignment": "local_rules",
    "ForwardForward": "local_rules",
    "Interlocking": "interlocking",
    "L2SP": "rifle",
    "MAPPropagation": "map_propagation",
    "ModelParallel": "interlocking.model_parallel",
    "PooledHead": "interlocking",
    "PythonSource": "interlocking",
    "PredictiveCoding": "local_rules",
    "RIFLE": "rifle",
    "ReadoutOnly": "local_rules",
    "RuleComparison": "comparison",
    "RulesCompared": "local_rules.compared",
    "TargetPropagation": "local_rules",
    "TokenHead": "interlocking",
    "Transfer": "rifle",
    "VariableProjection": "matrix_decompositions.projection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its plugins: {', '.join(sorted(_MODULES))}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except AttributeError as error:  # which would read as: there is no such plugin
        raise ImportError(f"{_MODULES[name]}: {error}") from error


def __dir__() -> list[str]:
    return sorted(_MODULES)
