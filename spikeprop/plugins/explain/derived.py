"""What a step computes from its inputs, parameters and values without a gradient: masks, indices, detached copies, numbers.

A page keeps such a result as a constant. After an edit it would be another one, so a page that cannot compute it again
(``FOLLOWED``) must not be edited. Which results these are is found by their memory: a result of a call that reads something of
the step, and whatever is written by such a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

FOLLOWED = {"detach": 1, "count_on": 2, "add_up": 2}  # calls that the page repeats (network.js), with the number of their inputs
LEAVING = {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "is_nonzero", "equal", "allclose"}
NO_NUMBERS = ("_like", "new_")  # zeros_like, new_zeros: of their arguments they read only shape and type
OF_THE_FIRST = {"expand_as", "view_as", "reshape_as", "type_as", "to", "fill_", "zero_"}  # the others give only shape and type


class Derived:
    """The results without a gradient so far.

    Args:
        known: the number of the value of a tensor, as it is now, or None.
        own: whether a tensor is an input, a parameter or a value with a gradient.
    """

    def __init__(self, known: Callable[[Tensor], int | None], own: Callable[[Tensor], bool]):
        self.known, self.own = known, own
        self.left: list[str] = []  # calls by which a number left torch, as for an if
        self._by: dict[int, str] = {}  # address of the memory of a result to the call that made it
        self._followed: dict[int, tuple[str, int, list[int]]] = {}  # id of a result to call, version and numbers of its inputs
        self._alive: list[Tensor] = []  # because addresses and ids are reused

    def note(self, name: str, read: list[Tensor], results: list[Tensor], result: Any) -> None:
        """A call that read tensors and made or wrote ``results``, which have no gradient."""
        reads = [] if name.startswith(NO_NUMBERS) or name.endswith(NO_NUMBERS) else read[:1] if name in OF_THE_FIRST else read
        if name == "batch_norm" or not any(self.own(t) or self.source(t) for t in reads):  # it writes its running statistics
            return
        if name in LEAVING:
            self.left.append(name.strip("_"))
        inputs = [self.known(t) for t in read]
        for t in results:
            self._alive.append(t)
            self._by.setdefault(t.untyped_storage().data_ptr(), name.strip("_"))
            if name in FOLLOWED and t is result:
                self._followed[id(t)] = name, t._version, [i for i in inputs if i is not None]

    def source(self, tensor: Tensor) -> str | None:
        """The call that made a tensor without a gradient from numbers of the step."""
        return None if tensor.requires_grad or not tensor.numel() else self._by.get(tensor.untyped_storage().data_ptr())

    def recipe(self, tensor: Tensor) -> tuple[str, list[int]] | None:
        """The call and the numbers of its inputs, by which the page computes a result again."""
        name, version, inputs = self._followed.get(id(tensor), ("", -1, []))
        return (name, inputs) if version == tensor._version and len(inputs) == FOLLOWED[name] else None
