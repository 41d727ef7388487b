"""Random ANNs for ``networks``: perceptrons, CNNs, residual sums, concatenations, tied weights; odd shapes and settings.

Every one is a ``Program``, a list of steps, so it can be printed; each step is run once on zeros for its shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from spikeprop import IF, LIF, Direct, GradedIF, MaxActivation, Percentile, Poisson, SignedIF, ThresholdBalancing
from spikeprop.convert import LeastError
from spikeprop.snn import ATan, Triangle

IMAGES = 6
Shape = tuple[int, ...]


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
        if self.chance(0.03) and min(height, width) >= 3:
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
        return self.pick(
            [IF(), IF(surrogate=surrogate, reset=reset), IF(v_init=0.5), leaky, self.pick([SignedIF(), GradedIF(levels=3)])]
        )

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
