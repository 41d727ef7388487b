"""The loop: schedules, checkpoints, resuming, collapse; and rules that only fill gradients."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from spikeprop import BPTT, CNN, IF, LIF, Backprop, Digits, MaxActivation, Poisson, SpikingNetwork, convert, fit
from spikeprop.convert import to_spiking
from spikeprop.errors import CheckpointError, TrainingCollapsed
from spikeprop.learn import (
    Callback,
    CollapseGuard,
    Constant,
    Cosine,
    CrossEntropy,
    LearningRule,
    MetricsLog,
    SquaredError,
    Steps,
    TrainingState,
    load_checkpoint,
    load_model,
    save_checkpoint,
)


def small_ann(seed: int = 0) -> CNN:
    torch.manual_seed(seed)
    return CNN(input_shape=(1, 8, 8), classes=10, plan=[4, "A"], hidden=[16], dropout=0.2)


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=lr, amsgrad=True, weight_decay=5e-4)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Interrupt(Callback):
    """Stops the training after so many steps, like a kill."""

    def __init__(self, steps: int):
        self.left = steps

    def on_step(self, training: TrainingState) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


R = TypeVar("R", bound=LearningRule)
Made = tuple[nn.Module, R, torch.optim.Optimizer]


def uninterrupted_and_resumed(make: Callable[[], Made[R]], file: Path) -> tuple[tuple[nn.Module, R], tuple[nn.Module, R]]:
    """Network and rule after two epochs, and after two that were stopped at step 7 and resumed from ``file``."""

    def run(*callbacks: Callback, checkpoint: Path | None = None) -> tuple[nn.Module, R]:
        model, rule, optimizer = make()
        data = Digits(train_limit=160).train(32, seed=4)
        with contextlib.suppress(KeyboardInterrupt):
            fit(model, rule, data, optimizer, epochs=2, checkpoint=checkpoint, checkpoint_seconds=0, callbacks=callbacks)
        return model, rule

    uninterrupted = run()
    run(Interrupt(7), checkpoint=file)
    return uninterrupted, run(checkpoint=file)


def trained_neurons(ann: nn.Module) -> SpikingNetwork:
    network = to_spiking(ann, lambda: LIF(leak=0.9, trainable=("threshold", "leak")), Poisson(), (1, 8, 8))
    for neuron in network.neurons().values():
        neuron.set_threshold(torch.tensor(0.1))
    return network


def spiking(ann: nn.Module) -> SpikingNetwork:
    torch.manual_seed(1)
    return convert(ann, [torch.rand(16, 1, 8, 8)], IF(), MaxActivation(), encoder=Poisson())


@pytest.mark.parametrize("after", [3, 7, 9], ids=lambda n: f"after {n} steps")
@pytest.mark.parametrize("kind", ["ann", "snn", "trained neurons"])
def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path, kind: str, after: int) -> None:
    data = Digits(train_limit=160, crop=1).train(32, seed=4)  # five batches, augmented
    rule: LearningRule = Backprop() if kind == "ann" else BPTT(timesteps=4)
    common: dict[str, Any] = {"epochs": 2, "schedule": Steps(), "seed": 3}

    def start() -> nn.Module:
        if kind == "trained neurons":
            return trained_neurons(small_ann())
        return small_ann() if kind == "ann" else spiking(small_ann())

    uninterrupted = start()
    history = fit(uninterrupted, rule, data, adam(uninterrupted), **common)
    file = tmp_path / "progress.safetensors"
    first = start()
    with pytest.raises(KeyboardInterrupt):
        fit(first, rule, data, adam(first), checkpoint=file, checkpoint_seconds=0, callbacks=[Interrupt(after)], **common)
    torch.manual_seed(99)
    torch.rand(17)  # another process has another state of the generator
    second = start()
    resumed = fit(second, rule, data, adam(second), checkpoint=file, **common)
    assert torch.equal(weights(uninterrupted), weights(second))
    assert [h["loss"] for h in history] == [h["loss"] for h in resumed]
    assert not torch.equal(weights(first), weights(second))


@dataclass(frozen=True, kw_only=True)
class Helped(Backprop):
    """A rule with a trained module, a trace and a scalar of its own."""

    def prepare(self, model: nn.Module, x: torch.Tensor) -> None:
        self.own["helper"] = nn.Linear(10, 10)
        self.own["trace"] = nn.BatchNorm1d(10, affine=False)

    def step(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = model(x)
        loss = nn.functional.cross_entropy(self.own["helper"](self.own["trace"](scores)), y)
        loss.backward()
        return {"loss": loss.detach(), "scores": scores.detach(), "spread": scores.detach().std()}


class Remembers(Callback):
    """Moves the weights towards their initial values, which after a kill only the checkpoint has."""

    start: torch.Tensor | None = None

    def on_start(self, training: TrainingState) -> None:
        self.start = weights(training.model).clone() if self.start is None else self.start

    def on_gradient(self, training: TrainingState) -> None:
        assert self.start is not None
        for p, start in zip(training.model.parameters(), self.start.split([p.numel() for p in training.model.parameters()])):
            assert p.grad is not None
            p.grad += 0.1 * (p.detach() - start.view_as(p))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {} if self.start is None else {"start": self.start}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.start = state["start"]


def test_rule_and_callback_with_state_resume_bit_for_bit(tmp_path: Path) -> None:
    data, file = Digits(train_limit=160).train(32, seed=4), tmp_path / "progress.safetensors"

    def run(*extra: Callback, checkpoint: Path | None = None) -> tuple[nn.Module, Helped, list[dict[str, Any]]]:
        model, rule = small_ann(), Helped()
        rule.prepare(model, torch.zeros(2, 1, 8, 8))
        optimizer = torch.optim.Adam(rule.param_groups(model), lr=1e-2)
        history: list[dict[str, Any]] = []
        try:
            callbacks = [Remembers(), *extra]
            history = fit(
                model, rule, data, optimizer, epochs=2, checkpoint=checkpoint, checkpoint_seconds=0, callbacks=callbacks, clip=1.0
            )
        except KeyboardInterrupt:
            pass
        return model, rule, history

    uninterrupted, rule, history = run()
    run(Interrupt(8), checkpoint=file)
    resumed, again, rest = run(checkpoint=file)
    assert torch.equal(weights(uninterrupted), weights(resumed))
    assert all(torch.equal(rule.state_dict()[name], value) for name, value in again.state_dict().items())
    assert [h["spread"] for h in history] == [h["spread"] for h in rest]
    other = small_ann()
    with pytest.raises(CheckpointError, match=r"another learning rule.*helper"):
        fit(other, Backprop(), data, adam(other), epochs=2, checkpoint=file)


def test_optimiser_without_the_rules_own_parameters_is_refused() -> None:
    model, rule = small_ann(), Helped()
    rule.prepare(model, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"lacks 2 parameters of Helped's own: call rule\.prepare"):
        fit(model, rule, Digits(train_limit=32).train(32, seed=0), adam(model), epochs=1)


def test_rule_fills_gradients_and_changes_no_parameter() -> None:
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    models: list[tuple[Any, LearningRule]] = [(small_ann(), Backprop()), (spiking(small_ann()), BPTT(timesteps=5))]
    for model, rule in models:
        before = weights(model)
        result = rule.step(model.train(), x, y)
        assert result["loss"].shape == ()
        assert result["scores"].shape == (8, 10)
        assert not result["loss"].requires_grad
        assert torch.equal(weights(model), before)
        assert all(p.grad is not None for p in model.parameters())


def test_losses_equal_hand_computed_values() -> None:
    scores, y = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert float(SquaredError()(scores, y)) == (0 + 4 + 0 + 1) / 2
    assert float(CrossEntropy()(scores, y)) == pytest.approx((math.log(1 + math.e) + math.log(2)) / 2)
    with pytest.raises(ValueError, match="give it or a loss, not both"):
        Backprop(label_smoothing=0.1, loss=SquaredError())


def test_bptt_is_the_gradient_of_the_accumulated_output() -> None:
    """Without a hidden layer there is no spike to differentiate: BPTT is plain backprop on T times the scores."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    from spikeprop.snn import Direct

    network = to_spiking(ann, IF, Direct(), (1, 8, 8)).double().train()
    x, y = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.arange(6)
    BPTT(timesteps=7).step(network, x, y)
    ann = ann.double()
    nn.functional.cross_entropy(7 * ann(x), y).backward()
    for ours, plain in zip(network.parameters(), ann.parameters()):
        assert ours.grad is not None
        assert plain.grad is not None
        torch.testing.assert_close(ours.grad, plain.grad)


