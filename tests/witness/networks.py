"""Random ANNs, and what is true of any of them that converts, computed here a second time and in the plainest way.

``draw(seed)`` gives a network of operations that convert or are refused. ``draw(seed, hostile=True)`` gives one that also does
something outside its modules' parameters: pruning masks, old reparametrisations, hooks, patched forwards, half precision, one
buffer for all batches. ``examine`` converts it and compares, by numbers that do not come from the library's own evaluation:

    the ANN's own outputs = the spiking network's weights run as an ANN here (``as_ann``), to rounding
    a simulation written here (``simulate``) = plain reference = packed engine = NIR round trip = simulator of hardware/

No spike may differ: weights are either binary fractions, for which every sum is exact, or real numbers in float64, for which a
potential does not meet its threshold.
"""

from __future__ import annotations

import copy
import re
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeprop import GradedIF, Poisson, convert, from_nir, to_nir
from spikeprop.errors import SpikepropError
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.arithmetic import Relay, Running
from tests.witness.disturbances import disturb
from tests.witness.drawing import Drawn, Maker

STEPS = 14
Trains = dict[str, Tensor]


class Difference(AssertionError):
    """Two that should be equal are not, or an error is not the library's own."""


def draw(seed: int, hostile: bool = False) -> Drawn:
    """The network of a seed."""
    torch.manual_seed(seed)
    maker = Maker(seed, hostile)
    drawn = maker.draw()
    if hostile:
        disturb(drawn, maker.rng)
    return drawn


# computed a second time -------------------------------------------------------------------------------------------------------


def paths(layer: Any, values: dict[str, Tensor]) -> Tensor:
    """The sum over a layer's synapses, each a chain of modules, of one step's values (B, ...)."""
    total: Any = 0.0
    for source, synapse in zip(layer.sources, layer.synapses):
        value = values[source]
        for operation in synapse.ops:
            value = operation(value)
        total = total + value
    return total


def window_of(neuron: Any) -> nn.MaxPool2d | None:
    """The window of a layer that pools spikes, else None."""
    return getattr(neuron, "window", None)


@torch.no_grad()
def as_ann(network: SpikingNetwork, x: Tensor) -> Tensor:
    """A calibrated network's weights as an ANN: a layer's value is relu(I) in spikes of 1, limited by a ceiling alone."""
    values = {"input": x}
    for name, layer in network.layers.items():
        layer: Any
        total = paths(layer, values)
        if layer.neuron is None:
            return total * layer.scale
        window = window_of(layer.neuron)
        if window is not None:
            values[name] = window(total)
            continue
        if layer.dynamics.arithmetic:
            values[name] = total if isinstance(layer.neuron, Relay) else layer.neuron.function(total)
            continue
        positive = total.relu() if getattr(layer.neuron, "rectify", True) else total
        if layer.ceiling is not None:
            positive = torch.minimum(positive, layer.ceiling.to(total) / layer.scale)
        values[name] = positive / layer.neuron.spike_size
    raise Difference("the network has no output layer")


@torch.no_grad()
def simulate(network: SpikingNetwork, x: Tensor, steps: int) -> tuple[Trains, Tensor]:
    """Every layer's spikes (T, B, ...) and the output summed over time: integrate, fire on a strict >, reset in the same step."""
    inputs = network.encoded(x, steps)
    trains: dict[str, list[Tensor]] = {}
    state: dict[str, dict[str, Any]] = {}
    output: Any = 0.0
    for t in range(steps):
        values = {"input": inputs[min(t, len(inputs) - 1)]}
        for name, layer in network.layers.items():
            layer: Any
            current = paths(layer, values)
            if layer.neuron is None:
                output = output + current
                break
            own = state.setdefault(name, {})
            values[name] = _fire(layer.neuron, current, own)
            trains.setdefault(name, []).append(values[name])
    return {name: torch.stack(train) for name, train in trains.items()}, output


