"""Sequences from arrays, torch datasets and files; spoken words, whose bands are held against tones with known answers."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from spikeprop.data import Digits, FrameData, SequenceData, SpeechCommands
from spikeprop.data.sequences import read_npz
from spikeprop.data.speech import RATE, WORDS, _centres, read_wav
from spikeprop.errors import DataError, MissingDataError
from spikeprop.runtime.batches import Sequences
from tests.data.layouts import sound, written

X, Y = torch.arange(5 * 3 * 2.0).view(5, 3, 2), torch.tensor([0, 1, 2, 0, 1])


def all_of(split: Any, epoch: int = 0) -> tuple[Tensor, Tensor]:
    batches = list(split.epoch(epoch))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_arrays_and_datasets_give_the_same_batches() -> None:
    plain = SequenceData(training=(X, Y), testing=(X.numpy(), Y.numpy()), classes=3)
    dataset = SequenceData(training=TensorDataset(X, Y), testing=TensorDataset(X, Y), classes=3, test_limit=4)
    for data in (plain, dataset):
        assert data.input_shape == (2,)
        assert torch.equal(all_of(data.test(2))[0], X[: data.test_limit])
        x, y = all_of(data.train(2, seed=1), 3)
        assert not torch.equal(y, Y)
        assert torch.equal(x.flatten(1).argsort(0)[:, 0], torch.argsort(x[:, 0, 0]))
        rest = list(data.train(2, seed=1).epoch(3, start=1))
        assert torch.equal(torch.cat([x for x, _ in rest]), x[2:])
        assert data.train(2, 0).fingerprint() == data.train(2, 0).fingerprint()
    assert torch.equal(all_of(plain.train(2, 1), 3)[0], all_of(dataset.train(2, 1), 3)[0])
    assert plain.timesteps == 3
    assert plain.example(4).shape == (4, 3, 2)
    assert isinstance(dataset.example(4), Sequences)
    changed = SequenceData(training=(X + 1, Y), testing=(X, Y), classes=3)
    assert changed.train(2, 0).fingerprint() != plain.train(2, 0).fingerprint()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_of_no_examples_are_refused(batch_size: int) -> None:
    for training in ((X, Y), TensorDataset(X, Y)):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}; it must be positive"):
            SequenceData(training=training, testing=(X, Y), classes=3).train(batch_size, seed=0)
    with pytest.raises(ValueError, match="batch_size is"):
        Digits().test(batch_size)


def test_sequences_end_at_their_lengths() -> None:
    lengths = torch.tensor([1, 2, 3, 1, 2])
    data = SequenceData(training=(X, Y, lengths), testing=(X, Y, lengths), classes=3)
    x, _ = next(data.test(2).epoch(0))
    assert isinstance(x, Sequences)
    assert x.lengths.tolist() == [1, 2]
    assert torch.equal(x.values, torch.stack([torch.stack([X[0, 0], torch.zeros(2)]), X[1, :2]]))
    unequal = [(X[i, : int(n)], int(Y[i])) for i, n in enumerate(lengths)]
    y, _ = next(SequenceData(training=unequal, testing=_Listed(unequal), classes=3).test(2).epoch(0))
    assert torch.equal(y.values, x.values)
    assert data.timesteps is None
    moved = x.to(torch.float64)
    assert (moved.dtype, moved.lengths.dtype) == (torch.float64, torch.int64)
    assert x[torch.tensor([1])].lengths.tolist() == [2]


class _Listed(torch.utils.data.Dataset[Any]):
    def __init__(self, examples: list[Any]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> Any:
        return self.examples[number]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ((X, Y + 1), "labels from 1 to 3; they are 0 to 2"), ((X, Y[:2]), r"labels \(2,\)"), ((X[:, :0], Y), r"\(5, 0, 2\)"),
        ((X, Y.float()), "give integers"), ((X, Y, Y), "not one of 1 to 3"), ((X / 0, Y), "not finite"), ((X,), "has 1 parts"),
        (3, "training is a int"),
    ],
)  # fmt: skip
def test_impossible_arrays_are_named(training: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SequenceData(training=training, testing=(X, Y), classes=3)


@pytest.mark.parametrize(
    ("example", "message"), [((X[0, :0], 1), r"shape \(0, 2\)"), ((X[0], 3), "label 3"), (X[0], "is a Tensor")]
)
def test_impossible_examples_of_a_dataset_are_named(example: Any, message: str) -> None:
    data = SequenceData(training=_Listed([(X[0], 0), example]), testing=(X, Y), classes=3)
    with pytest.raises(DataError, match=f"example 1 of the dataset.*{message}"):
        list(data.train(2, 0).epoch(0))


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_frames_of_files_are_read(tmp_path: Path) -> None:
    frames, labels = np.random.default_rng(0).integers(0, 255, (6, 4, 2, 3, 3)).astype(np.uint8), np.arange(6) % 3
    fortran = npz(x=np.asfortranarray(frames.astype(">f4")), y=labels.astype(np.uint16), lengths=np.array([1, 2, 3, 4, 4, 4]))
    written(tmp_path, {"train.npz": npz(x=frames, y=labels), "test.npz": fortran})
    data = FrameData(root=str(tmp_path), frame_shape=[2, 3, 3], classes=3, timesteps=4, scale=255.0)
    x, y = all_of(data.test(2))
    torch.testing.assert_close(x, torch.from_numpy(frames) / 255)
    assert y.tolist() == labels.tolist()
    assert len(all_of(data.train(4, 0))[0]) == 6
    unequal = FrameData(root=str(tmp_path), frame_shape=[2, 3, 3], classes=3)
    batch, _ = next(unequal.test(3).epoch(0))
    assert (batch.lengths.tolist(), batch.shape) == ([1, 2, 3], (3, 3, 2, 3, 3))
    assert isinstance(unequal.example(2), Sequences)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (npz(x=np.zeros((2, 4, 3)), y=[0, 1])[:-30], {}, "truncated"),
        (npz(x=np.zeros((2, 4, 3))), {}, "no array 'y'"),
        (npz(x=np.zeros((2, 4, 3)), y=np.array([{}, {}])), {}, "not numbers"),
        (npz(x=np.zeros((2, 4, 3)), y=[0, 5]), {}, "labels from 0 to 5"),
        (npz(x=np.zeros((2, 5, 3)), y=[0, 1]), {}, r"not \(N, 4, 3\)"),
        (npz(x=np.zeros((2, 4, 3)), y=[0, 1]), {"timesteps": None}, "no array 'lengths'"),
    ],
)
def test_impossible_files_of_frames_are_named(content: bytes, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(tmp_path, {"test.npz": content})
    data = FrameData(**{"root": str(tmp_path), "frame_shape": [3], "classes": 2, "timesteps": 4, **settings})
    with pytest.raises(MissingDataError, match=rf"test.npz.*{message}"):
        data.test(1)


def test_a_file_of_zeros_that_claims_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2, 2)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", header.getvalue())
    with pytest.raises(MissingDataError, match=r"says that it has 17,592,186,044,416 bytes"):
        read_npz(tmp_path / "a.npz", ["x"])


# speech -----------------------------------------------------------------------------------------------------------------------


def tone(frequency: float, amplitude: float = 1.0) -> Tensor:
    return amplitude * torch.sin(torch.arange(RATE) * (2 * math.pi * frequency / RATE))[None]


@pytest.mark.parametrize("encoder", ["mel", "resonator"])
def test_a_tone_shows_in_its_own_band_with_its_power(encoder: str) -> None:
    data = SpeechCommands(encoder=encoder)
    centres = _centres(data, 2)[1:-1] if encoder == "mel" else _centres(data, 0)
    for band in (9, 20, 33):
        x = data.encode(tone(float(centres[band]), 0.5))
        assert x.shape == (1, 100, 40)
        power = torch.expm1(x * math.log1p(1e6)) * 1e-6
        assert int(power[0, 50].argmax()) == band
        assert float(power[0, 50, band]) == pytest.approx(0.25, rel=0.35 if encoder == "mel" else 0.2)
    assert not data.encode(torch.zeros(1, RATE)).any()
    late = tone(1000.0)
    late[:, : RATE // 2] = 0
    x = data.encode(late)
    assert not x[0, :50].any()  # a step sees nothing of what comes after it
    assert x[0, 60].max() > 0.5


def test_resonators_equal_their_recurrence() -> None:
    data = SpeechCommands(encoder="resonator", bands=3, hop=20.0)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.3, (1, RATE)))
    pole = torch.exp(2 * math.pi / RATE * torch.complex(-(24.7 + _centres(data, 0) / 9.265), _centres(data, 0)))
    z, wanted = torch.zeros(3, dtype=torch.complex128), []
    for t, sample in enumerate(x[0]):
        z = pole * z + 2 * (1 - pole.abs()) * sample
        if (t + 1) % 320 == 0:
            wanted.append(z.abs().square())
    power = torch.expm1(data.encode(x.float()).double() * math.log1p(1e6)) * 1e-6
    torch.testing.assert_close(power[0], torch.stack(wanted), rtol=1e-3, atol=1e-8)


def speech(folder: Path, words: list[str]) -> Path:
    rng = np.random.default_rng(0)
    files = {f"{w}/{n}_nohash_0.wav": sound(rng.normal(0, 3000, 12_000 + n)) for w in words for n in range(4)}
    lists = {
        "validation_list.txt": f"{words[0]}/1_nohash_0.wav\n",
        "testing_list.txt": "".join(f"{w}/3_nohash_0.wav\n" for w in words),
    }
    return written(folder, {**files, **{name: text.encode() for name, text in lists.items()}})


def test_speech_commands_layout(tmp_path: Path) -> None:
    data = SpeechCommands(root=str(speech(tmp_path, ["yes", "no"])), words=["no", "yes"], bands=16)
    train, test = data.train(4, seed=0), data.test(8)
    assert len(train.samples) == 5
    assert [label for _, label in test.samples] == [0, 1]
    x, _ = next(test.epoch(0))
    assert x.shape == (2, 100, 16)
    assert x[0, :70].any()
    assert x[0, 80:].sum() == 0  # shorter than a second
    assert data.class_names() == ["no", "yes"]
    assert torch.equal(all_of(train, 2)[0], all_of(data.train(4, seed=0), 2)[0])
    assert train.fingerprint() != SpeechCommands(root=str(tmp_path), words=["no", "yes"], bands=17).train(4, 0).fingerprint()
    with pytest.raises(MissingDataError, match=r"no backward/\*.wav"):
        SpeechCommands(root=str(tmp_path)).test(1)
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(MissingDataError, match=r"testing_list.txt cannot be read"):
        data.test(1)
    assert len(WORDS) == SpeechCommands().classes == 35


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sound(np.zeros(0)), "0 samples"), (sound(np.zeros(16_001)), "16001 samples"),
        (sound(np.zeros(9), rate=8000), "8000 Hz, 9"), (sound(np.zeros(8), channels=2), "2 channels"),
        (sound(np.zeros(100))[:-3], "ends after 98 of 100"), (b"RIFF", "truncated"),
    ],
)  # fmt: skip
def test_impossible_sounds_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(MissingDataError, match=rf"a.wav.*{message}"):
        read_wav(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": 7.0}, "steps fill a second"), ({"window": 5.0}, "a window holds one"), ({"encoder": "x"}, "mel or resonator"),
        ({"bands": 400}, "hold no frequency"), ({"highest": 9000.0}, "lowest < highest"), ({"words": ["no"]}, "at least two"),
    ],
)  # fmt: skip
def test_impossible_encodings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeechCommands(**settings)
