"""A network spread over the processes that train it, for one that does not fit each of them with its optimiser.

Each of N processes keeps an N-th of every parameter, of its gradient, and of what the optimiser remembers of it (ZeRO-3,
Rajbhandari et al. 2020, arXiv:1910.02054; by PyTorch's ``fully_shard``, Zhao et al. 2023, arXiv:2304.11277). A block's parameters
are gathered before its forward pass, and again before its backward pass, and let go after each; gradients are summed to where
their part lives. A spiking network's weights are used at every step of a simulation, so it is one block, gathered once a batch:
what is spread is the copy that rests, and the optimiser's.

Where the gradient of the whole batch is g = sum_r w_r g_r, w_r weighs the gradient by the network's output, at which all of g_r
begins; the processes then only sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spikeprop.learn.callback import Callback
from spikeprop.learn.rule import LearningRule
from spikeprop.runtime.processes import Processes
from spikeprop.snn import SpikingNetwork

UNSUPPORTED_OPTIMISERS = (
    "Adafactor",
    "LBFGS",
    "Muon",
    "Rprop",
)  # that look beyond a number and its own gradient, or fail on parts
LARGEST_BLOCK = 1 / 4  # of all parameters: a larger part that has parts is several blocks
CONTAINERS = (nn.Sequential.forward, nn.ModuleList.forward)  # that of a ModuleDict is the second too: none of its own


def shard(model: nn.Module, processes: Processes, device: torch.device) -> None:
    """Spread a network in place, as rank 0 has it, over ``processes`` and onto ``device``; before its optimiser is made.

    From then on ``fit`` trains it as it trains any other, with rules whose gradients come of one backward pass.
    ``save_checkpoint``, called by all, writes it whole. Parameters that are one number stay whole on every process.

    Args:
        model: the same network on each process, whole.
        processes: at least two.
        device: of this process.

    Raises:
        ValueError: a parameter in an order of its own, such as channels_last; or a torch that cannot.
    """
    _check_torch()
    strange = [name for name, p in model.named_parameters() if not p.is_contiguous()]
    if strange:
        raise ValueError(
            f"{strange[0]} does not lie in memory in its own order: make it contiguous before the network is sharded"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    processes.broadcast((*model.parameters(), *model.buffers()))
    numbers = {p for p in model.parameters() if p.dim() == 0}
    mesh = init_device_mesh(device.type, (processes.count,))
    for block in (*blocks(model), model):
        fully_shard(block, mesh=mesh, ignored_params=numbers)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no mean
            module.set_gradient_divide_factor(1.0)
    for p in numbers:
        p.data = p.data.to(device)


def check_shardable(rule: LearningRule, callbacks: Iterable[Callback], optimizer: Optimizer) -> None:
    """Whether these can train a network of which each process has a part.

    Raises:
        ValueError: a rule, a callback or an optimiser that needs it whole; or a torch that cannot.
    """
    _check_torch()
    if not rule.single_backward:
        raise ValueError(
            f"{type(rule).__name__} does not take its gradients from one backward pass of the whole network, so it cannot train "
            "one that is spread over processes: use Backprop or BPTT, or sharded=false"
        )
    for callback in callbacks:
        if callback.needs_complete_parameters:
            name = type(callback).__name__
            raise ValueError(f"{name} takes the parameters whole, which those of a sharded network are not: use sharded=false")
    if type(optimizer).__name__ in UNSUPPORTED_OPTIMISERS:
        raise ValueError(
            f"{type(optimizer).__name__} needs the parameters whole: use another optimiser, such as Adam, or sharded=false"
        )


def _check_torch() -> None:
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(f"torch {torch.__version__} cannot sum a sharded network's gradients over gloo: use a newer one")


def blocks(model: nn.Module) -> list[nn.Module]:
    """Parts of a network that are called one by one, with weights that no other part reads."""
    if isinstance(model, SpikingNetwork):
        return []
    readers = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    shared = {name for name, count in readers.items() if count > 1}
    most = sum(p.numel() for p in model.parameters()) * LARGEST_BLOCK
    return [block for block in _called(model, most) if not any(id(p) in shared for p in block.parameters())]


def _called(model: nn.Module, most: float) -> Iterator[nn.Module]:
    for child in model.children():
        size = sum(p.numel() for p in child.parameters())
        if type(child).forward in CONTAINERS or (size > most and not type(child).__module__.startswith("torch.nn")):
            yield from _called(child, most)  # torch's own modules may read their children's weights without calling them
        elif any(p.dim() > 1 for p in child.parameters()):
            yield child


class WeightedOutput(nn.Module):
    """A network whose output passes gradients back times ``weight()``, that of this process's share of the batch."""

    def __init__(self, model: nn.Module, weight: Callable[[], float]):
        super().__init__()
        self.model, self.weight = model, weight

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        output, weight = self.model(*inputs, **options), self.weight()
        output.register_hook(lambda gradient: gradient * weight)
        return output


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Whether each process has its part of the tensor alone."""
    return hasattr(tensor, "full_tensor")  # asked so, since importing DTensor takes long


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` has spread the network."""
    return any(map(is_sharded_tensor, model.parameters()))


def complete(tensor: Tensor) -> Tensor:
    """The tensor, gathered where it is spread: then all processes ask."""
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor  # type: ignore[attr-defined]


def local_shard(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, all of it where it is not spread."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(value: Tensor, target: Tensor) -> Tensor:
    """A tensor that every process has, spread as ``target`` is."""
    if not is_sharded_tensor(target) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Shorten the gradient of all parameters, spread or not, to the norm ``largest`` where it is longer."""
    grads = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in grads if is_sharded_tensor(g) is kind] for kind in (True, False)]  # torch's own takes no mixture
    norms = torch.stack([complete(nn.utils.get_total_norm(kind)) for kind in kinds if kind])
    factor = min(1.0, largest / (float(norms.norm()) + 1e-6))
    for g in grads:
        g.mul_(factor)
