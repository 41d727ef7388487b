"""``CalibrationShard``: one process's part of the calibration images, and what is asked of all of them.

Sums are S = sum_r S_r over the processes r, taken in float64 so that they hardly depend on who has which image, and maxima
M = max_r M_r: one all-reduce each. An order statistic is exact and needs no process to hold another's values. Of n values, n_r of
them here, the k-th smallest v lies between those of the processes,

    min_r v_r <= v <= max_r v_r,    v_r the k_r-th smallest here,    k_r = ceil(k n_r / n),

since sum_r k_r >= k and sum_r (k_r - 1) < k. What lies between is counted digit by digit: floating-point numbers (IEEE 754) have
the order of their bits, read as integers, and an all-reduce of 256 counts for each of their bytes finds v (radix selection).

What is drawn or looked at here and there is numbered over all images, so that the same values are looked at however many
processes there are. Alone, all of this is what it says without anybody to ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from spikeprop.errors import ConversionError
from spikeprop.runtime.processes import ALONE, Processes

BLOCK = 64  # images that are drawn for together, by their numbers among all
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@dataclass(frozen=True)
class ImageBlock:
    """Images that stand together among all, and which of them are here.

    Attributes:
        number: of the block.
        rows: of the images here.
        places: of the same images in the block.
        size: of the block, with the images of other processes.
    """

    number: int
    rows: slice
    places: Tensor
    size: int

    def padded(self, x: Tensor) -> Tensor:
        """The block's images (size, ...), zeros where they are not here: what is drawn for them does not depend on them."""
        mine = x[self.rows]
        if len(mine) == self.size:
            return mine
        block = x.new_zeros(self.size, *x.shape[1:])
        block[self.places] = mine
        return block


class CalibrationShard:
    """A process's part of the calibration images.

    Args:
        processes: among which they are spread.
        at: (own,) numbers of the images here among all, ascending; not looked at where one process has all.
        count: of all images.
    """

    def __init__(self, processes: Processes = ALONE, at: Sequence[int] = (), count: int = 0):
        self.processes, self.at, self.count = processes, torch.tensor(at, dtype=torch.long), count

    @property
    def several(self) -> bool:
        """Whether there is anyone else."""
        return self.processes.count > 1

    # what all processes say -----------------------------------------------------------------------------------------------------

    def total(self, sums: Tensor) -> Tensor:
        """The sum over the processes, element by element."""
        return self._reduced(sums, distributed.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        """The largest over the processes, element by element; NaN where one has NaN."""
        if not self.several:
            return values
        return _number(self._reduced(_order(values), distributed.ReduceOp.MAX), values.dtype)

    def size(self, own: int) -> int:
        """How many values all have together, where there are ``own`` here, as many of each image."""
        return own // len(self.at) * self.count if self.several else own

    def most(self, own: int) -> int:
        """The size of the largest part."""
        return int(self._reduced(torch.tensor(own), distributed.ReduceOp.MAX))

    def mean(self, values: Tensor, axis: int) -> Tensor:
        """The mean over an axis along which the processes' values lie, for each image as many; in float64."""
        return self.total(values.sum(axis, dtype=torch.float64)) / self.size(values.shape[axis])

    def quantile(self, values_RN: Tensor, q: float) -> Tensor:
        """Quantile of each row over all processes' values, (R,): the exact order statistic."""
        if q >= 1:
            return self.largest(values_RN.amax(1))
        own, count = values_RN.shape[1], self.size(values_RN.shape[1])
        k = max(1, round(q * count))
        bound_R = _kth_smallest(values_RN, -(-k * own // count))
        return self._selected(values_RN, k, bound_R) if self.several else bound_R

    def _selected(self, values_RN: Tensor, k: int, bound_R: Tensor) -> Tensor:
        """The k-th smallest of each row over all, given bounds of this process's own."""
        ends = self._reduced(torch.stack([-_order(bound_R), _order(bound_R)]), distributed.ReduceOp.MAX)
        low_R, high_R = -ends[0], ends[1]
        first_R, last_R = (_number(order_R, values_RN.dtype).unsqueeze(1) for order_R in (low_R, high_R))
        row, column = ((values_RN >= first_R) & (values_RN <= last_R)).nonzero(as_tuple=True)
        order, below_R, rows = _order(values_RN[row, column]), (values_RN < first_R).sum(1), len(values_RN)
        for shift in range(8 * values_RN.element_size() - 8, -1, -8):
            base_R = low_R >> shift
            digit = (order >> shift) - base_R[row]  # below 256: the digits before are the same
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
        """A seed from torch's global generator; of several processes, from rank 0's."""
        seed = torch.randint(2**62, ())
        if self.several:
            distributed.broadcast(seed, 0)
        return int(seed)

    def _reduced(self, values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        if not self.several:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(values, operation)
        return values

    # which images are here ------------------------------------------------------------------------------------------------------

    def own(self, numbers: Tensor, each: int) -> Tensor:
        """Of values numbered over all images, ``each`` an image, those that are here, as they are numbered here."""
        if not self.several:
            return numbers
        here = torch.full((self.count,), -1)
        here[self.at] = torch.arange(len(self.at))
        image = here[numbers // each]
        return (image * each + numbers % each)[image >= 0]

    def blocks(self, own: int) -> Iterator[ImageBlock]:
        """The blocks in which the ``own`` images here lie."""
        at, count = (self.at, self.count) if self.several else (torch.arange(own), own)
        numbers, lengths = torch.unique_consecutive(at // BLOCK, return_counts=True)
        start = 0
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            rows = slice(start, start + length)
            yield ImageBlock(number, rows, at[rows] % BLOCK, min(BLOCK, count - number * BLOCK))
            start += length


UNSHARDED = CalibrationShard()


def own_images(batches: Iterable[Tensor | tuple[Tensor, Tensor]], processes: Processes) -> tuple[Tensor, CalibrationShard]:
    """This process's part of the images in batches, (own, ...).

    Of a batch the part is ``processes.rows``; where it has fewer images than there are processes, they go to one after another.
    A batch with labels may hold this process's images alone, beside the labels of all.

    Raises:
        ConversionError: no images, or fewer than processes.
    """
    pieces, at, count = [], [], 0
    for batch in batches:
        x, *labels = (batch,) if isinstance(batch, Tensor) else batch
        size = len(labels[0]) if labels and processes.count > 1 else len(x)
        mine = range(size)[processes.rows(size)]
        if size < processes.count:
            mine = [row for row in mine if (count + row) % processes.count == processes.rank]
            x = x[mine]
        elif len(x) != len(mine):
            x = x[mine.start : mine.stop]
        pieces.append(x)
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
    """Of each row by itself, (R,): torch copies what it is given (and torch.quantile refuses large tensors)."""
    return torch.stack([values_N.kthvalue(k).values for values_N in values_RN])


def _order(values: Tensor) -> Tensor:
    """Integers in the order of floating-point numbers; NaN is above all, and the two zeros are one."""
    values = torch.where(values.isnan(), torch.nan, values) + 0.0  # NaN of one sign, and no -0
    return _flipped(values.contiguous().view(INTEGERS[values.element_size()])).long()


def _number(order: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of which ``_order`` made these integers."""
    return _flipped(order.to(INTEGERS[dtype.itemsize])).view(dtype)


def _flipped(bits: Tensor) -> Tensor:
    """Negative numbers have their magnitude in the bits below the sign: all of these turned over, and back."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