def test_chunked_training_gives_the_same_gradient() -> None:
    x, y = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    grads = []
    for chunk in (None, 1, 3):
        network = spiking(small_ann())
        network.double().train()
        torch.manual_seed(2)
        BPTT(timesteps=8, chunk=chunk).step(network, x, y)
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-9, atol=1e-12)


def test_fine_tuning_raises_accuracy_at_few_steps(digits_cnn: CNN) -> None:
    from spikeprop import ThresholdBalancing, snn_accuracy

    data = Digits()
    images = [next(iter(data.train(256, seed=0).epoch(0)))[0]]
    network = convert(digits_cnn, images, IF(), ThresholdBalancing(timesteps=50, scale=0.5))
    before = snn_accuracy(network, data.test(360).epoch(0), [4])[4]
    fit(network, BPTT(timesteps=4), data.train(32, seed=5), adam(network, 5e-4), epochs=4)
    after = snn_accuracy(network, data.test(360).epoch(0), [4])[4]
    assert before < 90
    assert after > max(before + 5, 90), before


def test_the_loop_keeps_trained_thresholds_and_leaks_in_their_ranges() -> None:
    network, data = trained_neurons(small_ann()), Digits(train_limit=64).train(16, seed=0)
    seen = []

    class Look(Callback):
        def on_step(self, training: TrainingState) -> None:
            seen.extend((float(n.v_threshold.detach()), float(n.leak.detach())) for n in network.neurons().values())

    greedy = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=15.0)  # makes every parameter negative
    fit(network, BPTT(timesteps=3), data, greedy, epochs=1, callbacks=[Look()])
    assert min(theta for theta, _ in seen) == min(leak for _, leak in seen) == pytest.approx(1e-4)


