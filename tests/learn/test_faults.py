"""Damaged files, values that are not finite and failing loaders: a training loses nothing that was saved."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from spikeprop import CNN, Backprop, Digits, fit
from spikeprop.errors import CheckpointError, TrainingCollapsed
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.learn import Callback, LearningRule, TrainingState, load_checkpoint, load_latest, save_checkpoint
from spikeprop.recipe import load_recipe
from spikeprop.runtime.files import previous_of, remove_leftovers, write_text


def small() -> CNN:
    torch.manual_seed(0)
    return CNN(input_shape=(1, 8, 8), classes=10, plan=[2, "A"], hidden=[], dropout=0.2)


def train(
    file: Path | None, *callbacks: Callback, batches: object = None, rule: LearningRule | None = None, epochs: int = 2
) -> Tensor:
    model = small()
    source = Digits(train_limit=48).train(16, 0) if batches is None else batches
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    fit(model, rule or Backprop(), source, optimizer, epochs=2, callbacks=callbacks, checkpoint=file, checkpoint_seconds=0)  # type: ignore[arg-type]
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Stop(Callback):
    """Ends the training after so many steps, as a kill would."""

    def __init__(self, after: int):
        self.left = after

    def on_step(self, training: TrainingState) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def interrupted(file: Path, after: int = 4, **how: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(file, Stop(after), **how)  # type: ignore[arg-type]


def test_every_flipped_bit_of_a_checkpoint_is_detected(tmp_path: Path) -> None:
    """Every bit in the header, and some of the others."""
    file, source = tmp_path / "a.safetensors", random.Random(0)
    save_checkpoint(file, nn.Linear(8, 8), {"kind": "test"})
    content = file.read_bytes()
    places = [*range(8 * 300), *(source.randrange(8 * len(content)) for _ in range(100))]
    for place in places:
        corrupted = bytearray(content)
        corrupted[place // 8] ^= 1 << place % 8
        file.write_bytes(corrupted)
        with pytest.raises(CheckpointError):
            load_checkpoint(file)
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(file)


def test_tensors_of_any_layout_and_type_have_a_checksum(tmp_path: Path) -> None:
    from spikeprop.runtime.files import read_tensors, write_tensors

    odd = [
        torch.ones(()).expand(1),
        torch.ones(2, 3).T,
        torch.zeros(0, 3),
        torch.tensor(3),
        torch.ones(4)[::2],
        torch.tensor([True]),
    ]
    odd += [torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.float64, torch.int8, torch.complex64)]
    tensors = {str(n): t.contiguous() for n, t in enumerate(odd)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    found, _ = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], t) for name, t in tensors.items())


def test_checkpoints_without_checksum_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"model.a": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"spikeprop": '{"format": 1}'})
    assert load_checkpoint(tmp_path / "a.safetensors").section("model")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("corrupt", [lambda b: b[: len(b) // 2], lambda b: b[:-9] + b"\0" + b[-8:], lambda b: b""])
def test_training_resumes_from_the_previous_checkpoint_if_the_last_is_damaged(tmp_path: Path, corrupt: object) -> None:
    file = tmp_path / "p.safetensors"
    interrupted(file)
    last, before = (load_checkpoint(f).description["training"] for f in (file, previous_of(file)))
    assert (last["epoch"], last["step"]) == (1, 1)
    assert (before["epoch"], before["step"]) == (1, 0)
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(corrupt(bytes(content)))  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"p\.safetensors is damaged.*continuing from the checkpoint before it.*p\.previous"):
        assert torch.equal(train(file), train(None))
    assert (tmp_path / "p.safetensors.damaged").exists()


def test_kill_between_the_two_renamings_loses_one_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    interrupted(file)
    file.unlink()
    assert load_latest(file).description["training"]["step"] == 0
    assert torch.equal(train(file), train(None))


def test_file_that_cannot_be_replaced_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, replace, calls = tmp_path / "a.json", os.replace, []
    write_text(file, "old")

    def failing(works: set[int]) -> Callable[..., None]:
        def renamed(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) not in works:
                raise OSError(errno.EIO, "input/output error")
            replace(source, target)

        calls.clear()
        return renamed

    monkeypatch.setattr(os, "replace", failing({1, 3}))
    with pytest.raises(OSError, match=r"cannot write .*a\.json: .*nothing was changed there"):
        write_text(file, "new", keep_previous=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "old"
    monkeypatch.setattr(os, "replace", failing({1}))  # and it cannot be restored
    with pytest.raises(OSError, match=r"the existing file is now .*a\.previous\.json"):
        write_text(file, "new", keep_previous=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.previous.json"]
    assert previous_of(file).read_text() == "old"


@pytest.mark.parametrize("damage", ["{", "[]", '{"b": {}}'])
def test_damaged_stages_do_not_overwrite_the_previous_ones(tmp_path: Path, damage: str) -> None:
    file, recipe = tmp_path / "stages.json", load_recipe("digits_cnn_stdb")
    first = RunFolder(tmp_path, recipe)
    for name in "ab":
        first.stage(name, dict)
    file.write_text(damage)
    with pytest.warns(UserWarning, match=r"going on from .*stages\.previous\.json, a done"):
        again = RunFolder(tmp_path, recipe)
    again.stage("b", dict)
    assert (tmp_path / "stages.json.damaged").read_text() == damage
    assert list(json.loads(previous_of(file).read_text())) == ["a"]
    assert list(json.loads(file.read_text())) == ["a", "b"]
    file.unlink()  # as after a kill between the two renamings
    assert RunFolder(tmp_path, recipe).finished("a")


def test_damaged_checkpoint_without_a_previous_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"p\.safetensors is damaged.*none before it: restore it from a copy"):
        train(file)


@dataclass(frozen=True, kw_only=True)
class Noisy(Backprop):
    """Draws from all three global generators at every step."""

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        result = super().step(model, x, y)
        for p in model.parameters():
            assert p.grad is not None
            p.grad += torch.randn_like(p) * np.random.rand() * random.random()  # noqa: NPY002 - as rules of users may do
        return result


def test_rules_that_draw_from_numpy_and_python_resume_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    interrupted(file, rule=Noisy())
    assert torch.equal(train(file, rule=Noisy()), train(None, rule=Noisy()))


class Augmented(TensorDataset):
    """Draws random numbers in the process that loads, as augmentation does."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn_like(x) * random.random(), y


