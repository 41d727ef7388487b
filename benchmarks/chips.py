"""Networks on chips: whether each fits each target, cores, accuracy in the target's integers, and energy by model.

python benchmarks/chips.py --networks zoo:digits-cnn-stdb zoo:digits-snn-direct --vendor 10 --out results/benchmarks/chips.json

A network that does not fit is shown with the number of findings that stop it, and not simulated. One that fits is simulated in
the target's integers on the complete test set, and on ``--vendor`` samples by the vendor's simulator too, spike for spike (of
Loihi 2 by Lava). Energies are those of arithmetic and memory together (spikeprop_hardware/targets/energy.py), least to most, of
the spiking network and of the ANN of the same layers, over ``--counted`` samples. Rows that ``--out`` has already are kept, so a
run that was ended goes on, and another one may add networks. The accuracy in float is taken from a row of the same network, steps
and samples in the target's integers, where there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import parse, save
from spikeprop_hardware import HardwareError, IntegerNetwork, Recording, Simulator, quantize, read_nir, simulate
from spikeprop_hardware.targets import TARGETS, target

from spikeprop import snn_accuracy
from spikeprop.deploy import VENDORS, chip_budget, encoded, simulate_on_chip
from spikeprop.deploy.comparison import input_limit_of, steps_of
from spikeprop.experiment.simulation_input import open_simulation_input
from spikeprop.runtime.seeding import seed_torch

BATCH = 500
ASKED = ("images", "vendor", "counted", "timesteps")  # options on which a row depends


def measured(network: str, chip: str, options: argparse.Namespace, rows: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """One row; ``rows`` are those that there are."""
    with open_simulation_input(Path(network)) as opened:
        given = opened.with_options(timesteps=options.timesteps, root=options.root)
        images, labels = given.images(options.images)
        steps = given.simulated_steps(images)
        seed_torch(given.seed, 3)
        inputs = encoded(given.network, images[: options.counted], steps)
        found = chip_budget(given.network, inputs, chip)
        stops = [finding for finding in found["findings"] if finding["stops"]]
        row: dict[str, Any] = {"network": network, "target": chip, "fits": not stops, "stops": stops, "T": inputs.shape[1]}
        row |= {"cores": found["cores"], "chips": found["chips"], "energy": found.get("energy")}
        if not stops:
            common = given, images, labels, steps, chip, options
            try:
                row["simulation"] = simulated(*common) if chip in VENDORS else in_integers(*common, known(network, rows))
            except HardwareError as error:
                row["simulation"] = {"refused": str(error)}
    return row


def simulated(given: Any, images: Any, labels: Any, steps: int | None, chip: str, options: argparse.Namespace) -> dict[str, Any]:
    """In our model of a chip that is not Loihi 2, and in its vendor's simulator."""
    common = given.network, given.file
    rest = steps, lambda _: None, chip
    found = simulate_on_chip(*common, images, labels, *rest)
    if options.vendor:
        few = simulate_on_chip(*common, images[: options.vendor], labels[: options.vendor], *rest, vendor=True)
        found |= {"vendor": {key: few[key] for key in ("samples", "mismatches", "spikes_equal", "layers")}}
    return {"chip": found["accuracy"][chip], **found}


def known(network: str, rows: Sequence[dict[str, Any]]) -> dict[tuple[int, int], float]:
    """Accuracies of a network in float, by samples and steps."""
    found = [row["simulation"] for row in rows if row["network"] == network and "chip" in row.get("simulation", {})]
    return {(f["samples"], f["timesteps"]): f["accuracy"]["pytorch"] for f in found}


