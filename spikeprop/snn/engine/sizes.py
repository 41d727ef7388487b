"""How much the engine takes at once: steps of a chunk, samples of a slice, steps of a piece. All of its limits stand here.

A chunk's steps go through a layer together, so that its weights are read seldom. A slice is few enough samples for a chunk's
spikes, and gradients, to stay in the cache. A large layer does its chunk in pieces, whose floats stay in the cache.
"""

from __future__ import annotations

import torch

CHUNK_STEPS = 64  # at most, on the CPU
FEEDBACK_CHUNK_STEPS = 16  # of a network with feedback, which goes step by step anyway: fewer floats at the same speed
CUDA_CHUNK_BYTES = 1 << 30  # of the largest layer's floats, on a GPU
# Samples x steps of a slice on the CPU: with a backward pass, which holds the gradients of all of them at once, and without.
SLICE_ROWS = {"with backward": 64, "forward only": 512}
SMALL_SLICE_BYTES = 12 << 20  # of the largest layer's floats; a slice of fewer has more rows, up to those without a backward pass
# Of a layer's floats in a slice, or piece, of a network of vectors: each product reads all of its weights.
VECTOR_BYTES = 16 << 20
# Of a layer's floats. On the CPU a part of the cache, small enough for its memory to be used again.
PIECE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
KEPT_POTENTIALS = 8  # steps of a simulation, up to which potentials that its backward pass needs are kept, not computed again
# Of one layer's current, where layers run one after another: over the whole batch, and over as many samples as stay in the cache.
LAYERWISE_BYTES = {"batch": 64 << 20, "samples": 4 << 20}
BFLOAT16_STEPS = 8  # of a simulation, up to which convolutions of all its steps in bfloat16 are faster than packed float32
BFLOAT16_BYTES = 4 << 30  # that such a simulation may keep for its backward pass: more goes packed
KEPT_BYTES = 10  # a neuron and step, then: its spike and its potential in float32, its spike in bfloat16


def chunk_steps(timesteps: int, step_bytes: int, device: torch.device, *, feedback: bool = False) -> int:
    """Steps of a chunk, if nobody asks for others.

    Args:
        timesteps: all.
        step_bytes: floats of the largest layer at one step, for the whole batch.
        device: where they are.
        feedback: whether a layer reads its own spikes.
    """
    most = FEEDBACK_CHUNK_STEPS if feedback else CHUNK_STEPS
    most = most if device.type == "cpu" else max(1, CUDA_CHUNK_BYTES // step_bytes)
    return even_steps(timesteps, most)


def even_steps(timesteps: int, most: int) -> int:
    """Steps a chunk, so that chunks of at most ``most`` steps are about equal; several are multiples of 8: good divisors."""
    chunks = -(-timesteps // most)
    each = -(-timesteps // chunks)
    return each if chunks == 1 else min(-(-each // 8) * 8, max(most, each))


def slice_samples(chunk: int, sample_bytes: int, samples: int, device: torch.device, *, keep: bool, vectors: bool = False) -> int:
    """Samples of a slice, of the ``samples`` of one thread.

    Args:
        chunk: steps.
        sample_bytes: floats of the largest layer at one step, for one sample.
        samples: of the thread.
        device: where they are.
        keep: for a backward pass.
        vectors: no layer has positions.
    """
    if device.type != "cpu":
        return samples
    rows = SLICE_ROWS["forward only"]
    if keep:
        rows = max(SLICE_ROWS["with backward"], min(rows, SMALL_SLICE_BYTES // sample_bytes))
    if vectors:
        rows = max(rows, VECTOR_BYTES // sample_bytes)
    most = max(1, rows // chunk)
    slices = max(1, round(samples / most))  # a few samples more than that cost less than a small slice
    return -(-samples // slices)


def piece_steps(chunk: int, step_bytes: int, device: torch.device, *, only: bool, vector: bool = False) -> int:
    """Steps of a piece: a divisor of the chunk, unless that is the only one.

    step_bytes: a layer's floats at one step; vector: it has no positions.
    """
    most = max(PIECE_BYTES[device.type], VECTOR_BYTES if vector else 0)
    fitting = max(1, min(chunk, most // step_bytes))
    piece = max(n for n in range(1, fitting + 1) if chunk % n == 0)
    pieces = -(-chunk // fitting)
    return -(-chunk // pieces) if only and piece < fitting / 2 else piece  # of one chunk alone, the last piece may be shorter


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
