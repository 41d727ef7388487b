"""One small network, written in many ways: each is converted to the same function, or is refused with the reason and the line.

PYTEST_DONT_REWRITE: the assertions in the networks are Python's own.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from spikeprop import IF, Direct
from spikeprop.convert import ConversionError, relu_activations, to_spiking

SHAPE = (2, 8, 8)
X = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Convolution, ReLU, convolution, ReLU, mean over positions, linear; ``forward`` is written by the cases below."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.gate = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("calls", torch.zeros(()))
        self.calls: Tensor
        self.norm = None

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Flag(Net):
    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        features = self.features(x)
        return features if return_features else self.head(features.mean((2, 3)))


class KeywordOnly(Net):
    def forward(self, x: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        if mask is not None:
            x = x * mask
        return super().forward(x) * scale


class Variadic(Net):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert not args
        return super().forward(x) if not kwargs.get("twice") else super().forward(super().forward(x))


class OnlyVariadic(Net):
    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(inputs[0])


class Asserts(Net):
    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        assert batch > 0
        assert x.ndim == x.dim() == 4, f"expected (B, C, H, W), got {x.shape}"
        assert (channels, height) == SHAPE[:2], f"{channels} channels, {height}x{width}"
        assert height == width or height < 0
        torch._assert(x.size(-1) == 8, "images of 8x8")
        if x.dtype not in (torch.float32, torch.float64) or not x.is_floating_point():
            raise TypeError(f"{x.dtype}")
        if x.device != self.a.weight.device or x.is_cuda:
            x = x.to(self.a.weight.device)
        return super().forward(x.to(self.a.weight.dtype).contiguous())


class DataAssertion(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert torch.isfinite(x).all(), "the images hold NaN"
        return super().forward(x)


class SizeBranches(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        if x.shape[1] == 1:
            x = x.repeat(1, 2, 1, 1)
        x = F.relu(self.a(x)) if x.shape[2] > 4 else self.a(x)
        if len(x.shape) == 3 or len(x) == 0 or x.numel() == 0:
            x = x.unsqueeze(0)
        return self.head(F.avg_pool2d(F.relu(self.b(x)), x.shape[2:]).view(len(x), -1))


class SizeLoops(Net):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(math.log2(x.shape[2])) - 2):
            x = F.relu(self.a(x))
        while x.shape[1] == 4 and float(self.calls) < 0:
            x = self.a(x)
        x = F.relu(self.b(x))
        parts = [F.adaptive_avg_pool2d(part, 1) for part in x.split(x.shape[1] // 2, dim=1)]
        return self.head(torch.cat(parts, dim=1).reshape(x.shape[0], math.prod(x.shape[1:2])))


class Unpacks(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        first, *rest = x.chunk(4, 1)
        x = torch.cat([first, *rest], 1)
        b, c, *positions = x.size()
        return self.head(x.mean((2, 3)).view(b, -1, *positions[2:]).reshape(-1, c))


class Modes(Net):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.jit.is_scripting():
            x = x + torch.randn_like(x)
        if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            raise RuntimeError
        self.calls += 1
        return super().forward(F.dropout(x, 0.0, self.training))


class Instances(Net):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, list | tuple):
            x = torch.cat(x)
        if not isinstance(x, Tensor) or not torch.is_tensor(x):
            raise TypeError(f"not {type(x)}")
        return super().forward(x)


class Parameters(Net):
    def forward(self, x: Tensor) -> Tensor:
        if self.gate > 0 and self.norm is None and self.a.weight.shape[0] == len(self.a.weight):
            x = x * float(self.gate)
        return super().forward(x) * self.gate.item()


class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(False):
            return super().forward(x)


class Helpers(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(_pooled(_rectified(self.b, _rectified(self.a, x))))


def _rectified(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x).clamp(min=0)


def _pooled(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return F.avg_pool2d(x, (height, width)).flatten(start_dim=1)


class Functional(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(F.conv2d(x, self.a.weight, self.a.bias, padding=tuple(s // 2 for s in self.a.weight.shape[2:])))
        x = F.relu(F.conv2d(x, self.b.weight, self.b.bias, 1, 1), inplace=True)
        return F.linear(x.mean(dim=(-2, -1)), self.head.weight, self.head.bias)


class Keywords(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(input=self.b(input=torch.relu(self.a(input=x))))
        return self.head(torch.flatten(torch.mean(input=x, dim=(2, 3), keepdim=True), start_dim=1))


class Blocks(Net):
    """Layers in lists, called in a loop with a condition on their type."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.a, nn.ReLU(), self.b, nn.ReLU(), nn.AdaptiveAvgPool2d(1)])

    def forward(self, x: Tensor) -> Tensor:
        seen: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if isinstance(block, nn.ReLU):
                seen[f"relu{i}"] = x
        self.last = seen  # kept for the caller
        return self.head(x.flatten(1))


class Sequence(nn.Sequential):
    def __init__(self) -> None:
        net = Net()
        super().__init__(net.a, nn.ReLU(), net.b, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head)


Output = namedtuple("Output", "logits features")


