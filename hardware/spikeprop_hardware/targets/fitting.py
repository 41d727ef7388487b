"""``fits``: everything that stands between a network and a chip, by layer, at once and before training: what, why, what to do.

It reads shapes and kinds alone (outline.py). What a chip does not publish is not checked. A finding that does not ``stop`` a
network says what the host must do, or what the chip does in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

from spikeprop_hardware.chip import Budget, budget
from spikeprop_hardware.network import Population
from spikeprop_hardware.targets.names import target as found_target
from spikeprop_hardware.targets.outline import Operation, Outline, OutlinedLayer
from spikeprop_hardware.targets.target import NEURONS, POOLINGS, Target

CONVOLUTIONS = ("Conv1d", "Conv2d")
ONE_BIT = "use IF (convert.neuron=IF, convert.binary=true; trained from scratch: model.neuron=IF), with more time steps"


def _use(value: str, setting: str = "") -> str:
    """Advice on the neuron, or on a setting of it, with the recipe's keys."""
    shown, key = (f"{setting}={value}", f"neuron.{setting}") if setting else (value, "neuron")
    return f"use {shown} (convert.{key}={value}; trained from scratch: model.{key}={value})"


@dataclass(frozen=True)
class Finding:
    """What does not fit.

    Attributes:
        layer: its name; "" of the complete network.
        what: of the network.
        why: of the chip.
        change: what to do.
        stops: whether the network cannot run there as it is.
    """

    layer: str
    what: str
    why: str
    change: str
    stops: bool = True

    def __str__(self) -> str:
        where = f"layer {self.layer!r}: " if self.layer else ""
        return f"{where}{self.what}; {self.why}: {self.change}"


@dataclass(frozen=True)
class Fit:
    """What ``fits`` found; true where nothing stops the network.

    Attributes:
        target: name of the chip.
        findings: in the order of the layers.
        budget: cores and memories; None where a layer's synapses cannot be counted.
    """

    target: str
    findings: list[Finding]
    budget: Budget | None

    def __bool__(self) -> bool:
        return not any(finding.stops for finding in self.findings)

    def __str__(self) -> str:
        counted = self and self.budget is not None and self.budget.cores
        size = [] if self.budget is None or not counted else [(self.budget.cores, "core"), (self.budget.chips, "chip")]
        cores = " on ".join(f"{count:,} {what}{'s' * (count != 1)}" for count, what in size)
        lines = [f"{'fits' if self else 'does not fit'} {self.target}{cores and ', '}{cores}"]
        return "\n".join(lines + [f"{'  ' if finding.stops else '  note: '}{finding}" for finding in self.findings])


def fits(outline: Outline, target: str | Target) -> Fit:
    """Whether a network fits a chip, and everything that stands in the way.

    Args:
        outline: of the network (``spikeprop.snn.outline``).
        target: or its name.

    Raises:
        HardwareError: a name that is none.
    """
    chip = found_target(target)
    found = [*_of_the_input(outline, chip)]
    if "loops" in chip.unsimulated and outline.stride > 1:
        found.append(_unsimulated("", "a loop over several layers", chip, "let layers read themselves alone"))
    on_chip = [p for p in outline.populations if not _by_host(p, chip)]
    for layer in outline.populations:
        assert isinstance(layer, OutlinedLayer)
        readers = [p.name for p in on_chip for c in p.connections if c.source == layer.name]
        found += _dynamics(layer, chip)
        if not _by_host(layer, chip):
            found += [*_operations(layer, chip), *_connections(layer, readers, chip)]
    if chip.several and any(p.theta is not None and not p.to_zero for p in on_chip):
        found.append(Finding(
            "", "neurons send one spike a step", f"those of {chip.name} send as many as their potential holds thresholds",
            "several spikes of a neuron in one step are what differs, and training with one a step is not what the chip "
            f"computes: compare accuracies with simulate --target {chip.name}", stops=False,
        ))  # fmt: skip
    if chip.output_apart:
        found += _of_the_output(outline, chip)
    found += _sizes(on_chip, outline, chip)
    if chip.weight_memory is not None:
        found += _memories(outline, chip)
    counted = budget(outline, chip) if outline.computable else None
    if counted is not None:
        found += _counts(counted, outline, chip)
    order = {p.name: i for i, p in enumerate(outline.populations)}
    return Fit(
        chip.name, sorted(found, key=lambda f: order.get(f.layer, -1 if f.layer == outline.input else len(order))), counted
    )


