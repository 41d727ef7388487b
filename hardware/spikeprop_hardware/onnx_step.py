"""``step_model``: one time step of a network as an ONNX model with its state in and out, in real numbers or in integers.

    output, spikes, state' = step(input, state)

All state starts as zeros, the number of the step among it, so that any runtime of ONNX runs a network with a loop and nothing
else (``run_onnx`` is that loop for onnxruntime). The equations are those of neurons.py and graph.py in float32, or of integer.py
in int32, which are exact: the integer model sends the spikes of the chip's simulation, always. In float32 sums have another order
than in float64, and a potential that meets its threshold may round to either side.

Inputs: ``input`` (B, *shape) float32, what the encoder made for this step; ``step`` (B), ``invalid`` (B) of integers, and state
tensors ``LAYER.what``. Outputs: ``output`` (B, classes) float32, the network's output if it ended now; ``LAYER.spikes``; and each
state again as ``NAME.next``. The model's metadata say which encoder, how many steps, and which inputs integers were made for;
an input beyond them makes this and all later outputs of its sample NaN. Operators are those of opset 17 (IR version 8).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.graph import window_of
from spikeprop_hardware.integer import DECAY_UNITY, IntegerNetwork, IntegerPopulation
from spikeprop_hardware.matrix import Shape, linear_of
from spikeprop_hardware.network import ChipNetwork, Population, lay_out
from spikeprop_hardware.onnx_linear import Graph, Messages, compact, deliver
from spikeprop_hardware.quantization import LOIHI, Widths, quantize_network
from spikeprop_hardware.recording import SimulationResult
from spikeprop_hardware.topology import flat

OPSET, IR = 17, 8
INSTALL = "ONNX needs the package onnx, and onnxruntime to run it: pip install 'spikeprop-hardware[onnx]'"


def step_model(
    graph: nir.NIRGraph,
    *,
    precision: Literal["float", "fixed"] = "float",
    input_limit: float | None = None,
    timesteps: int | None = None,
    widths: Widths = LOIHI,
) -> Any:
    """One time step of a network as an ``onnx.ModelProto``.

    Args:
        graph: any that ``lay_out`` accepts.
        precision: "float", or "fixed" for the chip's integers.
        input_limit, timesteps: as of ``quantize``, for integers.
        widths: their number formats.

    Raises:
        NirError: what ``lay_out`` refuses.
        HardwareError: onnx is missing; what ``quantize`` refuses; or what ONNX cannot say, with what to do.
    """
    try:
        import onnx
    except ImportError as error:
        raise HardwareError(INSTALL) from error
    if precision not in ("float", "fixed"):
        raise HardwareError(f"precision {precision!r}: there are float and fixed")
    real = lay_out(graph)
    made = quantize_network(real, input_limit, timesteps, widths).network if precision == "fixed" else None
    model = _OneStep(flat(graph).nodes, real, made).model()
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnx(model: str | Path | Any, inputs: np.ndarray, threads: int = 0) -> SimulationResult:
    """Run a step model over all steps with onnxruntime.

    Args:
        model: file, or what ``step_model`` made.
        inputs: what the network reads at each step, (samples, steps, *shape).
        threads: of onnxruntime; 0 leaves it the choice.

    Returns:
        spikes and output as of ``simulate``, the output in float32.

    Raises:
        HardwareError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise HardwareError(INSTALL) from error
    source = str(model) if isinstance(model, str | Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(double)": np.float64}
    samples, steps = inputs.shape[:2]
    state = {i.name: np.zeros((samples, *i.shape[1:]), kinds[i.type]) for i in session.get_inputs() if i.name != "input"}
    trains: dict[str, list[Any]] = {name: [] for name in names if not name.endswith(".next")}
    for t in range(steps):
        found = dict(zip(names, session.run(None, {"input": inputs[:, t].astype(np.float32), **state})))
        state = {name: found[f"{name}.next"] for name in state}
        for name, train in trains.items():
            train.append(found[name])
    kept = {name: np.stack(train, 1) for name, train in trains.items()}
    output = kept.pop("output")
    spikes = {
        name.removesuffix(".spikes"): train.astype(bool) if train.dtype == np.uint8 else train for name, train in kept.items()
    }
    return SimulationResult(spikes, output, counts={name: int(np.count_nonzero(train)) for name, train in spikes.items()})


class _OneStep:
    """Writes the operators of one step."""

    def __init__(self, nodes: dict[str, Any], network: ChipNetwork, integers: IntegerNetwork | None):
        self.nodes, self.network, self.integers = nodes, network, integers
        self.fixed, self.graph = integers is not None, Graph()
        self.number: Any = np.int32 if self.fixed else np.float32
        self.inputs: dict[str, tuple[Any, Shape]] = {}
        self.outputs: dict[str, tuple[Any, Shape]] = {}
        self.sent: dict[tuple[str, int], Messages] = {}
        self.lags: dict[str, int] = {}
        for p in network.populations:
            for c in p.connections:
                self.lags[c.source] = max(self.lags.get(c.source, 0), c.lag)

    def model(self) -> Any:
        """All operators, inputs, outputs and what the model says of itself."""
        from onnx import helper

        self.step = self.state("step", (), np.int32)
        self.keep("step", self.graph.op("Add", self.step, self.of(1, np.int32)))
        self.first = self.graph.op("Equal", self.step, self.of(0, np.int32))
        self._read_input()
        for p in self.network.populations:
            for name, lag in self.lags.items():
                if name == p.name and lag:
                    self._remembered(name, p.shape, p.payload, p.signed)
        for i, p in enumerate(self.network.populations):
            self._population(p, None if self.integers is None else self.integers.populations[i])
        for name, lag in self.lags.items():
            for k in range(lag):
                self.keep(f"{name}.ago{k + 1}", self.sent[name, k].tensor)
        types = helper.np_dtype_to_tensor_dtype
        ends = [
            [helper.make_tensor_value_info(name, types(np.dtype(dtype)), ["B", *shape]) for name, (dtype, shape) in of.items()]
            for of in (self.inputs, self.outputs)
        ]
        graph = helper.make_graph(self.graph.nodes, "step", *ends, initializer=list(self.graph.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="spikeprop")
        helper.set_model_props(model, {"spikeprop": json.dumps(self._about())})
        return model

    def _about(self) -> dict[str, Any]:
        made = self.integers
        limits = {} if made is None else {"input_limit": made.input_limit, "input_scale": made.input_scale}
        return {
            "precision": "float" if made is None else "fixed", "encoder": self.network.encoder,
            "timesteps": self.network.timesteps if made is None else made.timesteps, "read": self.network.read, **limits,
        }  # fmt: skip

    # tensors

    def of(self, values: Any, dtype: Any = None, shape: Shape | None = None) -> str:
        """A constant; with ``shape`` one number by neuron, (1, *shape), or fewer where they are equal."""
        array = np.asarray(values)
        if shape is not None:
            array = compact(np.broadcast_to(array, int(np.prod(shape))).reshape(shape))[None]
        return self.graph.constant(array, self.number if dtype is None else dtype)

    def state(self, name: str, shape: Shape, dtype: Any, start: np.ndarray | float = 0) -> str:
        """A state of the step before; zeros stand for ``start`` in the first."""
        self.inputs[name] = dtype, shape
        if not np.any(start):
            return name
        first = self.graph.reshape(self.first, [1] * len(shape))
        return self.graph.op("Where", first, self.of(start, dtype, shape), name)

    def keep(self, name: str, value: str) -> None:
        """The state for the next step."""
        self.outputs[f"{name}.next"] = self.inputs[name]
        self.graph.op("Identity", value, name=f"{name}.next")

    def _read_input(self) -> None:
        network, op = self.network, self.graph.op
        shape = network.input_shape
        self.inputs["input"] = np.float32, shape
        messages, most, self.invalid = "input", 0, ""
        if self.integers is not None:
            limit, scale = self.integers.input_limit, self.integers.input_scale
            most = int(np.rint(limit * scale))
            wanted = op("Mul", "input", self.of(scale, np.float32))
            whole = op("Round", wanted)
            fits = op("LessOrEqual", op("Abs", "input"), self.of(limit, np.float32))
            if self.integers.reads_spikes:
                fits = op("And", fits, op("Equal", whole, wanted))
            wrong = op("ReduceMax", self.graph.cast(op("Not", fits), np.int32), axes=list(range(1, len(shape) + 1)), keepdims=0)
            self.invalid = op("Max", wrong, self.state("invalid", (), np.int32))
            self.keep("invalid", self.invalid)
            nothing = op("Where", fits, whole, self.of(0, np.float32))  # of a sample whose output is NaN
            messages = self.graph.cast(nothing, np.int32)
        self._remembered(network.input, shape, most, True)
        self.sent[network.input, 0] = Messages(messages, shape, most, True)

    def _remembered(self, name: str, shape: Shape, most: int, signed: bool) -> None:
        """What a source sent in steps before."""
        for lag in range(1, self.lags.get(name, 0) + 1):
            self.sent[name, lag] = Messages(self.state(f"{name}.ago{lag}", shape, self.number), shape, most, signed)

    # layers

    def _population(self, p: Population, q: IntegerPopulation | None) -> None:
        if p.pools:
            self._pooling(p)
            return
        current = self._current(p, q)
        start = 0.0 if p.theta is None else (p.v_init * p.theta if q is None else q.v_init)
        kept = self._leaked(self.state(f"{p.name}.v", p.shape, self.number, start), p.leak if q is None else q.decay, p.shape)
        v = self.graph.op("Add", kept, current)
        if q is not None:
            v = self.graph.op("Clip", v, self.of(1 - q.limit), self.of(q.limit - 1))
        if p.theta is None:
            self.keep(f"{p.name}.v", v)
            self._read_out(v, p.shape, q)
        else:
            theta = p.theta if q is None or q.theta is None else q.theta.astype(np.int64) << q.align
            v, spikes = (self._graded if p.signed else self._fired)(p, q, v, self.of(theta, shape=p.shape))
            self.keep(f"{p.name}.v", v)
            self._send(p, spikes)

    def _send(self, p: Population, spikes: str) -> None:
        """``spikes`` are numbers."""
        self.sent[p.name, 0] = Messages(spikes, p.shape, p.payload, p.signed)
        dtype = np.int8 if p.signed else np.uint8
        self.outputs[f"{p.name}.spikes"] = dtype, p.shape
        self.graph.op("Identity", self.graph.cast(spikes, dtype), name=f"{p.name}.spikes")

    def _current(self, p: Population, q: IntegerPopulation | None) -> str:
        """What is added to the potential: (B, *shape)."""
        op, total = self.graph.op, ""
        for i, c in enumerate(p.connections):
            through = {name: self.nodes[name] for name in c.through}
            held = c.matrix if q is None else q.connections[i].matrix
            x = self.sent[c.source, c.lag]
            sums = deliver(self.graph, x, through, held, p.shape, self.fixed, p.name)
            sums = sums if q is None else self._shifted(sums, q.connections[i].exponent, p.shape)
            total = op("Add", total, sums) if total else sums
        bias = p.bias
        if q is not None:
            total, bias = op("Mul", total, self.of(1 << q.align)), q.bias.astype(np.int64) << q.bias_exponent
        total = op("Add", total, self.of(bias, shape=p.shape)) if bias.any() else total
        leak = p.synaptic_leak if q is None else q.synaptic_decay
        if leak is None:
            return total
        total = op("Add", self._leaked(self.state(f"{p.name}.i", p.shape, self.number), leak, p.shape), total)
        self.keep(f"{p.name}.i", total)
        return total

    def _shifted(self, sums: str, exponent: int | np.ndarray, shape: Shape) -> str:
        """(2 * sums) << exponent, or >>, which rounds down (Mod has the divisor's sign, so the division is exact)."""
        op, left = self.graph.op, np.asarray(exponent, np.int64) + 1
        if (left > 0).any():
            sums = op("Mul", sums, self.of(1 << np.maximum(left, 0), shape=shape))
        if (left < 0).any():
            by = self.of(1 << np.maximum(-left, 0), shape=shape)
            sums = op("Div", op("Sub", sums, op("Mod", sums, by)), by)
        return sums

    def _leaked(self, x: str, leak: np.ndarray | None, shape: Shape) -> str:
        """``leak`` is a factor, or of integers a decay in 4096ths, after which the product is rounded toward zero."""
        op = self.graph.op
        if leak is None or (leak == (0 if self.fixed else 1)).all():
            return x
        if not self.fixed:
            return op("Mul", x, self.of(leak, shape=shape))
        left = op("Mul", self.graph.cast(x, np.int64), self.of(DECAY_UNITY - leak.astype(np.int64), np.int64, shape))
        return self.graph.cast(op("Div", left, self.of(DECAY_UNITY, np.int64)), np.int32)

    def _fired(self, p: Population, q: IntegerPopulation | None, v: str, theta: str) -> tuple[str, str]:
        """The potential after the reset, and spikes."""
        op, level, raised, by = self.graph.op, theta, "", ""
        seen = v
        if p.adaptation is not None:
            raised = self.state(f"{p.name}.raised", p.shape, self.number)
            by = self.of(p.adaptation if q is None else q.adaptation, shape=p.shape)
            seen = v if self.fixed else op("Sub", v, op("Mul", by, raised))
            level = op("Add", theta, raised) if self.fixed else theta
        fired = op("Greater", seen, level)
        spikes = self.graph.cast(fired, self.number)
        if p.adaptation is not None:
            left = self._leaked(raised, p.adaptation_leak if q is None else q.adaptation_decay, p.shape)
            more = op("Add", left, op("Mul", by, spikes) if self.fixed else spikes)
            self.keep(f"{p.name}.raised", op("Min", more, self.of(q.limit - 1)) if q is not None else more)
        rest = self.of(np.zeros([1] * (len(p.shape) + 1))) if p.to_zero else op("Sub", v, theta)
        return op("Where", fired, rest, v), spikes

    def _graded(self, p: Population, q: IntegerPopulation | None, v: str, unit: str) -> tuple[str, str]:
        """As ``send_graded`` of kernels.py; the sum that was sent is a whole number in either precision."""
        op, one = self.graph.op, self.of(1)
        sent = self.state(f"{p.name}.sent", p.shape, self.number)
        up = down = self.of(np.zeros([1] * (len(p.shape) + 1)))
        most = sent if p.rectify else self.of(2**p.levels)
        for level in range(p.levels - 1, -1, -1):
            more, less = (op("Add", x, self.of(2**level)) for x in (up, down))
            up = op("Where", op("Greater", v, op("Mul", more, unit)), more, up)
            lower = op("Less", v, op("Mul", op("Sub", one, less), unit))
            down = op("Where", op("And", lower, op("LessOrEqual", less, most)), less, down)
        spikes = op("Sub", up, down)
        self.keep(f"{p.name}.sent", op("Add", sent, spikes))
        return op("Sub", v, op("Mul", spikes, unit)), spikes

    def _pooling(self, p: Population) -> None:
        """Counts in float32, which is exact up to 2^24; padding counts 0, as places that never fire."""
        op, shape, placed = self.graph.op, p.shape, ""
        for c in p.connections:
            x = self.sent[c.source, 0]
            tensor, shape = x.tensor, x.shape
            if c.through:  # places among concatenated channels
                matrix, shape = self._product(c.through, shape)
                through = {name: self.nodes[name] for name in c.through}
                tensor = deliver(self.graph, x, through, matrix.astype(self.number), shape, self.fixed, p.name)
            placed = op("Add", placed, tensor) if placed else tensor
        counts = op("Add", self.state(f"{p.name}.counts", shape, self.number), placed)
        self.keep(f"{p.name}.counts", counts)
        window = window_of(self.nodes[p.name], p.name)
        ends = [
            max(0, (count - 1) * stride + kernel - size - padding)
            for count, stride, kernel, size, padding in zip(p.shape[1:], window.stride, window.kernel, shape[1:], window.padding)
        ]
        pads = [0, 0, *window.padding, 0, 0, *ends]
        padded = op("Pad", self.graph.cast(counts, np.float32), self.of(pads, np.int64), self.of(0, np.float32))
        largest = op("MaxPool", padded, kernel_shape=list(window.kernel), strides=list(window.stride))
        largest = self.graph.cast(largest, self.number)
        before = self.state(f"{p.name}.v", p.shape, self.number)
        self.keep(f"{p.name}.v", largest)
        self._send(p, op("Sub", largest, before))

    def _product(self, names: tuple[str, ...], shape: Shape) -> tuple[Any, Shape]:
        matrix: Any = sparse.identity(int(np.prod(shape)), format="csr")
        for name in names:
            held, _, shape = linear_of(self.nodes[name], shape, name)
            matrix = held @ matrix
        return matrix.tocsr(), shape

    def _read_out(self, v: str, shape: Shape, q: IntegerPopulation | None) -> None:
        """``read_out`` of recording.py, one step at a time."""
        op, network, wide = self.graph.op, self.network, np.int64 if self.fixed else np.float32
        value = self.graph.cast(v, wide)
        delay, done = network.readout_from, self.graph.reshape(self.step, [1] * len(shape))
        if network.read == "max":
            if delay:
                raise HardwareError("the output is a maximum that counts from a later step on, which is not written in ONNX")
            first = self.graph.reshape(self.first, [1] * len(shape))
            before = self.state("output.largest", shape, wide)
            value = op("Where", first, value, op("Where", op("Greater", value, before), value, before))
            self.keep("output.largest", value)
        elif network.read != "last":
            if not network.accumulates:
                value = op("Add", self.state("output.sum", shape, wide), value)
                self.keep("output.sum", value)
            if delay:
                before = self.state("output.before", shape, wide)
                last = op("Equal", done, self.of(delay - 1, np.int32))
                self.keep("output.before", op("Where", last, value, before))
                counts = op("GreaterOrEqual", done, self.of(delay, np.int32))
                value = op("Where", counts, op("Sub", value, before), value)
        wide = np.float64 if self.fixed else np.float32
        value = self.graph.cast(value, wide)
        if network.read == "mean":
            steps = op("Add", done, self.of(1, np.int32))
            late = op("Greater", steps, self.of(delay, np.int32))
            steps = op("Where", late, op("Sub", steps, self.of(delay, np.int32)), steps)
            value = op("Div", value, self.graph.cast(steps, wide))
        if q is not None:
            value = self.graph.cast(op("Mul", value, self.of(q.unit, np.float64)), np.float32)
            wrong = self.graph.reshape(op("Greater", self.invalid, self.of(0, np.int32)), [1] * len(shape))
            value = op("Where", wrong, self.of(np.nan, np.float32), value)
        self.outputs["output"] = np.float32, shape
        self.graph.op("Identity", value, name="output")