def test_schedules_equal_their_formulas() -> None:
    steps = Steps(milestones=(0.6, 0.8, 0.9), divisor=10)
    assert [steps(p) for p in (0.0, 0.59, 0.6, 0.8, 0.95)] == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    cosine = Cosine(warmup=0.2)
    assert [cosine(p) for p in (0.2, 0.6, 1.0)] == pytest.approx([1, 0.5, 0])
    assert 0 < cosine(0.0) < cosine(0.1) < 1
    assert Constant()(0.7) == 1


def test_the_schedule_multiplies_the_base_rate_after_a_resume_too(tmp_path: Path) -> None:
    data, model = Digits(train_limit=64).train(16, seed=0), small_ann()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    history = fit(model, Backprop(), data, optimizer, epochs=10, schedule=Steps(), checkpoint=tmp_path / "a.safetensors")
    assert [h["lr"] for h in history] == pytest.approx([0.5] * 6 + [0.05] * 2 + [0.005, 0.0005])


def test_list_of_batches_trains() -> None:
    model = small_ann()
    batches = [(torch.rand(4, 1, 8, 8), torch.randint(10, (4,))) for _ in range(3)]
    assert len(fit(model, Backprop(), batches, adam(model), epochs=2)) == 2
    assert not model.training
    with pytest.raises(ValueError, match="no batches"):
        fit(model, Backprop(), [], adam(model), epochs=1)


