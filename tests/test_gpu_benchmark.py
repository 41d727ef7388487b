"""``python -m benchmarks.gpu``: its parts on the CPU, how one part that ends leaves the others, what a killed run keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command_line
from benchmarks.gpu import checks, cifar, expectation, running, speed, suite
from benchmarks.gpu.cases import FORMULAS, Setting, scan, scan_back
from benchmarks.gpu.compilation import by_kernel, table
from benchmarks.gpu.parts import PARTS, Context, Part, plan
from benchmarks.gpu.picture import draw
from benchmarks.networks import random_images

ROOT = Path(__file__).parents[1]
ABOUT: dict[str, Any] = {"settings": {"small": True}, "machine": {"gpu": None}}
# What stands for parts in tests of how parts are run; each says {"n": 1} first.
PROGRAMS = {
    "good": "",
    "raises": "raise ValueError('a reason')",
    "crashes": "import os; os.abort()",
    "hangs": "import time; print('{\"n\": 2}', flush=True); time.sleep(60)",
    "absent": 'print(\'{"absent": "not installed"}\')',
    "wrong": 'print(\'{"kernel": "_scan", "good": false}\')',
    "talks": "print('no JSON'); print('3')",
}


def stand_in(part: Part, limit: float, small: bool) -> list[str]:
    return [sys.executable, "-c", f"print('{{\"n\": 1}}', flush=True)\n{PROGRAMS[part.name]}"]


def parts(*names: str) -> list[Part]:
    return [Part(name, "", "", 1 if name == "hangs" else 30) for name in names]


def test_parts_that_run_on_the_cpu_do_and_the_plan_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kernels by Triton's interpreter. The exit code says whether there is a GPU."""
    file = tmp_path / "gpu.json"
    code = command_line.main(["--small", "--parts", "checks", "roofline", "--budget", "300", "--out", str(file)])
    found, (out, err) = json.loads(file.read_text()), capsys.readouterr()
    assert {name: known["status"] for name, known in found["parts"].items()} == {"checks": "done", "roofline": "done"}, found
    assert code == (0 if torch.cuda.is_available() else command_line.NO_GPU)
    assert torch.cuda.is_available() or "no GPU was found" in err
    assert plan(300, small=True) in out
    kernels = {"_scan", "_since_at_end", "_scan_back", "_scan_back_slopes", "_spread", "_pool", "_any_of", "_unpack"}
    assert {record["kernel"] for record in found["parts"]["checks"]["records"]} == kernels
    assert all(record["good"] for record in found["parts"]["checks"]["records"])
    assert {record["kernel"] for record in found["parts"]["roofline"]["records"]} == kernels | {"copy"}
    assert found["machine"]["versions"]["torch"]


@pytest.mark.slow
def test_all_parts_run_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    code = command_line.main(["--small", "--budget", "600", "--out", str(file)])
    known = json.loads(file.read_text())["parts"]
    assert code in (0, command_line.NO_GPU), known
    assert all(known[part.name]["status"] in ("done", "skipped") for part in PARTS)
    assert [record["stage"] for record in known["cifar10"]["records"]] == ["data", "ANN", "converted", "fine-tuned"]
    assert all("median" in record for record in known["speed: compiled loop"]["records"])


def test_the_plan_names_every_part_and_the_expected_seconds() -> None:
    text = plan(720, small=False)
    assert all(f"{part.name:<22}{part.seconds:>5} s  {part.what}" in text for part in PARTS)
    assert sum(part.seconds for part in PARTS) < 720


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running, "command", stand_in)
    monkeypatch.setattr(running, "LEAST", 0.1)
    results, said = running.opened(tmp_path / "a.json", ABOUT, again=False), list[str]()
    running.run_all(
        parts("hangs", "raises", "crashes", "absent", "wrong", "talks", "good"), results, 120, small=True, say=said.append
    )
    found = json.loads((tmp_path / "a.json").read_text())["parts"]
    statuses = {name: known["status"] for name, known in found.items()}
    ended = {"hangs": "timed out", "raises": "failed", "crashes": "failed", "absent": "skipped", "wrong": "wrong"}
    assert statuses == {**ended, "talks": "done", "good": "done"}
    assert found["hangs"]["records"] == [{"n": 1}, {"n": 2}]
    assert found["hangs"]["seconds"] < 20
    assert found["talks"]["records"] == [{"n": 1}]
    assert "a reason" in found["raises"]["error"]
    assert any("not installed" in line for line in said)


