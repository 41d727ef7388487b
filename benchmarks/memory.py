"""Peak memory of one training step against the number of steps T, ours and the peers', each in its own process.

python benchmarks/memory.py --plot results/benchmarks/memory.png --out results/benchmarks/memory.json

The network is a spiking VGG5; memory is that of the process (on a GPU: of the device) above its idle memory, including Adam's
state. malloc is configured to return large blocks when they are freed, for all contenders, so that a peak is the memory in use;
this costs time, so times are not meaningful here. A line through our points from T = 64 on gives the growth in bits per neuron
and step, of forward and backward only, because Adam's own peak may hide it. Required are one bit for the spikes and two for a
value of the input; the floats of one chunk of at most 64 steps are added, so multiples of 64 show only the growth. Inference
must not grow. ``--network vgg16 --timesteps 100 --batch 32`` measures only ours: one full training step of VGG16.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import OURS, Result, in_own_process, measure, option_parser, parse, peak_mib, ratios, save, settings
from networks import balanced, random_images, vgg, vgg5
from peers import PEERS, contender, small_step, training_step

from spikeprop.runtime.files import write_atomically

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
FROM = 64  # the engine computes chunks of up to this number of steps, so memory grows differently below
Curves = dict[str, dict[int, Result | None]]  # contender to T to what was measured


def one_step(options: argparse.Namespace) -> Result:
    """Peak memory and seconds of the first step of training, or of inference; libraries and kernels are loaded before."""
    (timesteps,), training = options.timesteps, options.phase == "train"
    network = vgg5(options.seed) if options.network == "vgg5" else balanced(vgg(options.network, options.seed))
    model, forward = contender(options.only, network.to(options.device).train(training))
    model.train(training)
    x = random_images(options.batch, options.device)
    once = partial(measure, repeats=1, warm_ups=0, device=options.device)
    if not training:
        with torch.no_grad():
            return once(partial(forward, x, timesteps), prepare=partial(forward, x[:1], 2))
    peaks: list[float] = []
    step = training_step(model, forward, x, timesteps, before_adam=lambda: peaks.append(peak_mib(options.device)))
    found = once(step, prepare=partial(small_step, model, forward, x))
    return {**found, "gradient_mib": peaks[0] - found["idle_mib"]}


def point(options: argparse.Namespace, name: str, timesteps: int, phase: str, environment: dict[str, str]) -> Result | None:
    """One contender at one T: of several processes the one with the median peak; None where it is not installed."""
    given = {**settings(options), "timesteps": [timesteps], "phase": phase}
    runs = [in_own_process(__file__, name, given, environment) for _ in range(options.repeats)]
    found = sorted((run for run in runs if run is not None), key=lambda run: run["peak_mib"])
    return found[len(found) // 2] if found else None


def curve(options: argparse.Namespace, name: str, phase: str) -> dict[int, Result | None]:
    """One contender at every T, peers up to their cap."""
    steps = [t for t in options.timesteps if name == OURS or t <= options.peer_cap]
    return {t: point(options, name, t, phase, GIVE_BACK) for t in steps}


def bits(points: dict[int, Result | None], key: str, neurons: int) -> float | None:
    """Slope of a line through the peaks from T = ``FROM`` on, in bits per neuron and step; None for fewer than two points."""
    found = {t: r[key] for t, r in points.items() if r is not None and t >= FROM}
    if len(found) < 2:
        return None
    slope, _ = np.polyfit(list(found), list(found.values()), 1)
    return float(slope) * 2**20 * 8 / neurons


def growth(training: Curves, inference: Curves, batch: int) -> dict[str, float | None]:
    """Growth of our peaks with T, and what the kept spikes and input must take, in bits per neuron and step."""
    network = vgg("vgg5", 0)
    neurons = sum(math.prod(network.shapes()[name]) for name in network.neurons())
    return {
        "training": bits(training.get(OURS, {}), "gradient_mib", neurons * batch),
        "kept": 1 + 2 * math.prod(network.input_shape) / neurons,
        "inference": bits(inference.get(OURS, {}), "peak_mib", neurons * batch),
    }


def memory_ratios(training: Curves) -> dict[int, float]:
    """Best peer / ours at every T at which both were measured."""
    steps = sorted({t for points in training.values() for t in points})
    found = {t: ratios({name: points[t] for name, points in training.items() if t in points}) for t in steps}
    return {t: ratio["memory"] for t, ratio in found.items() if ratio}


def rows(training: Curves, inference: Curves, timesteps: list[int]) -> str:
    """The table: a row for each contender, a column for each T, MiB."""
    lines = [f"{'MiB at T =':<22}" + "".join(f"{t:>9}" for t in timesteps)]
    for phase, curves in (("", training), (", inference", inference)):
        for name, points in curves.items():
            cells = [f"{r['peak_mib']:.0f}" if (r := points.get(t)) is not None else "-" for t in timesteps]
            lines.append(f"{name + phase:<22}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def draw(training: Curves, inference: Curves, title: str, path: Path) -> None:
    """Peak memory against T on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for phase, curves, style in (("", training, "o-"), (", inference", inference, "o--")):
        for name, points in curves.items():
            found = {t: r["peak_mib"] for t, r in points.items() if r is not None}
            color, width = ("#d95f0e", 2.5) if name == OURS else (None, 1.2)
            axes.plot(list(found), list(found.values()), style, ms=4, lw=width, color=color, label=name + phase)
    axes.set(yscale="log", xlabel="time steps T", ylabel="peak memory above idle (MiB)", title=title)
    axes.grid(alpha=0.3, which="both")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis("{x:g}")
    axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))


