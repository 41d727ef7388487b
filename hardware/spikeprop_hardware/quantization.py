"""``quantize``: a NIR graph in float -> an integer network for Loihi 2, one scale a channel, with a report of the errors.

A neuron's weights, bias, threshold and start potential share one real scale S (only their ratios decide on a spike):

    m = clip(round(w * S / X / 2^(e+1)), -128, 127);   theta = round(theta * S);   bias << b = round(bias * S * 64)

with X = 1 for spikes and the input's scale for the network's input. Of graded neurons theta is the smallest level, whose
multiples the others are; nothing else of them is rounded, and their spikes count as their largest payload. A current that
outlives its step grows to 1 / (1 - synaptic leak) of what arrives, which counts as its largest; leaks and what adapts a threshold
are rounded on grids of their own (4096ths, and 24 bits). The search goes over S, 32 values an octave, and over an exponent e for
each connection, and chooses the least sum of the relative errors of weights (root mean square, each weight as often as it is
used, those clipped at the ends of the range included), thresholds and bias. It admits only scales on which no current can wrap
around in 24 bits, whatever the spikes, and on which potentials have room for a few steps of the largest one, for the start and
for thresholds as far as spikes can raise them; the readout, which never fires, has room for the largest sum of all steps
(room.py). A scale that rounds nothing is kept for the complete layer; else each channel of spiking neurons gets its own
(channels.py). A layer that no scale holds is refused: acceptance.py says when.
Where the chip has them (``per_channel``), each channel of a convolution and each neuron of a dense layer has an exponent of its
own; fewer bits than 8 (``bits``) are for chips of narrower weights and to save memory, and then the report alone says what
weights lose.
Average pooling is already part of the matrix: where windows do not overlap, its entries are the next weights over k^2, and S
takes up that factor without a loss. Max pooling counts spikes, in float as in integers: nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.acceptance import STEPS, charge, check_layer, dropped, layer_errors, leaks
from spikeprop_hardware.channels import Bounds, Grid, channel_scales
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.graph import SPIKING_ENCODERS
from spikeprop_hardware.grids import OCTAVE, ROUNDING, Bits, ChannelErrors, Range, WeightErrors, clip, mantissas
from spikeprop_hardware.integer import (
    ALIGN,
    BIAS,
    BIAS_EXPONENTS,
    DECAY_UNITY,
    EXPONENTS,
    STATE_BITS,
    IntegerConnection,
    IntegerNetwork,
    IntegerPopulation,
    by_entry,
)
from spikeprop_hardware.network import ChipNetwork, Population, lay_out
from spikeprop_hardware.room import MOST_ROOM, readout_room

EXACT = 1e-9  # sum of the errors of a layer's numbers below which none is rounded
DOUBTFUL = 0.05  # sum of a layer's errors from which another weighting of its connections is tried
OCTAVES = 20  # that the search goes down
ROOM = 4  # the potential holds so many of the largest current and threshold
HELD = 1.01  # beyond states, whose limit is out of reach
GRADED = 256.0  # scale of real-valued inputs of 1 to 4: 8 fractional bits
LARGEST_INPUT = 2.0**31
LIMIT = 4.0  # assumed largest absolute real-valued input: standardised images stay below


@dataclass(frozen=True)
class LayerReport:
    """What quantisation did to one layer; errors are relative, weights are entries of the connection matrices.

    Attributes:
        scale: of channels that have their own the least.
        exponents: one for each connection; of exponents by channel the largest.
        weight_error: root mean square of (quantised - weight) over that of the weights.
        threshold_error, bias_error: largest, relative to the threshold (readout: to the largest current).
        leak_error: largest difference of a factor.
        saturated: weights clipped at the ends of their bits; bias and threshold clipped count too.
        bits: bits that the mantissas take.
        lost: neurons that had weights and whose weights all became 0.
        load: the largest current that any spikes can cause over what 24 bits hold; above 1 it could wrap.
    """

    name: str
    scale: float
    exponents: tuple[int, ...]
    weight_error: float
    threshold_error: float
    bias_error: float
    leak_error: float
    weights: int
    saturated: int
    bits: int
    load: float
    lost: int = 0


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Number formats of a chip.

    Attributes:
        bits: of weights, 2 to 8 or "ternary"; or by layer, where those that are not named have 8.
        per_channel: each channel, or neuron of a dense layer, has an exponent of its own.
        own_thresholds: neurons of a layer may have different thresholds, so that channels have scales of their own.
        symmetric: weights are signs and sizes.
        state_bits: of potentials and currents.
        exponents: that connections may have.
    """

    bits: Bits | Mapping[str, Bits] = 8
    per_channel: bool = False
    own_thresholds: bool = True
    symmetric: bool = False
    state_bits: int = STATE_BITS
    exponents: Sequence[int] = field(default=EXPONENTS)

    def __post_init__(self) -> None:
        for bits in _all(self.bits):
            mantissas(bits)
        if not 8 <= self.state_bits <= STATE_BITS:
            raise HardwareError(f"a state of {self.state_bits} bits; there are 8 to {STATE_BITS}")

    @property
    def align(self) -> int:
        """Bits by which currents and thresholds are shifted up."""
        return ALIGN if self.state_bits == STATE_BITS else 0

    @property
    def current_limit(self) -> int:
        """Beyond all currents and thresholds, before they are shifted up."""
        return 2 ** (self.state_bits - 1 - self.align)

    def held(self, layer: str) -> Range:
        """The least and the largest mantissa of a layer's weights."""
        return mantissas(self.bits.get(layer, 8) if isinstance(self.bits, Mapping) else self.bits, self.symmetric)

    @classmethod
    def of(cls, target: Any, bits: Bits | Mapping[str, Bits] | None = None, per_channel: bool | None = None) -> Widths:
        """Those of a ``Target`` (None: Loihi 2), of which ``bits`` and ``per_channel`` are replaced where they are given.

        Raises:
            HardwareError: exponents by channel, or more bits than it has, of a target that has not.
        """
        most, channels = (8, False) if target is None else (min(target.weight_bits, 8), target.per_channel)
        found = cls(
            bits=most if bits is None else bits,
            per_channel=channels if per_channel is None else per_channel,
            symmetric=target is not None and target.symmetric,
            state_bits=STATE_BITS if target is None else target.state_bits,
            exponents=EXPONENTS if target is None else target.exponents or EXPONENTS,
        )
        if target is None:
            return found
        if found.per_channel and not channels:
            raise HardwareError(f"{target.name} has one exponent for all weights of a connection: leave per_channel out")
        if any(mantissas(b)[1] > mantissas(most)[1] for b in _all(found.bits)):
            raise HardwareError(f"{target.name} has weights of {most} bits: give that or fewer")
        return found