@pytest.mark.parametrize("after", [1, 4])
def test_shuffling_dataloader_resumes_bit_for_bit(tmp_path: Path, after: int) -> None:
    split = Digits(train_limit=48).test(48)
    images, labels = next(split.epoch(0))
    loader = DataLoader(Augmented(images[:48], labels[:48]), batch_size=16, shuffle=True)
    interrupted(tmp_path / "p.safetensors", after, batches=loader)
    resumed, uninterrupted = train(tmp_path / "p.safetensors", batches=loader), train(None, batches=loader)
    assert torch.equal(resumed, uninterrupted)
    assert not torch.equal(uninterrupted, train(None))


class Failing:
    """Batches whose reading fails once, in the middle of the second epoch."""

    def __init__(self) -> None:
        self.split, self.failed = Digits(train_limit=48).train(16, 0), False

    def __len__(self) -> int:
        return len(self.split)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(self.split.epoch(epoch, start), start):
            if (epoch, number) == (1, 2) and not self.failed:
                self.failed = True
                raise RuntimeError("the loader died")
            yield batch


def test_training_is_saved_when_reading_a_batch_fails(tmp_path: Path) -> None:
    file, batches = tmp_path / "p.safetensors", Failing()
    model = small()
    with pytest.raises(RuntimeError, match="the loader died"):
        fit(model, Backprop(), batches, torch.optim.Adam(model.parameters(), lr=1e-2), epochs=2, checkpoint=file)
    position = load_latest(file).description["training"]
    assert (position["epoch"], position["step"]) == (1, 2)
    assert torch.equal(train(file, batches=batches), train(None))


@dataclass(frozen=True, kw_only=True)
class Exploding(Backprop):
    """A finite loss, but a gradient that is not, from step ``after`` on."""

    after: int

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        result = super().step(model, x, y)
        if not hasattr(model, "steps"):
            model.steps = 0  # type: ignore[assignment]
        model.steps += 1  # type: ignore[operator,assignment]
        if model.steps == self.after:
            next(model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
        return result


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    with pytest.raises(TrainingCollapsed, match=r"not finite after epoch 2, batch 2.*clip"):
        train(file, rule=Exploding(after=5))
    assert all(torch.isfinite(t).all() for t in load_checkpoint(file).section("model").values())
    assert torch.equal(train(file), train(None))


def test_temporary_files_are_removed_only_if_their_process_has_ended(tmp_path: Path) -> None:
    names = {".a.safetensors.1.part.safetensors": True, ".a.json.99999999.part.json": False, ".ann.seconds": True}
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".b.safetensors.99999998.part").mkdir()
    (tmp_path / ".b.safetensors.99999998.part" / "half").touch()
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
