"""``CalibrationShard``: one process's shard of the calibration images, and results over the images of all processes.

Sums are S = sum_r S_r over the processes r, in float64 so that they hardly depend on which process has which image; maxima are
M = max_r M_r. Each takes one all-reduce. An order statistic is exact, and no process needs the values of another. Of n values,
n_r of them in process r, the k-th smallest value v lies between those of the processes,

    min_r v_r <= v <= max_r v_r,    v_r the k_r-th smallest of process r,    k_r = ceil(k n_r / n),

since sum_r k_r >= k and sum_r (k_r - 1) < k. The values between these bounds are counted digit by digit: the bits of
floating-point numbers (IEEE 754), read as integers, have the order of the numbers, and an all-reduce of 256 counts for each of
their bytes finds v (radix selection).

Random draws and samples go by the number of an image among all images, so they are the same for any number of processes. In a
single process nothing is reduced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from spikeprop.errors import ConversionError
from spikeprop.runtime.given import read_batches
from spikeprop.runtime.processes import ALONE, Processes

BLOCK = 64  # images with one random seed, by their numbers among all images
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@dataclass(frozen=True)
class ImageBlock:
    """A block of consecutive images among all images, and which of them this process has.

    Attributes:
        number: of the block.
        rows: of this process's images of the block, among its images.
        places: of the same images in the block.
        size: of the block, images of other processes included.
    """

    number: int
    rows: slice
    places: Tensor
    size: int

    def padded(self, x: Tensor) -> Tensor:
        """The block's images (size, ...), zeros for those of other processes, so that draws for the block are the same in all."""
        mine = x[self.rows]
        if len(mine) == self.size:
            return mine
        block = x.new_zeros(self.size, *x.shape[1:])
        block[self.places] = mine
        return block