def _all(bits: Bits | Mapping[str, Bits]) -> list[Bits]:
    return list(bits.values()) if isinstance(bits, Mapping) else [bits]


LOIHI = Widths()  # those of Loihi 2


class Quantized(NamedTuple):
    """An integer network and the report of each of its layers."""

    network: IntegerNetwork
    report: list[LayerReport]


def quantize(
    graph: nir.NIRGraph,
    *,
    input_limit: float | None = None,
    timesteps: int | None = None,
    target: Any = None,
    bits: Bits | Mapping[str, Bits] | None = None,
    per_channel: bool | None = None,
) -> Quantized:
    """Quantise a network.

    Args:
        graph: any graph that ``lay_out`` accepts.
        input_limit: largest absolute input; default 1 where the graph's metadata names an encoder whose inputs are -1, 0 and
            1 (Poisson, Latency, Delta), else 4. Other inputs are rounded to steps of 1/256 for a limit of 1 to 4, and beyond to
            steps as fine for their size (bytes: 1/4), so that the largest one takes 8 to 10 bits.
        timesteps: of a simulation, which the readout gets room for; default what the graph's metadata says, and where it says
            nothing, room for 16 of the largest currents.
        target: a ``Target``, whose widths of weights and state are taken; default those of Loihi 2.
        bits: of weights: 2 to 8, or "ternary"; or by layer, others 8. Default the target's.
        per_channel: an exponent for each channel. Default whether the target has them.

    Raises:
        NirError: what ``lay_out`` refuses.
        HardwareError: a layer that the chip's integers cannot hold, with what to do; formats that the target has not; or a limit
            or number of steps that is none.
    """
    return quantize_network(lay_out(graph), input_limit, timesteps, Widths.of(target, bits, per_channel))


