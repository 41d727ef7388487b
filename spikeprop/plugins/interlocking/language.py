"""A small Transformer language model for characters, and text to train it on: the source of Python's standard library.

The text is read from the running interpreter, so no download is needed. The model has pre-norm blocks (causal attention, then
an MLP), learnt positions, and an output layer of its own: with tied embeddings the first and the last segment would share
parameters, which interlocking refuses.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.data import LabelledData
from spikeprop.plugins.interlocking.heads import TokensLast
from spikeprop.runtime.seeding import generator

CHARACTERS = 128  # ASCII; anything else is read as "?"
MODULES = ("argparse", "ast", "datetime", "decimal", "difflib", "doctest", "inspect", "ipaddress", "optparse", "tarfile")


class CharacterEmbedding(nn.Module):
    """Characters (B, T) to vectors (B, T, width), plus a learnt vector for each position."""

    def __init__(self, characters: int, context: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(characters, width) * 0.02)
        self.position = nn.Parameter(torch.randn(context, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.weight) + self.position[: x.shape[1]]


class CausalAttention(nn.Module):
    """Causal multi-head attention over (B, T, width): a character attends to itself and to earlier characters."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}, which is not divisible by {heads} heads")
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(3 * width, width) * 0.02)
        self.out = nn.Parameter(torch.randn(width, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.weight).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, width), self.out)


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), CausalAttention(width, heads), nn.Dropout(dropout))
        inner = (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.think = nn.Sequential(nn.LayerNorm(width), *inner, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.think(x)


class CharTransformer(nn.Sequential):
    """Scores (B, characters, T) of the next character for characters (B, T).

    Args:
        context: largest T.
        width: size of the vectors.
        depth: number of blocks.
        heads: attention heads of each block.
        dropout: probability, after attention and MLP.
        characters: size of the vocabulary.
    """

    def __init__(
        self,
        *,
        context: int = 64,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        characters: int = CHARACTERS,
    ):
        blocks = [TransformerBlock(width, heads, dropout) for _ in range(depth)]
        head = (nn.LayerNorm(width), nn.Linear(width, characters), TokensLast())
        super().__init__(CharacterEmbedding(characters, context, width), *blocks, *head)


@dataclass(frozen=True)
class TextBatches:
    """Windows of a text: characters (B, context), and the next character of each (B, context).

    Attributes:
        text: character codes (N,), int64.
        batch_size, context: windows of a batch, and characters of a window.
        windows: number of windows in an epoch.
        seed: for random starts of the windows; None for consecutive windows from the start of the text.
    """

    text: Tensor
    batch_size: int
    context: int
    windows: int
    seed: int | None = 0

    def __len__(self) -> int:
        return -(-self.windows // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch, starting with batch number ``start``."""
        for number in range(start, len(self)):
            size = min(self.batch_size, self.windows - number * self.batch_size)
            window = self.text[self._begin(epoch, number, size).unsqueeze(1) + torch.arange(self.context + 1)]
            yield window[:, :-1], window[:, 1:]

    def fingerprint(self) -> str:
        """Hash of the text and of the windows."""
        settings = repr((self.context, self.windows, self.seed)).encode()
        return hashlib.sha256(settings + bytes(self.text.tolist())).hexdigest()

    def _begin(self, epoch: int, number: int, size: int) -> Tensor:
        if self.seed is None:
            return (number * self.batch_size + torch.arange(size)) * self.context
        return torch.randint(len(self.text) - self.context, (size,), generator=generator(self.seed, epoch, number))


@dataclass(frozen=True, kw_only=True)
class PythonSource(LabelledData):
    """Next-character prediction on the source of the installed Python's standard library; the last tenth is for testing.

    Attributes:
        context: characters of a window; the label of each is the next character.
        train_limit: windows of an epoch; None for the number of non-overlapping windows in the text.
        test_limit: number of test windows, from the first; None for all.
    """

    context: int = 64

    classes: ClassVar[int] = CHARACTERS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1:
            raise ValueError(f"context is {self.context}; a window has at least 1 character")

    def example(self, size: int) -> Tensor:
        return torch.zeros(size, self.context, dtype=torch.int64)

    def train(self, batch_size: int, seed: int) -> TextBatches:
        return self._windows(source_text()[0], self.train_limit, batch_size, seed)

    def test(self, batch_size: int) -> TextBatches:
        text = source_text()[1]
        return self._windows(text, min(self.test_limit or len(text), self._most(text)), batch_size, None)

    def _windows(self, text: Tensor, limit: int | None, batch_size: int, seed: int | None) -> TextBatches:
        if len(text) <= self.context:
            raise ValueError(
                f"context is {self.context}; the text has {len(text):,} characters, but at least context + 1 are needed"
            )
        return TextBatches(text, batch_size, self.context, limit or self._most(text), seed)

    def _most(self, text: Tensor) -> int:
        return (len(text) - 1) // self.context


@functools.cache
def source_text(held_out: float = 0.1) -> tuple[Tensor, Tensor]:
    """Source of modules of the standard library as character codes: (training text, test text), split at ``1 - held_out``."""
    text = "".join(inspect.getsource(importlib.import_module(name)) for name in MODULES)
    numbers = torch.tensor([ord(c) if ord(c) < CHARACTERS else ord("?") for c in text])
    train = round(len(numbers) * (1 - held_out))
    return numbers[:train], numbers[train:]