def compare(options: argparse.Namespace) -> None:
    """All contenders at all T."""
    training = {name: curve(options, name, "train") for name in options.contenders}
    inference = {OURS: curve(options, OURS, "infer")} if OURS in options.contenders else {}
    title = f"one training step of a spiking VGG5, batch {options.batch}"
    print(title)
    print(rows(training, inference, options.timesteps))
    grown = growth(training, inference, options.batch)
    shown = {name: "-" if value is None else f"{value:.2f}" for name, value in grown.items()}
    print(f"{OURS} grows by {shown['training']} bits/neuron/step (stored: {shown['kept']}), inference by {shown['inference']}")
    ratio = memory_ratios(training)
    if ratio:
        print(f"best peer / {OURS}: " + ", ".join(f"memory at T = {t} {value:.2f}" for t, value in ratio.items()))
    if options.plot:
        draw(training, inference, title, options.plot)
    save(__file__, options, training=training, inference=inference, bits=grown, ratios=ratio)


def vgg16_step(options: argparse.Namespace) -> None:
    """Only ours: one full training step."""
    (timesteps,) = options.timesteps
    result = point(options, OURS, timesteps, "train", {})
    assert result is not None
    peak, idle = result["peak_mib"] / 1024, result["idle_mib"] / 1024
    print(f"one training step of a spiking VGG16, T = {timesteps}, batch {options.batch}")
    print(f"process peak {peak + idle:.2f} GiB ({peak:.2f} GiB above idle), {result['median']:.1f} s")
    save(__file__, options, results={OURS: result})


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [OURS, *PEERS], batch=16, peer_cap=100, repeats=1)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[10, 25, 50, 100, 175, 250], help="numbers of steps T")
    parser.add_argument("--network", choices=["vgg5", "vgg16"], default="vgg5", help="default vgg5")
    parser.add_argument("--phase", choices=["train", "infer"], default="train", help="with --only")
    parser.add_argument("--plot", type=Path, help="draw memory against T here (PNG)")
    options = parse(parser, argv)
    if options.network == "vgg16" and len(options.timesteps) != 1:
        parser.error("--network vgg16 measures one number of steps, for example --timesteps 100 --batch 32")
    if options.only:
        print(json.dumps(one_step(options)))
    elif options.network == "vgg16":
        vgg16_step(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
