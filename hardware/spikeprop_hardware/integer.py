"""An integer network: a ``ChipNetwork`` in the number formats of Loihi 2, and the file that carries it into Lava's Python.

A synapse adds ``a = (sum of 2*m*s) << exponent`` (``>>`` with a negative one; m is an 8-bit mantissa, -128..127; the chip
drops the lowest of nine bits where signs are mixed, hence the 2). A connection has one exponent, or one for each neuron that
reads it, where a chip has that. A neuron, all state in 24 bits:

    u = wrap(a << 6);   v = clip(sign(v) * (|v| * (4096 - decay) >> 12) + u + (bias << bias_exponent))
    spike = v > (theta << 6);   v = v - (theta << 6) where it spiked (or 0 with hard reset)
    synaptic currents that outlive their step: i = wrap(decay(i) + u + (bias << bias_exponent)), and v = clip(decay(v) + i)
    adaptive thresholds: spike = v > (theta << 6) + r, then r = min(decay(r) + adaptation * spike, 2^23 - 1)
    graded neurons: theta is the smallest level; a spike carries k, as graph.py says, of v, and v = v - k * (theta << 6)
    max pooling: a spike each is counted, exactly (m = 1, exponent = -1: a = s), and v is the largest count, a whole number

A potential v stands for the real potential v / 64 / scale. A chip of ``state_bits`` other than 24 has its limits there, and
shifts currents and thresholds up by ``align`` = 0 in place of 6, since its state has no bits to spare. Formats as in Lava's
bit-accurate LIF (lava-nc 0.10, lava/proc/lif/models.py), with its current decaying at once, and as documented for Loihi (Davies
et al. 2018).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.network import Sends, Shape, Timed

STATE_LIMIT = 2**23  # 24-bit potentials and currents
ALIGN = 6  # bits by which the chip shifts currents and thresholds up
DECAY_UNITY = 2**12
MANTISSA = (-128, 127)
THETA_LIMIT = 2**17 - 1
BIAS = (-(2**12), 2**12 - 1)
EXPONENTS = range(-8, 8)
BIAS_EXPONENTS = range(8)
STATE_BITS = 24


def by_entry(by_row: Any, matrix: sparse.csr_matrix) -> Any:
    """One number, or one for each row of a matrix, as one or as one for each entry."""
    return by_row if np.ndim(by_row) == 0 else np.repeat(by_row, np.diff(matrix.indptr))


@dataclass(frozen=True)
class IntegerConnection:
    """Mantissas (int32 CSR, each in -128..127) from a source, their exponent, or that of each neuron that reads them (int32);
    ``delay`` and ``lag`` as of ``Connection``."""

    source: str
    matrix: sparse.csr_matrix
    exponent: int | np.ndarray
    delay: int = 0
    lag: int = 0

    @property
    def factor(self) -> Any:
        """What a mantissa of 1 adds to a current: one number, or one for each neuron."""
        return 2.0 ** (np.asarray(self.exponent, np.float64) + 1)

    def real(self) -> sparse.csr_matrix:
        """What each mantissa adds to a current, float64, with zeros where they are stored."""
        data = self.matrix.data * by_entry(self.factor, self.matrix)
        return sparse.csr_matrix((data, self.matrix.indices, self.matrix.indptr), shape=self.matrix.shape)


@dataclass(frozen=True)
class IntegerPopulation(Sends):
    """Neurons of one NIR node, flattened; the readout has no threshold. ``scale`` is one number, or of layers that fire one for
    each neuron. ``v_init`` and ``adaptation``, what a spike adds to the threshold, are potentials (24 bits); decays are parts of
    4096.

    With ``pools`` they are windows of max pooling, whose potentials are counts.
    """

    name: str
    shape: Shape
    connections: list[IntegerConnection]
    depth: int
    scale: float | np.ndarray
    bias: np.ndarray
    bias_exponent: int
    decay: np.ndarray
    v_init: np.ndarray
    theta: np.ndarray | None = None
    to_zero: bool = False
    levels: int = 0
    rectify: bool = True
    pools: bool = False
    synaptic_decay: np.ndarray | None = None
    adaptation: np.ndarray | None = None
    adaptation_decay: np.ndarray | None = None
    state_bits: int = STATE_BITS
    align: int = ALIGN

    @property
    def unit(self) -> Any:
        """What a potential of 1 stands for: one number, or one for each neuron."""
        return 1 / (self.scale * 2**self.align)

    @property
    def limit(self) -> int:
        """Beyond all potentials and currents: 2^(state_bits - 1)."""
        return 2 ** (self.state_bits - 1)


@dataclass(frozen=True)
class IntegerNetwork(Timed):
    """Populations in the order in which they compute; inputs arrive as round(x * input_scale).

    ``output`` names the readout (default the last population); ``timesteps`` is the number of steps that it has room for, where
    it is known; with ``reads_spikes`` inputs are -1, 0 and 1 only; the rest as of ``ChipNetwork``.
    """

    input_shape: Shape
    input: str
    input_scale: float
    input_limit: float
    readout_from: int
    populations: list[IntegerPopulation] = field(default_factory=list)
    output: str = ""
    timesteps: int | None = None
    reads_spikes: bool = False
    read: str = "sum"
    accumulates: bool = True
    stride: int = 1

    def encode(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs as the chip's graded messages.

        Raises:
            HardwareError: a value beyond what the network's scales were chosen for, which could wrap around; one that is no
                spike, where the network reads spikes; or most of them too small for its steps.
        """
        largest = max(float(inputs.max()), -float(inputs.min()))
        if not largest <= self.input_limit:
            raise HardwareError(f"inputs reach {largest:.4g}, but the network was quantised for up to {self.input_limit:.4g}")
        messages = np.rint(inputs * self.input_scale)
        if self.reads_spikes and (messages != inputs).any():
            wrong = float(inputs[messages != inputs].flat[0])
            raise HardwareError(
                f"inputs hold {wrong:.4g}, but the network reads the spikes -1, 0 and 1 of its encoder, and {wrong:.4g} "
                "would be rounded to one of them; encode the images first (spikeprop.deploy.encoded), or export with Direct"
            )
        if not self.reads_spikes and np.linalg.norm(messages / self.input_scale - inputs) > 0.5 * np.linalg.norm(inputs):
            raise HardwareError(
                f"inputs reach {largest:.3g}, and the chip's are multiples of 1/{self.input_scale:g}: most of them would "
                "become 0; scale the images up (for example to 0..1) and train with them"
            )
        return messages.astype(np.int32)


