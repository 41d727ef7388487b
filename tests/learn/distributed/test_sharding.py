"""A sharded network trains like a complete one, and its checkpoints are those of a complete one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn

from spikeprop import CNN, IF, Direct, MaxActivation, convert, fit
from spikeprop.ann import TorchvisionModel
from spikeprop.cli import main
from spikeprop.errors import RecipeError, Stopped
from spikeprop.experiment.pipeline import HybridConversion
from spikeprop.learn import (
    BPTT,
    Backprop,
    Callback,
    Checkpoint,
    LearningRule,
    load_checkpoint,
    load_model,
    save_checkpoint,
    shard,
)
from spikeprop.learn.distributed.sharding import blocks, local_shard
from spikeprop.plugins import ActivationRelaxation, BasicResNet
from spikeprop.recipe import load_recipe
from spikeprop.runtime.files import previous_of
from spikeprop.runtime.processes import ALONE, Processes, group
from spikeprop.runtime.signals import deferred_signals
from tests.forked import ranks, spawn

SHAPE = (1, 8, 8)
SIZES = (7, 4, 1)  # unequal shards, and a batch that is too small for two


def batches(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.rand(size, *SHAPE, dtype=torch.float64), torch.arange(size) % 5) for size in sizes]


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return BasicResNet(input_shape=SHAPE, classes=5, width=4, blocks=(1, 1, 1, 1)).double()


def spiking() -> nn.Module:
    torch.manual_seed(0)
    ann = CNN(input_shape=SHAPE, classes=5, plan=[4, "A"], hidden=[12], dropout=0.0, hidden_dropout=0.0).double()
    network = convert(ann, [x for x, _ in batches(SIZES)], IF(v_init=0.5, trainable=("threshold",)), MaxActivation())
    network.encoder = Direct()
    return network


class Tied(nn.Module):
    """Two blocks that share a weight, which therefore belongs to neither."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.again = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
        self.again[0].weight = self.body[1].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.body(x))


def tied() -> nn.Module:
    torch.manual_seed(0)
    return Tied().double()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], LearningRule], tuple[int, ...]]] = {
    "blocks, batch-norm": (resnet, Backprop, SIZES[:2]),
    "one block, numbers": (spiking, lambda: BPTT(timesteps=4), SIZES),
    "a weight of two": (tied, lambda: Backprop(label_smoothing=0.1), SIZES),
}


TIED = "a weight of two"


class Terminate(Callback):
    """Sends its own process SIGTERM after the first step."""

    def on_step(self, training: Any) -> None:
        if training.epoch == 0 and training.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Interrupt(Callback):
    """Ends a training in its second epoch."""

    def on_step(self, training: Any) -> None:
        if training.epoch:
            raise InterruptedError


