"""QR, LQ and pivoted QR: which cells are differentiable (ours, torch, JAX), and the time of forward and backward.

python benchmarks/matrix_decompositions.py --repeats 60 --out results/benchmarks/matrix_decompositions.json

A cell works if first and second derivatives agree with finite differences in float64. Times are CPU seconds of the working
thread; contenders run in random order, so other processes affect all of them equally. Peers: for QR and LQ ``torch.linalg.qr``
(of A^H for LQ), for pivoted QR scipy's pivots and then ``torch.linalg.qr`` of the permuted matrix.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import scipy.linalg
import torch
from common import OURS, option_parser, parse, save
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from spikeprop.plugins.matrix_decompositions import lq, pivoted_qr, qr

SHAPES = {"square": (3, 3), "deep": (4, 2), "wide": (2, 4)}
TYPES = {"real": torch.float64, "complex": torch.complex128}
MODES = {"qr": ("reduced", "complete", "r"), "pivoted": ("reduced", "complete", "r"), "lq": ("reduced", "complete", "l")}
TIMED = ((512, 128), (128, 512), (32, 64, 64), (64, 64), (8, 8))
Factors = Callable[[Tensor], tuple[Tensor, ...]]


def ours(kind: str, mode: Any) -> Factors:
    """Our factors that depend on A: Q without null-space columns beside their projector."""
    n = {"qr": -1, "pivoted": -1, "lq": -2}[kind]

    def factors(a: Tensor) -> tuple[Tensor, ...]:
        if kind == "lq":
            left, q = lq(a, mode, null_space="invariant")
            return (left,) if mode == "l" else (left, *_split(q.mH, a.shape[n]))
        found = (qr if kind == "qr" else pivoted_qr)(a, mode, null_space="invariant")
        return (found[1],) if mode == "r" else (*_split(found[0], a.shape[n]), found[1])

    return factors


def with_torch(kind: str, mode: str) -> Factors:
    """torch's own; LQ as the adjoint of a QR, as its users write it. It has no pivots."""

    def factors(a: Tensor) -> tuple[Tensor, ...]:
        if kind == "pivoted":
            raise NotImplementedError("torch.linalg has no pivoted QR")
        if kind == "lq":
            q, r = torch.linalg.qr(a.mH, "r" if mode == "l" else mode)
            return (r.mH,) if mode == "l" else (r.mH, *_split(q, a.shape[-2]))
        q, r = torch.linalg.qr(a, mode)
        return (r,) if mode == "r" else (*_split(q, a.shape[-1]), r)

    return factors


def _split(q: Tensor, n: int) -> tuple[Tensor, ...]:
    return (q,) if q.shape[-1] <= n else (q[..., :n], q[..., n:] @ q[..., n:].mH)


def example(shape: str, kind: str, batch: tuple[int, ...]) -> Tensor:
    """Random, with columns of well separated norms, so that no pivot is a tie."""
    m, n = SHAPES[shape]
    found = torch.randn(*batch, m, n, dtype=TYPES[kind], generator=torch.Generator().manual_seed(0))
    return found * torch.tensor([1.0, 2.5, 1.6, 4.0])[:n]


def works(factors: Factors, a: Tensor) -> str:
    """ "yes", or why not."""
    try:
        a = a.clone().requires_grad_()
        gradcheck(factors, a, check_forward_ad=True)
        gradgradcheck(factors, a, fast_mode=True)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return "yes"


def works_in_jax(kind: str, mode: str, a: Tensor) -> str:
    """The same with JAX's own checker; "not installed" where it is not."""
    if find_spec("jax") is None:
        return "not installed"
    import jax  # pyright: ignore[reportMissingImports]
    from jax.test_util import check_grads  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)

    def factors(x: Any) -> Any:
        if kind == "pivoted":
            found = jax.scipy.linalg.qr(x, mode={"reduced": "economic", "complete": "full", "r": "r"}[mode], pivoting=True)
            return found[:-1]
        if kind == "lq":
            x = jax.numpy.conj(jax.numpy.swapaxes(x, -1, -2))
        return jax.numpy.linalg.qr(x, mode="r" if mode == "l" else mode)

    try:
        check_grads(factors, (jax.numpy.asarray(a.numpy()),), order=2)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return "yes"


def cells() -> list[dict[str, str]]:
    """Every cell, for each library."""
    found = []
    for kind, shape, numbers, batch in product(MODES, SHAPES, TYPES, ((), (2,))):
        for mode in MODES[kind]:
            a = example(shape, numbers, batch)
            cell = {"kind": kind, "mode": mode, "shape": shape, "numbers": numbers, "batched": "yes" if batch else "no"}
            measured = {OURS: works(ours(kind, mode), a), "torch": works(with_torch(kind, mode), a)}
            found.append({**cell, **measured, "jax": works_in_jax(kind, mode, a)})
    return found