def _fire(neuron: Any, current: Tensor, own: dict[str, Any]) -> Tensor:
    window = window_of(neuron)
    if window is not None:
        before = own.get("sent", torch.zeros_like(current))
        own["sent"] = before + current
        return window(own["sent"]) - window(before)
    if isinstance(neuron, Relay):
        return current
    if isinstance(neuron, Running):
        return _computed(neuron.function, current, own)
    theta = neuron.v_threshold
    v = own.get("v")
    v = torch.zeros_like(current) + neuron.v_init * neuron.spike_size if v is None else v
    v = neuron.leak * v + current
    if isinstance(neuron, GradedIF):
        return _send_graded(neuron, v, own)
    spikes = (v > theta).to(current)
    own["v"] = torch.where(spikes == 1, torch.zeros_like(v), v) if neuron.reset == "zero" else v - theta * spikes
    return spikes


def _computed(function: Any, current: Tensor, own: dict[str, Any]) -> Tensor:
    """The function of the mean so far, times the steps, less the same of the step before."""
    own["steps"], own["sum"] = own.get("steps", 0) + 1, own.get("sum", torch.zeros_like(current)) + current
    due = function(own["sum"] / own["steps"]) * own["steps"]
    before, own["due"] = own.get("due", torch.zeros_like(due)), due
    return due - before


def _send_graded(neuron: GradedIF, v: Tensor, own: dict[str, Any]) -> Tensor:
    """How many multiples of the smallest level lie below v; below 0, how many of -0, -1, -2, .. times it lie above v."""
    unit, most = neuron.spike_size, neuron.payload
    sent = own.get("sent", torch.zeros_like(v))
    up = sum((v > k * unit).to(v) for k in range(1, most + 1))
    back = torch.stack([(v < -k * unit).to(v) for k in range(most)]).sum(0)
    spikes = up - (torch.minimum(back, sent) if neuron.rectify else back)
    own["sent"], own["v"] = sent + spikes, v - spikes * unit
    return spikes


# examining --------------------------------------------------------------------------------------------------------------------


def is_own(error: BaseException) -> bool:
    """Whether an error was raised by the library itself, in words: its class, or a ValueError from one of its lines."""
    if not str(error):
        return False
    if isinstance(error, SpikepropError) or type(error).__name__ == "HardwareError":
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and "spikeprop" in frames[-1].filename and (frames[-1].line or "").startswith("raise")


def reason(error: BaseException) -> str:
    """A refusal's words without names and numbers, to count by."""
    told = re.sub(r"cannot convert node '[^']*' \(.*?\): ", "", str(error))
    return re.sub(r"'[^']*'|\d[\d.,e+-]*", "_", told)[:48]


