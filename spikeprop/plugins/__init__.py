"""Plugins: one paper, one file or folder. Recipes name them, as in ``{use: spikeprop.plugins.ActivationRelaxation}``.

Nothing else of spikeprop imports them. A name is imported when it is asked for, so a plugin's own dependencies burden no other.
"""

from __future__ import annotations

import importlib
from typing import Any

# name to the module, below this package, that defines it
_MODULES: dict[str, str] = {
    "ActivationRelaxation": "activation_relaxation",
    "BarrierRisk": "aad.barrier",
    "BasicResNet": "interlocking",
    "CharTransformer": "interlocking",
    "ConvHead": "interlocking",
    "DifferentialLearning": "aad.differential",
    "Interlocking": "interlocking",
    "L2SP": "rifle",
    "MAPPropagation": "map_propagation",
    "PooledHead": "interlocking",
    "PythonSource": "interlocking",
    "RIFLE": "rifle",
    "RuleComparison": "comparison",
    "TokenHead": "interlocking",
    "Transfer": "rifle",
    "VariableProjection": "matrix_decompositions.projection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its plugins: {', '.join(sorted(_MODULES))}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