def _by_host(layer: Population, chip: Target) -> bool:
    """Whether the host computes a layer, of the spikes that it reads there: the chip's limits are not its limits."""
    return isinstance(layer, OutlinedLayer) and layer.kind == "readout" and not chip.real_output


def _of_the_input(outline: Outline, chip: Target) -> Iterator[Finding]:
    if chip.real_input:
        return
    if outline.signed_input:
        yield Finding(
            outline.input, f"the input is spikes of both signs ({outline.encoder})", f"spikes of {chip.name} have none",
            "send rises alone (signed: false), or falls in channels of their own",
        )  # fmt: skip
    if outline.encoder == "Frames":
        yield Finding(
            outline.input, "the input is frames (Frames)", f"{chip.name} reads whole numbers of spikes",
            "count events in the frames; a simulation refuses other numbers", stops=False,
        )  # fmt: skip
    elif outline.real_input:
        yield Finding(
            outline.input, f"the input is numbers ({outline.encoder})", f"{chip.name} reads spikes alone",
            "use a spiking encoder (convert.encoder=Poisson; trained from scratch: encoder=Poisson; or Latency, Delta, or Frames "
            "of counted events), or compute the first layer on the host, and count its spikes as the input",
        )  # fmt: skip


def _dynamics(layer: OutlinedLayer, chip: Target) -> Iterator[Finding]:
    name, kind = layer.name, layer.kind
    if not chip.forgets and 0.0 in layer.leaks and not _by_host(layer, chip):
        own = kind == "readout"
        yield Finding(
            name, "the output is the last or the largest of its values" if own else "a leak of 0",
            f"a potential of {chip.name} keeps a part of what it was",
            "read the sum of the output's values, and train with it (read: sum)" if own else f"{_use('0.001', 'leak')} or more",
        )  # fmt: skip
    if kind == "readout":
        if not chip.real_output:
            yield Finding(
                name, "the output is a sum of currents", f"neurons of {chip.name} always spike",
                "the host computes it from the spikes of the last layer of neurons, which is the chip's output",
                stops=False,
            )  # fmt: skip
        return
    if kind == "max":
        if "max" not in chip.poolings:
            yield Finding(name, "max pooling of spikes", f"{chip.name} has none", "use average pooling in the ANN (nn.AvgPool2d)")
        return
    if kind not in NEURONS:
        yield Finding(name, f"computes {kind}", "no neuron of a chip does", layer.advice or "use IF or LIF")
        return
    if kind not in chip.neurons:
        known = ", ".join(chip.neurons)
        yield Finding(name, f"{kind} neurons", f"{chip.name} has {known}", _instead(kind, chip))
    elif layer.signed and layer.payload_bits > chip.payload_bits:
        why = f"those of {chip.name} have {chip.payload_bits}"
        yield Finding(name, f"graded spikes of {layer.payload_bits} bits", why, ONE_BIT)
    reset = "zero" if layer.to_zero else "subtract"
    if reset not in chip.resets:
        other = chip.resets[0]
        yield Finding(
            name, f"a reset by {reset}", f"{chip.name} resets by {other}", f"{_use(other, 'reset')} from the start, and train"
        )
    elif reset in chip.unsimulated:
        yield _unsimulated(name, f"a reset by {reset}", chip, _use(chip.resets[0], "reset"))
    if not chip.starts and np.any(layer.v_init):
        start = np.ravel(layer.v_init)[np.abs(layer.v_init).argmax()]
        yield Finding(name, f"a start at {start:.3g} thresholds", f"neurons of {chip.name} start at 0", _use("0", "v_init"))
    if chip.leaks == "powers of two" and layer.synaptic_leak is not None and not layer.synaptic_leak.all():
        yield Finding(
            name, "a synaptic leak of 0", f"a current of {chip.name} outlives its step", f"{_use('0.5', 'synaptic_leak')} or more"
        )
    wrong = [leak for leak in layer.leaks if leak not in (0.0, 1.0) and not float(np.log2(1 - leak)).is_integer()]
    if chip.leaks == "powers of two" and wrong:
        nearest = 1 - 2.0 ** round(float(np.log2(1 - wrong[0])))
        why = f"those of {chip.name} are 1 - 2^-k"
        yield Finding(name, f"a leak of {wrong[0]:.4g}", why, f"{_use(f'{nearest:g}', 'leak')}, and train with it")


