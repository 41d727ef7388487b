"""Tables of the site's pages, made of what the benchmarks wrote: so no figure is typed in."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def table(name: str) -> str:
    """A table of what a benchmark wrote, or a note that it has not been run."""
    base = name.partition("-")[0]
    file = ROOT / "results" / "benchmarks" / f"{base}.json"
    if not file.is_file():
        return f"!!! note\n    `{program(base)}` has not been run for this page: `results/benchmarks/{base}.json` is not there."
    found = json.loads(file.read_text(encoding="utf-8"))
    makers = {
        "scaling": measured,
        "scaling-model": modelled,
        "scaling-bytes": volume,
        "convert_choice": converted,
        "explainers": explained,
        "few_steps": both_ways,
        "finetuning": finetuned,
        "finetuning_learnt": finetuned,
        "migration": migration,
        "sharding": sharded,
        "gpu_kernels": compiled,
        "gpu_kernels-launches": launches,
        "gpu_kernels-steps": steps,
    }
    return f"{makers.get(name, contenders)(found)}\n\n{about(found)}"


def rows(head: Iterable[str], body: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *(list(map(str, line)) for line in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def program(name: str) -> str:
    """What wrote the figures: a script, or the package whose kernels were compiled."""
    if name.startswith("convert_"):  # one script, several files
        return "benchmarks/convert.py"
    package = name.removesuffix("_kernels")
    return f"python -m benchmarks.{package} --compile" if package != name else f"benchmarks/{name}.py"


def about(found: dict[str, Any]) -> str:
    """The provenance of the figures."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    listed = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in found["settings"].items()}
    settings = ", ".join(f"{key} {value}" for key, value in listed.items() if value is not None)
    return (
        f"*`{program(found['benchmark'])}` ({settings}); "
        f"{machine['cores']} cores of {machine['cpu']}, threads: {machine['threads']}; "
        f"Python {machine['python']}, {versions}; commit `{machine['commit']}`.*"
    )


def contenders(found: dict[str, Any]) -> str:
    """Median seconds and peak memory of each, and how many times ours."""
    results = found["results"]
    if "spikeprop" not in results:  # one for each size
        tables = [(size, contenders({"results": one})) for size, one in results.items()]
        return tables[0][1] if len(tables) == 1 else "\n\n".join(f"{size}:\n\n{text}" for size, text in tables)
    ours = results["spikeprop"]
    body = []
    for name, one in results.items():
        if one is None:
            body.append((name, "not installed", "", "", ""))
            continue
        time, memory = one["median"] / ours["median"], one["peak_mib"] / ours["peak_mib"]
        body.append((name, f"{one['median']:.2f}", f"{time:.1f}", f"{one['peak_mib']:.0f}", f"{memory:.1f}"))
    return rows(("", "seconds", "times ours", "MiB above idle", "times ours"), body)


def converted(found: dict[str, Any]) -> str:
    """Accuracy of converted networks at each T, and bits that a neuron sends for an image."""
    timesteps, bits = found["settings"]["timesteps"], found["bits_per_neuron"]
    body = []
    for name, accuracy in found["accuracy"].items():
        sent = bits.get(name)
        known = [str(t) if str(t) in accuracy else None for t in timesteps]
        cells = [f"{accuracy[t]:.2f}" + (f" ({sent[t]:.1f})" if sent else "") if t else "" for t in known]
        body.append((name, *cells))
    return rows((f"% (bits a neuron); ANN {found['ann']:.2f}", *(f"T = {t}" for t in timesteps)), body)


def finetuned(found: dict[str, Any]) -> str:
    """Accuracy of each choice before and after, and its difference from the base's with the same seed."""
    results = found["results"]
    most, *others = sorted(results["base"][0]["after"], key=int, reverse=True)
    body = []
    for name, runs in results.items():
        more = [run["after"][most] - base["after"][most] for run, base in zip(runs, results["base"])]
        cells = [mean_and_deviation([run["after"][t] for run in runs]) for t in (most, *others)]
        before = mean_and_deviation([run["before"][most] for run in runs])
        body.append((name, before, *cells, "" if name == "base" else mean_and_deviation(more, "+"), len(runs)))
    head = [f"T = {t}" for t in (most, *others)]
    return rows((f"%; ANN {found['ann']:.2f}", f"T = {most} before", *head, f"more than base, T = {most}", "seeds"), body)


