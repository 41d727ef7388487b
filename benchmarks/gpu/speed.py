"""Training step and inference of one contender on the VGG5 of ``benchmarks/step.py``: thresholds 0.5, Poisson input.

Weights, thresholds and random numbers are everybody's. Convolutions run as torch chooses after trying (cudnn.benchmark; TF32 for
float32, torch's default); "bfloat16" is autocast. The peers run layer by layer: each layer's weights see all steps at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import OURS, measure
from benchmarks.gpu.parts import Absent, Context
from benchmarks.networks import IMAGE, random_images
from benchmarks.peers import FastSigmoidSpike, Forward, SpikingJelly, faster_layout, layers
from spikeprop import CNN, IF, STDB, Poisson, SpikingNetwork
from spikeprop.convert import to_spiking

SIZES = {4: 256, 20: 128, 100: 64}  # steps: samples
SMALL = {2: 1}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
REPEATS = 10
BLOCK = 10  # steps of the compiled loop that are unrolled: 20 take 20 s to compile for each type, forward and backward
THRESHOLD = 0.5
SJ_VARIABLE = "SJ_IF_CUDA_IMPLEMENTATION"  # SpikingJelly 2.x reads it when it is imported


def network(device: str, small: bool) -> SpikingNetwork:
    """The VGG5 with random weights, or a small relative."""
    torch.manual_seed(0)
    plan, hidden = ([8, "A", 8, "A"], [16]) if small else ([64, "A", 128, 128, "A"], [1024])
    ann = CNN(input_shape=IMAGE, classes=10, plan=plan, hidden=hidden, dropout=0, hidden_dropout=0)
    found = to_spiking(ann, lambda: IF(surrogate=STDB()), Poisson(), IMAGE)
    for neuron in found.neurons().values():
        neuron.v_threshold = torch.tensor(THRESHOLD)
    return found.to(device).eval()


class CompiledLoop(nn.Module):
    """The plain loop as one would write it for a GPU: a layer at a time, its weights on all steps, its neurons compiled."""

    def __init__(self, snn: SpikingNetwork, small: bool):
        super().__init__()
        self.layers = layers(snn)
        self.synapses = nn.ModuleList(layer.synapse for layer in self.layers)
        torch._dynamo.config.recompile_limit = 64  # type: ignore[attr-defined] # shapes, types, with and without gradient
        self._scan = torch.compile(_scan, dynamic=True, backend="aot_eager" if small else "inductor")

    def forward(self, x_TB: Tensor) -> Tensor:
        for layer in self.layers:
            current = layer.synapse(x_TB.flatten(0, 1))
            if layer.theta is None:
                return current.unflatten(0, x_TB.shape[:2]).sum(0, dtype=torch.float32)
            last = current.permute(0, 2, 3, 1) if current.dim() == 4 else current  # a view, where it lies channels-last
            spikes = self._neurons(last.reshape(len(x_TB), -1), layer.theta, layer.start).view(last.shape)
            x_TB = (spikes.permute(0, 3, 1, 2) if current.dim() == 4 else spikes).unflatten(0, x_TB.shape[:2])
        raise AssertionError("the last layer has no neurons")

    def _neurons(self, current_TN: Tensor, theta: float, start: float) -> Tensor:
        v_N = torch.full_like(current_TN[0], start, dtype=torch.float32)
        found = []
        for block in current_TN.split(BLOCK):
            spikes, v_N = self._scan(block, v_N, theta)
            found.append(spikes)
        return torch.cat(found) if len(found) > 1 else found[0]


def _scan(current_KN: Tensor, v_N: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    spikes = []
    for current_N in current_KN.unbind(0):
        v_N = v_N + current_N
        fired_N: Any = FastSigmoidSpike.apply(v_N - theta)
        v_N = v_N - theta * fired_N.detach()
        spikes.append(fired_N.to(current_KN.dtype))
    return torch.stack(spikes), v_N


def contender(name: str, snn: SpikingNetwork, small: bool) -> tuple[nn.Module, Forward]:
    """A contender's module, and its accumulated output for images and a number of steps.

    Raises:
        Absent: it is not here; says why.
    """
    if name == OURS:
        return snn, snn
    model = CompiledLoop(snn, small) if name == "compiled loop" else _spikingjelly(snn, name.split()[1], small)

    def forward(x: Tensor, timesteps: int) -> Tensor:
        return model(snn.encoded(x, timesteps))

    return model, forward


def _spikingjelly(snn: SpikingNetwork, backend: str, small: bool) -> nn.Module:
    """SpikingJelly on one back end: 1.x has it as an attribute of each neuron, 2.x as an environment variable."""
    if small and backend != "torch":
        raise Absent(f"SpikingJelly's {backend} back end needs a GPU")
    os.environ[SJ_VARIABLE] = {"CuPy": "cuda", "Triton": "triton", "torch": "torch"}[backend]
    try:
        model = SpikingJelly(snn)
    except ModuleNotFoundError as error:
        raise Absent(f"not installed: {error}") from error
    for node in model.modules():
        if hasattr(type(node), "supported_backends"):
            if backend.lower() not in node.supported_backends:  # type: ignore[operator]
                raise Absent(f"this SpikingJelly's {type(node).__name__} has {node.supported_backends}")
            node.backend = backend.lower()  # type: ignore[assignment]
    return model


def run(context: Context, contender: str) -> Iterator[dict[str, Any]]:
    """A record for each number of steps, precision, and training or inference; a case that fails leaves the others."""
    torch.backends.cudnn.benchmark = True
    snn = network(context.device, context.small)
    model, forward = _named(contender, snn, context)
    for timesteps, batch in (SMALL if context.small else SIZES).items():
        x = random_images(batch, context.device)
        for precision, dtype in PRECISIONS.items():
            if context.small and dtype is not None:
                continue  # autocast on the CPU is not the GPU's
            for what in ("training step", "inference"):
                case = {"what": what, "T": timesteps, "batch": batch, "precision": precision}
                yield case | _guarded(lambda: _one(what, model, forward, x, timesteps, dtype, context), context)  # noqa: B023


def _named(name: str, snn: SpikingNetwork, context: Context) -> tuple[nn.Module, Forward]:
    """The contender; SpikingJelly after a first small simulation, which shows whether its back end is here at all."""
    model, forward = contender(name, snn, context.small)
    if not isinstance(model, SpikingJelly):
        return model, forward
    try:
        with torch.no_grad():
            forward(random_images(1, context.device), 2)
    except (ImportError, RuntimeError) as error:
        if "No available" in str(error) or isinstance(error, ImportError):  # SpikingJelly's own words
            raise Absent(str(error)) from error
        raise
    return model, forward


def _guarded(work: Callable[[], dict[str, Any]], context: Context) -> dict[str, Any]:
    if context.left() < 5 and not context.small:
        return {"failed": "no time was left"}
    try:
        return work()
    except Exception as error:
        if not context.small:
            torch.cuda.empty_cache()
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def _one(
    what: str, model: nn.Module, forward: Forward, x: Tensor, timesteps: int, dtype: torch.dtype | None, context: Context
) -> dict[str, Any]:
    """Seconds and memory of one case; of inference the predictions, too, for their agreement."""
    training, cuda = what == "training step", context.device != "cpu"
    model.train(training)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=cuda)
    predicted: list[Tensor] = []

    def step() -> None:
        with torch.autocast(x.device.type, dtype) if dtype is not None else contextlib.nullcontext():
            output = forward(x, timesteps).float()
        if not training:
            predicted[:] = [output.argmax(1)]
            return
        optimizer.zero_grad()
        F.cross_entropy(output / timesteps, torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()

    def whole() -> None:
        step()
        if training:
            optimizer.step()

    def waited() -> None:
        step()
        if cuda:
            torch.cuda.synchronize()

    with contextlib.nullcontext() if training else torch.no_grad():  # weights that inference mode makes could not be trained
        layout = faster_layout(model, lambda: waited) if model is not forward else None
    with contextlib.nullcontext() if training else torch.inference_mode():
        torch.manual_seed(1)
        found = measure(whole, 1 if context.small else REPEATS, warm_ups=2, device=context.device)
        if not training:
            torch.manual_seed(2)
            step()
    if not training:
        return {**found, "layout": layout, "images_per_s": len(x) / found["median"], "predictions": predicted[0].tolist()}
    return {**found, "layout": layout, "images_per_s": len(x) / found["median"]}