def _unsimulated(name: str, what: str, chip: Target, change: str) -> Finding:
    why = f"{chip.name} computes it, and its simulators here do not"
    return Finding(name, what, why, f"{change}, or do without a simulation of the chip", stops=False)


def _instead(kind: str, chip: Target) -> str:
    if "IF" in chip.neurons:
        return ONE_BIT if kind == "GradedIF" else _use("IF") if kind == "LIF" else f"use {' or '.join(chip.neurons)}"
    powers = " and leaks of 1 - 2^-k" if chip.leaks != "any" else ""
    return f"train a network with {' or '.join(chip.neurons)}{powers} from scratch"


def _operations(layer: OutlinedLayer, chip: Target) -> Iterator[Finding]:
    for c in layer.connections:
        operations: tuple[Operation, ...] = getattr(c, "operations", ())
        for op in operations:
            if op.kind in POOLINGS:
                if layer.kind != "max" or op.kind != "max":
                    yield from _pool(layer.name, op, chip)
            elif op.kind not in ("shape", *chip.layers):
                yield Finding(
                    layer.name, f"{op.kind} from {_size(op.before)} to {_size(op.after)}",
                    f"{chip.name} has {', '.join(chip.layers)}", "write it as one of those, or leave it out",
                )  # fmt: skip
            elif op.kind in CONVOLUTIONS:
                yield from _convolution(layer.name, op, chip)
        yield from _maps(layer.name, operations, chip)
        if layer.kind in NEURONS and layer.kind not in chip.biases and any(op.bias for op in operations):
            why = (
                f"those of {layer.kind} neurons of {chip.name} are not equal" if chip.biases else f"{chip.name} has no equal one"
            )
            yield Finding(layer.name, "a bias", why, "use bias=False, and no batch-norm")
        weighted = [i for i, op in enumerate(operations) if op.weights]
        if chip.branches is not None and len(weighted) > 1:
            yield Finding(
                layer.name, f"{len(weighted)} operations with weights one after another", f"a core of {chip.name} has one",
                "put neurons between them (a ReLU in the ANN), or multiply them into one",
            )  # fmt: skip
        after = [op for op in operations[weighted[0] :] if op.kind in POOLINGS] if weighted else []
        if chip.branches is not None and after:
            yield Finding(
                layer.name, "pooling of currents, behind the weights", f"a core of {chip.name} pools the spikes of neurons",
                "pool after the neurons (convolution, ReLU, pooling in the ANN)",
            )  # fmt: skip


def _pool(name: str, op: Operation, chip: Target) -> Iterator[Finding]:
    if op.kind not in chip.poolings:
        yield Finding(name, f"{op.kind} pooling", f"{chip.name} has {', '.join(chip.poolings)}", "use average pooling")
    if chip.pool_sizes is None:
        return
    if set(op.kernel) - set(chip.pool_sizes) or op.kernel != op.stride or op.padding != (0, 0):
        sizes = ", ".join(f"{n}x{n}" for n in chip.pool_sizes)
        given = f"windows of {_size(op.kernel)}, stride {_size(op.stride)}" + (
            f", padding {op.padding}" if any(op.padding) else ""
        )
        yield Finding(
            name, f"pooling of {given}", f"{chip.name} has {sizes}, side by side",
            "use such windows, or a convolution with a stride in place of the pooling",
        )  # fmt: skip


def _maps(name: str, operations: Sequence[Operation], chip: Target) -> Iterator[Finding]:
    """A dense layer is a convolution whose kernel is the map before it, where a kernel has a limit."""
    for before, op in pairwise(operations):
        high, wide = before.before[1:] if len(before.before) == 3 else (1, 1)
        if chip.kernel is not None and op.kind == "Linear" and before.kind == "shape" and (high != wide or high > chip.kernel):
            yield Finding(
                name, f"a dense layer over maps of {high}x{wide}",
                f"that is a kernel of this size, and those of {chip.name} are square, of at most {chip.kernel}x{chip.kernel}",
                "pool or use a stride before it; give an input as a vector",
            )  # fmt: skip


