"""Memory of a simulation: large blocks in huge pages, and those of one thread, which are taken, given back and taken again.

New memory from the system costs a page fault every 4 KiB. For blocks of megabytes this takes as long as the arithmetic on them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def new_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of any content. On the CPU it is numpy's memory, which asks the system for huge pages (2 MiB): few faults."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


class BufferPool:
    """Blocks of memory on one device, for one thread."""

    def __init__(self, device: torch.device):
        self._device = device
        self._free: list[Tensor] = []
        self._taken: dict[int, Tensor] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, in the smallest free block that holds it."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if size == 0:  # it has no address to be given back by
            return torch.empty(shape, dtype=dtype, device=self._device)
        fitting = [block for block in self._free if len(block) >= size]
        if fitting:
            block = min(fitting, key=len)
            self._free = [other for other in self._free if other is not block]
        else:
            block = new_tensor((size,), torch.uint8, self._device)
        self._taken[block.data_ptr()] = block
        return block[:size].view(dtype).view(shape)

    def give(self, tensor: Tensor) -> None:
        """Give back what ``take`` returned, or a view from its start; memory from elsewhere is ignored."""
        block = self._taken.pop(tensor.data_ptr(), None)
        if block is not None:
            self._free.append(block)

    def keep(self, tensor: Tensor) -> bool:
        """Take what ``take`` returned out of the pool: nobody writes over it any more. Whether it was the pool's."""
        return self._taken.pop(tensor.data_ptr(), None) is not None
