"""The input of a simulation over its steps: still samples or sequences, checked, and encoded chunk by chunk.

A still sample (B, ...) and a number of steps T, or a sequence (T, B, ...), become the same thing: x_TB (T, B, ...), of a still
sample a view that takes no memory. Sequences of a batch may differ in length: they are padded to T, and ``lengths`` (B,) says how
many steps of each count.

Suffix legend: T steps, K of them, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprop.runtime.ordinary import trainable, unusual
from spikeprop.snn.encoder import Encoder, warn_of_saturation
from spikeprop.snn.layer import LayeredNetwork


@dataclass(frozen=True)
class TimedInput:
    """What a network is given.

    Attributes:
        x_TB: values at each step.
        still: whether all steps are one sample's.
        lengths: steps of each sequence that count, (B,) int64; None where all do.
    """

    x_TB: Tensor
    still: bool
    lengths: Tensor | None = None

    @property
    def timesteps(self) -> int:
        return len(self.x_TB)

    @property
    def like_B(self) -> Tensor:
        """One step, for the number of samples, type and device."""
        return self.x_TB[0]

    @classmethod
    def of(cls, x: Any, timesteps: Any, lengths: Any, shape: tuple[int, ...]) -> TimedInput:
        """Check shapes, steps and lengths; shape: of a sample at one step.

        Raises:
            ValueError: names what does not fit, and what would.
        """
        either = f"(batch, *{shape}), still samples for a number of timesteps, or (time, batch, *{shape}), sequences"
        _check_tensor(x, either)
        axes = x.dim() - len(shape)
        if axes not in (1, 2) or tuple(x.shape[axes:]) != shape:
            remedy = "; one sample needs a batch axis: x[None]" if tuple(x.shape) == shape else ""
            raise ValueError(f"input has shape {tuple(x.shape)}; this network reads {either}{remedy}")
        if x.shape[axes - 1] == 0:
            raise ValueError("the batch holds no sample; a simulation needs at least 1")
        steps = _checked_steps(x, timesteps, still=axes == 1)
        x = trainable(x)
        x_TB = x.unsqueeze(0).expand(steps, *x.shape) if axes == 1 else x
        return cls(x_TB, axes == 1, _checked_lengths(lengths, x_TB))

    def check_values(self, encoder: Encoder) -> None:
        """Check that all values are finite, and warn of those that the encoder cannot represent.

        Raises:
            ValueError: an encoder that does not read such an input, NaN or infinity.
        """
        kind = type(encoder).__name__
        if self.still and not encoder.stills:
            raise ValueError(no_stills(encoder, self.like_B.shape))
        if not (self.still or encoder.sequences):
            raise ValueError(f"input is a sequence, and the encoder {kind} reads still samples alone: use Direct() or Frames()")
        warn_of_saturation(encoder, self.largest())

    def largest(self) -> float:
        """Largest magnitude of the values.

        Raises:
            ValueError: NaN or infinity, and where.
        """
        low, high = (float(value) for value in self.x_TB[: 1 if self.still else None].detach().aminmax())
        largest = max(-low, high)
        if not math.isfinite(largest):
            raise ValueError(f"input holds NaN or infinity {self._place()}; clean the data before encoding")
        return largest

    def _place(self) -> str:
        bad_TB = ~torch.isfinite(self.x_TB.detach()).flatten(2).all(2)
        if self.still:
            return f"in {int(bad_TB[0].sum())} of {bad_TB.shape[1]} samples"
        step, sample = bad_TB.nonzero()[0].tolist()
        samples = int(bad_TB.any(0).sum())
        return f"in {samples} of {bad_TB.shape[1]} sequences, first at step {step} of sample {sample}"


def no_stills(encoder: Encoder, shape: Sequence[int]) -> str:
    """That an encoder reads no still samples, whose batch has this shape, and what it reads."""
    batch, *rest = map(str, shape)
    sequence, in_data = (", ".join((*axes, *rest)) for axes in (("time", batch), (batch, "time")))
    return (
        f"input is still samples {tuple(shape)}, and the encoder {type(encoder).__name__} reads sequences alone: pass a tensor "
        f"({sequence}) without timesteps, in batches for fit ({in_data}); or give the network Direct()"
    )


def check_stream(x: Any, shape: tuple[int, ...], *, one: bool) -> None:
    """Check what is given to a stream, one step (B, *shape) or several (T, B, *shape), already encoded.

    Raises:
        ValueError: names what does not fit, and what would.
    """
    step, several = f"(batch, *{shape}), one step", f"(time, batch, *{shape}), several steps"
    wanted = f"step reads {step}" if one else f"run reads {several}"
    _check_tensor(x, step if one else several)
    axes = x.dim() - len(shape)
    if axes != (1 if one else 2) or tuple(x.shape[axes:]) != shape:
        fits = axes >= 0 and tuple(x.shape[axes:]) == shape
        remedies = {
            0: "; one sample needs a batch axis: " + ("x[None]" if one else "x[:, None], where it has one of time"),
            1: "; one step needs an axis of time: x[None], or network.step",
            2: "; several steps: network.run(x, state), or network(x)",
        }
        raise ValueError(f"input has shape {tuple(x.shape)}; {wanted}{remedies.get(axes, '') if fits else ''}")
    if 0 in x.shape[:axes]:
        raise ValueError(f"input {tuple(x.shape)} is empty: {wanted}, at least 1 of each")


def _check_tensor(x: Any, wanted: str) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"input is a {type(x).__name__}; {_remedy_of(x, wanted)}")
    found = unusual(x)
    if found is not None:
        raise ValueError(f"input {found}")


def _remedy_of(x: Any, wanted: str) -> str:
    if hasattr(x, "values") and hasattr(x, "lengths"):  # Sequences, which have their examples first
        return "a network reads their tensors, time first: network(s.values.transpose(0, 1), lengths=s.lengths)"
    return f"a network reads a tensor {wanted}"


def _checked_steps(x: Tensor, timesteps: Any, *, still: bool) -> int:
    if timesteps is None and still:
        raise ValueError(
            f"input {tuple(x.shape)} is still samples, so the simulation needs timesteps=, a number of steps; a sequence has one "
            "axis more in front, of time"
        )
    if not still and len(x) == 0:
        raise ValueError(f"input {tuple(x.shape)} is a sequence without steps; a simulation needs at least 1 step")
    if timesteps is None:
        timesteps = len(x)
    if isinstance(timesteps, bool) or not hasattr(timesteps, "__index__"):
        raise ValueError(f"timesteps is {timesteps!r}; a simulation needs a whole number of steps")
    if timesteps < 1:
        raise ValueError(f"timesteps is {timesteps}; a simulation needs at least 1 step")
    if not still and timesteps != len(x):
        raise ValueError(
            f"timesteps is {timesteps}, but the input {tuple(x.shape)} is a sequence of {len(x)} steps: leave timesteps out, or "
            f"pass x[:{timesteps}]"
        )
    return int(timesteps)


def _checked_lengths(lengths: Any, x_TB: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    steps, batch = x_TB.shape[:2]
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
        given = str(lengths.dtype) if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(f"lengths is {given}; give torch.tensor([...], dtype=torch.int64), the steps of each sequence")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; give one number for each of the {batch} samples")
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > steps:
        wrong = low if low < 1 else high
        raise ValueError(f"lengths holds {wrong}; a sequence of this input has 1 to {steps} steps")
    return lengths.to(x_TB.device)


class RunningInput:
    """The encoded input of the samples that are still simulated.

    Args:
        encoder: from values to what enters.
        given: all samples at all steps.

    Attributes:
        constant: every step is the same, so one is returned for all.
    """

    def __init__(self, encoder: Encoder, given: TimedInput):
        self._encoder, self._x_TB = encoder, given.x_TB
        self.constant = encoder.constant and given.still
        self._begin = 0
        self._rows: Tensor | None = None  # of those that are left, where draws are for all

    def __call__(self, steps: int) -> Tensor:
        """The next ``steps`` steps (steps or 1, b, ...)."""
        first = 0 if self.constant else self._begin
        last = 1 if self.constant else first + steps
        self._begin += steps
        x_KB = self._encoder(self._x_TB, first, last)
        if len(x_KB) != last - first:
            raise ValueError(
                f"{type(self._encoder).__name__} returned {len(x_KB)} steps for the steps {first}..{last}; an encoder returns "
                "last - first of them"
            )
        return x_KB if self._rows is None else x_KB[:, self._rows]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of what is left."""
        if self.constant:
            self._x_TB = self._x_TB[:1, rows].expand(len(self._x_TB), len(rows), *self._x_TB.shape[2:])
        else:
            self._rows = rows if self._rows is None else self._rows[rows]


def own_steps(values_tB: Tensor, first: int, lengths: Tensor | None) -> Tensor:
    """Values (t, B, ...) of the steps from ``first`` on, 0 after each sample's last step; lengths: (B,), None where all count."""
    if lengths is None:
        return values_tB
    step_t = torch.arange(first, first + len(values_tB), device=values_tB.device)
    own_tB = step_t[:, None] < lengths.to(values_tB.device)
    return torch.where(own_tB.view(*own_tB.shape, *(1,) * (values_tB.dim() - 2)), values_tB, 0)


def time_first(network: LayeredNetwork, x: Any) -> tuple[Tensor, Tensor | None]:
    """A batch of data, examples first, as a network reads it: still samples as they are, sequences time first.

    Args:
        network: gives the shape of a sample at one step.
        x: (B, *shape); (B, T, *shape); or an object with ``values`` (B, T, *shape) and ``lengths`` (B,).

    Returns:
        (B, *shape) or (T, B, *shape), and the lengths of the sequences or None.
    """
    values, lengths = (x.values, x.lengths) if hasattr(x, "lengths") else (x, None)
    return (values.transpose(0, 1) if values.dim() == len(network.input_shape) + 2 else values), lengths
