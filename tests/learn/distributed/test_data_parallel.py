"""Two processes, each with its shard of every batch, train like one: same gradients, same metrics, for every rule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikeprop import CNN, IF, MLP, Direct, MaxActivation, convert, fit
from spikeprop.ann import FastCNN
from spikeprop.deploy import QuantisedBPTT
from spikeprop.errors import BusyError, ProcessError, Stopped
from spikeprop.learn import BPTT, Backprop, EProp, LearningRule, Whitening
from spikeprop.learn.distributed.batchnorm import moments
from spikeprop.plugins import ActivationRelaxation, BasicResNet, ConvHead, Interlocking, MAPPropagation
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.processes import ALONE, Processes, group
from spikeprop.runtime.seeding import seed_torch
from tests.forked import ranks, spawn

ROOT = Path(__file__).parents[3]
SHAPE = (1, 8, 8)
SIZES = (7, 4)


def batches(case: str = "") -> list[tuple[Any, Tensor]]:
    torch.manual_seed(1)
    if case.startswith("sequences"):
        steps = 4
        of_size = {size: torch.rand(size, steps, *SHAPE, dtype=torch.float64) for size in SIZES}
        return [(Sequences(x, torch.arange(size) % steps + 1), torch.arange(size) % 5) for size, x in of_size.items()]
    sizes = {
        "bptt": (*SIZES, 1),  # a batch with fewer images than processes, which batch-norm does not allow
        "activation relaxation": (6, 4),  # it relaxes gradients of sums, which batch-norm weights correctly for equal shards
    }
    return [(torch.rand(size, *SHAPE, dtype=torch.float64), torch.arange(size) % 5) for size in sizes.get(case, SIZES)]


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return BasicResNet(input_shape=SHAPE, classes=5, width=4, blocks=(1, 1, 1, 1)).double()


def unreached() -> nn.Module:
    model = resnet()
    model.register_parameter("spare", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    return model


def freezing() -> nn.Module:
    torch.manual_seed(0)
    return FastCNN(input_shape=SHAPE, classes=5, widths=[4]).double()


def spiking() -> nn.Module:
    torch.manual_seed(0)
    ann = CNN(input_shape=SHAPE, classes=5, plan=[4, "A"], hidden=[12], dropout=0.0, hidden_dropout=0.0).double()
    network = convert(ann, [x for x, _ in batches()], IF(v_init=0.5, trainable=("threshold",)), MaxActivation())
    network.encoder = Direct()
    return network


def plain() -> nn.Module:
    torch.manual_seed(0)
    return MLP(input_shape=SHAPE, classes=5, hidden=[12], dropout=0.0).double()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], LearningRule]]] = {
    "backprop": (resnet, Backprop),
    "backprop, a parameter out of reach": (unreached, Backprop),
    "backprop, a layer that freezes": (freezing, Backprop),
    "bptt": (spiking, lambda: BPTT(timesteps=4)),
    "sequences, bptt": (spiking, BPTT),
    "sequences, each step": (spiking, lambda: BPTT(each_step=True, truncate=3)),
    "sequences, e-prop": (spiking, lambda: EProp(feedback="random")),
    "quantised": (spiking, lambda: QuantisedBPTT(timesteps=4, input_limit=1.0)),
    "activation relaxation": (resnet, lambda: ActivationRelaxation(step_size=1.0, iterations=30)),
    "interlocking": (resnet, lambda: Interlocking(cuts=4, reach=2, head=ConvHead(widths=[6, 4]))),
}


def trained(case: str, processes: Processes = ALONE) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    make, make_rule = CASES[case]
    model, rule = make(), make_rule()
    torch.manual_seed(3 + processes.rank)  # rank 0's network counts, not what another rank would draw
    rule.prepare(model, batches(case)[0][0])
    if processes.rank:
        torch.nn.init.normal_(next(model.parameters()))
    optimizer = torch.optim.SGD(rule.param_groups(model), lr=0.05, momentum=0.9)
    callbacks = [Whitening(images=7, bias_epochs=1)] if isinstance(model, FastCNN) else []
    history = fit(model, rule, batches(case), optimizer, epochs=2, callbacks=callbacks, processes=processes)
    state = {**model.state_dict(), **{f"own.{name}": value for name, value in rule.state_dict().items()}}
    return state, [{k: v for k, v in one.items() if k != "seconds"} for one in history]


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    with group(dist.FileStore(f"{folder}/store", 2), rank, 2):
        for number, case in enumerate(CASES):
            state, history = trained(case, Processes(rank, 2))
            save_file({k: v.contiguous().clone() for k, v in state.items()}, f"{folder}/{number}.{rank}.safetensors")
            Path(f"{folder}/{number}.{rank}.json").write_text(json.dumps(history))
        rule, model = Interlocking(cuts=4, reach=1, head=ConvHead(widths=[6, 4]), microbatches=2), resnet()
        rule.prepare(model, batches()[0][0])
        optimizer = torch.optim.SGD(rule.param_groups(model), lr=0.1)
        with pytest.raises(ValueError, match=r"Interlocking splits each batch.*microbatches=1"):
            fit(model, rule, batches(), optimizer, epochs=1, processes=Processes(rank, 2))
        save_file(_map_gradients(Processes(rank, 2)), f"{folder}/map.{rank}.safetensors")
        _end_together(Processes(rank, 2))
    ended = "pt_gloo_runloop" not in {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert ended or not Path("/proc").exists(), "threads of the group are alive: Python may abort when it ends"


def _end_together(processes: Processes) -> None:
    """A signal to one process stops both; the failure of one, even together with a signal, ends the other too."""

    def ask_or_fail(errors: dict[int, Exception]) -> None:
        if processes.rank in errors:
            raise errors[processes.rank]

    with pytest.raises(Stopped) as caught:
        processes.independently(lambda: ask_or_fail({1: Stopped(signal.SIGTERM)}))
    assert caught.value.signal == signal.SIGTERM
    with pytest.raises(ProcessError if processes.rank == 0 else BusyError):
        processes.independently(lambda: ask_or_fail({1: BusyError("in use")}))
    with pytest.raises(Stopped if processes.rank == 0 else BusyError):
        processes.independently(lambda: ask_or_fail({0: Stopped(signal.SIGINT), 1: BusyError("in use")}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two")
    spawn(_one_of_two, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_result_of_one(folder: Path, case: str) -> None:
    number = list(CASES).index(case)
    expected, history = trained(case)
    for rank in range(2):
        found = load_file(folder / f"{number}.{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= 1e-10, name
        told = json.loads((folder / f"{number}.{rank}.json").read_text())
        assert [{k: pytest.approx(v, abs=1e-10) for k, v in one.items()} for one in history] == told


@pytest.mark.parametrize("shape", [(9, 3), (4, 3, 50), (4, 3, 9, 11)])
def test_moments_of_channels_are_accurate_for_large_means(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 1000 + 0.1 * torch.randn(shape)
    mean, var = moments(x)
    by_channel = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, by_channel.mean(1), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(var, by_channel.var(1, correction=0), rtol=1e-5, atol=0.0)


def _map_gradients(processes: Processes) -> dict[str, Tensor]:
    """The gradients of one step, from fit with a learning rate of 0."""
    model, x_y = plain(), batches()[:1]
    fit(model, MAPPropagation(baseline=False), x_y, torch.optim.SGD(model.parameters(), lr=0.0), epochs=1, processes=processes)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_each_process_draws_its_own_random_numbers(folder: Path) -> None:
    """The gradient of a rule that draws is that of the shards, each with its rank's draws, weighted by their sizes."""
    (x, y), cut = batches()[0], SIZES[0] // 2
    expected: dict[str, Tensor] = {}
    for rank, part in enumerate((slice(0, cut), slice(cut, None))):
        model = plain().train()
        seed_torch(0, 0, 0, *([rank] if rank else []))
        MAPPropagation(baseline=False).step(model, x[part], y[part])
        for name, p in model.named_parameters():
            assert p.grad is not None
            expected[name] = expected.get(name, torch.zeros(())) + p.grad * len(y[part]) / len(y)
    for rank in range(2):
        found = load_file(folder / f"map.{rank}.safetensors")
        assert all((found[name] - expected[name]).abs().max() <= 1e-12 for name in expected)
    assert any(value.abs().max() > 0 for value in expected.values())


