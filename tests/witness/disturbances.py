"""What is done to a drawn network outside its modules' parameters, or with its input: one disturbance each, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from tests.witness.drawing import Drawn


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


def disturb(drawn: Drawn, rng: np.random.Generator) -> None:
    """Do one of them to one of the network's layers."""
    layers = [m for m in drawn.ann.modules() if isinstance(m, nn.Conv2d | nn.Linear) and not hasattr(m, "parametrizations")]
    if not layers or ("output with positions" in drawn.traits and rng.random() < 0.5):
        return
    what = list(DISTURBANCES)[int(rng.integers(len(DISTURBANCES)))]
    drawn.traits.append(what)
    DISTURBANCES[what](drawn, layers[int(rng.integers(len(layers)))])
