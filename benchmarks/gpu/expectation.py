"""What to expect of a GPU that is not here: what kernels need (``compilation.py``) and the time that bytes and products take.

A lower bound of a training step of the VGG5 of ``speed.py``, forward and backward, float32 values, with everything at the
vendor's rates and nothing for launches: for the neurons bytes / bandwidth, for convolutions the longer of bytes / bandwidth and
operations / rate. Neurons, ours: ``_scan``, ``_any_of``, ``_since_at_end``, ``_scan_back``, and twice ``_pool`` (``cases.py``). A
fused multi-step kernel that keeps potentials, as SpikingJelly's in Triton, has per neuron and step (b bytes a value): current in,
spike and potential out (2 b + 4), gradient and potential in, gradient out (2 b + 4), and pooling 2 (b + b / P).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.gpu.cases import BUILDERS, FORMULAS, Setting, any_of, pooled, scan, scan_back, since_at_end
from benchmarks.gpu.compilation import TARGETS, by_kernel, compiled, table
from benchmarks.gpu.roofline import SIZE
from benchmarks.gpu.speed import SIZES
from spikeprop.runtime.files import write_json

H200 = {
    "device": "NVIDIA H200 (SXM)",
    "source": "the vendor's data sheet: 4.8 TB/s of memory, 494 TFLOP/s dense in TF32; not measured here",
    "bandwidth": 4.8e12,
    "tf32": 494e12,
}
# Side, channels and pooling of each layer with neurons; side and channels of what its weights see, products a position.
VGG5 = (
    ((32, 64, 2), (32, 3), 9),
    ((16, 128, 1), (16, 64), 9),
    ((16, 128, 2), (16, 128), 9),
    ((1, 1024, 1), (1, 8192), 1),
)


def compile_all(file: Path) -> None:
    """Compile for all targets, print the tables, write the file."""
    rows = [row for target in TARGETS for row in compiled(target)]
    print(table(rows))
    launches = [launch(build) for build in BUILDERS]
    steps = [step(timesteps, batch) for timesteps, batch in SIZES.items()]
    for one in launches:
        print(f"{one['kernel']:<20}{one['bytes'] / 2**20:>9.0f} MiB{one['microseconds']:>9.0f} us  {one['formula']}")
    for one in steps:
        print(", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in one.items()))
    about = {"benchmark": "gpu_kernels", "settings": {"targets": list(TARGETS)}, "machine": {**machine(), "gpu": None}}
    found = {"kernels": by_kernel(rows), "compiled": rows, "expected": {**H200, "launches": launches, "steps": steps}}
    write_json(file, {**about, **found})


def launch(build: Any) -> dict[str, Any]:
    """Bytes of one launch at the roofline's size, and their time."""
    case = build(SIZE, "meta")
    microseconds = 1e6 * case.bytes / H200["bandwidth"]
    about = {"kernel": case.kernel, "setting": str(SIZE), "formula": FORMULAS[case.kernel]}
    return {**about, "bytes": case.bytes, "microseconds": microseconds}


def step(timesteps: int, batch: int) -> dict[str, Any]:
    """Milliseconds of a training step's parts, ours and those of a fused kernel that keeps potentials."""
    ours = fused = products = 0.0
    for number, ((side, channels, pool), (before, sources), window) in enumerate(VGG5):
        whole = Setting(timesteps, batch, side, channels, pool=pool)
        half = Setting(timesteps // 2, batch, side, channels)  # a case of it has two pieces
        builds = ((scan, whole), (any_of, whole), (since_at_end, half), (scan_back, whole), (pooled, whole), (pooled, whole))
        ours += sum(build(setting, "meta").bytes for build, setting in builds)
        neurons = timesteps * batch * side**2 * channels
        value = whole.dtype.itemsize
        fused += neurons * (4 * value + 8 + (2 * (value + value / pool**2) if pool > 1 else 0))
        passes = 2 if number == 0 else 3  # forward and of the weights; of the input, but for the first layer
        moved = passes * value * timesteps * batch * (side**2 * channels + before**2 * sources)
        operations = passes * 2 * timesteps * batch * side**2 * channels * sources * window
        products += max(moved / H200["bandwidth"], operations / H200["tf32"])
    own, other = (1e3 * moved / H200["bandwidth"] for moved in (ours, fused))
    bound = {"ours_ms": own + 1e3 * products, "fused_ms": other + 1e3 * products}
    return {"T": timesteps, "batch": batch, "products_ms": 1e3 * products, "neurons_ms": own, "fused_neurons_ms": other, **bound}