class CalibrationShard:
    """A process's shard of the calibration images.

    Args:
        processes: that share the images.
        at: numbers of this process's images among all, ascending; unused if one process has all.
        count: number of all images.
    """

    def __init__(self, processes: Processes = ALONE, at: Sequence[int] = (), count: int = 0):
        self.processes, self.at, self.count = processes, torch.tensor(at, dtype=torch.long), count

    @property
    def distributed(self) -> bool:
        """Whether there are several processes."""
        return self.processes.count > 1

    # results over all processes -------------------------------------------------------------------------------------------------

    def total(self, sums: Tensor) -> Tensor:
        """The sum over the processes, element by element."""
        return self._reduced(sums, distributed.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        """The largest over the processes, element by element; NaN if one has NaN."""
        if not self.distributed:
            return values
        return _number(self._reduced(_order(values), distributed.ReduceOp.MAX), values.dtype)

    def size(self, own: int) -> int:
        """Number of values of all processes, if this one has ``own``, equally many of each image."""
        return own // len(self.at) * self.count if self.distributed else own

    def largest_size(self, own: int) -> int:
        """The largest ``own`` of the processes."""
        return int(self._reduced(torch.tensor(own), distributed.ReduceOp.MAX))

    def mean(self, values: Tensor, axis: int | tuple[int, ...]) -> Tensor:
        """The mean over axes along which the values are split, equally many for each image; in float64."""
        sums = values.sum(axis, dtype=torch.float64)
        return self.total(sums) / self.size(values.numel() // sums.numel())

    def channel_mean(self, values: Tensor) -> Tensor:
        """The mean of each channel, (C,), of values (B, C, ...)."""
        return self.mean(values, (0, *range(2, values.dim())))

    def quantile(self, values_RN: Tensor, q: float) -> Tensor:
        """Quantile of each row over all processes' values, (R,): the exact order statistic."""
        if q >= 1:
            return self.largest(values_RN.amax(1))
        own, count = values_RN.shape[1], self.size(values_RN.shape[1])
        k = max(1, round(q * count))
        bound_R = _kth_smallest(values_RN, -(-k * own // count))
        return self._selected(values_RN, k, bound_R) if self.distributed else bound_R

    def _selected(self, values_RN: Tensor, k: int, bound_R: Tensor) -> Tensor:
        """The k-th smallest of each row over all processes, given this process's bounds."""
        ends = self._reduced(torch.stack([-_order(bound_R), _order(bound_R)]), distributed.ReduceOp.MAX)
        low_R, high_R = -ends[0], ends[1]
        first_R, last_R = (_number(order_R, values_RN.dtype).unsqueeze(1) for order_R in (low_R, high_R))
        row, column = ((values_RN >= first_R) & (values_RN <= last_R)).nonzero(as_tuple=True)
        order, below_R, rows = _order(values_RN[row, column]), (values_RN < first_R).sum(1), len(values_RN)
        for shift in range(8 * values_RN.element_size() - 8, -1, -8):
            base_R = low_R >> shift
            digit = (order >> shift) - base_R[row]  # below 256, since the higher digits are equal
            counts_RD = torch.bincount(row * 256 + digit, minlength=rows * 256).view(rows, 256)
            counts_RD[:, 0] += below_R
            digit_R = (self.total(counts_RD).cumsum(1) < k).sum(1)
            low_R = torch.maximum(low_R, (base_R + digit_R) << shift).minimum(high_R)
            high_R = torch.minimum(high_R, low_R | (1 << shift) - 1)
            below_R = below_R + torch.bincount(row[order < low_R[row]], minlength=rows)
            kept = (order >= low_R[row]) & (order <= high_R[row])
            row, order = row[kept], order[kept]
        return _number(low_R, values_RN.dtype)

    def seed(self) -> int:
        """A seed from torch's global generator; with several processes, from that of rank 0."""
        seed = torch.randint(2**62, ())
        self.processes.broadcast([seed])
        return int(seed)

    def _reduced(self, values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        if not self.distributed:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(values, operation)
        return values

    # this process's images ------------------------------------------------------------------------------------------------------

    def local(self, numbers: Tensor, per_image: int) -> Tensor:
        """Of values numbered over all images, ``per_image`` an image, those of this process, by their numbers here."""
        if not self.distributed:
            return numbers
        here = torch.full((self.count,), -1)
        here[self.at] = torch.arange(len(self.at))
        image = here[numbers // per_image]
        return (image * per_image + numbers % per_image)[image >= 0]

    def blocks(self, own: int) -> Iterator[ImageBlock]:
        """The blocks that contain the ``own`` images of this process."""
        at, count = (self.at, self.count) if self.distributed else (torch.arange(own), own)
        numbers, lengths = torch.unique_consecutive(at // BLOCK, return_counts=True)
        start = 0
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            rows = slice(start, start + length)
            yield ImageBlock(number, rows, at[rows] % BLOCK, min(BLOCK, count - number * BLOCK))
            start += length


UNSHARDED = CalibrationShard()


def shard_images(batches: Any, processes: Processes) -> tuple[Tensor, CalibrationShard]:
    """This process's shard of the images in batches, (own, ...).

    Of each batch a process takes ``processes.rows``. If a batch has fewer images than there are processes, its images go to one
    process after another. A batch with labels may hold only this process's images, beside the labels of all.

    Raises:
        ConversionError: no images, fewer than processes, or batches that do not fit each other.
        DataError: what was passed cannot be read as images.
    """
    pieces, at, count = [], [], 0
    for number, (x, labels) in enumerate(read_batches(batches)):
        if pieces and x.shape[1:] != pieces[0].shape[1:]:
            shapes = f"{tuple(x.shape[1:])}, and those before {tuple(pieces[0].shape[1:])}"
            raise ConversionError(f"the calibration images of batch {number} have the shape {shapes}; give all the same shape")
        if labels is not None and processes.count == 1 and len(labels) != len(x):
            raise ConversionError(f"batch {number} has {len(x)} images and {len(labels)} labels; pass (images, labels) pairs")
        size = len(labels) if labels is not None and processes.count > 1 else len(x)
        mine = range(size)[processes.rows(size)]
        if size < processes.count:
            mine = [row for row in mine if (count + row) % processes.count == processes.rank]
            x = x[mine]
        elif len(x) != len(mine):
            x = x[mine.start : mine.stop]
        pieces.append(x.clone())  # a loader may fill the same buffer anew for the next batch
        at += [count + row for row in mine]
        count += size
    if count == 0:
        raise ConversionError("no calibration images: pass at least one batch")
    if processes.count == 1:
        return torch.cat(pieces), UNSHARDED
    if count < processes.count:
        raise ConversionError(f"{count} calibration images for {processes.count} processes: pass at least one for each")
    return torch.cat(pieces), CalibrationShard(processes, at, count)


def _kth_smallest(values_RN: Tensor, k: int) -> Tensor:
    """Of each row, (R,); row by row, since torch copies its argument (and torch.quantile refuses large tensors)."""
    return torch.stack([values_N.kthvalue(k).values for values_N in values_RN])


def _order(values: Tensor) -> Tensor:
    """Integers in the order of floating-point numbers; NaN is the largest, and the two zeros are equal."""
    values = torch.where(values.isnan(), torch.nan, values) + 0.0  # NaN with one sign, no -0
    return _flipped(values.contiguous().view(INTEGERS[values.element_size()])).long()


def _number(order: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of ``_order``."""
    return _flipped(order.to(INTEGERS[dtype.itemsize])).view(dtype)


def _flipped(bits: Tensor) -> Tensor:
    """Inverts the bits below the sign of negative numbers, which hold their magnitude; its own inverse."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
