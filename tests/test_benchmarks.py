"""Benchmarks: peers spike like spikeprop, clear refusals, and each script end to end at a tiny size."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from spikeprop import CNN, IF, LIF, Direct, MaxActivation, Poisson, SpikingNetwork, convert
from spikeprop.snn import Encoder, Neuron
from tests.hardware.test_lava import lava_or_skip

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LIBRARIES = {"snnTorch": "snntorch", "Norse": "norse", "SpikingJelly": "spikingjelly", "SpikingJelly s": "spikingjelly"}
FEW = ["--contenders", "spikeprop", "plain loop"]
TINY = {
    "step": ["--timesteps", "3", "--batch", "1", "--repeats", "1"],
    "infer": ["--timesteps", "10", "--batch", "2", "--images", "3", "--repeats", "1"],
    "memory": ["--timesteps", "3", "--batch", "1"],
    "balance": ["--network", "vgg5", "--timesteps", "10", "--images", "1", "--dtype", "float64"],
    "open_neuromorphic": ["--sizes", "32", "--timesteps", "20", "--batch", "2", "--repeats", "1"],
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks, which are scripts and not a package."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # waiting threads do not occupy the cores
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def need(contender: str) -> None:
    """Skip where a peer's library is not installed."""
    if contender in LIBRARIES:
        pytest.importorskip(LIBRARIES[contender], reason="the bench extra is not installed")


def network_of(neuron: Neuron, encoder: Encoder) -> SpikingNetwork:
    """A small network whose sums are exact in float32 in any order, and whose potentials never equal a threshold."""
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[16, "A", 16, "A"], hidden=[32], dropout=0.2)
    images = torch.rand(16, 1, 8, 8)
    network = convert(ann, [images], neuron, MaxActivation(), encoder=encoder)
    for _, layer in network.named_layers():
        for _, _, synapse in layer.branches():
            for module in synapse.weighted():
                module.weight.data.mul_(16).round_().div_(16)
        if isinstance(layer.neuron, Neuron):
            layer.neuron.v_threshold = (layer.neuron.v_threshold * 64).round().div(64) + 2**-12
    return network


@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=["direct", "poisson"])
@pytest.mark.parametrize("v_init", [0.0, 0.5])
@pytest.mark.parametrize("name", ["plain loop", *LIBRARIES])
def test_peers_give_our_outputs_exactly(load: Any, name: str, v_init: float, encoder: Encoder) -> None:
    need(name)
    network = network_of(IF(v_init=v_init), encoder)
    x = torch.randint(-4, 5, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 4
    _, ours = load("peers").contender("spikeprop", network)
    model, theirs = load("peers").contender(name, network)
    model.eval()
    with torch.inference_mode():
        for timesteps in (1, 2, 7, 20):
            outputs = []
            for forward in (ours, theirs):
                torch.manual_seed(2)
                outputs.append(forward(x, timesteps))
            assert torch.equal(*outputs), timesteps
    assert outputs[0].std() > 1


def test_refusals_name_unsupported_features_of_peers(load: Any) -> None:
    peers: ModuleType = load("peers")
    cases = [
        (network_of(LIF(), Direct()), "IF neurons"),
        (network_of(IF(reset="zero"), Direct()), "IF neurons"),
        (network_of(IF(v_init=2.0), Direct()), "above its threshold"),
        (network_of(IF(), Direct()).train(), "trains with dropout"),
    ]
    several = network_of(IF(), Direct())
    next(iter(several.neurons().values())).v_threshold = torch.ones(16, 1, 1)
    for network, reason in [*cases, (several, "16 thresholds")]:
        with pytest.raises(peers.NotComparable, match=reason):
            peers.layers(network)


@pytest.mark.parametrize("name", ["plain loop", "snnTorch", "Norse", "SpikingJelly"])
def test_open_neuromorphic_contenders_fire_equally_often(load: Any, name: str) -> None:
    need(name)
    contenders = load("open_neuromorphic").CONTENDERS
    torch.manual_seed(0)
    linear, x_TBN = torch.nn.Linear(32, 32), torch.randn(40, 3, 32)
    losses = []
    for contender in ("spikeprop", name):
        linear.zero_grad()
        loss = contenders[contender](linear)(x_TBN)
        loss.backward()
        assert linear.weight.grad is not None
        assert float(linear.weight.grad.abs().sum()) > 0
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1] > 100


def test_memory_growth_is_the_slope_in_bits(load: Any) -> None:
    points = {10: {"peak_mib": 9.0}, 100: {"peak_mib": 100.0}, 150: {"peak_mib": 101.0}, 200: None}
    assert load("memory").bits(points, "peak_mib", 2**20 * 8) == pytest.approx(1 / 50)