def scipy_then_torch(a: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes without a differentiable pivoted QR: two factorisations."""
    matrices = a.detach().reshape(-1, *a.shape[-2:]).numpy()
    p = np.stack([scipy.linalg.qr(one, mode="r", pivoting=True)[1] for one in matrices]).astype(np.int64)
    pivots = torch.from_numpy(p)
    permuted = a[:, pivots[0]] if a.ndim == 2 else a.gather(-1, pivots[:, None, :].expand(a.shape))
    return torch.linalg.qr(permuted)


def step(function: Callable[[Tensor], Any], a: Tensor, cotangents: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Forward and backward through the first two factors."""
    return lambda: torch.autograd.grad(function(a)[:2], a, cotangents)


def race(contenders: dict[str, Callable[[], Any]], repeats: int, rng: random.Random) -> dict[str, Any]:
    """CPU seconds of this thread for each contender; rounds in random order."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 3):
        for name in rng.sample(list(contenders), len(contenders)):
            start = time.thread_time()
            contenders[name]()
            if turn >= 3:
                seconds[name].append(time.thread_time() - start)
    mine, theirs = seconds.values()
    return {
        "median_s": {name: statistics.median(values) for name, values in seconds.items()},
        "least_s": {name: min(values) for name, values in seconds.items()},
        "ratio_of_medians": statistics.median(mine) / statistics.median(theirs),
        "ratio_of_least": min(mine) / min(theirs),
    }


def times(repeats: int, seed: int) -> list[dict[str, Any]]:
    """Races of QR, LQ and pivoted QR, all with our check of rank."""
    rng, found = random.Random(seed), []
    for shape, dtype in product(TIMED, (torch.float64, torch.float32)):
        a = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        pairs = {
            "qr": (qr, torch.linalg.qr, "torch.linalg.qr"),
            "lq": (lq, lambda a: [x.mH for x in torch.linalg.qr(a.mH)][::-1], "torch.linalg.qr of A^H"),
            "pivoted": (pivoted_qr, scipy_then_torch, "scipy's pivots, torch.linalg.qr"),
        }
        for kind, (mine, theirs, name) in pairs.items():
            cotangents = tuple(torch.randn_like(one) for one in mine(a)[:2])
            contenders = {OURS: step(mine, a, cotangents), name: step(theirs, a, cotangents)}
            about = {"kind": kind, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
            found.append({**about, **race(contenders, repeats, rng)})
    return found


def count(found: Sequence[dict[str, str]], library: str) -> str:
    """How many cells work."""
    if all(cell[library] == "not installed" for cell in found):
        return "not installed"
    return f"{sum(cell[library] == 'yes' for cell in found)} of {len(found)}"


def show_cells(found: Sequence[dict[str, str]]) -> None:
    """A line for each factorisation, mode and shape: how many of its four cells (real, complex; single, batched) work."""
    print(f"{'cells that work':<30}" + "".join(f"{name:>16}" for name in (OURS, "torch", "jax")))
    for kind, shape in product(MODES, SHAPES):
        for mode in MODES[kind]:
            group = [cell for cell in found if (cell["kind"], cell["shape"], cell["mode"]) == (kind, shape, mode)]
            print(f"{f'{kind} {mode} {shape}':<30}" + "".join(f"{count(group, name):>16}" for name in (OURS, "torch", "jax")))
    print(f"{'in all':<30}" + "".join(f"{count(found, name):>16}" for name in (OURS, "torch", "jax")))


def show_times(found: Sequence[dict[str, Any]]) -> None:
    """A line for each race."""
    print(f"\n{'forward + backward':<30}{'ours ms':>10}{'peer ms':>10}{'medians':>10}{'least':>10}   peer")
    for race_ in found:
        mine, theirs = (1000 * value for value in race_["median_s"].values())
        title = f"{race_['kind']} {'x'.join(map(str, race_['shape']))} {race_['dtype']}"
        ratios = f"{race_['ratio_of_medians']:>10.2f}{race_['ratio_of_least']:>10.2f}"
        print(f"{title:<30}{mine:>10.2f}{theirs:>10.2f}{ratios}   {list(race_['median_s'])[1]}")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(option_parser(__doc__, [OURS], repeats=60), argv)
    torch.set_num_threads(1)  # the clock is that of one thread
    found = cells()
    show_cells(found)
    raced = times(options.repeats, options.seed)
    show_times(raced)
    working = {name: count(found, name) for name in (OURS, "torch", "jax")}
    save(__file__, options, clock="CPU seconds of one thread", working=working, cells=found, races=raced)


if __name__ == "__main__":
    main()