def quantize_network(
    network: ChipNetwork,
    input_limit: float | None = None,
    timesteps: int | None = None,
    widths: Widths = LOIHI,
    known: Mapping[str, tuple[IntegerPopulation, LayerReport]] | None = None,
) -> Quantized:
    """``quantize`` for a network that is laid out already.

    Args:
        network, input_limit, timesteps, widths: as of ``quantize``.
        known: layers by name that were quantised before, with the same limit and steps, and are taken as they are.
    """
    weighted = [p.name for p in network.populations if not p.pools]
    if isinstance(widths.bits, Mapping) and (unknown := widths.bits.keys() - set(weighted)):
        raise HardwareError(f"bits are given for {sorted(unknown)}; layers with weights are {', '.join(weighted)}")
    spiking = network.encoder in SPIKING_ENCODERS
    limit = float(input_limit) if input_limit is not None else (1.0 if spiking else LIMIT)
    steps = timesteps if timesteps is not None else network.timesteps
    if not 0 <= limit < LARGEST_INPUT:
        raise HardwareError(f"input_limit is {limit:g}; it is a number from 0 to {LARGEST_INPUT:g}: normalise the inputs")
    scale = 1.0 if spiking else _input_scale(limit)
    if steps is not None and steps < 1:
        raise HardwareError(f"a simulation of {steps} steps; give timesteps of 1 or more")
    made = IntegerNetwork(
        network.input_shape, network.input, scale, limit, network.readout_from, output=network.output, timesteps=steps,
        reads_spikes=spiking, read=network.read, accumulates=network.accumulates, stride=network.stride,
    )  # fmt: skip
    report = []
    sources = {p.name: p for p in network.populations}
    for population in network.populations:
        if known is not None and population.name in known:
            quantized, layer = known[population.name]
        elif population.pools:
            quantized, layer = _counting(population)
        else:
            quantized, layer = _Quantizer(population, sources, made, widths).quantize()
        made.populations.append(quantized)
        report.append(layer)
    return Quantized(made, report)


def _input_scale(limit: float) -> float:
    """A power of two: GRADED for inputs of up to 1 to 4, and beyond so that steps and weights are as fine for their size."""
    coarser, finer = np.ceil(np.log2(max(limit, LIMIT) / LIMIT)), np.floor(np.log2(np.clip(limit, 1 / LARGEST_INPUT, 1.0)))
    return float(GRADED * 2.0 ** -(coarser + finer)) if limit else GRADED


def _counting(p: Population) -> tuple[IntegerPopulation, LayerReport]:
    """Max pooling: weights of 1 that arrive as 1, potentials that are counts."""
    connections = [IntegerConnection(c.source, c.matrix.astype(np.int32), -1, c.delay, c.lag) for c in p.connections]
    zeros = np.zeros(len(p.bias), np.int32)
    layer = IntegerPopulation(
        name=p.name, shape=p.shape, connections=connections, depth=p.depth, scale=2.0**-ALIGN, bias=zeros, bias_exponent=0,
        decay=zeros, v_init=zeros, theta=zeros + 1, levels=p.levels, pools=True,
    )  # fmt: skip
    report = LayerReport(
        name=p.name, scale=2.0**-ALIGN, exponents=(-1,) * len(connections), weight_error=0.0, threshold_error=0.0, bias_error=0.0,
        leak_error=0.0, weights=sum(c.matrix.nnz for c in connections), saturated=0, bits=2, load=0.0,
    )  # fmt: skip
    return layer, report


