"""``SpeechCommands``: spoken words as sequences of frequency bands, through a mel filter bank or a bank of resonators.

A sequence has a step for each ``hop``, and each step sees the sound until its end, never after it. With P the power in a band,
relative to a sine of amplitude 1, the value is log(1 + P/e) / log(1 + 1/e) with e = 1e-6: 0 in silence, about 1 for a loud tone.

- mel: P from the squared short-time Fourier transform under a Hann window, in triangles that overlap by half and whose corners
  are at equal distances in mel(f) = 2595 log10(1 + f/700) (Davis & Mermelstein 1980, https://doi.org/10.1109/TASSP.1980.1163420).
- resonator: P = |z|^2 of damped resonators z_t = a z_{t-1} + 2 (1 - |a|) x_t, a = exp((-2 pi b + 2 pi i f) / rate), the linear
  part of resonate-and-fire neurons (Izhikevich 2001, https://doi.org/10.1016/S0893-6080(01)00078-8), with the bandwidth
  b = 24.7 + f/9.265 Hz of an ear's filter (Glasberg & Moore 1990, https://doi.org/10.1016/0378-5955(90)90170-T).
"""

from __future__ import annotations

import math
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.data.base import LabelledData, data_root, hash_of_files, rows_of_batches
from spikeprop.errors import MissingDataError
from spikeprop.runtime.batches import Batch
from spikeprop.runtime.checks import positive

RATE = 16_000  # samples in a second, and in an example
LARGEST_FILE = 2**20  # bytes; a second has 32,044
LARGEST_LIST = 2**24
FLOOR = 1e-6
WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy", "house",
    "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree",
    "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SpeechCommands(LabelledData):
    """Speech Commands, version 2 (Warden 2018, arXiv:1804.03209): 105,829 recordings of one second, 35 words.

    ``<word>/*.wav``, and ``validation_list.txt`` and ``testing_list.txt``, which name the recordings that are not for training.
    Batches are (B, T, bands), T = 1000 / hop.

    Attributes:
        root: folder of the words; default ``$SPIKEPROP_DATA/SpeechCommands/speech_commands_v0.02``, as torchaudio lays it out.
        encoder: mel or resonator.
        bands: frequency bands.
        hop: milliseconds of a step, a divisor of 1000.
        window: milliseconds of sound that mel sees at a step, at least ``hop``.
        lowest, highest: frequencies of the bands in Hz.
        words: the classes; default all 35.
    """

    root: str | None = None
    encoder: str = "mel"
    bands: int = 40
    hop: float = 10.0
    window: float = 32.0
    lowest: float = 50.0
    highest: float = 8000.0
    words: list[str] = field(default_factory=lambda: list(WORDS))
    in_time: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "bands", "hop")
        if self.encoder not in ("mel", "resonator"):
            raise ValueError(f"encoder is {self.encoder!r}; use mel or resonator")
        if not 0 < self.lowest < self.highest <= RATE / 2:
            raise ValueError(f"lowest is {self.lowest} and highest {self.highest} Hz; use 0 < lowest < highest <= {RATE // 2}")
        if self.step < 1 or RATE % self.step or self.step != RATE * self.hop / 1000 or self.window < self.hop:
            raise ValueError(f"hop is {self.hop} and window {self.window} ms; steps fill a second, and a window holds one")
        if len(self.words) < 2 or len(set(self.words)) < len(self.words):
            raise ValueError(f"words is {list(self.words)}; give at least two, each once")
        if self.encoder == "mel" and not bool((mel_bank(self).sum(0) > 0).all()):
            raise ValueError(f"bands is {self.bands}, so narrow that some hold no frequency of a window of {self.window} ms")

    @property
    def step(self) -> int:
        """Samples of a step."""
        return round(RATE * self.hop / 1000)

    @property
    def timesteps(self) -> int:
        """Steps of a second."""
        return RATE // self.step

    @property
    def input_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.bands,)

    @property
    def classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.words)

    def class_names(self) -> list[str]:
        return list(self.words)

    def example(self, size: int) -> Tensor:
        """Silence (size, T, bands)."""
        return torch.zeros(size, self.timesteps, self.bands)

    def encode(self, sound: Tensor) -> Tensor:
        """Sound (B, 16000) in [-1, 1] as (B, T, bands)."""
        power = mel_power(sound, self) if self.encoder == "mel" else resonator_power(sound, self)
        return torch.log1p(power / FLOOR) / math.log1p(1 / FLOOR)

    def folder(self) -> Path:
        """The folder of the words."""
        root = data_root(self.root)
        return root if self.root else root / "SpeechCommands" / "speech_commands_v0.02"

    def train(self, batch_size: int, seed: int) -> SpeechSplit:
        return self._split(True, batch_size, seed, self.train_limit)

    def test(self, batch_size: int) -> SpeechSplit:
        return self._split(False, batch_size, None, self.test_limit)

    def _split(self, train: bool, batch_size: int, seed: int | None, limit: int | None) -> SpeechSplit:
        folder = self.folder()
        held = [_listed(folder / f"{name}_list.txt") for name in ("validation", "testing")]
        found = []
        for label, word in enumerate(self.words):
            files = sorted((folder / word).glob("*.wav"))
            if not files:
                raise MissingDataError(f"SpeechCommands: no {word}/*.wav in {folder}; copy the set there or set data.root")
            found += [(path, label) for path in files if _belongs(f"{word}/{path.name}", held, train)]
        found.sort(key=lambda item: (item[0].name, item[1]))  # by speaker, so that limits see all words
        if not found:
            raise MissingDataError(f"SpeechCommands: {folder} has no recordings of this split; its two lists name the others")
        return SpeechSplit([(str(path), label) for path, label in found[:limit]], batch_size, self, seed)


