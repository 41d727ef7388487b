"""``plain_copy``: a copy of the ANN of ordinary modules and parameters, which computes what the ANN computes in evaluation mode.

Pruning, weight norm, spectral norm (old-style ones, which hooks compute, and ``torch.nn.utils.parametrizations``) are made
permanent: the weight that the ANN would use in its next forward pass becomes a parameter. Hooks are left out, and wrappers
(``torch.compile``, ``DataParallel``, ``AveragedModel``) are taken off. What is lost by that is found by ``convert/guard.py``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from spikeprop.errors import ConversionError

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.PReLU)
HOOKS = (BasePruningMethod, WeightNorm, SpectralNorm)  # that compute a weight before each forward pass
ORIGINALS = ("_orig", "_mask", "_g", "_v", "_u")  # ends of the names of what they compute it from


def plain_copy(ann: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without hooks, wrappers and computed weights.

    Raises:
        ConversionError: the ANN cannot be copied, or a weight cannot be computed.
    """
    inner = unwrapped(ann)
    _check_kind(inner)
    try:
        plain = _copy(inner).eval()
    except Exception as error:
        raise ConversionError(
            f"{type(inner).__name__} cannot be copied ({type(error).__name__}: {error}); keep what is no weight and no setting, "
            "such as loggers, open files and the trainer, outside the module"
        ) from error
    for path, module in list(plain.named_modules()):
        try:
            _make_weights_permanent(module)
        except (RuntimeError, TypeError) as error:  # for example in half precision, which torch's decompositions do not know
            raise ConversionError(
                f"the weights of {path or 'the ANN'!r} ({type(module).__name__}) cannot be computed: {error}; make them "
                "permanent first (torch.nn.utils.parametrize.remove_parametrizations), or convert the ANN in float32: ann.float()"
            ) from error
        if type(module).__module__.startswith("torch.nn"):  # its weights are taken, whatever was put in the place of its forward
            vars(module).pop("forward", None)
        _make_parameters(module)
    return plain


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``AveragedModel``, ``DataParallel`` and ``DistributedDataParallel``."""
    while True:
        children = vars(module).get("_modules")
        inner = children.get("_orig_mod") if isinstance(children, dict) else None  # of torch.compile
        if isinstance(module, DataParallel | DistributedDataParallel | AveragedModel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def check_finite(named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ConversionError for a tensor with NaN or infinity, and for complex numbers."""
    for name, tensor in named_tensors:
        if tensor.is_complex():
            raise ConversionError(f"{name!r} is complex ({tensor.dtype}); spiking networks are real")
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            what = "NaN" if bool(tensor.isnan().any()) else "infinity"
            raise ConversionError(
                f"{name!r} holds {what} ({wrong} of its {tensor.numel()} numbers); the training diverged: load an earlier "
                "checkpoint, or train at a lower learning rate"
            )


def _check_kind(ann: nn.Module) -> None:
    for path, module in ann.named_modules():
        what = repr(path) if path else "the ANN"
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"{what} is TorchScript, which cannot be traced; convert the Python module it was made from")
        if any(base.__module__.startswith("torch.distributed.fsdp") for base in type(module).__mro__):
            raise ConversionError(
                f"{what} is {type(module).__name__}, whose weights are spread over processes; load its full state_dict "
                "(torch.distributed.checkpoint.state_dict.get_model_state_dict, full_state_dict=True) into the plain module"
            )
        lazy = [name for name, parameter in module.named_parameters(recurse=False) if is_lazy(parameter)]
        if lazy:
            raise ConversionError(
                f"{what} ({type(module).__name__}) has no {' and '.join(lazy)} yet; run the network once on a batch of images"
            )


def _copy(ann: nn.Module) -> nn.Module:
    """A deep copy, although PyTorch copies no tensors with a gradient function, and hooks may belong to anything."""
    memo: dict[int, Any] = {}
    for module in ann.modules():
        for tensor in _tensors(list(vars(module).values())):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
        for hooks in _hooks(module):
            memo[id(hooks)] = OrderedDict((key, hook) for key, hook in hooks.items() if isinstance(hook, HOOKS))
    for module in reversed(list(ann.modules())):  # wrappers inside; the innermost first
        if unwrapped(module) is not module:
            memo[id(module)] = copy.deepcopy(unwrapped(module), memo)
    return copy.deepcopy(ann, memo)


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy on the meta device, of which no numbers are copied."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in _tensors(list(vars(part).values())):
            empty = torch.empty_like(tensor, device="meta")
            memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | set | dict):
        for inner in list(value.values() if isinstance(value, dict) else value):
            yield from _tensors(inner, depth - 1)


def _hooks(module: nn.Module) -> list[dict[Any, Any]]:
    return [value for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict)]


def _make_weights_permanent(module: nn.Module) -> None:
    _apply_hooks(module)
    for hooks in _hooks(module):
        hooks.clear()
    if parametrize.is_parametrized(module):
        _remove_parametrizations(module)


def _apply_hooks(module: nn.Module) -> None:
    """Compute what the hooks compute before a forward pass, and make it a parameter."""
    names = []
    with torch.no_grad():
        for hook in list(module._forward_pre_hooks.values()):
            hook(module, ())
            names.append(str(getattr(hook, "name", getattr(hook, "_tensor_name", ""))))
    for name in dict.fromkeys(names):
        value = vars(module).pop(name)
        trained = [p.requires_grad for end in ORIGINALS if (p := module._parameters.get(name + end)) is not None]
        for end in ORIGINALS:
            module._parameters.pop(name + end, None)
            module._buffers.pop(name + end, None)
        module.register_parameter(name, nn.Parameter(value.detach().clone(), any(trained)))


def _make_parameters(module: nn.Module) -> None:
    """Weights that are buffers or plain tensors become parameters, so that the spiking network keeps them."""
    if not isinstance(module, WEIGHTED):
        return
    for name in ("weight", "bias"):
        value = vars(module).get(name, module._buffers.get(name))
        if not isinstance(value, Tensor):
            continue
        if not value.is_floating_point():
            kind = type(module).__name__
            raise ConversionError(f"the {name} of a {kind} is {value.dtype}; convert the network before quantisation")
        trained = name not in module._buffers
        vars(module).pop(name, None)
        module._buffers.pop(name, None)
        module.register_parameter(name, nn.Parameter(value.detach().clone(), trained))


def _remove_parametrizations(module: nn.Module) -> None:
    # removal deletes properties from the module's class, which the caller's module has too: give the copy a class of its own
    shared: Any = type(module)
    own: Any = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    module.__class__ = own
    names = list(module.parametrizations)  # type: ignore[arg-type]
    with torch.enable_grad():  # without it torch leaves a tensor of several originals as a buffer
        for name in names:
            held: Any = module.parametrizations[name]  # type: ignore[index]
            if held.is_tensor and isinstance(held.original, nn.Parameter):  # removal writes into it, and it may be shared
                held.original = nn.Parameter(held.original.detach().clone(), held.original.requires_grad)
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
