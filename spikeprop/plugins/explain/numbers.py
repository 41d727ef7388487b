"""Non-finite numbers in the JSON of a page, which JSON does not have: objects with their name, {"number": "-Infinity"}.

Attention masks contain them. ``app.js`` reads and writes the same objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def written(value: Any) -> Any:
    """JSON values with non-finite numbers as objects."""
    if isinstance(value, Mapping):
        return {key: written(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [written(below) for below in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def read(value: Any) -> Any:
    """The inverse of ``written``."""
    if isinstance(value, Mapping):
        if value.keys() == {"number"} and isinstance(value["number"], str):
            return float(value["number"])
        return {key: read(below) for key, below in value.items()}
    return [read(below) for below in value] if isinstance(value, list | tuple) else value