_ARRAYS = ("scale", "bias", "decay", "v_init", "theta", "synaptic_decay", "adaptation", "adaptation_decay")


def save(network: IntegerNetwork, path: Path) -> None:
    """Write the network as NPZ."""
    arrays: dict[str, Any] = {}
    header = {k: v for k, v in vars(network).items() if k != "populations"} | {"populations": []}
    for i, p in enumerate(network.populations):
        known = {k: v for k, v in vars(p).items() if k not in ("connections", *_ARRAYS)}
        known["connections"] = [{"source": c.source, "delay": c.delay, "lag": c.lag} for c in p.connections]
        header["populations"].append(known)
        arrays |= {f"{i}/{k}": getattr(p, k) for k in _ARRAYS if getattr(p, k) is not None}
        for j, c in enumerate(p.connections):
            parts = {"data": c.matrix.data, "indices": c.matrix.indices, "indptr": c.matrix.indptr, "shape": c.matrix.shape}
            parts["exponent"] = np.asarray(c.exponent, np.int32)
            arrays |= {f"{i}/{j}/{k}": v for k, v in parts.items()}
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


def load(path: Path) -> IntegerNetwork:
    """Read what ``save`` wrote."""
    with np.load(path) as file:
        header = json.loads(str(file["header"]))
        populations = []
        for i, known in enumerate(header.pop("populations")):
            connections = [
                IntegerConnection(matrix=_matrix(file, f"{i}/{j}/"), exponent=_number(file[f"{i}/{j}/exponent"]), **c)
                for j, c in enumerate(known.pop("connections"))
            ]
            known["shape"] = tuple(known["shape"])
            arrays = {k: _number(file[f"{i}/{k}"]) for k in _ARRAYS if f"{i}/{k}" in file}
            populations.append(IntegerPopulation(connections=connections, **known, **arrays))
    header["input_shape"] = tuple(header["input_shape"])
    return IntegerNetwork(populations=populations, **header)


def _number(held: np.ndarray) -> Any:
    return held if held.ndim else held.item()


def _matrix(file: Any, prefix: str) -> sparse.csr_matrix:
    data, indices, indptr, shape = (file[prefix + k] for k in ("data", "indices", "indptr", "shape"))
    return sparse.csr_matrix((data, indices, indptr), shape=tuple(shape))
