"""Accuracy in the chip's integers by weight format, before and after fine-tuning in that format: a 784-128-10 MLP on MNIST.

python benchmarks/integers.py --out results/benchmarks/integers.json

The ANN is trained for ``--ann-epochs`` epochs and converted with IF neurons; then every format starts from the converted network,
fine-tuned for ``--epochs`` epochs by ``QuantisedBPTT`` in that format, and "float" by ``BPTT`` for as long. Each is simulated in
float64 at the weights as they are and in integers, on the whole test set, by the reference simulator.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import parse, save

from spikeprop import BPTT, IF, MLP, MNIST, Backprop, MaxActivation, convert, fit
from spikeprop.deploy import QuantisedBPTT, bits_curve
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork

FORMATS = (8, 6, 4, 3, 2, "ternary")


def converted(options: argparse.Namespace, data: MNIST) -> SpikingNetwork:
    """The MLP, trained and converted."""
    ann = MLP(input_shape=data.input_shape, classes=10, hidden=[128], dropout=0.0)
    batches = data.train(128, seed=options.seed)
    fit(ann, Backprop(), batches, torch.optim.Adam(ann.parameters(), lr=1e-3), epochs=options.ann_epochs)
    images = [x for x, _ in zip((x for x, _ in batches.epoch(0)), range(4))]
    return convert(ann, images, IF(), MaxActivation())


def tuned(network: SpikingNetwork, rule: Any, options: argparse.Namespace, data: MNIST) -> SpikingNetwork:
    """A copy, fine-tuned."""
    found = copy.deepcopy(network)
    optimizer = torch.optim.Adam(found.parameters(), lr=options.lr)
    fit(found, rule, data.train(128, seed=options.seed + 1), optimizer, epochs=options.epochs)
    return found


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each format."""
    seed_torch(options.seed)
    data = MNIST(root=options.root, train_limit=options.train)
    network = converted(options, data)
    x, y = next(data.test(options.test).epoch(0))
    plain = tuned(network, BPTT(timesteps=options.timesteps), options, data)

    def real(found: SpikingNetwork) -> float:
        with torch.no_grad():
            return 100 * float((found.eval()(x, options.timesteps).argmax(1) == y).float().mean())

    rows: list[dict[str, Any]] = [{"weights": "float", "converted": real(network), "fine-tuned": real(plain)}]
    for form in options.formats:
        rule = QuantisedBPTT(timesteps=options.timesteps, bits=form, per_channel=options.per_channel)  # type: ignore[arg-type]
        row: dict[str, Any] = {"weights": form}
        for name, found in (("converted", network), ("fine-tuned", plain), ("in integers", tuned(network, rule, options, data))):
            curve = bits_curve(found, x, y, options.timesteps, formats=[form], per_channel=options.per_channel)  # type: ignore[list-item]
            row[name] = curve[0]["accuracy"]
        rows.append(row)
        print(row, flush=True)
    return rows


def _format(text: str) -> int | str:
    return text if text == "ternary" else int(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"timesteps": 8, "ann-epochs": 3, "epochs": 1, "train": 60000, "test": 10000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--lr", type=float, default=5e-4, help="of fine-tuning; default 5e-4")
    parser.add_argument("--formats", nargs="+", type=_format, default=FORMATS, help="2 to 8, ternary; default several")
    parser.add_argument("--per-channel", action="store_true", help="exponents by channel")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--root", help="folder of the data; default $SPIKEPROP_DATA")
    options = parse(parser, argv)
    rows = measured(options)
    best = rows[0]["fine-tuned"]
    print(
        f"{'weights':>10} {'converted':>10} {'fine-tuned':>11} {'in integers':>12}   accuracy in percent, T = {options.timesteps}"
    )
    for row in rows:
        shown = ("-" if row.get(k) is None else f"{row[k]:.2f}" for k in ("converted", "fine-tuned", "in integers"))
        print(f"{row['weights']:>10} {next(shown):>10} {next(shown):>11} {next(shown):>12}")
    lost = {str(row["weights"]): best - max(row["fine-tuned"] or 0.0, row["in integers"] or 0.0) for row in rows[1:]}
    save(__file__, options, results=rows, ratios=lost)


if __name__ == "__main__":
    main()
