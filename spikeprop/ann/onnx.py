"""``OnnxModel``: a network from an ONNX file."""

from __future__ import annotations

from torch import Tensor, nn

from spikeprop.ann.weights import find_weights
from spikeprop.runtime.onnx_files import read_onnx


class OnnxModel(nn.Module):
    """The network in an ONNX file (extra ``onnx``).

    Args:
        path: of the file, or its name in the folder ``weights`` of $SPIKEPROP_DATA.

    Raises:
        ConversionError: the file cannot be read as a network; the message says why.
    """

    def __init__(self, *, path: str):
        super().__init__()
        self.model = read_onnx(find_weights(path))

    def forward(self, x: Tensor) -> Tensor:
        """What the file's network returns for images (B, ...)."""
        return self.model(x)
