"""``shard``: a network sharded over the processes that train it, for one that does not fit each of them with its optimiser.

Each of N processes keeps an N-th of every parameter, of its gradient, and of the optimiser's state (ZeRO-3, Rajbhandari et al.
2020, arXiv:1910.02054; by PyTorch's ``fully_shard``, Zhao et al. 2023, arXiv:2304.11277). A block's parameters are gathered
before its forward pass and again before its backward pass, and freed after each; every gradient is summed to the process that
keeps its shard. A spiking network's weights are used at every step of a simulation, so it is one block, gathered once a batch:
only the parameters between batches and the optimiser's state are sharded.

The gradient of the complete batch is g = sum_r w_r g_r. Here w_r multiplies the gradient by the network's output, from which all
of g_r is computed; the processes then only sum.
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
    "MuonSGD",
    "Rprop",
)  # need more than a number and its own gradient, or fail on shards
LARGEST_BLOCK = 1 / 4  # of all parameters: a larger module with children is several blocks
CONTAINERS = (nn.Sequential.forward, nn.ModuleList.forward)  # nn.ModuleDict inherits the second too


def shard(model: nn.Module, processes: Processes, device: torch.device) -> None:
    """Shard rank 0's network in place over ``processes`` and move it to ``device``; before its optimiser is made.

    From then on ``fit`` trains it like any other network, with rules whose gradients come from one backward pass.
    ``save_checkpoint``, called by all processes, writes it complete. A parameter that is one number stays on every process.

    Args:
        model: the same complete network on each process.
        processes: at least two.
        device: of this process.

    Raises:
        ValueError: a parameter that is not contiguous, such as one in channels_last; or a torch that cannot sum over gloo.
    """
    _check_torch()
    not_contiguous = [name for name, p in model.named_parameters() if not p.is_contiguous()]
    if not_contiguous:
        raise ValueError(f"{not_contiguous[0]} is not contiguous in memory: make it contiguous before the network is sharded")
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
    """Check that these can train a sharded network.

    Raises:
        ValueError: a rule, a callback or an optimiser that needs a complete network; or a torch that cannot sum over gloo.
    """
    _check_torch()
    if not rule.single_backward:
        raise ValueError(
            f"{type(rule).__name__} does not take its gradients from one backward pass of the complete network, so it cannot "
            "train a network that is sharded over processes: use Backprop or BPTT, or sharded=false"
        )
    for callback in callbacks:
        if callback.needs_complete_parameters:
            name = type(callback).__name__
            raise ValueError(f"{name} needs complete parameters, and a sharded network has only shards: use sharded=false")
    if type(optimizer).__name__ in UNSUPPORTED_OPTIMISERS:
        raise ValueError(
            f"{type(optimizer).__name__} needs complete parameters: use another optimiser, such as Adam, or sharded=false"
        )


def _check_torch() -> None:
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(f"torch {torch.__version__} cannot sum a sharded network's gradients over gloo: use a newer one")


def blocks(model: nn.Module) -> list[nn.Module]:
    """Submodules that are called one by one, with weights that no other module reads."""
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
    """A network whose output multiplies the gradient in the backward pass by ``weight()``."""

    def __init__(self, model: nn.Module, weight: Callable[[], float]):
        super().__init__()
        self.model, self.weight = model, weight

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        output, weight = self.model(*inputs, **options), self.weight()
        output.register_hook(lambda gradient: gradient * weight)
        return output


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Whether each process has only its shard of the tensor."""
    return hasattr(tensor, "full_tensor")  # not isinstance, because importing DTensor takes long


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` has sharded the network."""
    return any(map(is_sharded_tensor, model.parameters()))


def complete(tensor: Tensor) -> Tensor:
    """The complete tensor; a sharded one is gathered, so all processes call this."""
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor  # type: ignore[attr-defined]


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; all of it if it is not sharded."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(value: Tensor, target: Tensor) -> Tensor:
    """A tensor that every process has, sharded like ``target``."""
    if not is_sharded_tensor(target) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale the gradient of all parameters, sharded or not, to the norm ``largest`` if its norm is larger."""
    grads = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in grads if is_sharded_tensor(g) is kind] for kind in (True, False)]  # torch's function takes no mixture
    norms = torch.stack([complete(nn.utils.get_total_norm(kind)) for kind in kinds if kind])
    factor = min(1.0, largest / (float(norms.norm()) + 1e-6))
    for g in grads:
        g.mul_(factor)
