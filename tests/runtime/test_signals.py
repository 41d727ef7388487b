"""A signal lets the step finish and saves the training, which resumes to the same weights."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from spikeprop import CNN, Backprop, Digits, fit
from spikeprop.errors import Stopped
from spikeprop.learn import Callback, TrainingState, load_latest
from spikeprop.runtime.signals import deferred_signals, stop_if_requested, stop_requested


class Signal(Callback):
    """Sends a signal to this process after so many steps."""

    def __init__(self, number: int, after: int):
        self.number, self.after = number, after

    def on_step(self, training: TrainingState) -> None:
        self.after -= 1
        if self.after == 0:
            os.kill(os.getpid(), self.number)


def train(checkpoint: Path | None, *callbacks: Callback) -> CNN:
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[4, "A"], hidden=[], dropout=0.2)
    optimizer = torch.optim.Adam(ann.parameters(), lr=1e-3)
    fit(ann, Backprop(), Digits(train_limit=96).train(16, 0), optimizer, epochs=2, callbacks=callbacks, checkpoint=checkpoint)
    return ann


def weights(ann: CNN) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in ann.parameters()])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [2, 6, 9])
def test_a_signal_finishes_the_step_saves_and_stops(tmp_path: Path, number: int, after: int) -> None:
    told: list[str] = []
    file = tmp_path / "p.safetensors"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, deferred_signals(told.append):
        train(file, Signal(number, after))
    assert caught.value.signal == number
    assert len(told) == 1
    assert "finished and saved" in told[0]
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert not stop_requested()
    position = load_latest(file).description["training"]
    assert position["epoch"] * 6 + position["step"] == after
    assert torch.equal(weights(train(file)), weights(train(None)))


def test_after_the_last_step_a_signal_does_not_undo_the_training(tmp_path: Path) -> None:
    with deferred_signals(lambda _: None):
        ann = train(tmp_path / "p.safetensors", Signal(signal.SIGTERM, 12))
        with pytest.raises(Stopped):
            stop_if_requested()
    assert torch.equal(weights(ann), weights(train(None)))


def test_second_signal_stops_immediately() -> None:
    with deferred_signals(lambda _: None):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested()
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143


def test_forwarded_signal_under_torchrun_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("spikeprop.runtime.signals.ECHO", 0.2)
    with deferred_signals(lambda _: None):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
        time.sleep(0.3)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGINT)