def mean_and_deviation(values: list[float], sign: str = "") -> str:
    """Over seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{spread}"


def both_ways(found: dict[str, Any]) -> str:
    """Seconds and memory of a training step, and images a second."""
    body = [
        (name, f"{one['median']:.2f}", f"{one['images_a_second']:.1f}", f"{one['peak_mib']:.0f}")
        for name, one in found["results"].items()
    ]
    return rows(("", "seconds a step", "images a second", "MiB above idle"), body)


def migration(found: dict[str, Any]) -> str:
    """Lines and accuracy of programs that do the same."""
    body = []
    for library, one in found["results"].items():
        accuracy = one["accuracy"]
        for i, name in enumerate(accuracy["ours"]):
            first = [f"[{library}]({one['source']})", one["lines"]["theirs"], one["lines"]["ours"]] if i == 0 else [""] * 3
            body.append([*first, name, spread(accuracy["theirs"][name]), spread(accuracy["ours"][name])])
    return rows(("", "lines, theirs", "lines, ours", "", "accuracy, theirs", "accuracy, ours"), body)


def spread(percents: list[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(percents):.2f} ({min(percents):.2f} to {max(percents):.2f})"


def explained(found: dict[str, Any]) -> str:
    """How many of a step's numbers each tool shows."""
    kinds = ("values", "gradients")
    body = []
    for name, one in found["results"].items():
        body.append((name, one["version"], *(f"{one[kind]['shown']} of {one[kind]['of']}" for kind in kinds)))
    return rows(("", "version", *(f"{kind}, other than zero" for kind in kinds)), body)


def measured(found: dict[str, Any]) -> str:
    """Images a second of several processes: the batch split (strong), or one batch each (weak)."""
    body = []
    for name, one in found["measured"].items():
        alone = next(iter(one["processes"].values()))
        for count, row in one["processes"].items():
            rates = [f"{row[kind]:.1f} ({row[kind] / alone[kind]:.2f} times one's)" for kind in ("strong", "weak")]
            body.append((name, count, *rates, f"{1e3 * row['all_reduce_seconds']:.2f}", f"{one['gradient_bytes'] / 1e6:.2f}"))
    return rows(("network", "processes", "strong, images/s", "weak, images/s", "all-reduce, ms", "gradient, MB"), body)


def sharded(found: dict[str, Any]) -> str:
    """Memory of the process that takes most, if each keeps all parameters or only its shard."""
    body = []
    for name, one in found["measured"].items():
        alone = one["rows"][0]["peak_mib"]
        for row in one["rows"]:
            kept = "its shard" if row["sharded"] else "all"
            peak = f"{row['peak_mib']:,.0f} ({row['peak_mib'] / alone:.2f} times one's)"
            body.append((name, f"{one['parameters_mib']:,.0f}", row["processes"], kept, peak, f"{row['seconds']:.1f}"))
    return rows(("network", "weights, MiB", "processes", "each keeps", "peak of one, MiB", "step, s"), body)


def modelled(found: dict[str, Any]) -> str:
    """Efficiency that the model gives, with overlap and without."""
    body, counts = [], []
    for name, one in found["modelled"].items():
        for step, efficiency in one["efficiency"].items():
            bare = one["efficiency_without_overlap"][step]
            counts = list(efficiency)
            body.append((name, step, *(f"{100 * efficiency[n]:.1f} ({100 * bare[n]:.1f})" for n in counts)))
    return rows(("network", "step, s", *(f"{n} devices, %" for n in counts)), body)


def volume(found: dict[str, Any]) -> str:
    """Bytes that each of 1,000 devices sends for one step."""
    body = [(name, f"{one['bytes_sent_by_each_of_1000'] / 1e6:,.2f}") for name, one in found["modelled"].items()]
    return rows(("network", "MB that each of 1,000 devices sends a step"), body)


def compiled(found: dict[str, Any]) -> str:
    """Registers a thread, bytes spilled, shared memory a program, and warps of a multiprocessor, for each target."""
    targets = list(next(iter(found["kernels"].values())))
    body = []
    for kernel, of in found["kernels"].items():
        needs = (of[target] for target in targets)
        cells = (f"{one['registers']}, {one['spilled']}, {one['shared']}, {one['warps']}" for one in needs)
        body.append((f"`{kernel}`", *cells))
    return rows(("registers, spilled, shared, warps", *targets), body)


def launches(found: dict[str, Any]) -> str:
    """Bytes of one launch of each kernel, and their time at the vendor's bandwidth."""
    body = [
        (f"`{one['kernel']}`", one["formula"], f"{one['bytes'] / 2**20:,.0f}", f"{one['microseconds']:.0f}")
        for one in found["expected"]["launches"]
    ]
    return rows(("", "bytes", "MiB", "microseconds, at least"), body)


def steps(found: dict[str, Any]) -> str:
    """Milliseconds of a training step that the vendor's rates allow."""
    body = []
    for one in found["expected"]["steps"]:
        times = (one["products_ms"], one["neurons_ms"], one["fused_neurons_ms"], one["ours_ms"], one["fused_ms"])
        body.append((one["T"], one["batch"], *(f"{time:.1f}" for time in times), f"{one['fused_ms'] / one['ours_ms']:.1f}"))
    return rows(("T", "batch", "products", "our neurons", "a fused kernel's", "our step", "its step", "ratio"), body)
