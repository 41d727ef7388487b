"""Derives a seed from a seed and a position, such as (epoch, batch), so that every part of a run can be repeated alone."""

from __future__ import annotations

import random

import torch

_MASK = 0xFFFFFFFFFFFFFFFF


def mix_seed(seed: int, *position: int) -> int:
    """A 63-bit seed from ``seed`` and a position such as (epoch, batch); the finaliser of SplitMix64 (Steele et al. 2014).

    Without a position it is the seed itself.
    """
    value = seed & _MASK
    if not position:
        return value & (_MASK >> 1)
    for number in position:
        value = (value + 0x9E3779B97F4A7C15 * (number + 1)) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value >> 1


def seed_torch(seed: int, *position: int) -> None:
    """Seed torch's global generators from a seed and a position."""
    torch.manual_seed(mix_seed(seed, *position))


def seed_everything(seed: int, *position: int) -> None:
    """Seed the global generators of torch, numpy and Python from a seed and a position."""
    import numpy as np

    mixed = mix_seed(seed, *position)
    torch.manual_seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)  # noqa: NPY002 - other libraries draw from the global generator
    random.seed(mixed)


def generator(seed: int, *position: int) -> torch.Generator:
    """A separate CPU generator for a position."""
    return torch.Generator().manual_seed(mix_seed(seed, *position))