def test_no_part_begins_when_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running, "command", stand_in)
    results = running.opened(tmp_path / "a.json", ABOUT, again=False)
    running.run_all(parts("good", "talks"), results, 6.0, small=True, say=lambda line: None)
    assert {name: known["status"] for name, known in results.found["parts"].items()} == {"good": "not run", "talks": "done"}


KILLED = """
import sys
sys.path[:0] = {paths}
from pathlib import Path
import tests.test_gpu_benchmark as here
from benchmarks.gpu import running
running.command = here.stand_in
results = running.opened(Path({file!r}), here.ABOUT, again=False)
running.run_all(here.parts("good", "hangs"), results, 3000, small=True)
"""


def test_a_killed_run_keeps_what_it_found_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    monkeypatch.setitem(PROGRAMS, "hangs", PROGRAMS["hangs"].replace("60", "600"))
    program = KILLED.format(paths=[str(ROOT), str(ROOT / "hardware")], file=str(file))
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    known: dict[str, Any] = {}
    try:
        for _ in range(1200):
            known = json.loads(file.read_text())["parts"] if file.is_file() else {}  # renamed into place: never half a file
            if len(known.get("hangs", {}).get("records", [])) == 2:
                break
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert known["good"]["status"] == "done"
    assert known["hangs"]["status"] == "running"
    monkeypatch.setattr(running, "command", stand_in)
    monkeypatch.setitem(PROGRAMS, "hangs", "")
    monkeypatch.setitem(PROGRAMS, "good", "raise AssertionError('it was done')")
    results = running.opened(file, ABOUT, again=False)
    running.run_all(parts("good", "hangs"), results, 60, small=True, say=lambda line: None)
    assert {name: part["status"] for name, part in json.loads(file.read_text())["parts"].items()} == {
        "good": "done",
        "hangs": "done",
    }
    with pytest.raises(ValueError, match="gpu = None, and here it is another"):
        running.opened(file, {**ABOUT, "machine": {"gpu": "another"}}, again=False)
    assert running.opened(file, ABOUT, again=True).found["parts"] == {}


def test_a_wrong_kernel_is_found() -> None:
    """One bit of one word, and a value that is not a number."""
    for build, name in ((scan, "words"), (scan_back, "out")):
        torch.manual_seed(0)
        case = build(Setting(3, 1, 2, 33), "cpu")
        ours = case.reference()
        assert checks.compared(case, ours)["good"]
        value = ours[name].flatten()
        value[0] = value[0] ^ 1 if name == "words" else torch.nan
        assert not checks.compared(case, ours | {name: value.view_as(ours[name])})["good"]


def test_bytes_of_kernels_are_those_of_their_formulas() -> None:
    size = Setting(steps=5, batch=2, side=4, channels=33, dtype=torch.bfloat16, pool=2)
    rows, neurons, words = 32, 32 * 33, 2
    assert scan(size, "meta").bytes == neurons * (5 * 2 + 2 * 4) + 4 * 5 * rows * words
    moved = neurons * 5 * 2 * 5 // 4 + 4 * 5 * rows * words + 2 * 4 * neurons + 256 * rows * words
    assert scan_back(size, "meta").bytes == moved


def test_expected_step_is_the_sum_of_its_bytes() -> None:
    found = expectation.step(4, 64)
    assert found["ours_ms"] == pytest.approx(found["products_ms"] + found["neurons_ms"])
    assert 0 < found["neurons_ms"] < found["fused_neurons_ms"]
    operations = 2 * 256 * (2 * 1_769_472 + 3 * (18_874_368 + 37_748_736 + 8_388_608))
    assert found["products_ms"] >= 1e3 * operations / expectation.H200["tf32"]


def test_the_compiled_loop_spikes_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(speed, "BLOCK", 3)
    network, x, outputs = speed.network("cpu", small=True).double(), random_images(2).double(), []
    for name in ("spikeprop", "compiled loop"):
        _, forward = speed.contender(name, network, small=True)
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(forward(x, 7))
    assert float(outputs[0].std()) > 0.1
    torch.testing.assert_close(outputs[1], outputs[0].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["spikeprop", "compiled loop"])
