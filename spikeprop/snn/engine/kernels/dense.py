"""Dense products of single precision on the CPU by oneDNN, which torch brings, where torch's own choice is another library.

torch sends ``mm`` to MKL, which takes its AVX2 path on processors that are not Intel's: half the speed of oneDNN there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b."""
    if a_MK.device.type == "cpu" and a_MK.dtype is torch.float32 and _onednn():
        return torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.T, None, "none", [], "")
    return a_MK @ b_KN


def _onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