@dataclass(frozen=True)
class SpeechSplit:
    """Files of sound with labels, encoded in batches."""

    samples: Sequence[tuple[str, int]]
    batch_size: int
    data: SpeechCommands
    seed: int | None = None

    def __post_init__(self) -> None:
        positive(self, "batch_size")

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        for index in rows_of_batches(len(self.samples), self.batch_size, self.seed, epoch)[start:]:
            chosen = [self.samples[i] for i in index.tolist()]
            yield self.data.encode(torch.stack([read_wav(path) for path, _ in chosen])), torch.tensor([n for _, n in chosen])

    def fingerprint(self) -> str:
        """Hash of the files, the labels and the encoding; of more than 256 MiB, of the files' names and sizes."""
        settings = [getattr(self.data, name) for name in ("encoder", "bands", "hop", "window", "lowest", "highest")]
        return hash_of_files((path for path, _ in self.samples), f"{settings} {[label for _, label in self.samples]}")


def _listed(path: Path) -> set[str]:
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise ValueError(f"it has more than {LARGEST_LIST:,} bytes")
        return set(path.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise MissingDataError(f"SpeechCommands: {path} cannot be read ({error}); copy it there with the set") from error


def _belongs(name: str, held: Sequence[set[str]], train: bool) -> bool:
    validation, testing = held
    return name not in validation and name not in testing if train else name in testing


def read_wav(path: str | Path) -> Tensor:
    """A second of sound, (16000,) in [-1, 1]; a shorter recording ends in silence.

    Raises:
        MissingDataError: truncated, damaged, empty, longer than a second, or not 16-bit mono at 16 kHz.
    """
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        with wave.open(str(path), "rb") as file:
            form, count = (file.getnchannels(), file.getsampwidth(), file.getframerate()), file.getnframes()
            if form != (1, 2, RATE) or not 0 < count <= RATE:
                raise ValueError(f"{form[0]} channels of {8 * form[1]} bits at {form[2]} Hz, {count} samples")
            content = file.readframes(count)
        if len(content) != 2 * count:
            raise ValueError(f"it ends after {len(content) // 2} of {count} samples")
    except Exception as error:  # the reader raises many types for damaged files
        raise MissingDataError(
            f"{path} is truncated, damaged or not up to one second of 16-bit mono sound at {RATE} Hz ({error}); get it again"
        ) from error
    sound = torch.zeros(RATE)
    sound[:count] = torch.from_numpy(np.frombuffer(content, "<i2").astype(np.float32)) / 2**15
    return sound


# filters ----------------------------------------------------------------------------------------------------------------------


def _centres(data: SpeechCommands, corners: int) -> Tensor:
    """Frequencies at equal distances in mel, ``corners`` beyond the bands."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (data.lowest, data.highest))
    return 700 * (10 ** (torch.linspace(low, high, data.bands + corners, dtype=torch.float64) / 2595) - 1)


def _window(data: SpeechCommands) -> int:
    return round(RATE * data.window / 1000)


def mel_bank(data: SpeechCommands) -> Tensor:
    """Triangles (frequencies of the transform, bands), of height 1."""
    corners = _centres(data, 2)
    frequencies = torch.arange(_window(data) // 2 + 1, dtype=torch.float64)[:, None] * RATE / _window(data)
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    return torch.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)).clamp(min=0).float()


def mel_power(sound: Tensor, data: SpeechCommands) -> Tensor:
    """Power of sound (B, samples) in each band, (B, T, bands)."""
    size = _window(data)
    window = torch.hann_window(size)
    padded = F.pad(sound, (size - data.step, 0))
    spectrum = torch.stft(padded, size, data.step, size, window, center=False, return_complex=True)
    power = (2 / window.sum() * spectrum.abs()) ** 2 / 1.5  # a Hann window spreads a sine over 1.5 frequencies
    return power.transpose(1, 2) @ mel_bank(data)


def resonator_power(sound: Tensor, data: SpeechCommands) -> Tensor:
    """Power of sound (B, samples) in each resonator at the end of each step, (B, T, bands).

    Within a step, z is a sum over its samples; from step to step, a recurrence. Both are exact.
    """
    centres = _centres(data, 0)
    pole = torch.exp(torch.complex(-(24.7 + centres / 9.265), centres) * (2 * math.pi / RATE))
    kernel = pole ** torch.arange(data.step - 1, -1, -1, dtype=torch.float64)[:, None] * (2 * (1 - pole.abs()))
    driven = (sound.unflatten(1, (-1, data.step)).to(torch.complex64) @ kernel.to(torch.complex64)).unbind(1)
    carried = (pole**data.step).to(torch.complex64)
    z, steps = torch.zeros_like(driven[0]), []
    for drive in driven:
        z = carried * z + drive
        steps.append(z.abs().square())
    return torch.stack(steps, 1)