def _convolution(name: str, op: Operation, chip: Target) -> Iterator[Finding]:
    if chip.kernel is not None and (op.kernel[0] != op.kernel[1] or op.kernel[0] > chip.kernel):
        why = f"those of {chip.name} are square, of at most {chip.kernel}x{chip.kernel}"
        yield Finding(name, f"a kernel of {_size(op.kernel)}", why, "use a smaller square kernel; zeros make one square")
    if chip.strides is not None and set(op.stride) - set(chip.strides):
        why = f"{chip.name} has strides of {', '.join(map(str, chip.strides))}"
        yield Finding(name, f"a stride of {_size(op.stride)}", why, "use one of those")
    if chip.padding is not None and max(op.padding) > chip.padding:
        yield Finding(name, f"a padding of {_size(op.padding)}", f"{chip.name} pads by at most {chip.padding}", "pad less")
    if chip.padding is not None and op.after[1:] != _slid(op):
        yield Finding(name, "a padding of unequal sides", f"{chip.name} pads both alike", "use a kernel of odd size")
    if chip.kernel is not None and op.dilation != (1, 1):
        yield Finding(name, f"a dilation of {_size(op.dilation)}", f"{chip.name} has none", "use dilation=1")


def _slid(op: Operation) -> tuple[int, ...]:
    """Size of a convolution's map where both sides have its padding."""
    axes = len(op.after) - 1
    places = zip(op.before[1:], *(sizes[-axes:] for sizes in (op.padding, op.dilation, op.kernel, op.stride)))
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in places)


def _connections(layer: OutlinedLayer, readers: list[str], chip: Target) -> Iterator[Finding]:
    name = layer.name
    back = [c.source for c in layer.connections if c.lag]
    if back and not chip.recurrent:
        yield Finding(name, f"feedback from {', '.join(back)}", f"{chip.name} has none", "use a network without loops")
    forward = [c.source for c in layer.connections if not c.lag]
    if chip.branches is not None and len(forward) > chip.branches:
        yield Finding(
            name, f"a sum of {len(forward)} paths ({', '.join(forward)})",
            f"what a core of {chip.name} reads goes through one kernel", "use a network without skip connections",
        )  # fmt: skip
    late = [c.source for c in layer.connections if c.delay]
    if "delays" in chip.unsimulated and late:
        yield _unsimulated(name, f"spikes of {', '.join(late)} that arrive later than others", chip, "make it a chain")
    if chip.destinations is not None and len(readers) > chip.destinations:
        why = f"a core of {chip.name} sends to {chip.destinations}"
        yield Finding(name, f"{len(readers)} layers read it ({', '.join(readers)})", why, "let fewer layers read it")


def _of_the_output(outline: Outline, chip: Target) -> Iterator[Finding]:
    spiking = [p for p in outline.populations if p.theta is not None]
    last = spiking[-1].name if spiking else ""
    for layer in outline.populations:
        sources = dict.fromkeys(c.source for c in layer.connections)
        if layer.name == last and outline.input in sources:
            yield Finding(
                last, "the last neurons read the input", f"{chip.name} has hidden neurons between", "put a layer before it"
            )
        if layer.theta is not None and last in sources:
            why = f"output neurons of {chip.name} send to nothing else"
            yield Finding(layer.name, f"it reads the last neurons ({last})", why, "put a layer of neurons behind them")
        if layer.theta is None and (others := [source for source in sources if source != last]) and spiking:
            why = f"the host of {chip.name} reads the output neurons alone"
            yield Finding(layer.name, f"the output reads {', '.join(others)}", why, f"let it read {last} alone")


def _sizes(layers: Sequence[Population], outline: Outline, chip: Target) -> Iterator[Finding]:
    for layer in layers:
        assert isinstance(layer, OutlinedLayer)
        made = layer.shape
        read = outline.input_shape if any(c.source == outline.input for c in layer.connections) else None
        for shape, most, what in ((made, chip.output_size, "makes"), (read, chip.input_size, "reads")):
            if most is not None and shape is not None and max(shape[1:], default=1) > most:
                why = f"a layer of {chip.name} {what} at most {most}x{most}"
                yield Finding(layer.name, f"it {what} maps of {_size(shape[1:])}", why, "pool or use a stride before")
        if chip.channels is not None and made[0] > chip.channels and layer.kind != "max":
            why = f"a layer of {chip.name} has at most {chip.channels:,}"
            yield Finding(layer.name, f"{made[0]:,} channels", why, "use fewer")