class _Quantizer:
    """Finds the integers of one population."""

    def __init__(self, population: Population, sources: dict[str, Population], network: IntegerNetwork, widths: Widths):
        self.population, self.widths, self.steps = population, widths, network.timesteps
        self.held = widths.held(population.name)
        self.channels = population.shape[0] if widths.per_channel else 1
        self.apart = widths.own_thresholds and population.theta is not None
        at_input = [c.source == network.input for c in population.connections]
        before = [sources.get(c.source) for c in population.connections]
        self.signs = [p is None or not p.rectify for p in before]  # the others take back no more than they have sent
        self.source_scales = [network.input_scale if own else 1.0 for own in at_input]
        self.source_limits = [network.input_limit if p is None else float(p.payload) for p in before]
        reaches = [
            abs(c.matrix).sum(axis=1).A1 * limit if c.matrix.nnz else np.zeros(c.matrix.shape[0])
            for c, limit in zip(population.connections, self.source_limits)
        ]
        largest = np.sum(reaches, axis=0) + np.abs(population.bias)
        if population.synaptic_leak is not None:
            largest = largest * charge(population.synaptic_leak, self.steps or STEPS)
        self.reaches = largest
        self.reach = float(largest.max()) or 1.0  # largest current, in real units
        self.states = np.zeros(len(largest)) if population.theta is None else self._states(population, population.theta)

    def _states(self, p: Population, theta: np.ndarray) -> np.ndarray:
        """The largest start and raised threshold of each neuron, which its potential must hold; at most MOST_ROOM of the largest
        currents, since what is beyond costs too much resolution (``check_layer`` refuses it)."""
        states = np.abs(p.v_init * theta)
        if p.adaptation is not None:
            leak = np.zeros(1) if p.adaptation_leak is None else p.adaptation_leak
            raised = theta + p.adaptation * charge(leak, self.steps or STEPS)  # by a spike at every step
            charged = self.reaches * charge(np.ones(1) if p.leak is None else p.leak, self.steps or STEPS)
            states = np.maximum(states, np.maximum(p.adaptation, np.minimum(raised, charged)))
        return np.minimum(states, MOST_ROOM * np.maximum(self.reaches, theta))

    def quantize(self) -> tuple[IntegerPopulation, LayerReport]:
        """The least error by weights, or by what they bring: those of a connection of large inputs are small beside others."""
        tried = [self._by([1.0] * len(self.source_limits))]
        if len(set(self.source_limits)) > 1 and self._errors(tried[0]) > DOUBTFUL:
            tried.append(self._by([limit**2 for limit in self.source_limits]))
        quantized = min(tried, key=self._errors) if len(tried) > 1 else tried[0]
        narrow = self.held[1] != mantissas(8)[1]
        check_layer(self.population, quantized, self.source_limits, self.source_scales, self.steps, narrow)
        return quantized, self._report(quantized)

    def _by(self, importance: Sequence[float]) -> IntegerPopulation:
        """One scale for all channels where that rounds nothing, else one for each."""
        scale, exponents = self._search(importance)
        quantized = self._rounded(scale, exponents)
        errors = layer_errors(self.population, quantized, self.source_limits, self.source_scales)
        if not self.apart or sum(errors.values()) - errors["sums"] < EXACT:
            return quantized
        p, channels = self.population, self.population.shape[0]
        assert p.theta is not None  # it fires
        rows = len(p.bias) // channels
        if self.widths.per_channel:
            exponents = tuple(np.full(channels, e) for e in exponents)
        grids = [Grid(*known) for known in zip(exponents, self.source_scales, importance)]
        room = np.maximum(ROOM * np.maximum(self.reaches, p.theta), self.states * HELD)
        largest, bias = (n.reshape(channels, rows).max(1) for n in (room, np.abs(p.bias)))
        held = BIAS[1] * 2.0 ** (BIAS_EXPONENTS[-1] - self.widths.align)
        most = np.minimum(self.widths.current_limit / largest, held / np.maximum(bias, held * 1e-30))
        scales, exponents = channel_scales(p, grids, Bounds(self.held, self.widths.exponents, most, self.reaches))
        return self._rounded(np.repeat(scales, rows), exponents)

    def _errors(self, quantized: IntegerPopulation) -> float:
        return sum(layer_errors(self.population, quantized, self.source_limits, self.source_scales).values())

    def _rounded(self, scale: Any, exponents: tuple[Any, ...]) -> IntegerPopulation:
        p, align = self.population, self.widths.align
        by_neuron = [self._by_neuron(e) for e in exponents]
        connections = [
            IntegerConnection(c.source, _mantissas(c.matrix, scale / x / 2.0 ** (e + 1.0), self.held), e, c.delay, c.lag)
            for c, x, e in zip(p.connections, self.source_scales, by_neuron)
        ]
        bias, bias_exponent = _bias(p.bias * scale, align)
        theta = None if p.theta is None else self._theta(p.theta * scale)
        zeros = np.zeros(len(p.bias), np.int32)
        return IntegerPopulation(
            name=p.name,
            shape=p.shape,
            connections=connections,
            depth=p.depth,
            scale=scale,
            bias=bias,
            bias_exponent=bias_exponent,
            decay=zeros if p.leak is None else _decay(p.leak, most=DECAY_UNITY - (p.theta is not None)),
            v_init=zeros if p.theta is None else self._potential(p.v_init * p.theta * scale),
            theta=theta,
            to_zero=p.to_zero,
            levels=p.levels,
            rectify=p.rectify,
            synaptic_decay=None if p.synaptic_leak is None else _decay(p.synaptic_leak, least=1),
            adaptation=None if p.adaptation is None else self._potential(p.adaptation * scale),
            adaptation_decay=None if p.adaptation_leak is None else _decay(p.adaptation_leak),
            state_bits=self.widths.state_bits,
            align=align,
        )

    def _by_neuron(self, exponent: Any) -> int | np.ndarray:
        """Exponents by channel as those of the neurons."""
        if not isinstance(exponent, np.ndarray):
            return exponent
        return np.repeat(exponent, len(self.population.bias) // self.channels).astype(np.int32)

    def _theta(self, values: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(values), 1, self.widths.current_limit - 1).astype(np.int32)

    def _potential(self, values: np.ndarray) -> np.ndarray:
        limit = 2 ** (self.widths.state_bits - 1)
        return np.clip(np.rint(values * 2**self.widths.align), 1 - limit, limit - 1).astype(np.int32)

    def _search(self, importance: Sequence[float]) -> tuple[float, tuple[Any, ...]]:
        """The scale, as 2^(n / OCTAVE), and the connections' exponents that give the least error."""
        tables: list[WeightErrors | ChannelErrors] = [
            ChannelErrors(c, self.channels, self.held)
            if self.widths.per_channel and not self.apart
            else WeightErrors(c, self.held)
            for c in self.population.connections
        ]
        energies = [float((c.matrix.data**2).sum()) * times for c, times in zip(self.population.connections, importance)]
        down = [{e: OCTAVE * (e + 1) + round(OCTAVE * np.log2(x)) for e in self.widths.exponents} for x in self.source_scales]
        best: tuple[float, int, tuple[Any, ...]] | None = None
        for n in range(self._highest(), self._highest() - OCTAVES * OCTAVE, -1):
            if best is not None and best[0] == 0:
                break
            scale, chosen, error = 2.0 ** (n / OCTAVE), [], 0.0
            for table, energy, shifts in zip(tables, energies, down):
                e, least = table.best({e: n - shift for e, shift in shifts.items()})
                chosen.append(e)
                error += least**2 * energy
            of_weights = (error / (sum(energies) or 1.0)) ** 0.5
            if best is not None and of_weights >= best[0] * ROUNDING:
                continue
            total = of_weights + self._rest_error(scale, chosen)
            if best is None or total < best[0] * ROUNDING:
                best = total, n, tuple(chosen)
        assert best is not None
        return 2.0 ** (best[1] / OCTAVE), best[2]

    def _highest(self) -> int:
        """The largest n at which currents and thresholds have their room."""
        room = (
            ROOM
            if self.population.theta is not None
            else readout_room(self.population, self.source_limits, self.signs, self.steps)
        )
        largest = room * max(self.reach, 0.0 if self.population.theta is None else float(self.population.theta.max()))
        most = max(largest, HELD * float(self.states.max()))
        return int(np.floor(OCTAVE * np.log2(self.widths.current_limit / most)))

    def _rest_error(self, scale: float, exponents: list[Any]) -> float:
        threshold, bias = self._threshold_error(scale), self._bias_error(scale)
        return threshold + bias + sum(float(dropped(e).mean()) for e in exponents) / (scale * self._norm())

    def _norm(self) -> float:
        theta = self.population.theta
        return self.reach if theta is None else float(theta.min())

    def _threshold_error(self, scale: Any) -> float:
        theta = self.population.theta
        return 0.0 if theta is None else float(np.abs(self._theta(theta * scale) / (theta * scale) - 1).max())

    def _bias_error(self, scale: Any) -> float:
        mantissa, exponent = _bias(self.population.bias * scale, self.widths.align)
        real = (mantissa.astype(np.float64) * 2**exponent) / 2**self.widths.align / scale
        return float(np.abs(real - self.population.bias).max()) / self._norm()

    def _report(self, q: IntegerPopulation) -> LayerReport:
        p = self.population
        squares = energy = 0.0
        weights = saturated = most = 0
        reach = np.zeros(len(p.bias))
        kept = had = np.zeros(len(p.bias))
        for c, i, x, limit in zip(p.connections, q.connections, self.source_scales, self.source_limits):
            factor = by_entry(q.scale / x / i.factor, c.matrix)
            wanted = c.matrix.data * factor
            held = clip(wanted, self.held)
            squares += float(((held / factor - c.matrix.data) ** 2).sum())
            energy += float((c.matrix.data**2).sum())
            weights += c.matrix.nnz
            saturated += int((np.rint(wanted) != held).sum())
            most = max(most, int(np.abs(held + (held < 0)).max(initial=0)))
            sizes = abs(i.matrix).sum(axis=1).A1
            kept, had = kept + sizes, had + abs(c.matrix).sum(axis=1).A1
            reach += sizes * i.factor * limit * x
        if q.synaptic_decay is not None:
            reach = (reach + np.abs(q.bias) * 2.0 ** (q.bias_exponent - q.align)) * charge(
                1 - q.synaptic_decay / DECAY_UNITY, self.steps or STEPS
            )
        if q.theta is not None and p.theta is not None:
            saturated += int((np.rint(p.theta * q.scale) >= self.widths.current_limit).sum())
        return LayerReport(
            name=p.name,
            scale=float(np.min(q.scale)),
            exponents=tuple(int(np.max(c.exponent)) for c in q.connections),
            weight_error=(squares / energy) ** 0.5 if energy else 0.0,
            threshold_error=self._threshold_error(q.scale),
            bias_error=self._bias_error(q.scale),
            leak_error=max(float(np.abs(held - real).max()) for _, real, held in leaks(p, q)),
            weights=weights,
            saturated=saturated,
            bits=most.bit_length() + 1,
            load=float(reach.max(initial=0.0)) / self.widths.current_limit,
            lost=int(((had > 0) & (kept == 0)).sum()),
        )


def _mantissas(matrix: sparse.csr_matrix, factor: Any, held: Range) -> sparse.csr_matrix:
    data = clip(matrix.data * by_entry(factor, matrix), held)
    data = data.astype(np.int32)  # zeros stay stored: a channel's neurons share a pattern
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _bias(values: np.ndarray, align: int) -> tuple[np.ndarray, int]:
    """Mantissas and the least exponent that holds them; values in units of the scale."""
    wanted = values * 2**align
    low, high = np.rint(wanted.min() / 2.0 ** np.array(BIAS_EXPONENTS)), np.rint(wanted.max() / 2.0 ** np.array(BIAS_EXPONENTS))
    holding = np.flatnonzero((low >= BIAS[0]) & (high <= BIAS[1]))
    exponent = int(holding[0]) if len(holding) else BIAS_EXPONENTS[-1]
    return np.clip(np.rint(wanted / 2**exponent), *BIAS).astype(np.int32), exponent


def _decay(leak: np.ndarray, least: int = 0, most: int = DECAY_UNITY) -> np.ndarray:
    """In 4096ths. The chip's potentials keep at least one of them, and its currents lose at least one; the rest is the host's."""
    return np.clip(np.rint((1 - leak) * DECAY_UNITY), least, most).astype(np.int32)