def train(
    case: str, processes: Processes = ALONE, *, sharded: bool = False, progress: Path | None = None, interrupted: bool = False
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The trained network, and its history without times."""
    make, make_rule, sizes = CASES[case]
    model = make()
    if processes.rank:
        nn.init.normal_(next(model.parameters()))
    if sharded:
        shard(model, processes, torch.device("cpu"))
    optimizer, history = torch.optim.Adam(model.parameters(), lr=0.01), []
    how: dict[str, Any] = {"epochs": 2, "clip": 0.05, "checkpoint": progress, "processes": processes}
    try:
        history = fit(model, make_rule(), batches(sizes), optimizer, callbacks=[Interrupt()] if interrupted else [], **how)
    except InterruptedError:
        assert interrupted
    return model, [{k: v for k, v in one.items() if k != "seconds"} for one in history]


def _one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    patience = timedelta(minutes=2)  # a process that waits in vain for another's shard fails then
    with group(dist.FileStore(f"{folder}/store", 2), rank, 2, patience) as two:
        for number, case in enumerate(CASES):
            model, history = train(case, two, sharded=True)
            parts = {name: local_shard(p).numel() for name, p in model.named_parameters()}
            save_checkpoint(folder / f"{number}.safetensors", model, {"history": history}, writes=not rank)
            (folder / f"{number}.{rank}.json").write_text(json.dumps(parts))
        case = next(iter(CASES))
        train(case, two, sharded=True, progress=folder / "started-sharded.safetensors", interrupted=True)
        resumed, _ = train(case, two, sharded=True, progress=folder / "started-complete.safetensors")
        save_checkpoint(folder / "resumed-sharded.safetensors", resumed, {}, writes=not rank)
        train(TIED, two, sharded=True, progress=folder / "tied.safetensors", interrupted=True)
        again, _ = train(TIED, two, sharded=True, progress=folder / "tied.safetensors")
        assert again.get_parameter("again.0.weight") is again.get_parameter("body.1.weight")
        save_checkpoint(folder / "resumed-tied.safetensors", again, {}, writes=not rank)
        _stopped_by_a_signal_to_rank_1(folder, two)
        optimizer = torch.optim.SGD(resumed.parameters())
        with pytest.raises(ValueError, match="give fit the same processes"):
            fit(resumed, Backprop(), batches((4,)), optimizer, epochs=1)
        with pytest.raises(ValueError, match=r"ActivationRelaxation does not take its gradients.*use Backprop or BPTT"):
            fit(resumed, ActivationRelaxation(), batches((4,)), optimizer, epochs=1, processes=two)


def _stopped_by_a_signal_to_rank_1(folder: Path, two: Processes) -> None:
    """Checkpoints are due at rank 0 after every step, at rank 1 never: both send their shards at the same steps."""
    model, progress = resnet(), folder / "stopped.safetensors"
    shard(model, two, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    how: dict[str, Any] = {"epochs": 1, "checkpoint": progress, "processes": two, "checkpoint_seconds": 1e9 if two.rank else 0.0}
    with deferred_signals(lambda _: None), pytest.raises(Stopped):
        fit(model, Backprop(), batches((4,) * 5), optimizer, callbacks=[Terminate()] if two.rank else [], **how)
    if not two.rank:
        (folder / "stopped.json").write_text(json.dumps(load_checkpoint(progress).description["training"]["step"]))
        assert previous_of(progress).exists(), "no checkpoint was written before the stop's"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded")
    train(next(iter(CASES)), progress=path / "started-complete.safetensors", interrupted=True)
    spawn(_one_of_two, (path,), nprocs=2)
    return path


def assert_same(checkpoint: Checkpoint, model: nn.Module) -> None:
    found, expected = checkpoint.section("model"), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-10, name


@pytest.mark.parametrize("case", CASES)
def test_sharded_network_trains_like_a_complete_one(folder: Path, case: str) -> None:
    number = list(CASES).index(case)
    checkpoint, (model, history) = load_checkpoint(folder / f"{number}.safetensors"), train(case)
    assert_same(checkpoint, model)
    assert [{k: pytest.approx(v, abs=1e-10) for k, v in one.items()} for one in history] == checkpoint.description["history"]


@pytest.mark.parametrize("case", CASES)
def test_each_process_keeps_only_its_shard(folder: Path, case: str) -> None:
    number = list(CASES).index(case)
    parts = [json.loads((folder / f"{number}.{rank}.json").read_text()) for rank in range(2)]
    for name, p in CASES[case][0]().named_parameters():
        rows = -(-len(p) // 2) if p.dim() else 1
        sizes = [part[name] for part in parts]
        assert sizes[0] == rows * (p[0].numel() if p.dim() else 1)
        assert sum(sizes) == (p.numel() if p.dim() else 2)


def test_blocks_have_at_most_a_quarter_and_are_never_inside_torchs_modules() -> None:
    network = TorchvisionModel(name="resnet18", classes=10)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks(network)]
    total = sum(p.numel() for p in network.parameters())
    assert max(sizes) <= total / 4
    assert 0.99 * total < sum(sizes) <= total  # the rest, only batch-norms, is the network's own
    attention = nn.TransformerEncoderLayer(8, 2)
    assert blocks(nn.Sequential(attention)) == [attention]  # its attention reads out_proj's weight and does not call it
    one = tied()
    assert blocks(one) == [one.get_submodule("again.2")]  # the shared weight belongs to neither


def test_checkpoint_resumes_sharded_or_complete(folder: Path) -> None:
    case = next(iter(CASES))
    expected, _ = train(case)
    went_on, history = train(case, progress=folder / "started-sharded.safetensors")
    for (name, p), q in zip(went_on.named_parameters(), expected.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-10, name
    assert len(history) == 2
    assert_same(load_checkpoint(folder / "resumed-sharded.safetensors"), expected)


def test_tied_weights_are_stored_once_and_resume_tied(folder: Path) -> None:
    expected, _ = train(TIED)
    for name in ("tied", "resumed-tied"):
        file = folder / f"{name}.safetensors"
        assert "model.again.0.weight" not in load_file(file)
        assert load_checkpoint(file).description["aliases"] == {"model.again.0.weight": "model.body.1.weight"}
        assert_same(load_checkpoint(file), expected)
    complete = tied()
    load_model(complete, load_checkpoint(folder / "tied.safetensors"))
    assert complete.get_parameter("again.0.weight") is complete.get_parameter("body.1.weight")


def test_signal_to_one_process_stops_all_after_the_same_step(folder: Path) -> None:
    assert json.loads((folder / "stopped.json").read_text()) == 2  # a signal after the first step, which the second step tells


def test_unshardable_network_is_refused() -> None:
    model = resnet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"weight is not contiguous in memory: make it contiguous"):
        shard(model, Processes(0, 2), torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["train.rule={use: spikeprop.plugins.ActivationRelaxation}"], "train: ActivationRelaxation does not take its gradients"),
        (["train.callbacks=[{use: spikeprop.plugins.RIFLE}]"], "train: RIFLE needs complete parameters"),
        (["finetune.callbacks=[{use: spikeprop.plugins.L2SP}]"], "finetune: L2SP needs complete parameters"),
        (["train.callbacks=[Lookahead]"], "train: Lookahead needs complete parameters"),
        (["train.memory_format=channels_last"], "memory_format: a sharded network keeps torch's own layout"),
        (["train.optimizer=Adafactor"], "train: Adafactor needs complete parameters: use another optimiser"),
    ],
)
def test_parts_that_need_a_complete_network_are_refused_before_training(overrides: list[str], problem: str) -> None:
    experiment = load_recipe("digits_cnn_stdb", ["sharded=true", *overrides]).experiment
    assert isinstance(experiment, HybridConversion)
    with pytest.raises(RecipeError, match=problem):
        experiment.check()


def test_sharded_run_of_two_processes_gives_the_result_of_one(tmp_path: Path) -> None:
    recipe = ["run", "digits_cnn_stdb", "--smoke", "simulate.samples=0", "ann.dropout=0", "ann.hidden_dropout=0", "--out"]
    runs = ranks(2, None, [*recipe, tmp_path / "sharded", "sharded=true"], tmp_path / "log")
    complete = CliRunner().invoke(main, [*recipe, str(tmp_path / "complete")])
    assert complete.exit_code == 0, complete.output
    for run in runs:
        assert run.ended() == 0, run.output
    for kind in ("ann", "finetuned"):
        one, other = (load_file(tmp_path / name / f"{kind}.safetensors") for name in ("sharded", "complete"))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert (value.double() - other[name].double()).abs().max() <= 1e-4, (kind, name)