def run(module: ModuleType, arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    module.main([*arguments, "--out", str(folder / "found.json")])
    assert "best peer / spikeprop: " in capsys.readouterr().out
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "infer", "memory"])
def test_scripts_run(load: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(load(name), [*TINY[name], *FEW], tmp_path, capsys)
    assert found["benchmark"] == name
    assert found["machine"]["threads"] == found["machine"]["cores"]
    if name == "infer":
        assert [result["agreement"] for result in found["results"].values()] == [100, 100]
        assert set(found["results"]["spikeprop"]["rates"]) > {"input", "features_0"}


def test_fit_is_compared_with_a_loop_by_hand(load: Any, tmp_path: Path) -> None:
    tiny = ["--steps", "3", "--batch", "4", "--repeats", "1", "--widths", "4", "8"]
    load("fit").main([*tiny, "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [len(result["seconds"]) for result in found["results"].values()] == [2, 2]
    assert found["ratios"]["images_per_second"] > 0


@pytest.mark.slow
def test_balancing_equals_its_definition(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(load("balance"), TINY["balance"], tmp_path, capsys)["largest_difference"] < 1e-12


@pytest.mark.slow
def test_open_neuromorphic_runs(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(load("open_neuromorphic"), [*TINY["open_neuromorphic"], *FEW], tmp_path, capsys)["results"]["32"]
    assert results["spikeprop"]["spikes"] == results["plain loop"]["spikes"] > 0


def test_hardware_speed_runs_and_its_simulators_agree(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lava_or_skip()
    for precision in ("float", "fixed"):
        arguments = ["--images", "5", "--lava", "2", "--repeats", "1", "--precision", precision]
        load("hardware_speed").main([*arguments, "--out", str(tmp_path / "found.json")])
        assert "spikes all equal" in capsys.readouterr().out
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["results"]["spikes"] > 0
        assert found["settings"]["precision"] == precision


def test_adjoints_of_all_contenders_agree(load: Any) -> None:
    aad = load("aad")
    found = aad.differences(argparse.Namespace(xad_paths=80))
    assert "torch, one tape" in found
    for one in found.values():
        assert set(one) == {"price", "spot", "volatilities", "rate", "dividend"}
        assert max(one.values()) < 1e-11
    assert aad.risk(aad.model(), aad.PRODUCT, aad.PseudoRandom(paths=80)).value > 0.1  # there is something to differentiate


@pytest.mark.slow
def test_the_benchmark_of_adjoints_runs(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xad", reason="the bench extra is not installed")
    few = ["--paths", "2000", "--few", "100", "--xad-paths", "20", "--repeats", "1", "--memory-paths", "2000", "4000"]
    load("aad").main([*few, "--out", str(tmp_path / "found.json")])
    assert "largest relative difference to ours" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sensitivities"] == 1083
    assert all(result["ratio"] > 0 for result in found["results"].values())
    assert [one["paths"] for one in found["memory"]] == [2000, 4000]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_scripts_run_with_every_contender(load: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library in LIBRARIES:
        need(library)
    plot = ["--plot", str(tmp_path / "plot.png")] if name == "memory" else []
    run(load(name), [*TINY[name], *plot], tmp_path, capsys)
    assert not plot or (tmp_path / "plot.png").stat().st_size > 10_000


def test_explain_counts_edges_with_numbers(tmp_path: Path) -> None:
    """As a program: it starts a browser, and a process has one Playwright, which may be that of other tests."""
    command = [sys.executable, BENCHMARKS / "explain.py", "--networks", "xor", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "found.json"], cwd=BENCHMARKS.parent, capture_output=True, text=True, check=False
    )
    assert "100.0 %" in done.stdout, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["results"]["xor"]
    assert found["edges"]["spikeprop"] == {"edges": 8, "all": 8, "upstream": 8, "local": 8, "downstream": 8}
    assert found["page"]["checks"]["edges_that_match"] == 8


@pytest.mark.slow
def test_interlocking_runs_beside_pytorchs_pipelines(load: Any, tmp_path: Path) -> None:
    """Real processes: run as a program, because they import it again."""
    arguments = [
        "--processes",
        "2",
        "--width",
        "4",
        "--size",
        "16",
        "--batch",
        "8",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "a.json"),
    ]
    subprocess.run([sys.executable, str(BENCHMARKS / "interlocking.py"), *arguments], check=True, capture_output=True)
    found = json.loads((tmp_path / "a.json").read_text())["stages"]["2"]
    for part in ("processes", "simulated"):
        assert set(found[part]) == {"local", "pairwise", "3-wise", "global", "GPipe", "1F1B"}
        assert all(one["images_per_second"] > 0 for one in found[part].values())


@pytest.mark.slow
def test_agreement_runs_on_photographs(data_root: Path) -> None:
    """Two photographs, two steps: each half calibrates the network that is tested on the other half."""
    command = [sys.executable, str(BENCHMARKS / "agreement.py"), "--images", "2", "--timesteps", "2", "--batch", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 2 at T = 2" in done.stdout


def test_model_of_many_devices_equals_its_formula(load: Any) -> None:
    scaling = load("scaling")
    size, step = 100_000_000, 0.05
    ring = 2 * 999 / 1000 * size / scaling.BANDWIDTH + 2 * 999 * scaling.LATENCY
    assert scaling._efficiency(size, step, 1000, overlap=False) == pytest.approx(step / (step + ring))
    assert ring < 2 / 3 * step  # hidden, but for the last bucket
    assert scaling._efficiency(size, step, 1000) == pytest.approx(step / (step + ring * scaling.BUCKET / size))
    assert scaling._efficiency(size, step, 1) == 1.0
    longer = ring + 2 * 999 / 1000 * 9 * size / scaling.BANDWIDTH
    assert scaling._efficiency(10 * size, step, 1000) == pytest.approx(step / (step / 3 + longer))


@pytest.mark.slow
def test_scaling_runs(load: Any, tmp_path: Path) -> None:
    load("scaling").main(["--batch", "4", "--steps", "2", "--timesteps", "3", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    for one in found["measured"].values():
        assert all(told[kind] > 0 for told in one["processes"].values() for kind in ("strong", "weak"))


def test_ldbp_measures_every_contender(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("ldbp").main(["--repeats", "1", "--blocks", "2", "--out", str(tmp_path / "found.json")])
    assert "2 pol., 19 taps" in capsys.readouterr().out
    races = json.loads((tmp_path / "found.json").read_text())["races"]
    assert [(one["polarisations"], one["samples"]) for one in races] == [(1, 512), (1, 4096), (2, 512), (2, 4096)]
    assert all(rate > 0 for one in races for rate in one["samples_per_second"].values())


@pytest.mark.parametrize("polarisations", [1, 2])
def test_ldbps_contenders_do_the_same_step(load: Any, polarisations: int) -> None:
    """With all taps, the same rotation and Kerr coefficient, our step equals the step by FFT."""
    from spikeprop.plugins.ldbp_pmd.fir import fir
    from spikeprop.plugins.ldbp_pmd.kerr import rotate_and_turn

    samples, benchmark = 9, load("ldbp")
    step, parameters = benchmark.with_fft(polarisations, samples, trained=True)
    phase, *rest, kerr = parameters
    omega = 2 * torch.pi * torch.fft.fftfreq(samples)
    delays = torch.stack([-omega, omega]) * rest[0] if polarisations == 2 else torch.zeros(1, samples)
    taps = torch.fft.fftshift(torch.fft.ifft(torch.exp(1j * (phase + delays))), -1)
    matrix = None
    if polarisations == 2:
        a, b = torch.view_as_complex((rest[1] / rest[1].norm()).view(2, 2)).unbind()
        matrix = torch.stack([torch.stack([a, b]), torch.stack([-b.conj(), a.conj()])])
    x = torch.randn(3, polarisations, samples, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotate_and_turn(fir(x, taps), kerr, matrix), step(x), atol=1e-5)


@pytest.mark.slow
def test_sharding_runs(tmp_path: Path) -> None:
    """Run as a program: its processes find it by its file."""
    out = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/sharding.py", "--small", "--processes", "1", "2", "--steps", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for one in json.loads(out.read_text())["measured"].values():
        assert [(row["processes"], row["sharded"]) for row in one["rows"]] == [(1, False), (2, False), (2, True)]
        alone, whole, spread = (row["peak_mib"] for row in one["rows"])
        assert spread < whole
        assert one["parameters_mib"] < alone <= 1.1 * whole


@pytest.mark.slow
def test_finetuning_changes_one_choice_at_a_time_and_continues(
    load: Any, tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"images": 200, "test": 60, "epochs": 1, "tuning": 32, "batch": 16, "calibration": 16, "seeds": 1}
    arguments = [text for name, value in tiny.items() for text in (f"--{name}", str(value))]
    arguments += ["--cache", str(tmp_path), "--out", str(tmp_path / "found.json"), "--contenders"]
    load("finetuning").main([*arguments, "base", "batch-norm kept", "gradient through the reset", "dropout 0.1"])
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    before = [runs[0]["before"] for runs in found.values()]
    assert before == before[:1] * 4  # what is kept, let through or dropped changes nothing until it is trained
    load("finetuning").main([*arguments, "base"])
    assert json.loads((tmp_path / "found.json").read_text())["results"] == found
    assert "base" in capsys.readouterr().out


@pytest.mark.slow
def test_few_steps_are_measured_both_ways(load: Any, tmp_path: Path) -> None:
    load("few_steps").main(["--timesteps", "1", "--batch", "2", "--repeats", "1", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert set(found) == {"packed", "bfloat16"}
