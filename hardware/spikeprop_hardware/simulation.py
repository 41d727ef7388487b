"""``simulate``: a NIR file and inputs in, every spike and output out, on Lava in its own environment or in the reference
simulator here; in floating point or in the chip's integers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import IntegerNetwork
from spikeprop_hardware.lava import run_lava
from spikeprop_hardware.network import ChipNetwork, lay_out
from spikeprop_hardware.quantization import quantize_network
from spikeprop_hardware.reading import read_nir
from spikeprop_hardware.recording import SPIKES, Recording, SimulationResult, shaped
from spikeprop_hardware.reference import Simulator
from spikeprop_hardware.workers import PATIENCE

Backend = Literal["lava", "reference"]
Precision = Literal["float", "fixed"]
Source = str | Path | IntegerNetwork | Simulator


def _silent(*_: object) -> None:
    return None


def simulate(
    network: Source,
    inputs: np.ndarray,
    *,
    backend: Backend = "lava",
    precision: Precision = "float",
    record: Recording = SPIKES,
    notify: Callable[[str], None] = _silent,
    progress: Callable[[int, int], None] = _silent,
    patience: float = PATIENCE,
) -> SimulationResult:
    """Run a network.

    Args:
        network: NIR file; what ``quantize`` made (precision is then "fixed"); or, for the reference, a ``Simulator`` of either,
            which is ready and can be used for many inputs.
        inputs: what the network reads at each step, (samples, steps, *shape); each sample starts from rest. A constant input
            may be ``np.broadcast_to`` over the steps; events.py counts events into steps. Nothing depends on later steps, so
            sequences of unequal length are padded, and of each the output after its own last step is read.
        backend: "lava", Lava's CPU simulation in its own Python 3.10, or "reference", the batched simulator of reference.py.
        precision: "float" or "fixed": the chip's integers, which a NIR file is quantised to for inputs of this size.
        record: what to keep.
        notify: called with a message when Lava's environment is made.
        progress: called with (time steps done, all time steps).
        patience: seconds without progress after which Lava is ended, for it can hang.

    Returns:
        output in real units in either precision, from the network's ``readout_from`` on. ``clipped`` counts the potentials of an
        integer network that stopped at the limits of 24 bits; a warning tells of the output's.

    Raises:
        NirError: a file that is damaged, or a graph that cannot be laid out.
        HardwareError: naming what is wrong with the inputs or the environment; or Lava hangs.
    """
    inputs = _checked(inputs)
    if isinstance(network, Simulator) and (backend != "reference" or network.fixed != (precision == "fixed")):
        raise HardwareError(f"a Simulator runs on the reference, this one with precision {'fixed' if network.fixed else 'float'}")
    if backend not in get_args(Backend) or precision not in get_args(Precision):
        raise HardwareError(f"backend {backend!r} with precision {precision!r}: there are lava, reference; and float, fixed")
    laid_out = _network(network, inputs, precision)  # refuses here, before an environment is made
    if backend == "reference":
        simulator = network if isinstance(network, Simulator) else Simulator(laid_out)
        result = simulator.run(inputs, record=record.spikes, membranes=record.membranes, progress=progress)
    else:
        assert not isinstance(network, Simulator)
        given = laid_out if isinstance(laid_out, IntegerNetwork) else Path(str(network))
        result = run_lava(given, inputs, membranes=record.membranes, notify=notify, progress=progress, patience=patience)
        result.spikes = result.spikes if record.spikes else {}
    _warn_of_clipping(result, laid_out)
    return shaped(result, laid_out)


def _checked(inputs: np.ndarray) -> np.ndarray:
    """Real numbers as an array; whole numbers without a sign bit of their own in a type whose magnitudes it holds."""
    inputs = np.asarray(inputs)
    if inputs.dtype.kind not in "biuf":
        raise HardwareError(f"inputs are {inputs.dtype} and not real numbers")
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise HardwareError(f"inputs have shape {inputs.shape}; they are (samples, steps, ...), at least one of each")
    return inputs


def _warn_of_clipping(result: SimulationResult, network: ChipNetwork | IntegerNetwork) -> None:
    """Of the output's; a neuron's potential stops where it is driven far beyond its threshold, and goes on firing."""
    output = network.readout.name
    if output in result.clipped:
        warnings.warn(
            f"the output's potentials stopped at the limits of the chip's 24 bits {result.clipped[output]:,} times, so outputs "
            f"are wrong; quantise for at least {result.output.shape[1]} steps (quantize(..., timesteps=)), or simulate fewer",
            stacklevel=3,
        )


def _network(network: Source, inputs: np.ndarray, precision: Precision) -> ChipNetwork | IntegerNetwork:
    """The network laid out, or quantised; inputs that do not fit it are refused."""
    shown = inputs[:, :1] if inputs.ndim > 1 and inputs.strides[1] == 0 else inputs
    made = network.network if isinstance(network, Simulator) else network
    laid_out = lay_out(read_nir(made)) if isinstance(made, str | Path) else made
    if isinstance(laid_out, IntegerNetwork) and precision != "fixed":
        raise HardwareError("this network is in integers; simulate it with precision fixed")
    if inputs.ndim < 3 or inputs.shape[2:] != laid_out.input_shape or 0 in inputs.shape:
        raise HardwareError(f"inputs have shape {inputs.shape}; the network reads (samples, steps, {laid_out.input_shape})")
    if not np.isfinite(shown).all():
        raise HardwareError("inputs hold NaN or infinity")
    if precision == "fixed" and isinstance(laid_out, ChipNetwork):
        return quantize_network(laid_out, float(np.abs(shown.astype(np.float64)).max()), timesteps=inputs.shape[1]).network
    return laid_out
