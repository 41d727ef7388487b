"""Explainers of the backward pass: the fraction of drawn edges that show upstream, local and downstream as numbers.

python benchmarks/explain.py --repeats 5 --out results/benchmarks/explain.json

All tools explain the same networks and samples (those of `make gallery`). An edge is one of the tool's own graph: ours goes
from a call back to an input with a gradient, those of TorchLens and torchviz from a node of autograd to the next. TorchLens
saves every gradient (``save_grads``); an edge shows upstream if the call's grad_outputs are saved, downstream if its
grad_inputs are, and local if a record has a derivative of an output by an input. For torchviz, the text of its graph with all
attributes counts. Times are those of the complete explanation relative to a plain step forward and backward, medians. With
``--vgg5`` a spiking VGG5 on one random image, T = 10, is explained too, and with ``--torchvision`` networks of torchvision with
random weights, on two random images of 224 x 224, by spikeprop alone and once. With Chromium and Playwright the opening time of a
page is measured. ``--threads`` are those of torch.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import OURS, option_parser, parse, save
from torch import Tensor, nn
from torch.nn import functional as F

import spikeprop as sp
from spikeprop.plugins.explain import TrainingStep, explain
from spikeprop.plugins.explain.gallery import ENTRIES, subject_of
from spikeprop.snn import SpikingNetwork

PARTS: tuple[str, ...] = ("upstream", "local", "downstream")
Count = dict[str, int]


class WithLoss(nn.Module):
    """A subject as one module from samples and targets to the loss."""

    def __init__(self, subject: TrainingStep):
        super().__init__()
        self.model, self.x, self.y = subject.double()
        self.subject = subject
        if isinstance(self.model, SpikingNetwork):
            self.model.packed = False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.model(x, self.subject.timesteps) if isinstance(self.model, SpikingNetwork) else self.model(x)
        return getattr(F, getattr(self.subject.loss, "__name__", ""))(
            scores, y
        )  # by name, since TorchLens replaces torch's functions


def ours(subject: TrainingStep, folder: Path) -> tuple[Count, dict[str, Any]]:
    data = explain(subject, folder / f"{subject.name}.html")
    shown = [bool(edge["sums"]) for edge in data["edges"]]
    counted = {"edges": len(shown), "all": sum(shown)} | {part: sum(shown) for part in PARTS}
    return counted, {"bytes": data["bytes"], "nodes": len(data["nodes"]), "complete": data["complete"], "checks": data["checks"]}


def with_torchlens(subject: TrainingStep) -> Count:
    import torchlens as tl  # pyright: ignore[reportMissingImports]

    module = WithLoss(subject)
    options = tl.options.CaptureOptions(layers_to_save="all", save_grads=True, save_arg_values=True)
    trace = tl.trace(module, (module.x.requires_grad_(), module.y), capture=options)
    trace.log_backward(trace.layer_list[-1].out)
    counted: Count = dict.fromkeys(("edges", *PARTS, "all"), 0)
    for node in trace.grad_fns:
        calls = list(node.calls.values()) if hasattr(node.calls, "values") else list(node.calls)
        call = calls[0] if calls else None
        local = any("jacobian" in name or "local_" in name for name in (*dir(node), *dir(call)))
        for place in range(len(node.next_grad_fn_ids)):
            downs = getattr(call, "grad_inputs", None) or ()
            found = {
                "upstream": any(g is not None for g in (getattr(call, "grad_outputs", None) or ())),
                "local": local,
                "downstream": place < len(downs) and downs[place] is not None,
            }
            counted["edges"] += 1
            counted["all"] += all(found.values())
            for part, there in found.items():
                counted[part] += there
    return counted


def with_torchviz(subject: TrainingStep) -> Count:
    from torchviz import make_dot  # pyright: ignore[reportMissingImports]

    module = WithLoss(subject)
    drawn = make_dot(module(module.x, module.y), params=dict(module.named_parameters()), show_attrs=True)
    edges = [line for line in drawn.body if "->" in line]
    labelled = [line for line in edges if re.search(r"label=.*\d+\.\d+", line)]
    nodes = [line for line in drawn.body if "->" not in line and re.search(r"[-+]?\d+\.\d{3,}", line)]
    numbers = len(edges) if nodes else len(labelled)  # a node's numbers would count for its edges
    return {"edges": len(edges), "all": numbers} | dict.fromkeys(PARTS, numbers)


TOOLS: dict[str, Callable[[TrainingStep], Count]] = {"torchlens": with_torchlens, "torchviz": with_torchviz}


def compare(subject: TrainingStep, folder: Path, repeats: int) -> dict[str, Any]:
    """Edges with numbers by tool, seconds of an explanation and of a plain step, and the page."""
    counted, page = ours(subject, folder)
    found: dict[str, Any] = {OURS: counted}
    for name, tool in TOOLS.items():
        found[name] = _attempt(tool, subject) if find_spec(name) else None
    plain = [_plain(subject) for _ in range(repeats)]
    complete = [_seconds(lambda: explain(subject, folder / "again.html")) for _ in range(repeats)]
    seconds = {"explain": statistics.median(complete), "plain": statistics.median(plain)}
    return {"edges": found, "page": page, "seconds": seconds, "ratio": seconds["explain"] / seconds["plain"]}


def _attempt(tool: Callable[[TrainingStep], Count], subject: TrainingStep) -> Count | dict[str, str]:
    """What a tool shows, or why it fails."""
    try:
        return tool(subject)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}


def _plain(subject: TrainingStep) -> float:
    module = WithLoss(subject)
    return _seconds(lambda: module(module.x, module.y).backward())


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def browser_program() -> str | None:
    """Chromium, or Chrome."""
    return os.environ.get("SPIKEPROP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def seconds_to_open(files: dict[str, Path], repeats: int) -> dict[str, float] | None:
    """From the address to the page being ready, medians; None without a browser."""
    program = browser_program()
    if program is None or find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()

        def visit(file: Path) -> None:
            page.goto(f"file://{file}")
            page.wait_for_selector("html[data-ready=yes]", state="attached")

        found = {}
        for name, file in files.items():
            visit(file)
            found[name] = statistics.median(_seconds(lambda f=file: visit(f)) for _ in range(repeats))
        browser.close()
    return found


def vgg5() -> TrainingStep:
    """A spiking VGG5 with random weights, on one random image."""
    ann = sp.VGG(depth=5, input_shape=(3, 32, 32), classes=10)
    snn = sp.convert(ann, [torch.rand(4, 3, 32, 32)], sp.IF(), sp.MaxActivation())
    return TrainingStep(name="VGG5", model=snn, x=torch.rand(1, 3, 32, 32), y=torch.tensor([3]), timesteps=10)


def torchvision_step(name: str) -> TrainingStep:
    """A network of torchvision with random weights, on two random images."""
    import torchvision

    model = getattr(torchvision.models, name)(weights=None)
    return TrainingStep(name=name, model=model, x=torch.randn(2, 3, 224, 224), y=torch.tensor([1, 3]))


def alone(subject: TrainingStep, folder: Path) -> dict[str, Any]:
    """Seconds and page of one explanation."""
    start, used = time.perf_counter(), time.process_time()
    _, page = ours(subject, folder)
    seconds = {"explain": time.perf_counter() - start, "processor": time.process_time() - used}
    print(f"\n{subject.name}: explained in {seconds['explain']:.1f} s ({seconds['processor']:.1f} s of processor time)")
    return {"page": page, "seconds": seconds}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: explained in {result['seconds']['explain']:.2f} s, {result['ratio']:.0f} times a plain step")
    print(f"{'':<12}{'edges':>8}" + "".join(f"{part:>12}" for part in (*PARTS, "all three")))
    for tool, count in result["edges"].items():
        if count is None or "error" in count:
            print(f"{tool:<12}  {'not installed' if count is None else count['error']}")
            continue
        shares = "".join(f"{100 * count[part] / max(1, count['edges']):>10.1f} %" for part in (*PARTS, "all"))
        print(f"{tool:<12}{count['edges']:>8}{shares}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [OURS], repeats=5)
    parser.add_argument("--networks", nargs="+", choices=list(ENTRIES), default=list(ENTRIES), help="default all")
    parser.add_argument("--vgg5", action="store_true", help="a spiking VGG5 too; takes a minute")
    parser.add_argument("--torchvision", nargs="+", default=[], metavar="NAME", help="networks such as resnet18 and vit_b_16 too")
    parser.add_argument("--threads", type=int, help="default one a core")
    options = parse(parser, argv)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    torch.manual_seed(options.seed)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, files = Path(place), {}
        for name in options.networks:
            subject = subject_of(name)
            results[name] = compare(subject, folder, options.repeats)
            files[name] = folder / f"{subject.name}.html"
            show(name, results[name])
        if options.vgg5:
            results["vgg5"] = compare(vgg5(), folder, 1)
            files["vgg5"] = folder / "VGG5.html"
            show("vgg5", results["vgg5"])
        for name in options.torchvision:
            results[name] = alone(torchvision_step(name), folder)
            files[name] = folder / f"{name}.html"
        opening = seconds_to_open(files, options.repeats)
    for name, result in results.items():
        opened = "" if opening is None else f", opens in {opening[name]:.2f} s"
        print(f"{name}: page of {result['page']['bytes'] / 1e6:.2f} MB for {result['page']['nodes']} calls{opened}")
    save(__file__, options, results=results, seconds_to_open=opening)


if __name__ == "__main__":
    main()
