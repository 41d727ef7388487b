"""``Call`` in JSON values: a function by its name, and its arguments.

A file may come from anyone, so it names functions of one list: those of ``torch``, ``torch.nn.functional`` and ``operator``, and
tensors' methods, that compute or rearrange numbers and do nothing else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from spikeprop.errors import SimulationError
from spikeprop.snn.call import BatchAxis, Call, Held, Operand, scores_of

LISTED = """
    abs add sub rsub subtract mul multiply div divide true_divide truediv neg negative pow square sqrt rsqrt reciprocal exp
    exp2 expm1 log log1p log2 log10 logaddexp sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh sigmoid
    logsigmoid erf erfc softplus softsign softmax softmin log_softmax logsumexp relu relu6 leaky_relu elu selu celu gelu silu
    mish hardtanh hardsigmoid hardswish tanhshrink softshrink glu prelu layer_norm group_norm instance_norm rms_norm normalize
    local_response_norm cosine_similarity norm amax amin max min maximum minimum clamp clip clamp_min clamp_max where
    masked_fill cumsum cumprod prod mean sum var std scaled_dot_product_attention matmul bmm mm einsum baddbmm addmm tensordot
    lerp addcmul addcdiv hypot avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    max_pool1d max_pool2d max_pool3d interpolate fold unfold diff contiguous clone float double type_as view reshape flatten
    unflatten squeeze unsqueeze permute transpose t swapaxes swapdims movedim moveaxis expand expand_as broadcast_to repeat
    tile repeat_interleave roll flip rot90 getitem narrow select index_select cat concat stack hstack vstack pad pixel_shuffle
    pixel_unshuffle channel_shuffle tril triu diagonal adjoint
"""
NAMES = frozenset(LISTED.split())
HOMES = {"torch": torch, "torch.nn.functional": nn.functional, "operator": operator}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"{home}.{name}": getattr(held, name) for home, held in HOMES.items() for name in sorted(NAMES) if hasattr(held, name)},
    "scores_of": scores_of,
}
FINITE = (bool, int, str, type(None))


def described_call(call: Call, where: str, describe: Callable[[nn.Module, str], dict[str, Any]]) -> dict[str, Any]:
    """Target, arguments and forms of a call.

    Args:
        call: to describe; the tensors that it holds are in the checkpoint.
        where: it stands, for messages.
        describe: of a module.

    Raises:
        SimulationError: a function that is not in the list, or an argument that JSON cannot hold.
    """
    if call.module is not None:
        target = describe(call.module, where)
    elif isinstance(call.function, str):
        target = {"method": _known(call.function, where)}
    else:
        name = next((name for name, function in FUNCTIONS.items() if function is call.function), None)
        target = {"function": name if name is not None else _known(repr(call.function), where)}
    return {
        "target": target,
        "args": [_encoded(argument, where) for argument in call.args],
        "kwargs": {key: _encoded(argument, where) for key, argument in call.kwargs.items()},
        "forms": [list(form) for form in call.forms],
        "form": list(call.form),
        "changes": call.changes,
    }


def call_again(given: Mapping[str, Any], build: Callable[[Mapping[str, Any]], nn.Module]) -> Call:
    """The call of a description; the tensors that it holds have no shape yet.

    Raises:
        SimulationError: a function that is not in the list.
        ValueError, LookupError, TypeError: no description of a call.
    """
    target, held = given["target"], set[str]()
    if "method" in target:
        found: Any = _known(str(target["method"]), "the description")
    elif "function" in target:
        found = FUNCTIONS.get(str(target["function"])) or _known(str(target["function"]), "the description")
    else:
        found = build(target)
    args = [_decoded(argument, held) for argument in given["args"]]
    kwargs = {str(key): _decoded(argument, held) for key, argument in given["kwargs"].items()}
    forms = [BatchAxis(*map(int, form)) for form in given["forms"]]
    call = Call(found, args, kwargs, forms, BatchAxis(*map(int, given["form"])), bool(given["changes"]))
    for name in sorted(held):
        call.register_buffer(name, torch.zeros(()))
    return call


def _known(name: str, where: str) -> str:
    """The name of a method in the list, in place or not."""
    if name.removesuffix("_") not in NAMES:
        raise SimulationError(
            f"{where} computes {name}, which a description does not know: use functions and layers of torch, or keep the run "
            "folder, whose recipe builds the network again"
        )
    return name


def _encoded(argument: Any, where: str) -> Any:
    kinds: dict[Any, Callable[[Any], Any]] = {
        Operand: lambda a: {"operand": a.number},
        Held: lambda a: {"held": a.name},
        torch.Size: lambda a: {"size": list(a)},
        torch.dtype: lambda a: {"dtype": str(a).removeprefix("torch.")},
        slice: lambda a: {"slice": [_encoded(part, where) for part in (a.start, a.stop, a.step)]},
        type(...): lambda _: {"ellipsis": True},
        float: lambda a: a if math.isfinite(a) else {"float": str(a)},
        tuple: lambda a: {"tuple": [_encoded(part, where) for part in a]},
        list: lambda a: [_encoded(part, where) for part in a],
        dict: lambda a: {"dict": {str(key): _encoded(part, where) for key, part in a.items()}},
    }
    if isinstance(argument, FINITE):
        return argument
    if type(argument) not in kinds:
        raise SimulationError(f"{where} computes with {argument!r}, a {type(argument).__name__}, which a description cannot hold")
    return kinds[type(argument)](argument)


def _decoded(argument: Any, held: set[str]) -> Any:
    if isinstance(argument, list):
        return [_decoded(part, held) for part in argument]
    if not isinstance(argument, dict):
        return argument
    ((kind, value),) = argument.items()
    if kind == "held":
        if not str(value).startswith("constant_"):
            raise ValueError(f"{value!r} is no constant of a call")
        held.add(str(value))
        return Held(str(value))
    if kind == "dtype":
        found = getattr(torch, str(value))
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{value!r} is no type of tensors")
        return found
    kinds: dict[str, Callable[[Any], Any]] = {
        "operand": lambda v: Operand(int(v)),
        "size": lambda v: torch.Size(map(int, v)),
        "slice": lambda v: slice(*(_decoded(part, held) for part in v)),
        "ellipsis": lambda _: ...,
        "float": float,
        "tuple": lambda v: tuple(_decoded(part, held) for part in v),
        "dict": lambda v: {str(key): _decoded(part, held) for key, part in v.items()},
    }
    return kinds[kind](value)
