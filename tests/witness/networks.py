"""Random ANNs, and what is true of any of them that converts, computed here a second time and in the plainest way.

``draw(seed)`` gives a network of operations that convert or are refused. ``draw(seed, hostile=True)`` gives one that also does
something outside its modules' parameters: pruning masks, old reparametrisations, hooks, patched forwards, half precision, one
buffer for all batches. ``examine`` converts it and compares, by numbers that do not come from the library's own evaluation:

    the ANN's own outputs = the spiking network's weights run as an ANN here (``as_ann``), to rounding
    a simulation written here (``simulate``) = plain reference = packed engine = NIR round trip = simulator of hardware/

No spike may differ: weights are either binary fractions, for which every sum is exact, or real numbers in float64, for which a
potential does not meet its threshold. Every ANN is a ``Program``, a list of steps, so it can be printed.
"""

from __future__ import annotations

import copy
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from spikeprop import IF, LIF, Direct, MaxActivation, Percentile, Poisson, SignedIF, ThresholdBalancing, convert, from_nir, to_nir
from spikeprop.convert import LeastError
from spikeprop.errors import SpikepropError
from spikeprop.snn import ATan, SpikingNetwork, Triangle

IMAGES = 6
STEPS = 14
Shape = tuple[int, ...]
Trains = dict[str, Tensor]


class Program(nn.Module):
    """Registers, filled step by step: (result, operation, operands). An operation is a module's name or a function."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.steps: list[tuple[str, Any, tuple[str, ...]]] = []

    def forward(self, x: Tensor) -> Tensor:
        values = {"x": x}
        result = "x"
        for result, operation, operands in self.steps:
            given = [values[name] for name in operands]
            values[result] = self.parts[operation](*given) if isinstance(operation, str) else operation(*given)
        return values[result]

    def __str__(self) -> str:
        lines = []
        for result, operation, operands in self.steps:
            what = str(self.parts[operation]).split("\n")[0] if isinstance(operation, str) else operation.__name__
            lines.append(f"  {result} = {what}({', '.join(operands)})")
        return "\n".join(lines)


@dataclass
class Drawn:
    """A network, what it is converted with, and what was done to it."""

    seed: int
    ann: nn.Module
    images: Tensor
    neuron: Any
    calibrator: Any
    encoder: Any
    traits: list[str]
    exact: bool  # weights are to become binary fractions
    batches: Callable[[], Any] = field(default=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {tuple(self.images.shape)} {self.images.dtype}, {self.neuron}, {self.calibrator}, "
            f"{self.encoder}, traits {self.traits}\n{self.ann if isinstance(self.ann, Program) else type(self.ann).__name__}"
        )


class Difference(AssertionError):
    """Two that should be equal are not, or an error is not the library's own."""


# drawing ----------------------------------------------------------------------------------------------------------------------


def cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def add_in_place(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def difference(a: Tensor, b: Tensor) -> Tensor:
    return a - 0.5 * b


def clamped(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def half_plus(x: Tensor) -> Tensor:
    return x * 0.5 + 0.25


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def reshaped(x: Tensor) -> Tensor:
    return x.reshape(x.size(0), -1)


def mean_of_positions(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def every_other(x: Tensor) -> Tensor:
    return x[:, :, ::2, ::2]


def first_half(x: Tensor) -> Tensor:
    return x[:, : x.shape[1] // 2]


def squeezed(x: Tensor) -> Tensor:
    return x.squeeze(-1).squeeze(-1)


class Maker:
    """Draws one network."""

    def __init__(self, seed: int, hostile: bool):
        self.rng, self.seed, self.hostile = np.random.default_rng([seed, int(hostile)]), seed, hostile
        self.program = Program()
        self.traits: list[str] = []
        self.x = "x"
        self.shape: Any = (1,)
        self.nonnegative = False
        self.powers_of_two = True  # of all averaging windows

    def draw(self) -> Drawn:
        kind = self.pick(["mlp", "cnn", "cnn", "residual", "concatenated", "tied"])
        self.traits.append(kind)
        self.shape = self.input_shape(kind)
        getattr(self, kind)(self.start())
        self.head()
        ann: nn.Module = self.program
        images = self.numbers((IMAGES, *self.shape_of_input), -0.4, 1.0)
        dtype = self.pick([torch.float32, torch.float32, torch.float64])
        ann, images = ann.to(dtype), images.to(dtype)
        self.fill(ann, images)
        ann.train(self.chance(0.5))
        self.harmless(ann, images)
        drawn = Drawn(
            self.seed,
            ann,
            images,
            self.neuron(),
            self.pick([MaxActivation(), MaxActivation(per="channel"), Percentile(percentile=99.0), LeastError(timesteps=8),
                       ThresholdBalancing(timesteps=12, scale=0.7)]),
            self.pick([None, None, Direct(), Poisson()]),
            self.traits,
            self.powers_of_two and self.chance(0.5),
        )  # fmt: skip
        drawn.batches = lambda: [drawn.images[:4], (drawn.images[4:], torch.zeros(IMAGES - 4))]
        if self.hostile:
            self.disturb(drawn)
        return drawn

    def input_shape(self, kind: str) -> Shape:
        if kind in ("mlp", "tied"):
            shape = self.pick([(int(self.rng.integers(3, 12)),), (5, 6), (2, 3, 4), (1, 1, 7)])
        else:
            shape = (self.pick([1, 2, 3, 4]), int(self.rng.integers(6, 12)), int(self.rng.integers(6, 12)))
        self.shape_of_input = shape
        return shape

    def start(self) -> str:
        if len(self.shape) > 1 and self.traits[0] in ("mlp", "tied"):
            self.step(self.pick([nn.Flatten(), flat, reshaped]))
        return self.x

    # kinds

    def mlp(self, _: str) -> None:
        for _i in range(self.pick([1, 2, 3])):
            self.linear(int(self.rng.integers(3, 12)))

    def tied(self, _: str) -> None:
        width = int(self.rng.integers(4, 10))
        self.linear(width)
        shared = nn.Linear(width, width, bias=self.chance(0.5))
        name = self.name("shared")
        self.program.parts[name] = shared
        for i in range(2):
            if i and self.chance(0.5):  # two modules, one parameter
                other = nn.Linear(width, width, bias=shared.bias is not None)
                other.weight = shared.weight
                name = self.name("twin")
                self.program.parts[name] = other
            self.call(name)
            self.activation()

    def cnn(self, _: str) -> None:
        for _i in range(self.pick([1, 2, 3])):
            self.convolution()
            if self.chance(0.5):
                self.pool()

    def residual(self, _: str) -> None:
        channels = self.pick([3, 4])
        self.convolution(channels, keeps_size=True)
        for _i in range(self.pick([1, 2])):
            before, shape = self.x, self.shape
            self.convolution(channels, keeps_size=True)
            self.weighted_convolution(channels, keeps_size=True)
            self.batch_norm()
            after = self.x
            if self.chance(0.4):
                self.x, self.shape = before, shape
                self.step(nn.Conv2d(channels, channels, 1, bias=self.chance(0.5)))
                before = self.x
            self.step(self.pick([add, add, add_in_place, difference]), after, before)
            self.activation()
        if self.chance(0.3):
            self.pool()

    def concatenated(self, _: str) -> None:
        self.convolution(self.pick([2, 4]), keeps_size=True)
        first, shape = self.x, self.shape
        ends = []
        for _i in range(self.pick([2, 3])):
            self.x, self.shape = first, shape
            if self.chance(0.8):
                self.convolution(self.pick([2, 3]), keeps_size=True)
            ends.append(self.x)
        self.step(cat, *ends)
        if self.chance(0.5):
            self.batch_norm()
            self.activation()
        if self.chance(0.5):
            self.pool()
        if self.chance(0.5):
            self.convolution()

    # parts

    def linear(self, out: int, last: bool = False) -> None:
        self.step(nn.Linear(self.shape[-1], out, bias=self.chance(0.7)))
        if not last:
            if self.chance(0.3):
                self.batch_norm()
            self.activation()

    def weighted_convolution(self, out: int | None = None, keeps_size: bool = False) -> None:
        inputs, height, width = self.shape
        kernel = tuple(self.pick([1, 3]) if keeps_size else min(self.pick([1, 2, 3]), size) for size in (height, width))
        groups = self.pick([1, 1, 1, inputs, 2 if inputs % 2 == 0 else 1])
        count = out if out is not None else groups * self.pick([1, 2, 3])
        groups = groups if count % groups == 0 else 1
        if keeps_size:
            settings: dict[str, Any] = {"padding": self.pick([*[(kernel[0] // 2, kernel[1] // 2)] * 7, "same"])}
        else:
            settings = {
                "stride": self.pick([1, 1, 2, (1, 2)]),
                "padding": self.pick([0, 0, 1, 1, (1, 0), (1, 0), (0, 1), "valid"]),
                "dilation": self.pick([1, 1, 1, 2 if min(height, width) >= 6 else 1]),
            }
        if self.chance(0.03):
            settings["padding_mode"] = self.pick(["reflect", "circular", "replicate"])
            settings["padding"] = 0 if settings["padding"] in ("same", "valid") else settings["padding"]
            settings["padding"] = (kernel[0] // 2, kernel[1] // 2) if keeps_size else settings["padding"]
        self.step(nn.Conv2d(inputs, count, kernel, groups=groups, bias=self.chance(0.7), **settings))

    def convolution(self, out: int | None = None, keeps_size: bool = False) -> None:
        self.weighted_convolution(out, keeps_size)
        if self.chance(0.5):
            self.batch_norm()
        if self.chance(0.1):
            self.step(half_plus)
        self.activation()

    def batch_norm(self) -> None:
        count = self.shape[0]
        self.step(nn.BatchNorm2d(count) if len(self.shape) == 3 else nn.BatchNorm1d(count))

    def activation(self) -> None:
        self.step(
            self.pick(
                [nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, clamped, nn.ReLU6(), nn.Hardtanh(0.0, 2.0),
                 nn.LeakyReLU(0.2), nn.Hardtanh(), nn.PReLU()]
            )
        )  # fmt: skip
        if self.chance(0.2):
            self.step(nn.Dropout(0.3))

    def pool(self) -> None:
        _, height, width = self.shape
        if min(height, width) < 3:
            return
        stride, padding = self.pick([None, 1, 2]), self.pick([0, 0, 1])
        kernel = self.pick([2, 2, 3, (2, 1)])
        padding = padding if kernel in (2, 3) else 0
        which = self.pick(["average", "average", "largest", "some", "adaptive"])
        if which == "average":
            self.powers_of_two &= kernel != 3
            extras = self.pick([{}, {}, {"ceil_mode": True}, {"count_include_pad": False}])
            self.powers_of_two &= not extras
            self.step(nn.AvgPool2d(kernel, stride, padding, **extras))
        elif which == "largest":
            self.step(nn.MaxPool2d(kernel, stride, padding, ceil_mode=self.chance(0.3)))
        elif which == "some":
            self.step(every_other)
        else:
            self.powers_of_two = False
            self.step(nn.AdaptiveAvgPool2d(self.pick([1, 2, (1, 2)])))

    def head(self) -> None:
        odd = self.hostile and self.chance(0.25)
        if len(self.shape) == 3:
            if odd:  # an output with positions, or (C, 1, 1)
                self.traits.append("output with positions")
                if self.chance(0.5):
                    self.powers_of_two = False
                    self.step(nn.AdaptiveAvgPool2d(1))
                self.step(nn.Conv2d(self.shape[0], self.pick([1, 3]), 1))
                return
            how = self.pick(["flatten", "flatten", "mean", "one by one"])
            if how == "one by one":
                self.step(nn.Conv2d(self.shape[0], 3, 1))
            if how == "flatten":
                self.step(self.pick([nn.Flatten(), flat, reshaped]))
            elif how == "mean":
                self.powers_of_two = False
                self.step(mean_of_positions)
            else:
                self.powers_of_two = False
                self.step(nn.AdaptiveAvgPool2d((1, 1)))
                self.step(self.pick([nn.Flatten(), flat, squeezed]))
                return
        self.linear(self.pick([1, 2, 3, 5]), last=True)

    def neuron(self) -> Any:
        surrogate = self.pick([None, Triangle(), ATan()])
        reset = self.pick(["subtract", "subtract", "zero"])
        leaky = LIF(leak=self.pick([0.5, 0.5, 0.875]), reset=reset)
        return self.pick([IF(), IF(surrogate=surrogate, reset=reset), IF(v_init=0.5), leaky, SignedIF()])

    # numbers

    @torch.no_grad()
    def fill(self, ann: nn.Module, images: Tensor) -> None:
        """Weights of a size that keeps layers alive, and batch-norm's statistics from a pass in training mode."""
        generator = torch.Generator().manual_seed(self.seed)
        for p in ann.parameters():
            if p.dim() > 1:
                fan = p[0].numel()
                p.copy_(torch.randn(p.shape, generator=generator) * (1.6 / fan**0.5) + 0.25 / fan**0.5)
            elif p.numel() > 1:
                p.copy_(torch.rand(p.shape, generator=generator) * 0.4 + (0.8 if (p == 1).all() else -0.05))
        torch.manual_seed(self.seed)
        norms = [m for m in ann.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 0.5
        modes = {module: module.training for module in ann.modules()}
        for module in ann.modules():
            module.training = module in norms
        ann(images)
        for module, mode in modes.items():
            module.training = mode

    def numbers(self, shape: Shape, low: float, high: float) -> Tensor:
        return torch.tensor(self.rng.uniform(low, high, shape), dtype=torch.float32)

    def harmless(self, ann: nn.Module, images: Tensor) -> None:
        """What must not matter: pruning made permanent, new parametrisations, hooks that only look."""
        weighted = [m for m in ann.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        owners = Counter(id(m.weight) for m in weighted)
        one: Any = self.pick(weighted)
        if owners[id(one.weight)] > 1 and not self.hostile:
            return  # reparametrising one of two that share a weight is a disturbance
        what = self.pick(["nothing", "nothing", "pruned", "weight norm", "spectral norm", "orthogonal", "watched", "frozen"])
        if what == "pruned":
            prune.l1_unstructured(one, "weight", amount=0.3)
            prune.remove(one, "weight")
        elif what == "weight norm":
            parametrizations.weight_norm(one)
            with torch.no_grad():
                one.parametrizations.weight.original0.mul_(1.3)
        elif what == "spectral norm":
            parametrizations.spectral_norm(one)
            with torch.no_grad():
                ann.train()(images)
        elif what == "orthogonal":
            parametrizations.orthogonal(one)
        elif what == "watched":
            one.register_forward_hook(lambda module, args, output: None)
        elif what == "frozen":
            one.weight.requires_grad_(False)
        if what != "nothing":
            self.traits.append(what)

    def disturb(self, drawn: Drawn) -> None:
        """What the ANN does outside its modules' parameters, or what is done with its input."""
        weighted = [m for m in drawn.ann.modules() if isinstance(m, nn.Conv2d | nn.Linear) and not hasattr(m, "parametrizations")]
        if not weighted:
            return
        one = self.pick(weighted)
        what = self.pick(list(DISTURBANCES))
        if "output with positions" in drawn.traits and self.chance(0.5):
            return
        drawn.traits.append(what)
        DISTURBANCES[what](drawn, one)

    # steps

    def step(self, operation: Any, *operands: str) -> None:
        """Append a step and run it on zeros for the shape."""
        if isinstance(operation, nn.Module):
            name = self.name(type(operation).__name__.lower())
            self.program.parts[name] = operation
            operation = name
        self.call(operation, *operands)

    def call(self, operation: Any, *operands: str) -> None:
        result = f"v{len(self.program.steps)}"
        self.program.steps.append((result, operation, operands or (self.x,)))
        self.x = result
        with torch.no_grad():
            before = self.program.training
            self.shape = tuple(self.program.eval()(torch.zeros(2, *self.shape_of_input)).shape[1:])
            self.program.train(before)

    def name(self, kind: str) -> str:
        return f"{kind}{len(self.program.parts)}"

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)


# disturbances -----------------------------------------------------------------------------------------------------------------


def _pruned_then_loaded(drawn: Drawn, one: Any) -> None:
    """The mask stays, other weights are loaded: ``weight`` is of before until the next forward."""
    prune.l1_unstructured(one, "weight", amount=0.4)
    state = {k: v * 0.6 + 0.1 if k.endswith("weight_orig") else v for k, v in drawn.ann.state_dict().items()}
    drawn.ann.load_state_dict(state)


def _pruned(drawn: Drawn, one: Any) -> None:
    prune.l1_unstructured(one, "weight", amount=0.4)


def _old_weight_norm(drawn: Drawn, one: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old_weight_norm(one)
    with torch.no_grad():
        one.weight_g.mul_(1.4)


def _old_spectral_norm(drawn: Drawn, one: Any) -> None:
    old_spectral_norm(one)
    with torch.no_grad():
        drawn.ann.train()(drawn.images)


def _hook(drawn: Drawn, one: Any) -> None:
    one.register_forward_hook(lambda module, args, output: output * 1.5 + 0.1)


def _pre_hook(drawn: Drawn, one: Any) -> None:
    one.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))


def _hook_of_the_whole(drawn: Drawn, one: Any) -> None:
    drawn.ann.register_forward_hook(lambda module, args, output: output * 2 - 1)


def _patched_forward(drawn: Drawn, one: Any) -> None:
    original = one.forward
    one.forward = lambda x: original(x) * 0.7


def _weights_changed_by_a_hook(drawn: Drawn, one: Any) -> None:
    def standardised(module: Any, args: Any) -> None:
        module.weight.data.clamp_(-0.2, 0.2)

    one.register_forward_pre_hook(standardised)


def _half(drawn: Drawn, one: Any) -> None:
    drawn.ann, drawn.images = drawn.ann.bfloat16(), drawn.images.bfloat16()


def _one_buffer(drawn: Drawn, one: Any) -> None:
    """All calibration batches come in one tensor that is filled anew, as from a pinned buffer."""
    images = drawn.images

    def batches() -> Iterator[Tensor]:
        buffer = torch.empty_like(images[:3])
        for start in (0, 3):
            yield buffer.copy_(images[start : start + 3])

    drawn.batches = batches


def _input_overwritten(drawn: Drawn, one: Any) -> None:
    """The input tensor is filled anew between forward and backward; ``examine`` does so."""


def _weight_by_attribute(drawn: Drawn, one: Any) -> None:
    """Weights that are no parameter: a plain tensor in the module's place, as some quantisers leave it."""
    kept = one.weight.detach().clone() * 0.8
    del one.weight
    one.weight = kept


DISTURBANCES: dict[str, Callable[[Drawn, Any], None]] = {
    "pruned, other weights loaded": _pruned_then_loaded,
    "pruned, mask kept": _pruned,
    "old weight norm": _old_weight_norm,
    "old spectral norm": _old_spectral_norm,
    "hook changes an output": _hook,
    "hook changes an input": _pre_hook,
    "hook changes the result": _hook_of_the_whole,
    "hook changes weights": _weights_changed_by_a_hook,
    "patched forward": _patched_forward,
    "weight that is no parameter": _weight_by_attribute,
    "bfloat16": _half,
    "one buffer for all batches": _one_buffer,
    "input overwritten before backward": _input_overwritten,
}


def draw(seed: int, hostile: bool = False) -> Drawn:
    """The network of a seed."""
    torch.manual_seed(seed)
    return Maker(seed, hostile).draw()


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
    """A calibrated network's weights as an ANN: a layer's value is its rate relu(I) / theta, limited by a ceiling alone."""
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
        positive = total.relu()
        if layer.ceiling is not None:
            positive = torch.minimum(positive, layer.ceiling.to(total) / layer.scale)
        values[name] = positive / layer.neuron.v_threshold
    raise Difference("the network has no output layer")


@torch.no_grad()
def simulate(network: SpikingNetwork, x: Tensor, steps: int) -> tuple[Trains, Tensor]:
    """Every layer's spikes (T, B, ...) and the output summed over time: integrate, fire on a strict >, reset in the same step."""
    inputs = network.encoder(x, steps)
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
    theta = neuron.v_threshold
    v = own.get("v")
    v = torch.zeros_like(current) + neuron.v_init * theta if v is None else v
    v = neuron.leak * v + current
    spikes = (v > theta).to(current)
    if type(neuron).__name__ == "SignedIF":
        sent = own.get("sent", torch.zeros_like(current))
        spikes = spikes - ((v < 0) & (sent > 0)).to(current)
        own["sent"] = sent + spikes
    own["v"] = torch.where(spikes == 1, torch.zeros_like(v), v) if neuron.reset == "zero" else v - theta * spikes
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
        wanted = evaluated(ann, images.clone())
        if network is None:
            return None
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
        from spikeprop_hardware import Simulator, make_plan

        torch.manual_seed(self.drawn.seed)
        inputs_TB = network.encoder(self.x, STEPS)
        inputs = inputs_TB.expand(STEPS, *inputs_TB.shape[1:]).transpose(0, 1).contiguous().numpy()
        plan = self.attempt("simulator", lambda: make_plan(graph))
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
            wrong = int((found[name] != train).sum())
            if wrong:
                first = (found[name] != train).nonzero()[0].tolist()
                told = f"{wrong} of {train.numel()} spikes of layer {name} differ"
                raise Difference(f"{what}: {told}, the first at (t, b, ...) {first}")
        if output.shape != total.shape:
            raise Difference(f"{what}: the output is {tuple(output.shape)}, not {tuple(total.shape)}")
        if not torch.allclose(output, total, rtol=1e-9, atol=1e-9):
            raise Difference(f"{what}: outputs differ by {float((output - total).abs().max()):.3g}")

    def gradients(self, network: SpikingNetwork) -> None:
        """Packed against plain in training mode, with dropout; an input overwritten before backward is refused or harmless."""
        if type(self.drawn.neuron) is SignedIF:
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