def _memories(outline: Outline, chip: Target) -> Iterator[Finding]:
    """Each layer needs a core of its own whose two memories hold it."""
    assert chip.weight_memory is not None
    assert chip.neuron_memory is not None
    layers = [p for p in outline.populations if isinstance(p, OutlinedLayer) and p.kind not in ("max", "readout")]
    needs = [(_weight_entries(p), len(p.bias)) for p in layers]
    cores = list(zip(chip.weight_memory, chip.neuron_memory))
    holds = np.array([[w <= core[0] and n <= core[1] for core in cores] for w, n in needs]).reshape(-1, len(cores))
    for layer, (weights, count), able in zip(layers, needs, holds):
        if not able.any():
            room = max((w for w, n in cores if n >= count), default=0)
            most = f"{room:,} where {count:,} neurons fit" if room else f"at most {max(chip.neuron_memory):,} neurons"
            yield Finding(
                layer.name, f"{weights:,} numbers for weights and {count:,} for neurons", f"a core of {chip.name} holds {most}",
                "use fewer channels, a smaller kernel, or pool before it",
            )  # fmt: skip
    placed = holds[holds.any(1)]
    rows, columns = linear_sum_assignment(~placed) if len(placed) else (np.zeros(0, int), np.zeros(0, int))
    fitting = int(placed[rows, columns].sum())
    if len(layers) > len(cores):
        yield Finding("", f"{len(layers)} layers", f"{chip.name} has {len(cores)} cores, one a layer", "use fewer layers")
    elif fitting < len(placed):
        yield Finding(
            "", f"{len(placed)} layers fit a core each, but only {fitting} of them at once",
            f"cores of {chip.name} with large memories for weights have small ones for neurons",
            "make the early layers' maps or the late layers' kernels smaller",
        )  # fmt: skip


def _weight_entries(layer: OutlinedLayer) -> int:
    """Numbers in the memory of weights: places in the kernel and output channels are addressed in powers of two.

    A dense layer is a convolution whose kernel is the map before it.
    """
    total = 0
    for c in layer.connections:
        shape: tuple[int, ...] = ()
        for op in getattr(c, "operations", ()):
            if op.kind in CONVOLUTIONS or op.kind == "Linear":
                channels, *sizes = (op.before[0], *op.kernel) if op.kind != "Linear" else (shape or op.before)
                total += channels * 2 ** (_bits(int(np.prod(sizes))) + _bits(op.after[0]))
            shape = op.before if op.kind == "shape" else ()
    return total


def _bits(count: int) -> int:
    return (count - 1).bit_length()


def _counts(found: Budget, outline: Outline, chip: Target) -> Iterator[Finding]:
    for text in found.problems:
        if chip.chips == 1 and text.startswith("the network needs "):
            continue  # told below, or by its layers
        what, _, change = text.partition("; ")
        where = next((p.name for p in outline.populations if f"layer {p.name!r}" in what), "")
        _, _, what = what.partition(f"layer {where!r} ") if where and what.startswith("layer") else ("", "", what)
        what, _, why = what.partition(", and ")
        yield Finding(where, what, why or f"{chip.name} has no more", change or "use a smaller network")
    for layer in found.layers:
        for count, most, what in ((layer.fan_in, chip.fan_in, "read"), (layer.fan_out, chip.fan_out, "feed")):
            if most is not None and count > most:
                why = f"one of {chip.name} {what}s at most {most}"
                yield Finding(layer.name, f"neurons {what} {count:,} others", why, "prune synapses, or use a smaller layer")
    if not found.layers:
        yield Finding("", "no layer of neurons", f"{chip.name} computes nothing else", "put neurons before the output")
        return
    output = found.layers[-1]
    hidden = sum(layer.neurons for layer in found.layers) - output.neurons
    inputs = int(np.prod(outline.input_shape))
    synapses = sum(layer.synapses for layer in found.layers)
    rows = ((inputs, chip.inputs, "inputs"), (hidden, chip.hidden, "hidden neurons"), (output.neurons, chip.outputs, "outputs"))
    for count, most, what in (*rows, (synapses, chip.synapses if chip.chips == 1 else None, "synapses")):
        if most is not None and count > most:
            yield Finding("", f"{count:,} {what}", f"{chip.name} has {most:,}", "use a smaller network, or another chip")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