def test_a_batch_of_one_trains() -> None:
    network = spiking(small_ann())
    history = fit(network, BPTT(timesteps=3), Digits(train_limit=3).train(1, seed=0), adam(network), epochs=1)
    assert history[0]["loss"] > 0


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    model, file = small_ann(), tmp_path / "a.safetensors"
    batches = [(torch.full((4, 1, 8, 8), float("nan")), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(TrainingCollapsed, match="lower the learning rate"):
        fit(model, Backprop(), batches, adam(model), epochs=1, checkpoint=file)
    assert not file.exists()


def test_accuracy_under_chance_stops_with_advice() -> None:
    model = small_ann()
    wrong = [(torch.zeros(600, 1, 8, 8), torch.ones(600, dtype=torch.long))]
    with torch.no_grad():
        last = model.classifier[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight[1] -= 5  # class 1 is never predicted
    for callback, least in ((CollapseGuard(10), True), (CollapseGuard(10, least=601), False)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        if least:
            # every score is zero on a black image without biases: argmax is class 0, the label is 1
            with pytest.raises(TrainingCollapsed, match="under chance"):
                fit(model, Backprop(), wrong, optimizer, epochs=1, callbacks=[callback])
        else:
            fit(model, Backprop(), wrong, optimizer, epochs=1, callbacks=[callback])


def test_metrics_of_a_rerun_epoch_replace_the_old_ones(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    lines = [{"stage": "ann", "epoch": 0}, {"stage": "ann", "epoch": 1}, {"stage": "finetune", "epoch": 1}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "a')
    model = small_ann()
    training = TrainingState(model, adam(model), epochs=3, steps_per_epoch=1, epoch=1)
    MetricsLog(log, "ann").on_start(training)
    assert [json.loads(line) for line in log.read_text().splitlines()] == [lines[0], lines[2]]


def test_checkpoints_round_trip_and_hold_no_pickle(tmp_path: Path) -> None:
    model, file = small_ann(), tmp_path / "net.safetensors"
    save_checkpoint(file, model, {"kind": "ann"})
    other = small_ann(seed=1)
    load_model(other, load_checkpoint(file))
    assert torch.equal(weights(model), weights(other))
    assert json.loads(file.with_suffix(".json").read_text())["kind"] == "ann"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_a_checkpoint_of_another_architecture_names_the_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", small_ann(), {})
    other = CNN(input_shape=(1, 8, 8), classes=10, plan=[5, "A", 6], hidden=[16])
    with pytest.raises(
        CheckpointError, match=r"another architecture: missing features\.3\.weight.*features\.0\.weight is \(4, 1"
    ):
        load_model(other, load_checkpoint(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "absent", "foreign"])
def test_damaged_checkpoints_are_named(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "a.safetensors"
    save_checkpoint(file, small_ann(), {})
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "garbage":
        file.write_bytes(b"not a checkpoint at all")
    elif damage == "absent":
        file.unlink()
    else:
        save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        load_checkpoint(file)


def test_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after half of the file."""
    file = tmp_path / "a.safetensors"
    save_checkpoint(file, small_ann(), {"n": 1})
    before = file.read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.safetensors.*No space left"):
        save_checkpoint(file, small_ann(1), {"n": 2})
    assert file.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_the_error_of_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    """safetensors has its own error type; here a limit on the size of files raises it."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*a\.safetensors: .*; nothing was changed there"):
            save_checkpoint(tmp_path / "a.safetensors", small_ann(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spikeprop.learn import checkpoint as module

    monkeypatch.setattr(module, "FORMAT", 2)
    save_checkpoint(tmp_path / "a.safetensors", small_ann(), {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, this spikeprop reads 1"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_deferred_metrics_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where the losses of many steps are read together."""
    from spikeprop.learn import metrics

    data, histories = Digits(train_limit=160).train(32, seed=4), []
    for patience in (0.0, 1e9):
        model = small_ann()
        monkeypatch.setattr(metrics, "_seconds_between_readings", lambda _, seconds=patience: seconds)
        histories.append(fit(model, Backprop(), data, adam(model), epochs=2))
    assert [{**h, "seconds": 0} for h in histories[0]] == [{**h, "seconds": 0} for h in histories[1]]
    batches = [(torch.full((4, 1, 8, 8), value), torch.zeros(4, dtype=torch.long)) for value in (0.5, float("nan"), 0.5)]
    with pytest.raises(TrainingCollapsed, match="batch 2"):
        fit(model, Backprop(), batches, adam(model), epochs=1)


def test_autocast_trains() -> None:
    model = small_ann()
    history = fit(model, Backprop(), Digits(train_limit=160).train(32, seed=4), adam(model), epochs=2, autocast=torch.bfloat16)
    assert history[1]["loss"] < history[0]["loss"]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_progress_of_another_run_is_refused(tmp_path: Path) -> None:
    model, file = small_ann(), tmp_path / "a.safetensors"
    fit(model, Backprop(), Digits(train_limit=64).train(16, seed=0), adam(model), epochs=1, checkpoint=file)
    with pytest.raises(CheckpointError, match="epochs=1, this one has 2"):
        fit(model, Backprop(), Digits(train_limit=64).train(16, seed=0), adam(model), epochs=2, checkpoint=file)