# the command --------------------------------------------------------------------------------------------------------------------

SHORT = ("train.epochs=6", "finetune.epochs=2", "evaluate.timesteps=[4]", "simulate.samples=0")


def _torchrun(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *more]
    command += ["-m", "spikeprop", "run", "digits_cnn_stdb", *SHORT, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _workers(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if (
                int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent
                and b"spikeprop" in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
    return found


def _wait_for_lines(file: Path, count: int, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and run.poll() is None:
        if file.exists() and len(file.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)


@pytest.mark.slow  # half a minute
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")
def test_killed_worker_is_restarted_and_the_run_completes_all_epochs(tmp_path: Path) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    with _torchrun(tmp_path / "run", "--max-restarts=2") as run:
        try:
            _wait_for_lines(metrics, 2, run)
            os.kill(_workers(run.pid)[-1], signal.SIGKILL)
            assert "ann" not in (tmp_path / "run" / "stages.json").read_text(), "the kill came too late to mean anything"
            output, _ = run.communicate(timeout=400)
        finally:
            run.terminate()  # a failed test leaves no process
    assert run.returncode == 0, output
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert [one["epoch"] for one in stages["ann"]["result"]["history"]] == list(range(6))
    assert [one["epoch"] for one in stages["finetune"]["result"]["history"]] == [0, 1]
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        *(("ann", i) for i in range(6)),
        ("finetune", 0),
        ("finetune", 1),
    ]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["provenance"]["processes"] == 2
    assert report["ann"]["accuracy"] > 90


FULL = """
import sys
import spikeprop.learn.training_checkpoint as module
from spikeprop.cli import main
def full(*_, **__):
    raise OSError(28, "No space left on device", "ann.progress.safetensors")
module.save_checkpoint = full
main(sys.argv[1:])
"""


def test_failure_of_one_process_ends_all(tmp_path: Path) -> None:
    """The disk is full at rank 0's first checkpoint, within an epoch, while rank 1 is in its next step."""
    command = ["run", "digits_cnn_stdb", *SHORT, "--save-every", "0", "--out", str(tmp_path / "run")]
    runs = ranks(2, FULL, command, tmp_path / "log")
    assert [run.ended() for run in runs] == [1, 1]
    assert "No space left on device" in runs[0].output
