"""SpikingNetwork: a graph of layers, simulated step by step or in chunks of steps, with explicit state.

A layer sums the currents of its synapses and feeds its neurons; the last layer has none, and the sum of its current is the output
unless ``read`` or an ``Integrator`` says otherwise (``snn/readout.py``). The input is still samples for a number of steps, or
sequences (``snn/timed_input.py``). One ``forward`` is one simulation: nothing is carried from call to call. Chunks: with
``chunk=1`` all layers advance together, so memory does not grow with T; with ``chunk=T`` each layer sees all its steps at once,
so its convolutions are as large as they can be. The result is the same.

Suffix legend: T steps, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeprop.runtime.ordinary import trainable
from spikeprop.snn.advance import NetworkState, advance, check_state, norm_in_loop
from spikeprop.snn.dynamics import LayerDynamics, map_state
from spikeprop.snn.encoder import Encoder
from spikeprop.snn.hooks import refuse_transforms, refuse_uncalled
from spikeprop.snn.layer import INPUT, Layer, Observer, is_layer_name
from spikeprop.snn.leaving import Leaving
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.normalisation import needs_all_steps, shapes_only, takes_statistics
from spikeprop.snn.output_form import OutputForm, mapped
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.readout import READS, Read, ReadoutSchedule, ReadState, read
from spikeprop.snn.simulation import Simulation, engine, last_layer, values_of
from spikeprop.snn.synapse import DropoutMasks, SampleDropout, Synapse
from spikeprop.snn.timed_input import RunningInput, TimedInput, check_stream, own_steps

if TYPE_CHECKING:
    from spikeprop_hardware.targets.fitting import Fit

    from spikeprop.snn.recording import SpikeRecording
    from spikeprop.snn.summary import NetworkSummary

SETTINGS = frozenset((bool, int, float, str, tuple, FunctionType, MethodType))  # attributes of a module that may decide on shapes
HOLDERS = frozenset((nn.ModuleDict, nn.ModuleList))  # without settings

Shape = tuple[int, ...]


def _folding() -> ModuleType:
    """Imported when first used: it makes networks."""
    from spikeprop.snn import folding

    return folding


def _fitting() -> Callable[[SpikingNetwork, Any], Fit]:
    """Imported when first used: it needs scipy."""
    from spikeprop.snn.outline import fits

    return fits


def _looking() -> tuple[ModuleType, ModuleType]:
    """Imported when first used: they run networks."""
    from spikeprop.snn import recording, summary

    return recording, summary


class SpikingNetwork(nn.Module):
    """A spiking network for samples of one shape: still ones, or sequences of them.

    Args:
        layers: name to layer, in an order in which every source comes before its reader; the last one is the output.
        encoder: from values to what enters at each step.
        input_shape: shape of one sample at one step, for example (3, 32, 32).

    Attributes:
        packed: run on the engine of packed spikes where it can (the default), or always on the plain reference.
        known_shapes: what ``shapes`` returned last, for the engine.
        known_current_shapes: then, those of the layers' currents, which are others where a layer pools.
        readout: from when on the output counts (``snn/readout.py``); trivial unless a calibrator sets it.
        read: how the last layer's values make the output: "sum" (the default), "mean", "last" or "max"; in the checkpoint.
        output_form: the structure that ``forward`` returns, of a converted ANN with several outputs; None for one tensor.
        notes: what a conversion chose, left out or changed, in words; shown with the network.
        calibrated_for: number of steps for which its thresholds were made, where they were made for one.
    """

    def __init__(self, layers: Mapping[str, Layer], encoder: Encoder, input_shape: tuple[int, ...]):
        super().__init__()
        self.readout = ReadoutSchedule()
        for name in layers:
            if not is_layer_name(name):
                raise ValueError(
                    f"a layer cannot be called {name!r}, which torch forbids (a dot, or a name of nn.ModuleDict's own)"
                )
            if name == INPUT:
                raise ValueError(f"a layer cannot be called {INPUT!r}, which is the network's input: rename it")
        self.layers = nn.ModuleDict(layers)
        self.encoder = encoder
        self.input_shape = tuple(input_shape)
        self.packed = True
        self.output_form: OutputForm | None = None
        self.notes: list[str] = []
        self.calibrated_for: int | None = None
        self.known_shapes: dict[str, Shape] = {}
        self.known_current_shapes: dict[str, Shape] = {}
        self._form: list[Any] = []
        self._check_order()

    def _check_order(self) -> None:
        known = {INPUT}
        names = list(self.layers)
        for name, layer in self.named_layers():
            for source in layer.sources:
                if source not in known:
                    raise ValueError(f"layer {name!r} reads {source!r}, which is not an earlier layer ({sorted(known)})")
            if layer.reads_out != (name == names[-1]):
                raise ValueError(f"layer {name!r}: the last layer, and only it, has no spikes (neuron None, or Integrator)")
            self._check_feedback(name, layer)
            if isinstance(layer.dynamics, SpikingMaxPool) and self._differential(layer):
                raise ValueError(
                    f"layer {name!r} pools the largest count of spikes, which differential coding does not send: use average "
                    "pooling, or GradedIF"
                )
            known.add(name)
        wrong = norm_in_loop(dict(self.named_layers()))
        if wrong is not None:
            raise ValueError(wrong)

    def _check_feedback(self, name: str, layer: Layer) -> None:
        sending = list(self.dynamics())
        for source in layer.feedback_sources:
            if source not in sending:
                raise ValueError(f"layer {name!r} has feedback of {source!r}, which is no layer that sends spikes ({sending})")
        if layer.feedback_sources and not layer.sources:
            raise ValueError(f"layer {name!r} reads feedback alone: give it a synapse of the input or of a layer before it")
        if layer.feedback_sources and any(dynamics.differential for dynamics in self.dynamics().values()):
            raise ValueError(
                f"layer {name!r} reads feedback, in a network whose neurons send corrections (DifferentialIF): use GradedIF"
            )

    def _differential(self, layer: Layer) -> set[str]:
        """The sources of a layer whose spikes are corrections."""
        return {s for s in layer.sources if s != INPUT and self._layer(s).dynamics.differential}

    def _layer(self, name: str) -> Layer:
        layer = self.layers[name]
        assert isinstance(layer, Layer)
        return layer

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """(name, layer) in order."""
        for name, layer in self.layers.items():
            assert isinstance(layer, Layer)
            yield name, layer

    def read_after(self, done: str) -> set[str]:
        """Sources that are read after ``done`` has been computed: by the layers after it, and as feedback by any."""
        names = list(self.layers)
        later = names[names.index(done) + 1 :]
        layers = dict(self.named_layers())
        forward = {source for name in later for source in layers[name].sources}
        return forward | {source for layer in layers.values() for source in layer.feedback_sources}

    def dynamics(self) -> dict[str, LayerDynamics]:
        """Layer name to what makes its spikes, neurons and max pooling; the output layer is left out."""
        return {name: layer.dynamics for name, layer in self.named_layers() if not layer.reads_out}

    def neurons(self) -> dict[str, Neuron]:
        """Layer name to its neurons, of the layers that have thresholds."""
        return {name: layer for name, layer in self.dynamics().items() if isinstance(layer, Neuron)}

    def arithmetic_layers(self) -> list[str]:
        """Layers that send real numbers, which need arithmetic on the chip (``snn/arithmetic.py``)."""
        return [name for name, layer in self.dynamics().items() if layer.arithmetic]

    @property
    def read(self) -> Read:
        """How the last layer's values make the output."""
        return self.readout.read

    @read.setter
    def read(self, how: Read) -> None:
        if how not in READS:
            raise ValueError(f"read is {how!r}; the output is one of {READS} of the last layer's values")
        self.readout.read = how

    @property
    def _plain_sum(self) -> bool:
        return self.read == "sum" and last_layer(self).neuron is None

    def __repr__(self) -> str:
        kinds = dict.fromkeys(type(dynamics).__name__ for dynamics in self.dynamics().values())
        about = [f"input {tuple(self.input_shape)}", f"{len(self.layers)} layers", ", ".join(kinds)]
        about += [f"{sum(p.numel() for p in self.parameters()):,} parameters", "layers: .summary()"]
        return "\n".join([f"SpikingNetwork({'; '.join(filter(None, about))})", *(f"  note: {note}" for note in self.notes)])

    def summary(self, x: Any = None, timesteps: int | None = None) -> NetworkSummary:
        """The layers in a table: shapes, parameters, neurons, thresholds; of samples also firing rates and SynOps.

        Args:
            x: samples as a data set gives them, (B, ...), or sequences (B, T, ...) or ``Sequences``; some 100 are enough.
            timesteps: of still samples.

        Raises:
            ValueError: as ``forward``.
        """
        return _looking()[1].summarised(self, x, timesteps)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def record(
        self, x: Any, timesteps: int | None = None, *, membranes: bool = False, layers: Collection[str] | None = None
    ) -> SpikeRecording:
        """Simulate in evaluation mode, and keep what every layer sends; ``spikeprop.plot`` draws it.

        Args:
            x, timesteps: as of ``summary``; a few samples.
            membranes: keep the neurons' potentials too, which runs on the plain reference.
            layers: names to keep; None for all, and "input".

        Raises:
            ValueError: as ``forward``.
            DataError: an unknown layer, or more than 2 GiB.
        """
        return _looking()[0].record(self, x, timesteps, membranes, layers)

    def fits(self, target: str) -> Fit:
        """Whether the network fits a chip, and everything that stands in the way, by layer; weights do not matter.

        Args:
            target: "loihi2", "loihi1", "speck", "xylo", "generic"; or a ``spikeprop_hardware.targets.Target``.

        Raises:
            HardwareError: a name that is none.
            ValueError: layers that do not fit each other.
        """
        return _fitting()(self, target)

    def set_dropout(self, p: float) -> None:
        """Give every dropout of the network the probability ``p`` in [0, 1)."""
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability is {p}; it lies in [0, 1)")
        for module in self.modules():
            if isinstance(module, SampleDropout):
                module.p = p

    def shapes(self) -> dict[str, Shape]:
        """Shape of one sample of the input and of every layer.

        Raises:
            ValueError: a layer, put in another's place perhaps, that cannot read its sources.
        """
        form: list[Any] = [self.input_shape]
        _add_form(self.layers, form)
        if self._form != form:
            self._check_order()
            self.known_shapes, self.known_current_shapes = self._computed_shapes()
            self._form = form
        return self.known_shapes

    def _computed_shapes(self) -> tuple[dict[str, Shape], dict[str, Shape]]:
        """Of what is sent, and of the currents."""
        like = next(t for t in chain(self.parameters(), self.buffers()) if t.is_floating_point())
        values = {INPUT: torch.zeros(1, 1, *self.input_shape, device=like.device, dtype=like.dtype)}
        currents: dict[str, Shape] = {}
        with torch.no_grad(), shapes_only():
            for name, layer in self.named_layers():
                try:
                    current, *others = (synapse(values[source]) for _, source, synapse in layer.branches())
                    for other in others:
                        current = current + other
                except RuntimeError as error:
                    given = ", ".join(f"{source!r} {tuple(values[source].shape[2:])}" for source in layer.sources)
                    raise ValueError(f"layer {name!r} cannot read {given}: {error}") from error
                currents[name] = tuple(current.shape[2:])
                values[name] = current.new_zeros(1, 1, *layer.dynamics.output_shape(currents[name]))
            for name, layer in self.named_layers():
                for _, source, synapse in layer.feedback_branches():
                    _check_feedback_shape(name, source, synapse, values[source], currents[name])
        return {name: tuple(value.shape[2:]) for name, value in values.items()}, currents

    def init_state(self, lengths: Tensor | None = None) -> NetworkState:
        """State before the first step; potentials and dropout masks are made when a layer is first reached.

        Args:
            lengths: steps of each sample that count (B,); None where all do.
        """
        masks = DropoutMasks(next(chain(self.parameters(), self.buffers())).device) if self.training else None
        return NetworkState(masks=masks, lengths=lengths)

    def step(self, x_B: Tensor, state: NetworkState) -> tuple[Tensor, NetworkState]:
        """Advance one step on an already encoded input (B, ...); returns the output so far (B, K), as ``unroll`` yields it.

        Raises:
            ValueError: input or state that do not fit; the network delays its readout or runs beforehand, which ``forward`` and
                ``unroll`` do; or it needs all steps at once, as batch-norm in training mode does.
        """
        check_stream(x_B, self.input_shape, one=True)
        _, state = self.run(x_B.unsqueeze(0), state)
        assert state.reading.output is not None
        return state.reading.output, state

    def run(self, x_TB: Tensor, state: NetworkState, *, observe: Observer | None = None) -> tuple[Tensor, NetworkState]:
        """Advance over several already encoded steps (t, B, ...); returns the last layer's value at each (t, B, K) and the state.

        Gradients pass through all steps since ``init_state`` or ``detached``: with the latter between two calls, this is
        truncated backpropagation through time. ``state.reading.output`` is the output so far. Runs on the plain reference;
        ``observe`` as in ``forward``.

        Raises:
            ValueError: as ``step``.
        """
        if not self.readout.trivial:
            raise ValueError("this network has a delayed readout or a run beforehand; use forward or unroll, not step")
        reason = needs_all_steps(self)
        if reason is not None:
            raise ValueError(f"{reason}, so steps cannot be given one after another: use forward, or put it into evaluation mode")
        refuse_transforms(x_TB)
        refuse_uncalled(self._containers())
        check_stream(x_TB, self.input_shape, one=False)
        self._check_dtype(x_TB)
        check_state(state, x_TB.shape[1])
        TimedInput(x_TB, False).largest()
        values_TB, state = advance(self, trainable(x_TB), len(x_TB), state, observe)
        state.reading = read(self.read, values_TB, state.reading, state.lengths)[1]
        return values_TB, state

    @staticmethod
    def detached(state: NetworkState) -> NetworkState:
        """The state without the graph of the steps before, so that gradients end there."""
        return map_state(Tensor.detach, state)

    def forward(
        self,
        x: Tensor,
        timesteps: int | None = None,
        *,
        lengths: Tensor | None = None,
        chunk: int | None = None,
        observe: Observer | None = None,
    ) -> Any:
        """Simulate still samples (B, ...) for ``timesteps`` steps, or sequences (T, B, ...); returns the output (B, K, ...).

        It is the sum over the steps, in units of the readout's potential, unless ``read`` says otherwise; ``estimate`` makes of
        it what the ANN would return. A network that was converted from an ANN with several outputs returns theirs in the ANN's
        own structure.

        Args:
            x: finite; (B, *input_shape), or (T, B, *input_shape).
            timesteps: number of steps of still samples, at least 1; a sequence has its own.
            lengths: steps of each sample that count, (B,) int64 in 1..T, of sequences padded to T; None where all do.
            chunk: steps a layer takes at once; default what ``snn/engine/sizes.py`` says, on the plain reference all of them
                when gradients are wanted, else 1.
            observe: called with ("input" or layer name, spikes (t, B, ...)) for every chunk; zeros after a sample's own steps.
                Its method ``membrane``, where it has one, is called with (layer name, potentials (t, B, ...) after each step,
                their reset done); such a simulation runs on the plain reference. ``SpikeRecording`` keeps both.

        Raises:
            ValueError: shape, steps or lengths that do not fit, NaN or infinity in the input, an encoder that does not read it.
            SimulationError: within torch.jit.trace, torch.export or a torch.func transform, or a hook that nothing calls.
        """
        given, packed = self._given(x, timesteps, lengths, chunk)
        if packed and observe is None and self.readout.trivial and engine().trains(self, given):
            if self._plain_sum and lengths is None:
                return engine().train(self, given, chunk, self.structured)
            return engine().train(self, given, chunk, lambda current_TBK: self._of_currents(current_TBK, given), each_step=True)
        output = None
        for output_TBK in self._simulation(given, packed, chunk, observe).outputs():
            output = output_TBK[-1]
        assert output is not None
        return self.structured(output.clone())  # of its own memory, not a view of all steps'

    def _of_currents(self, current_TBK: Tensor, given: TimedInput) -> Any:
        """What ``forward`` returns for the last layer's currents."""
        outputs_TBK, _ = read(self.read, values_of(self, current_TBK)[0], ReadState(), given.lengths)
        return self.structured(outputs_TBK[-1])

    def over_time(
        self,
        x: Tensor,
        timesteps: int | None = None,
        *,
        lengths: Tensor | None = None,
        chunk: int | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """The last layer's value at each step, (T, B, K), 0 after a sample's own last step; with gradients for every parameter.

        Args:
            x, timesteps, lengths, chunk, observe: as in ``forward``; gradients that are observed run on the plain reference.

        Raises:
            ValueError: as ``forward``, and a delayed readout or a run beforehand.
        """
        given, packed = self._given(x, timesteps, lengths, chunk)
        if not self.readout.trivial:
            raise ValueError(
                "this network has a delayed readout or a run beforehand, which make no value at each step; use forward"
            )
        if packed and observe is None and engine().trains(self, given):
            values_TBK = engine().train(self, given, chunk, lambda current: values_of(self, current)[0], each_step=True)
        else:
            values_TBK = torch.cat(list(self._simulation(given, packed, chunk, observe).values()))
        return own_steps(values_TBK, 0, given.lengths)

    def structured(self, output: Tensor) -> Any:
        """A readout (..., outputs), such as those of ``step`` and ``unroll``, in the structure that ``forward`` returns."""
        return output if self.output_form is None else self.output_form(output)

    def estimate(self, output: Any, timesteps: int) -> Any:
        """The ANN's outputs, in its units, that outputs after ``timesteps`` steps stand for: of sums their mean, else themselves.

        Args:
            output: as ``forward`` returns it, or a readout.
            timesteps: of the simulation.
        """
        factor = last_layer(self).scale / (self.readout.counted_steps(timesteps) if self.read == "sum" else 1)
        return mapped(lambda leaf: leaf * factor.to(leaf) if isinstance(leaf, Tensor) else leaf, output)

    def _given(self, x: Tensor, timesteps: int | None, lengths: Tensor | None, chunk: int | None) -> tuple[TimedInput, bool]:
        """The checked input, and whether the engine runs it."""
        refuse_transforms(x)
        refuse_uncalled(self._containers())
        given = TimedInput.of(x, timesteps, lengths, self.input_shape)
        self._check_input(given)
        if chunk is not None and not (hasattr(chunk, "__index__") and chunk >= 1):
            raise ValueError(f"chunk is {chunk!r}; a layer takes at least 1 step at once")
        return given, self.packed and engine().supports(self, x)

    def _containers(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules that only hold others, by path."""
        yield from (("readout", self.readout), ("layers", self.layers))
        for name, layer in self.named_layers():
            yield f"layers.{name}", layer
            yield f"layers.{name}.synapses", layer.synapses
            for i, _, synapse in chain(layer.branches(), layer.feedback_branches()):
                yield f"layers.{name}.synapses.{i}.ops", synapse.ops

    def encoded(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        """What enters at each step (T, B, ...) for still samples or sequences; where all steps are the same, a view of one.

        Raises:
            ValueError: as ``forward``.
        """
        given = TimedInput.of(x, timesteps, None, self.input_shape)
        given.check_values(self.encoder)
        x_TB = RunningInput(self.encoder, given)(given.timesteps)
        return x_TB.expand(given.timesteps, *x_TB.shape[1:])

    def unroll(
        self,
        x: Tensor,
        timesteps: int | None = None,
        *,
        lengths: Tensor | None = None,
        chunk: int | None = None,
        observe: Observer | None = None,
        observed_steps: int | None = None,
        leaving: Leaving | None = None,
    ) -> Iterator[Tensor]:
        """Like ``forward``, yielding the outputs (t, B, K) after each step of each chunk; several outputs are flat in it.

        Each is what ``forward`` would return if the simulation ended there; past its own length a sample's stays as it is.
        What is observed are all steps, or the chunks in which the first ``observed_steps`` lie. Between two chunks ``leaving``
        may be told which samples go on; B is then their number.

        Raises:
            ValueError: as ``forward``, and ``leaving`` in training mode.
        """
        given, packed = self._given(x, timesteps, lengths, chunk)
        if leaving is not None and self.training:
            raise ValueError("samples leave a simulation in evaluation mode alone, without dropout: call network.eval() first")
        yield from self._simulation(given, packed, chunk, observe, observed_steps, leaving).outputs()

    def _simulation(
        self,
        given: TimedInput,
        packed: bool,
        chunk: int | None,
        observe: Observer | None,
        observed_steps: int | None = None,
        leaving: Leaving | None = None,
    ) -> Simulation:
        """Of this network, or of a faster one that computes the same."""
        runner = self if self.training or torch.is_grad_enabled() or not self.packed else _folding().evaluated(self)
        if runner is not self:
            packed = engine().supports(runner, given.x_TB)
        watched = given.timesteps if observed_steps is None else observed_steps
        return Simulation(runner, given, packed, runner.init_state, chunk, observe, watched, leaving)

    def _check_dtype(self, x_TB: Tensor) -> None:
        weight = next(self.parameters(), None)
        if not x_TB.is_floating_point() or (weight is not None and x_TB.dtype != weight.dtype):
            wanted = weight.dtype if weight is not None else "a floating-point type"
            raise ValueError(f"input is {x_TB.dtype}; this network computes in {wanted}: convert it with x.to(...)")

    def _check_input(self, given: TimedInput) -> None:
        weight, x_TB = next(self.parameters(), None), given.x_TB
        if weight is not None and weight.is_inference() and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise ValueError("the network was made in inference mode, so it has no gradients: use copy.deepcopy(network)")
        self._check_dtype(x_TB)
        given.check_values(self.encoder)
        path = takes_statistics(self) if given.lengths is not None and bool((given.lengths < given.timesteps).any()) else None
        if path is not None:
            raise ValueError(
                f"{path!r} is a batch-norm in training mode, whose statistics would count the padding of shorter sequences: "
                "train on batches of sequences of one length (set the data's duration or frames), or put it into evaluation mode"
            )
        if self.readout.restarts and not (given.still and self.encoder.stationary):
            raise ValueError(
                "this network runs beforehand and starts once more (OffsetSpike), so its input must stay the same: give it still "
                "samples, and an encoder that does not depend on the step"
            )
        if not self.readout.trivial and not (self._plain_sum and given.lengths is None):
            raise ValueError(
                "this network has a delayed readout or a run beforehand, which sum up complete simulations: use read = 'sum', no "
                "Integrator and no lengths, or call network.readout.set()"
            )


def _check_feedback_shape(name: str, source: str, synapse: Synapse, value: Tensor, wanted: Shape) -> None:
    flat = value.dim() == 3 and len(wanted) == 1
    remedy = f"; give nn.Linear({value.shape[2]}, {wanted[0]})" if flat else ""
    try:
        found = tuple(synapse(value).shape[2:])
    except RuntimeError as error:
        sent = tuple(value.shape[2:])
        raise ValueError(f"layer {name!r} cannot read feedback of {source!r} {sent}: {error}{remedy}") from error
    if found != wanted:
        raise ValueError(f"layer {name!r} has a current of {wanted}, and its feedback of {source!r} one of {found}{remedy}")


def _add_form(module: nn.Module, form: list[Any]) -> None:
    """Add what the shapes of a module's results depend on: its class, settings, hooks and children, and its tensors' shapes."""
    own, kind = module.__dict__, type(module)
    children = own["_modules"]
    form += (kind, *children)
    if kind not in HOLDERS:
        form += [value for name, value in own.items() if type(value) in SETTINGS and name != "training"]
        form += [t.shape for t in (*own["_parameters"].values(), *own["_buffers"].values()) if t is not None]
        form += (*own["_forward_hooks"], *own["_forward_pre_hooks"])
    for child in children.values():
        if child is not None:
            _add_form(child, form)
