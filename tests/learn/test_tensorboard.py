"""TensorBoard's scalars: they equal the log, a resumed stage has each epoch once, and a run works without TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikeprop.experiment.context import Context
from spikeprop.learn import Backprop, Callback, TensorBoardLog, TrainingState, fit, tensorboard_installed, write_scalars
from spikeprop.runtime.processes import ALONE

needs_it = pytest.mark.skipif(not tensorboard_installed(), reason="TensorBoard is not installed")
BATCHES = [(torch.eye(4)[:2].repeat(4, 1), torch.tensor([0, 1] * 4))] * 3


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name to (step, value), as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def train(folder: Path, epochs: int, checkpoint: Path | None = None, *more: Callback) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return fit(
        model, Backprop(), BATCHES, optimizer, epochs=epochs, callbacks=[TensorBoardLog(folder), *more], checkpoint=checkpoint
    )


@needs_it
def test_each_epoch_is_a_step_of_every_scalar(tmp_path: Path) -> None:
    history = train(tmp_path, 3)
    found = scalars(tmp_path)
    assert set(found) == {"loss", "accuracy", "lr", "seconds"}
    assert found["loss"] == [(epoch, pytest.approx(line["loss"], rel=1e-6)) for epoch, line in enumerate(history)]


class _Stop(Callback):
    """Ends the training in the third epoch, as a kill does: two epochs are saved, and their scalars written."""

    def on_step(self, training: TrainingState) -> None:
        if training.epoch == 2 and training.step == 2:
            raise KeyboardInterrupt


@needs_it
def test_a_resumed_stage_has_each_epoch_once(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "t", 4, checkpoint, _Stop())
    assert len(scalars(tmp_path / "t")["loss"]) == 2
    train(tmp_path / "t", 4, checkpoint)
    assert [step for step, _ in scalars(tmp_path / "t")["loss"]] == [0, 1, 2, 3]


@needs_it
def test_rewritten_scalars_replace_the_old_ones(tmp_path: Path) -> None:
    write_scalars(tmp_path / "s", {"accuracy by T": {2: 10.0, 8: 20.0}})
    write_scalars(tmp_path / "s", {"accuracy by T": {4: 30.0}})
    assert scalars(tmp_path / "s") == {"accuracy by T": [(4, 30.0)]}


def test_nothing_is_written_without_tensorboard_or_if_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder: Any = type("Folder", (), {"path": tmp_path, "processes": ALONE})()
    assert Context(folder, "x", print, tensorboard=False).watchers("ann") == []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert not tensorboard_installed()
    context = Context(folder, "x", print)
    assert context.watchers("ann") == []
    context.show("converted", {"accuracy by T": {2: 10.0}})
    assert not list(tmp_path.iterdir())