class Nested(Net):
    """A submodule with a flag, which returns a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Trunk(self.a, self.b)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x, pooled=True)
        return self.head(out.logits if out.features is not None else out[1])


class Trunk(nn.Module):
    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor, pooled: bool = False) -> Output:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return Output(x.mean((2, 3)) if pooled else x, x)


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, x, use_reentrant=False).mean((2, 3)))


def parallel(net: nn.Module) -> nn.Module:
    return nn.DataParallel(net)


def averaged(net: nn.Module) -> nn.Module:
    return AveragedModel(net)


def compiled(net: nn.Module) -> Any:
    return torch.compile(net)


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile()
    return net


def wrapped_twice(net: nn.Module) -> Any:
    return torch.compile(nn.DataParallel(AveragedModel(net)))


def averaged_inside(net: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), AveragedModel(net))


WAYS: list[Callable[[], Any]] = [
    Flag, KeywordOnly, Variadic, OnlyVariadic, Asserts, DataAssertion, SizeBranches, SizeLoops, Unpacks, Modes, Instances,
    Parameters, NoGrad, Helpers, Functional, Keywords, Blocks, Sequence, Nested,
]  # fmt: skip
WRAPPERS = [parallel, averaged, compiled, compiled_in_place, wrapped_twice, averaged_inside]


def seeded(way: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return way().eval()


@torch.no_grad()
def assert_converts(ann: nn.Module) -> None:
    expected = seeded(Net)(X)
    network = to_spiking(ann, IF, Direct(), SHAPE, images=X)
    output = list(relu_activations(network, X).values())[-1]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert len(network.layers) == 3


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_way_of_writing_converts(way: Callable[[], Any]) -> None:
    assert_converts(seeded(way))


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_a_wrapper_is_taken_off(wrap: Callable[[nn.Module], Any]) -> None:
    assert_converts(wrap(seeded(Net)))


# refused ----------------------------------------------------------------------------------------------------------------------


class DataBranch(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:  # here
            return self.head(x.mean((2, 3)))
        return super().forward(x)


class DataLoop(Net):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().max())):  # here
            x = self.a(x)
        return super().forward(x)


class Item(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * x.max().item())  # here


class Chosen(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x.mean((1, 2, 3)) > 0])  # here


class ToNumpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x.numpy() * 2))  # here


class BatchBranch(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % 2:  # here
            return super().forward(x)
        return super().forward(x * 2)


class BatchLoop(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(BatchLoop, self).forward(x[i : i + 1]) for i in range(x.shape[0])])  # here


class Assigned(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0  # here
        return super().forward(x)


class TwoInputs(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


class FailingAssertion(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 32, f"images of {x.shape[-1]} pixels"  # here
        return super().forward(x)


class WrongShape(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))  # here


class MixesImages(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) - self.a(x).mean(0, keepdim=True)  # here
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Net().eval(), X)


def sharded() -> Any:
    """Needs processes; only its class is looked at."""
    net = Net()
    net.__class__ = type("FSDPNet", (Net,), {"__module__": "torch.distributed.fsdp._fully_shard"})
    return nn.Sequential(net)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (DataBranch, "control flow that depends on the data"),
    (DataLoop, "control flow that depends on the data"),
    (Item, "control flow that depends on the data.*item"),
    (Chosen, "control flow that depends on the data"),
    (ToNumpy, "control flow that depends on the data.*numpy"),
    (BatchBranch, "control flow that depends on the number of images"),
    (BatchLoop, "the number of images becomes a plain number of Python"),
    (Assigned, "a part of a tensor is assigned; build the tensor by concatenation"),
    (TwoInputs, r"its forward needs 2 inputs \(x, mask\); convert a network with one input"),
    (FailingAssertion, "AssertionError: images of 8 pixels"),
    (WrongShape, r"node 'head' .* cannot run on images of the given shape, \(2, 8, 8\)"),
    (MixesImages, "cannot convert node .*; images must not influence one another"),
    (sharded, "'0' is FSDPNet, whose weights are spread over processes; load its full state_dict"),
    (scripted, "is TorchScript, which cannot be traced; convert the Python module it was made from"),
]


@pytest.mark.parametrize(("way", "says"), REFUSED, ids=[way.__name__ for way, _ in REFUSED])
def test_a_way_of_writing_is_refused_with_its_reason_and_its_line(way: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConversionError, match=says) as caught:
        to_spiking(seeded(way), IF, Direct(), SHAPE)
    lines, first = inspect.getsourcelines(way)
    here = [first + i for i, line in enumerate(lines) if "# here" in line]
    if here:
        assert f"{__file__}:{here[0]}, `{lines[here[0] - first].strip()}`" in str(caught.value)


# where torch.fx cannot --------------------------------------------------------------------------------------------------------


class Custom(torch.autograd.Function):
    """A ReLU with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()


class CustomGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(Custom.apply(self.b(Custom.apply(self.a(x)))).mean((2, 3)))


class NewTensors(Net):
    def forward(self, x: Tensor) -> Tensor:
        sizes = torch.tensor([x.shape[0], -1])  # not a tensor that torch.fx can know
        return self.head(self.features(x).mean((2, 3)).reshape(len(x), sizes.numel() * 2))


@pytest.mark.parametrize("way", [Checkpointed, CustomGradient, NewTensors])
def test_what_torch_fx_cannot_trace_is_exported(way: Callable[[], Any]) -> None:
    assert_converts(seeded(way))