def test_every_case_of_the_full_form_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, a small network, few steps: inference between trainings must not change what is trained."""
    small = speed.network("cpu", small=True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(speed, "network", lambda device, small_form: small)
    monkeypatch.setattr(speed, "SIZES", {2: 1, 3: 2})
    found = list(speed.run(Context("cpu", 1e4, small=False), name))
    assert not [record["failed"] for record in found if "failed" in record]
    cases = [(t, p, what) for t in (2, 3) for p in ("float32", "bfloat16") for what in ("training step", "inference")]
    assert [(record["T"], record["precision"], record["what"]) for record in found] == cases
    assert [len(record["predictions"]) for record in found if "predictions" in record] == [1, 1, 2, 2]


def test_every_kernel_that_is_launched_has_a_case() -> None:
    source = (ROOT / "spikeprop/snn/engine/kernels/cuda.py").read_text()
    assert set(re.findall(r"_launch\(\s*(_\w+),", source)) == set(FORMULAS)


def test_images_are_cifars_or_said_to_be_synthetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIKEPROP_DATA", str(tmp_path))  # which holds no data
    train, test, source = cifar._images(Context("cuda", 100, small=False))
    assert source.startswith("SYNTHETIC")
    assert "SPIKEPROP_DATA" in source
    x, y = next(iter(train(0).epoch(0)))
    assert x.shape == (250, 3, 32, 32)
    assert set(y.tolist()) == set(range(10))
    assert test.images.shape[0] == 2000


def test_failed_tests_are_named(tmp_path: Path) -> None:
    cases = '<testcase classname="a" name="b"/><testcase classname="a" name="c"><failure message="why"/></testcase>'
    (tmp_path / "r.xml").write_text(
        f'<testsuites><testsuite>{cases}<testcase name="d"><skipped/></testcase></testsuite></testsuites>'
    )
    assert suite.summary(tmp_path / "r.xml") == {"passed": 1, "skipped": 1, "failed": {"a.c": "why"}, "good": False}


def test_the_table_of_compiled_kernels_has_the_most_of_each() -> None:
    one = {"target": "sm_90", "kernel": "_scan", "registers": 40, "spilled": 0, "shared": 64, "warps": 51}
    rows = [one, {**one, "registers": 48, "shared": 0, "warps": 42}, {**one, "target": "sm_100", "spilled": 8}]
    assert by_kernel(rows)["_scan"]["sm_90"] == {"registers": 48, "spilled": 0, "shared": 64, "warps": 42}
    assert "48/0/64/42" in table(rows)
    assert "40/8/64/51" in table(rows)


def made_up() -> dict[str, Any]:
    """Results with numbers that nobody measured."""
    records: dict[str, list[Any]] = {"machine": []}
    for number, part in enumerate(part for part in PARTS if part.module == "speed"):
        records[part.name] = [
            {
                "what": what,
                "T": t,
                "batch": b,
                "precision": p,
                "median": 0.01 * (number + 1) * t,
                "peak_mib": 100.0 * (number + 1),
            }
            | {"images_per_s": 1e4 / (number + 1), "predictions": [number % 2, 1]}
            for t, b in speed.SIZES.items()
            for p in speed.PRECISIONS
            for what in ("training step", "inference")
        ]
    rate = {"setting": str(Setting(32, 32, 32, 64)), "bytes_per_s": 3e12, "of_copy": 0.7, "seconds": 1e-4}
    records["roofline"] = [{"kernel": "copy", "bytes_per_s": 4.3e12}, *({"kernel": f"_{i}", **rate} for i in range(8))]
    wrong = {"kernel": "_scan", "setting": "made up", "good": False, "difference": 1.0}
    records["checks"] = [{**wrong, "good": True}, wrong]
    records["tests"] = [{"passed": 3, "skipped": 0, "failed": {"made.up": "why"}, "good": False}]
    stages = {"ANN": 90.0, "converted": {"8": 80.0, "16": 85.0}, "fine-tuned": {"8": 88.0, "16": 89.0}}
    records["cifar10"] = [{"stage": "data", "data": "made-up numbers", "seconds": 0.0}]
    records["cifar10"] += [{"stage": stage, "accuracy": accuracy, "seconds": 12.0} for stage, accuracy in stages.items()]
    parts = {name: {"status": "done", "records": of} for name, of in records.items()}
    return {"machine": {"gpu": "MADE-UP NUMBERS", "versions": {"torch": "0"}}, "parts": parts}


def test_results_make_a_picture_and_so_do_half_of_them(tmp_path: Path) -> None:
    found = made_up()
    assert draw(found, tmp_path / "all.png").stat().st_size > 50_000
    half = {"checks": {"status": "failed", "records": [], "error": "a reason\n"}}
    assert draw({**found, "parts": half}, tmp_path / "half.png").stat().st_size > 10_000