class Examination:
    """What is true of one network; ``counts`` says what was compared, and what was refused and why."""

    def __init__(self, drawn: Drawn):
        self.drawn = drawn
        self.counts: Counter[str] = Counter({"networks": 1})

    def run(self) -> Counter[str]:
        try:
            network = self.converted()
            if network is not None:
                self.prepare(network)
                self.simulations(network)
                self.gradients(network)
        except Difference as error:
            raise Difference(f"{error}\n{self.drawn}") from error
        except Exception as error:
            raise Difference(f"{type(error).__name__}: {error}\n{self.drawn}") from error
        return self.counts

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """The result, or None where the library refuses; another error is a difference."""
        try:
            return work()
        except Exception as error:
            if not is_own(error):
                raise Difference(f"{what} ends in {type(error).__name__} that is not the library's own: {error}") from error
            self.counts[f"refused, {what}: {reason(error)}"] += 1
            self.counts[f"{what} refused"] += 1
            return None

    def converted(self) -> SpikingNetwork | None:
        drawn = self.drawn
        ann, images = drawn.ann, drawn.images
        before = fingerprint(ann)
        network = self.attempt(
            "convert", lambda: convert(ann, drawn.batches(), copy.deepcopy(drawn.neuron), drawn.calibrator, encoder=drawn.encoder)
        )
        if fingerprint(ann) != before:
            raise Difference("convert changed the caller's network")
        if network is None:
            return None
        wanted = evaluated(ann, images.clone())
        self.counts["converted"] += 1
        found = as_ann(network, images)
        if found.shape != wanted.shape:
            raise Difference(f"the ANN gives {tuple(wanted.shape)}, its weights in the spiking network {tuple(found.shape)}")
        close = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}[images.dtype]
        off = float((found - wanted).abs().max() / (wanted.abs().max() + 1e-3))
        if not off < close:
            raise Difference(f"the ANN's outputs and those of the spiking network's weights differ by {off:.2g} of the largest")
        self.counts["equal to the module"] += 1
        self.fresh_batches(network)
        return network

    def fresh_batches(self, network: SpikingNetwork) -> None:
        """Batches that share one buffer are no other images."""
        drawn = self.drawn
        if "one buffer for all batches" not in drawn.traits or drawn.encoder == Poisson():
            return
        other = convert(drawn.ann, [drawn.images], copy.deepcopy(drawn.neuron), drawn.calibrator, encoder=drawn.encoder)
        for name, neuron in other.neurons().items():
            mine = network.neurons()[name].v_threshold
            if not torch.allclose(mine, neuron.v_threshold, rtol=1e-4):
                told = [theta.flatten()[:3].tolist() for theta in (mine, neuron.v_threshold)]
                raise Difference(f"batches in one buffer give layer {name} the threshold {told[0]}, others {told[1]}")

    @torch.no_grad()
    def prepare(self, network: SpikingNetwork) -> None:
        """Float64, and thresholds below those of calibration, so that neurons fire often; binary fractions where asked for."""
        draws = np.random.default_rng(self.drawn.seed)
        network.double()
        for neuron in network.neurons().values():
            if window_of(neuron) is None:
                neuron.set_threshold(neuron.v_threshold * float(draws.uniform(0.3, 0.8)))
        self.x = self.drawn.images.double()
        if self.drawn.exact:
            self.counts["of them with exact sums"] += 1
            self.x = (self.x * 8).round() / 8
            for tensor in (*network.parameters(), *(b for name, b in network.named_buffers() if name.endswith("gain"))):
                tensor.copy_((tensor * 32).round() / 32)
            for neuron in network.neurons().values():
                if window_of(neuron) is None:
                    neuron.set_threshold((neuron.v_threshold * 32).round().clamp(min=2) / 32)
            network.set_dropout(0.5)  # a factor of 2

    def simulations(self, network: SpikingNetwork) -> None:
        seed = self.drawn.seed
        torch.manual_seed(seed)
        wanted, total = simulate(network, self.x, STEPS)
        self.counts["spikes"] += int(sum(train.abs().sum() for train in wanted.values()))
        for packed in (False, True):
            network.packed = packed
            for chunk in (None, 5):
                torch.manual_seed(seed)
                found, output = observed(network, self.x, chunk)
                self.same("packed" if packed else "plain", found, output, wanted, total)
        self.counts["plain = packed"] += 1
        graph = self.attempt("to_nir", lambda: to_nir(network))
        if graph is None:
            return
        back = self.attempt("from_nir", lambda: from_nir(graph))
        if back is not None:
            torch.manual_seed(seed)
            found, output = observed(back, self.x, None)
            self.same("NIR round trip", found, output, wanted, total)
            self.counts["= NIR"] += 1
        self.hardware(network, graph, wanted, total)

    def hardware(self, network: SpikingNetwork, graph: Any, wanted: Trains, total: Tensor) -> None:
        from spikeprop_hardware import Simulator, lay_out

        torch.manual_seed(self.drawn.seed)
        inputs_TB = network.encoded(self.x, STEPS)
        inputs = inputs_TB.expand(STEPS, *inputs_TB.shape[1:]).transpose(0, 1).contiguous().numpy()
        plan = self.attempt("simulator", lambda: lay_out(graph))
        if plan is None:
            return
        result = Simulator(plan, threads=1).run(inputs)
        found = {
            name: torch.from_numpy(train.astype(float)).transpose(0, 1).reshape(wanted[name].shape)
            for name, train in result.spikes.items()
        }
        self.same("simulator", found, torch.from_numpy(result.output[:, -1]).reshape(total.shape), wanted, total)
        self.counts["= simulator"] += 1

    def same(self, what: str, found: Trains, output: Tensor, wanted: Trains, total: Tensor) -> None:
        if found.keys() != wanted.keys():
            raise Difference(f"{what} has the layers {list(found)}, not {list(wanted)}")
        for name, train in wanted.items():
            if found[name].shape != train.shape:
                raise Difference(f"{what}: layer {name} has spikes {tuple(found[name].shape)}, not {tuple(train.shape)}")
            differ = ~torch.isclose(found[name], train.to(found[name]), rtol=1e-9, atol=1e-9)  # spikes are whole numbers
            if differ.any():
                first = differ.nonzero()[0].tolist()
                told = f"{int(differ.sum())} of {train.numel()} spikes of layer {name} differ"
                raise Difference(f"{what}: {told}, the first at (t, b, ...) {first}")
        if output.shape != total.shape:
            raise Difference(f"{what}: the output is {tuple(output.shape)}, not {tuple(total.shape)}")
        if not torch.allclose(output, total, rtol=1e-9, atol=1e-9):
            raise Difference(f"{what}: outputs differ by {float((output - total).abs().max()):.3g}")

    def gradients(self, network: SpikingNetwork) -> None:
        """Packed against plain in training mode, with dropout; an input overwritten before backward is refused or harmless."""
        if isinstance(self.drawn.neuron, GradedIF):
            return
        network.train()
        network.packed = False
        wanted = self.gradient(network, overwrite=False)
        network.packed = True
        found = self.gradient(network, overwrite=False)
        self.equal("gradient of the packed engine", found, wanted)
        self.counts["gradients"] += 1
        if "input overwritten before backward" in self.drawn.traits:
            try:
                found = self.gradient(network, overwrite=True)
            except RuntimeError as error:
                if "in place" not in str(error) and "inplace" not in str(error):
                    raise
                self.counts["refused, backward: changed in place"] += 1
                return
            self.equal("gradient after the input was overwritten", found, wanted)

    def gradient(self, network: SpikingNetwork, overwrite: bool) -> dict[str, Tensor]:
        network.zero_grad()
        torch.manual_seed(self.drawn.seed)
        x = self.x.clone()
        output = network(x, 9)
        if overwrite:
            x.fill_(0.31)
        (output.tanh() * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    def equal(self, what: str, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
        if found.keys() != wanted.keys():
            raise Difference(f"{what}: of {sorted(found)}, not of {sorted(wanted)}")
        for name, one in wanted.items():
            off = float((found[name] - one).abs().max() / (one.abs().max() + 1e-12))
            if not off < 1e-8 and float(one.abs().max()) > 1e-10:
                raise Difference(f"{what}: that of {name} is off by {off:.2g} of its largest")


@torch.no_grad()
def evaluated(ann: nn.Module, x: Tensor) -> Tensor:
    """What the caller's own module gives in evaluation mode; it is left in the mode that it was in."""
    modes = {module: module.training for module in ann.modules()}
    try:
        return ann.eval()(x)
    finally:
        for module, mode in modes.items():
            module.training = mode


def fingerprint(ann: nn.Module) -> Any:
    """All that converting must leave alone: numbers, modes, hooks, types."""
    state = ann.state_dict(keep_vars=True)
    numbers = {name: (id(tensor), float(tensor.detach().double().sum())) for name, tensor in state.items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training, type(m)) for m in ann.modules()]
    return numbers, hooks


@torch.no_grad()
def observed(network: SpikingNetwork, x: Tensor, chunk: int | None) -> tuple[Trains, Tensor]:
    """Spikes of all layers and the output, as the library runs the network."""
    trains: dict[str, list[Tensor]] = {}
    network.eval()
    output = network(x, STEPS, chunk=chunk, observe=lambda name, s_TB: trains.setdefault(name, []).append(s_TB.clone()))
    trains.pop("input")
    return {name: torch.cat(parts) for name, parts in trains.items()}, output


def examine(seed: int, hostile: bool = False) -> Counter[str]:
    """All comparisons for the network of a seed.

    Raises:
        Difference: naming the seed, the network and what differs.
    """
    return Examination(draw(seed, hostile)).run()
