"""How much the engine takes at once: steps of a chunk, samples of a slice, steps of a piece. All of its limits stand here.

A chunk's steps go through a layer together, so that its weights are read seldom. A slice is few enough samples for a chunk's
spikes, and gradients, to stay in the cache. A large layer does its chunk in pieces, whose floats stay in the cache.
"""

from __future__ import annotations

import torch

CHUNK_STEPS = 64  # at most, on the CPU
CUDA_CHUNK_BYTES = 1 << 30  # of the largest layer's floats, on a GPU
# Samples x steps of a slice on the CPU: with a backward pass, which holds the gradients of all of them at once, and without.
SLICE_ROWS = {"with backward": 64, "forward only": 512}
# Of a layer's floats. On the CPU a part of the cache, small enough for its memory to be used again.
PIECE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
# Of one layer's current, where layers run one after another: over the whole batch, and over as many samples as stay in the cache.
LAYERWISE_BYTES = {"batch": 64 << 20, "samples": 4 << 20}


def chunk_steps(timesteps: int, step_bytes: int, device: torch.device) -> int:
    """Steps of a chunk, if nobody asks for others; step_bytes: floats of the largest layer at one step, for the whole batch."""
    most = CHUNK_STEPS if device.type == "cpu" else max(1, CUDA_CHUNK_BYTES // step_bytes)
    return even_steps(timesteps, most)


def even_steps(timesteps: int, most: int) -> int:
    """Steps a chunk, so that chunks of at most ``most`` steps are about equal; several are multiples of 8: good divisors."""
    chunks = -(-timesteps // most)
    each = -(-timesteps // chunks)
    return each if chunks == 1 else min(-(-each // 8) * 8, max(most, each))


def slice_samples(chunk: int, samples: int, device: torch.device, *, keep: bool) -> int:
    """Samples of a slice, of the ``samples`` of one thread; keep: for a backward pass."""
    if device.type != "cpu":
        return samples
    return max(1, SLICE_ROWS["with backward" if keep else "forward only"] // chunk)


def piece_steps(chunk: int, step_bytes: int, device: torch.device, *, only: bool) -> int:
    """Steps of a piece: a divisor of the chunk, unless that is the only one; step_bytes: a layer's floats at one step."""
    fitting = max(1, min(chunk, PIECE_BYTES[device.type] // step_bytes))
    piece = max(n for n in range(1, fitting + 1) if chunk % n == 0)
    return fitting if only and piece < fitting / 2 else piece  # of one chunk alone, the last piece may be shorter


def layerwise_steps(timesteps: int, step_bytes: int) -> int:
    """Steps of a chunk where one layer at a time runs over the whole batch; step_bytes: of its current at one step."""
    return max(1, min(timesteps, LAYERWISE_BYTES["batch"] // step_bytes))


def layerwise_samples(timesteps: int, sample_bytes: int) -> tuple[int, int]:
    """Samples of a slice where one layer at a time runs over all steps of a few samples, and steps of a chunk.

    sample_bytes: of a sample's current at one step.
    """
    most = max(LAYERWISE_BYTES["samples"] // sample_bytes, 8)  # samples x steps; a few for each thread
    samples = max(1, most // timesteps)
    return samples, min(timesteps, max(1, most // samples))