def in_integers(
    given: Any, images: Any, labels: Any, steps: int | None, chip: str, options: argparse.Namespace,
    reals: dict[tuple[int, int], float],
) -> dict[str, Any]:  # fmt: skip
    """In the integers of integer.py, in the widths of the target; and of Loihi 2 in Lava."""
    network = given.network
    length = steps_of(network, images, steps)
    limit = input_limit_of(network, images)
    made = quantize(read_nir(given.file), input_limit=limit, timesteps=length, target=target(chip)).network
    ready, right = Simulator(made), 0
    for start in range(0, len(images), BATCH):
        inputs = encoded(network, images[start : start + BATCH], steps)
        outputs = simulate(ready, inputs, backend="reference", precision="fixed", record=Recording(spikes=False)).output
        right += int((outputs[:, -1].argmax(1) == labels[start : start + BATCH].numpy()).sum())
    real = reals.get((len(images), length))
    if real is None:
        batches = [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        real = next(iter(snn_accuracy(network, batches, None if steps is None else [steps]).values()))
    found: dict[str, Any] = {"samples": len(images), "timesteps": length, "chip": 100 * right / len(images)}
    found["accuracy"] = {chip: found["chip"], "pytorch": real}
    if options.vendor and target(chip).simulator:
        found["vendor"] = on_lava(made, encoded(network, images[: options.vendor], steps))
    return found


def on_lava(made: IntegerNetwork, inputs: np.ndarray) -> dict[str, Any]:
    """Every spike of Lava's and of ours, in the same integers."""
    ours, theirs = (simulate(made, inputs, backend=where, precision="fixed") for where in ("reference", "lava"))
    wrong = {name: int((train != theirs.spikes[name]).sum()) for name, train in ours.spikes.items()}
    sent = {name: int(np.count_nonzero(train)) for name, train in ours.spikes.items()}
    equal = not any(wrong.values()) and bool((ours.output == theirs.output).all())
    return {"samples": len(inputs), "mismatches": wrong, "spikes_equal": equal, "layers": sent}


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""
    fits = "fits" if row["fits"] else f"{len(row['stops'])} findings"
    found = row.get("simulation", {"refused": "-"})
    integers = found.get("refused") or f"{found['chip']:.2f} ({found['accuracy']['pytorch']:.2f}) of {found['samples']:,}"
    vendor = found.get("vendor")
    equal = "-" if vendor is None else f"{'equal' if vendor['spikes_equal'] else 'NOT equal'}, {vendor['samples']} samples"
    energies = next((e for e in (row["energy"] or {"rows": []})["rows"] if e["model"] == "arithmetic and memory"), None)
    text = " | ".join(_microjoules(energies[kind]) for kind in ("snn", "ann")) if energies else "- | -"
    return f"| {row['network']} | {row['target']} | {row['T']} | {fits} | {row['cores']:,} | {integers} | {equal} | {text} |"


def _microjoules(joules: Sequence[float]) -> str:
    return " to ".join(f"{value * 1e6:.3g}" for value in joules)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", required=True, help="checkpoints, run folders or zoo:NAME")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="default all")
    parser.add_argument("--images", type=int, default=10000, help="for the accuracy, at most those of the test set")
    parser.add_argument("--counted", type=int, default=20, help="for the energies; default 20")
    parser.add_argument("--timesteps", type=int, help="default the network's")
    parser.add_argument("--vendor", type=int, default=0, help="samples that vendors' simulators run, too; default 0")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--out", type=Path, help="write the results here as JSON, and go on from what is there")
    options = parse(parser, argv)
    print("| network | target | T | fits | cores | accuracy in integers (in float) | vendor's spikes | SNN, uJ | ANN, uJ |")
    print("| --- " * 9 + "|")
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    asked = {name: getattr(options, name) for name in ASKED}
    for network in options.networks:
        for chip in options.targets:
            row = next((r for r in rows if (r["network"], r["target"], r.get("asked")) == (network, chip, asked)), None)
            if row is None:
                start = time.perf_counter()
                row = {**measured(network, chip, options, rows), "asked": asked, "seconds": time.perf_counter() - start}
                rows = [r for r in rows if (r["network"], r["target"]) != (network, chip)] + [row]
                save(__file__, options, rows=rows)
            print(shown(row), flush=True)


if __name__ == "__main__":
    main()
