"""``ViT``: a small vision transformer with a convolutional stem, of a size that two CPU cores train.

The stem halves the image at each of its stages (convolution 3x3, batch-norm, ReLU, max pooling); its positions are the tokens.
Each block is that of Dosovitskiy et al. 2021 ("An Image is Worth 16x16 Words"), x + Attention(LayerNorm(x)), then
x + MLP(LayerNorm(x)) with GELU. Convolutions in front instead of patches converge in fewer epochs: Xiao et al. 2021 ("Early
Convolutions Help Transformers See Better"). The scores come from the tokens' mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) to the same."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each around the residual stream."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Vision transformer.

    Args:
        input_shape: shape of one image; its height and width are divided by two at each stage of the stem.
        classes: number of classes.
        stem: channels of the stem's stages but the last, which has ``width``.
        width: of a token, divisible by ``heads``.
        depth: number of blocks.
        heads: of the attention.
        mlp_ratio: width of the hidden layer in units of ``width``.
        dropout: of the branches.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        stem: Sequence[int] = (64,),
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        channels, height, columns = input_shape
        stride = 2 ** (len(stem) + 1)
        if height % stride or columns % stride:
            raise ValueError(f"images of {height}x{columns} cannot be halved {len(stem) + 1} times; use fewer stages in the stem")
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        stages: list[nn.Module] = []
        for out in (*stem, width):
            stages += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
            channels = out
        self.stem = nn.Sequential(*stages)
        self.position = nn.Parameter(0.02 * torch.randn(1, height * columns // stride**2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio * width, dropout) for _ in range(depth)))
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, ...)."""
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.position
        return self.scores(self.norm(self.blocks(tokens)).mean(1))
