"""The GPU, ready for one try: everything that a GPU is to show of spikeprop, in parts that cannot harm one another.

python -m benchmarks.gpu --budget 720 --out runs/bench/gpu.json

It runs from the repository's root, without a network, with whatever is installed (torch with Triton, numpy, numba; peers where
they are there). Without a GPU it prints its plan and runs every part in a small form on the CPU, kernels by Triton's interpreter.
``--compile`` compiles all kernels for sm_80, sm_90 and sm_100 instead, which needs no GPU.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Other benchmarks are scripts that import one another by plain name; spikeprop_hardware may not be installed.
_paths = [ROOT / "benchmarks"] if importlib.util.find_spec("spikeprop_hardware") else [ROOT / "benchmarks", ROOT / "hardware"]
sys.path += [str(path) for path in _paths if str(path) not in sys.path]
