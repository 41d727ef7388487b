"""Every Triton kernel as a case: inputs, the call (the same for the kernels and for the reference), and the bytes it must move.

Bytes count what has to cross the memory bus once: inputs read, results written. Symbols: K steps of the piece, R rows (batch x
positions), C channels, N = R C neurons, W words a row (32 channels each), b bytes of a value, s bytes of a state (a membrane
potential and its gradient: 4, or 8 in double precision), P = pool^2. Thresholds and leaks, one a channel, are not counted.
Suffix legend as in ``spikeprop/snn/engine/kernels/cuda.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from spikeprop.snn.engine.kernels import packed_reference
from spikeprop.snn.engine.kernels.arguments import PackedSpikes, ScanParameters, SpikeTrain
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.reference import advance_since
from spikeprop.snn.engine.kernels.words import BITS, pack, word_count
from spikeprop.snn.engine.kernels.words import unpack as words_as_values
from spikeprop.snn.surrogate import STDB

Tensors = dict[str, Tensor]
RATES = (0.0, 0.02, 0.1, 0.5)  # spikes a step: silent, rare, busy neurons side by side
SURROGATE = STDB()


@dataclass(frozen=True)
class Setting:
    """Sizes and types of one launch: ``steps`` in the piece of ``batch`` samples of ``side`` x ``side`` x ``channels``."""

    steps: int
    batch: int
    side: int
    channels: int
    dtype: torch.dtype = torch.float32
    pool: int = 1
    scaled: bool = False
    to_zero: bool = False

    @property
    def state(self) -> torch.dtype:
        """Potentials stay in single precision where values are shorter."""
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    @property
    def rows(self) -> int:
        return self.batch * self.side**2

    @property
    def words(self) -> int:
        return word_count(self.channels)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        more = [f"pool {self.pool}"] * (self.pool > 1) + ["dropout"] * self.scaled + ["reset to zero"] * self.to_zero
        return ", ".join([f"T={self.steps} {self.batch}x{self.side}x{self.side}x{self.channels} {name}", *more])


@dataclass(frozen=True)
class Case:
    """One kernel at one setting.

    Attributes:
        kernel: name of the Triton function.
        inputs: tensors that ``call`` reads and writes.
        call: runs a module's function of that name on tensors; returns those it wrote.
        bytes: least that crosses the memory bus.
        exact: results equal the reference's to the bit; else within rounding of the reference in double precision.
    """

    kernel: str
    inputs: Tensors
    call: Callable[[ModuleType, Tensors], Tensors]
    bytes: int
    exact: bool = True

    def copies(self, device: torch.device | str, *, double: bool = False) -> Tensors:
        """The inputs on a device, floats in double precision where asked for."""
        found = {name: tensor.to(device, copy=True) for name, tensor in self.inputs.items()}
        return {name: t.double() if double and t.is_floating_point() else t for name, t in found.items()}

    def reference(self) -> Tensors:
        """What the plain kernels give, on the CPU."""
        return self.call(packed_reference, self.copies("cpu", double=not self.exact))


def _floats(setting: Setting, device: str, steps: int | None = None, *, positions: int | None = None) -> Tensor:
    size = (setting.batch, positions or setting.side**2, setting.channels)
    if steps is None:
        return torch.rand(*size, dtype=setting.state, device=device)
    return torch.randn(steps, *size, dtype=setting.state, device=device).to(setting.dtype)


def _spikes(setting: Setting, device: str, steps: int) -> Tensor:
    """Packed spikes of neurons that fire at different rates; step by step, since packing takes 8 bytes a neuron."""
    size = (setting.batch, setting.side**2, setting.channels)
    rates = torch.tensor(RATES, device=device)[torch.randint(len(RATES), size, device=device)]
    return torch.stack([pack(torch.bernoulli(rates)) for _ in range(steps)])


def _neurons(setting: Setting, device: str) -> Tensors:
    one = torch.ones(1, setting.channels, dtype=setting.state, device=device)
    return {"theta": one * 0.5, "leak": one * 0.9}


def _mask(setting: Setting, device: str) -> Tensors:
    return {"scale": (_floats(setting, device) < 0.8) / torch.tensor(0.8, dtype=setting.state)} if setting.scaled else {}


def _parameters(setting: Setting, t: Tensors) -> ScanParameters:
    return ScanParameters(t["theta"], t["leak"], setting.to_zero)


def scan(setting: Setting, device: str) -> Case:
    """N (K b + 2 s) + 4 K R W: currents in, potentials in and out, words out."""
    words = torch.empty(setting.steps, setting.batch, setting.side**2, setting.words, dtype=torch.int32, device=device)
    current, v = _floats(setting, device, setting.steps), _floats(setting, device)

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        kernels.scan(t["current"], t["v"], _parameters(setting, t), t["words"], potential=False)
        return {"words": t["words"], "v": t["v"]}

    size = current.nbytes + 2 * v.nbytes + words.nbytes
    return Case("_scan", {"current": current, "v": v, "words": words, **_neurons(setting, device)}, call, size)


def any_of(setting: Setting, device: str) -> Case:
    """4 (K + 1) R W: words in, one step of them out."""
    words = _spikes(setting, device, setting.steps)
    ors = torch.empty_like(words[0])

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        kernels.any_of(t["words"], t["ors"])
        return {"ors": t["ors"]}

    return Case("_any_of", {"words": words, "ors": ors}, call, words.nbytes + ors.nbytes)


def _train(setting: Setting, device: str) -> Tensors:
    """Words of two pieces and what is known of each."""
    words, ors = _spikes(setting, device, 2 * setting.steps), []
    for piece in words.split(setting.steps):
        ors.append(torch.empty_like(piece[0]))
        packed_reference.any_of(piece, ors[-1])
    return {"words": words, "ors": torch.stack(ors)}


def since_at_end(setting: Setting, device: str) -> Case:
    """At most 4 R W (2 K + 2) + 128 R W: words of two pieces and their summaries in (fewer where all have fired), steps out."""
    train = _train(setting, device)

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        return {"since": kernels.since_at_end(t["words"], t["ors"], setting.steps)}

    size = train["words"].nbytes + train["ors"].nbytes + 4 * BITS * setting.rows * setting.words
    return Case("_since_at_end", train, call, size)


def scan_back(setting: Setting, device: str) -> Case:
    """N K b (1/P + 1) + 4 K R W + 2 s N + 256 R W (+ s N with dropout): the search in earlier words is not counted."""
    values = _floats(setting, device, setting.steps, positions=setting.side**2 // setting.pool**2)
    out, grad_v = _floats(setting, device, setting.steps), _floats(setting, device)
    train, mask = _train(setting, device), _mask(setting, device)
    since = _since(train["words"])
    inputs = {"values": values, "out": out, "grad_v": grad_v, "since": since, **train, **mask, **_neurons(setting, device)}

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        gradient = Gradient(t["values"], setting.side, setting.pool, t.get("scale"))
        spikes = SpikeTrain(t["words"], t["ors"], setting.steps, t["since"])
        kernels.scan_back(gradient, t["grad_v"], spikes, setting.steps, _parameters(setting, t), SURROGATE, t["out"])
        return {"out": t["out"], "grad_v": t["grad_v"]}

    size = values.nbytes + out.nbytes + train["words"].nbytes // 2 + 2 * grad_v.nbytes + 2 * since.nbytes
    size += sum(scale.nbytes for scale in mask.values())
    return Case("_scan_back", inputs, call, size, exact=False)


def _since(words_TBSW: Tensor) -> Tensor:
    """Steps since the last spike after all steps, all of them for a neuron that has not fired, on any device."""
    size = (*words_TBSW.shape[1:3], words_TBSW.shape[3] * BITS)
    since = torch.zeros(size, dtype=torch.int32, device=words_TBSW.device)
    for words in words_TBSW:
        since = advance_since(since, words_as_values(words, size[-1], torch.int32))
    return since


def scan_back_slopes(setting: Setting, device: str) -> Case:
    """3 K N b + 2 s N + 4 K R W: gradients in and out, slopes in; words are read for a reset to zero alone."""
    grad, slope = (_floats(setting, device, setting.steps) for _ in range(2))
    grad_v, words = _floats(setting, device), _spikes(setting, device, setting.steps)
    inputs = {"grad": grad, "slope": slope, "grad_v": grad_v, "words": words, **_neurons(setting, device)}

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        kernels.scan_back_slopes(t["grad"], t["grad_v"], t["words"], t["slope"], _parameters(setting, t))
        return {"grad": t["grad"], "grad_v": t["grad_v"]}

    size = 3 * grad.nbytes + 2 * grad_v.nbytes + (words.nbytes if setting.to_zero else 0)
    return Case("_scan_back_slopes", inputs, call, size, exact=False)


def unpack(setting: Setting, device: str) -> Case:
    """4 K R W + K N b: words in, values out."""
    words = _spikes(setting, device, setting.steps)

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        return {"out": kernels.unpack(t["words"], setting.channels, setting.dtype)}

    size = words.nbytes + setting.steps * setting.rows * setting.channels * setting.dtype.itemsize
    return Case("_unpack", {"words": words}, call, size)


def pooled(setting: Setting, device: str) -> Case:
    """4 K R W + K N b / P (+ s N with dropout): words in, pooled values out."""
    words, mask = _spikes(setting, device, setting.steps), _mask(setting, device)
    size, dtype = (setting.side, setting.side), setting.dtype

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        spikes = PackedSpikes(t["words"], size, setting.channels, setting.pool, t.get("scale"), None)
        return {"out": kernels.pooled(spikes, torch.float64 if kernels is packed_reference else dtype)}

    moved = setting.steps * setting.rows * setting.channels * dtype.itemsize // setting.pool**2
    moved += words.nbytes + sum(scale.nbytes for scale in mask.values())
    return Case("_pool", {"words": words, **mask}, call, moved, exact=False)


def spread(setting: Setting, device: str) -> Case:
    """K N b (1/P + 1) (+ s N with dropout): gradients of pooled values in, of spikes out."""
    values = _floats(setting, device, setting.steps, positions=setting.side**2 // setting.pool**2)
    mask = _mask(setting, device)

    def call(kernels: ModuleType, t: Tensors) -> Tensors:
        return {"out": kernels.spread(Gradient(t["values"], setting.side, setting.pool, t.get("scale")))}

    moved = values.nbytes * (1 + setting.pool**2) + sum(scale.nbytes for scale in mask.values())
    return Case("_spread", {"values": values, **mask}, call, moved, exact=False)


BUILDERS = (scan, any_of, since_at_end, scan_back, scan_back_slopes, unpack, pooled, spread)
FORMULAS = {f"_{b.__name__}" if b is not pooled else "_pool": (b.__doc__ or "").rstrip(".") for b in BUILDERS}


def variants(steps: int, batch: int, side: int, channels: int) -> list[Setting]:
    """The types and options that the engine uses, at one size."""
    size = (steps, batch, side, channels)
    return [
        Setting(*size),
        Setting(*size, pool=2, scaled=True, to_zero=True),
        Setting(*size, dtype=torch.bfloat16, pool=2),
        Setting(*size, dtype=torch.float64),
    ]
