"""What every back end's kernels take: parameters of a layer's neurons, its spikes, and its train on the way back in time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class ScanParameters:
    """Parameters of integrate-and-fire neurons. R = S positions where one of them varies over positions, else 1.

    Attributes:
        theta_RC: threshold.
        leak_RC: factor on the potential each step.
        to_zero: reset to zero rather than by subtraction.
    """

    theta_RC: Tensor
    leak_RC: Tensor
    to_zero: bool

    @cached_property
    def leaky(self) -> bool:
        """Whether any neuron leaks. On a GPU this waits for the device."""
        return bool((self.leak_RC != 1).any())


@dataclass(frozen=True)
class SpikeTrain:
    """Spikes of all steps, and how far back in time ``scan_back`` has come.

    Attributes:
        words_TBSW: packed spikes.
        any_MBSW: words of each piece of ``piece`` steps or-ed, which lets a search for the last spike skip pieces.
        piece: steps.
        since_BSC: int32, steps since the last spike, after the steps that are still to do; overwritten by each ``scan_back``.
    """

    words_TBSW: Tensor
    any_MBSW: Tensor
    piece: int
    since_BSC: Tensor


@dataclass(frozen=True)
class TrainedGradients:
    """Gradients of thresholds and leaks, float64, by row and channel as in ``ScanParameters``; 0 where they are not wanted."""

    theta_RC: Tensor
    leak_RC: Tensor


@dataclass(frozen=True)
class PackedSpikes:
    """What one piece, or chunk, of a layer's spikes looks like to a synapse.

    Attributes:
        words_KBSW: the spikes.
        size: (height, width) of their positions; (1, 1) for a vector.
        channels: of the source.
        pool: window and stride of the average pooling before the weights; 1 for none.
        scale_BSC: dropout masks, 0 or 1/(1 - p), or None.
        mask_BSW: the same as words, or None.
    """

    words_KBSW: Tensor
    size: tuple[int, int]
    channels: int
    pool: int
    scale_BSC: Tensor | None
    mask_BSW: Tensor | None


@dataclass(frozen=True)
class ConvShape:
    """Everything of a convolution but its weights.

    Attributes:
        size, out_size: (height, width) of what it reads and of what it writes.
        kernel, stride, padding, dilation: (rows, columns).
    """

    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
