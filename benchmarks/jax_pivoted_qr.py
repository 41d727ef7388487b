"""JAX's derivative of the pivoted QR of a wide matrix against finite differences of JAX's own factors, and ours beside it.

python benchmarks/jax_pivoted_qr.py --venv jax-venv --out results/benchmarks/jax_pivoted_qr.json

JAX is installed apart (``--version``), in a virtual environment that this program makes in the folder ``--venv``, or is taken
from the interpreter ``--python``. The loss is sum(Q * W) + sum(R * V) for fixed random W and V, in float64; its gradient is
compared with central differences, which leave the pivots alone. Where JAX cannot be installed, the program says so and ends with
status 3.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.plugins.matrix_decompositions import pivoted_qr
from spikeprop.runtime.files import write_text

STEP = 1e-6
ABSENT = 3  # exit status: no JAX
IN_JAX = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from jax.scipy.linalg import qr
given = json.load(sys.stdin)
a, w, v = (np.array(given[name]) for name in ("a", "w", "v"))

def loss(x):
    q, r, p = qr(x, mode="economic", pivoting=True)
    return (q * w).sum() + (r * v).sum()

bumped = np.zeros_like(a)
for at in np.ndindex(*a.shape):
    e = np.zeros_like(a)
    e[at] = given["step"]
    bumped[at] = (loss(a + e) - loss(a - e)) / (2 * given["step"])
print(json.dumps({"version": jax.__version__, "gradient": np.asarray(jax.grad(loss)(a)).tolist(), "bumps": bumped.tolist()}))
"""


def example(seed: int, rows: int = 2, columns: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """A wide matrix with columns of well separated norms, and the weights of the loss."""
    draws = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, columns, dtype=torch.float64, generator=draws) * torch.tensor([1.0, 2.5, 1.6, 4.0])[:columns]
    w, v = (torch.randn(rows, n, dtype=torch.float64, generator=draws) for n in (rows, columns))
    return a, w, v


def ours(a: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """Our gradient of the same loss."""
    leaf = a.clone().requires_grad_()
    q, r, _ = pivoted_qr(leaf)
    return torch.autograd.grad((q * w).sum() + (r * v).sum(), leaf)[0]


def in_jax(python: str, a: Tensor, w: Tensor, v: Tensor) -> dict[str, Any] | str:
    """JAX's gradient and bumps, or why there are none."""
    given = json.dumps({"a": a.tolist(), "w": w.tolist(), "v": v.tolist(), "step": STEP})
    try:
        done = subprocess.run([python, "-c", IN_JAX], input=given, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{python} ended with {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1])


def installed(folder: Path, version: str) -> str:
    """The interpreter of a virtual environment with JAX, which is made where it is missing.

    Raises:
        CalledProcessError: JAX cannot be installed.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", f"jax=={version}"], check=True, capture_output=True, text=True
    )
    return str(python)


def compared(python: str, seed: int) -> dict[str, Any] | str:
    """The largest differences to the bumps, relative to the largest entry, and the worst entry of JAX."""
    a, w, v = example(seed)
    found = in_jax(python, a, w, v)
    if isinstance(found, str):
        return found
    gradient, bumps = (torch.tensor(found[name], dtype=torch.float64) for name in ("gradient", "bumps"))
    mine, scale = ours(a, w, v), bumps.abs().max()
    worst = int((gradient - bumps).abs().argmax())
    entry = {name: float(one.view(-1)[worst]) for name, one in (("jax", gradient), ("bumps", bumps), ("ours", mine))}
    apart = {name: float((one - bumps).abs().max() / scale) for name, one in (("jax", gradient), ("ours", mine))}
    return {"version": found["version"], "seed": seed, "apart": apart, "worst entry of jax": entry}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="folder of the virtual environment")
    parser.add_argument("--python", help="an interpreter that has JAX")
    parser.add_argument("--version", default="0.10.2", help="of JAX")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args(argv)
    if (options.venv is None) == (options.python is None):
        parser.error("give --venv or --python")
    try:
        python = options.python or installed(options.venv, options.version)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"JAX {options.version} cannot be installed: {str(getattr(error, 'stderr', '') or error).strip().splitlines()[-1]}")
        return ABSENT
    results = []
    for seed in range(options.seeds):
        found = compared(python, seed)
        if isinstance(found, str):
            print(f"{python} has no JAX that works: {found}")
            return ABSENT
        results.append(found)
        entry = ", ".join(f"{name} {value:.3f}" for name, value in found["worst entry of jax"].items())
        apart = ", ".join(f"{name} {value:.1e}" for name, value in found["apart"].items())
        print(f"jax {found['version']}, wide 2 x 4, seed {seed}: largest difference to bumps {apart}; an entry: {entry}")
    if options.out:
        write_text(options.out, json.dumps({"benchmark": "jax_pivoted_qr", "shape": [2, 4], "results": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
