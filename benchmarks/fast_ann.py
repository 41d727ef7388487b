"""What trains ``FastCNN`` fast: optimiser and pooling, on CIFAR-10 in a few epochs, tested on training images that were kept out.

The settings are those of the recipe cifar10_fast_graded without cutout, on a network of a quarter of its widths. 45,000 training
images are trained on, and the last 5,000 are tested: the 10,000 test images are for the recipe alone. Contenders that ``--out``
has already with the same settings are kept, so a run that was ended goes on.

python benchmarks/fast_ann.py --out results/benchmarks/fast_ann.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import option_parser, parse, save, settings

from spikeprop.ann import FastCNN
from spikeprop.data import CIFAR10, InMemorySplit
from spikeprop.evaluate import ann_accuracy
from spikeprop.learn import Backprop, BiasRate, Lookahead, MuonSGD, Triangular, Whitening, fit, with_rates
from spikeprop.runtime.batches import CompleteBatches
from spikeprop.runtime.files import read_json

CONTENDERS = {f"{optimizer}, {pool}": (optimizer, pool) for optimizer in ("SGD", "Muon") for pool in ("avg", "max")}
MEAN, STD, KEPT_OUT = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010], 5000
BIAS, MOMENTUM = 64.0, 0.85
RATES: dict[str, Any] = {"lr": 0.75, "weight_decay": 1.33043e-3}


def trained(optimizer: str, pool: str, options: argparse.Namespace) -> dict[str, float]:
    """Accuracy on the images kept out, in percent, and seconds of training."""
    whole = CIFAR10(mean=MEAN, std=STD).train(options.batch, options.seed)
    assert isinstance(whole, InMemorySplit)
    augmented = {"seed": options.seed, "crop": 2, "flip": "alternating", "padding": "reflect"}
    split = InMemorySplit(whole.images[:-KEPT_OUT], whole.labels[:-KEPT_OUT], options.batch, MEAN, STD, **augmented)
    test = InMemorySplit(whole.images[-KEPT_OUT:], whole.labels[-KEPT_OUT:], 500, MEAN, STD)
    torch.manual_seed(options.seed)
    model = FastCNN(widths=options.widths, pool=pool)  # type: ignore[arg-type]
    groups = BiasRate(lr=BIAS, weight_decay=1 / BIAS).param_groups(model, [{"params": list(model.parameters())}])
    groups = with_rates(groups, **RATES)
    if optimizer == "SGD":
        chosen: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, **RATES)
    else:
        chosen = MuonSGD(groups, matrix_lr=options.matrix_lr, momentum=MOMENTUM, constant_norm=True, steps=3, **RATES)
    start = time.perf_counter()
    callbacks = [Whitening(images=5000, epsilon=5e-4, bias_epochs=3), Lookahead(decay=0.95, every=5, power=3.0)]
    fit(
        model, Backprop(label_smoothing=0.2), CompleteBatches(split, options.batch), chosen, epochs=options.epochs,
        schedule=Triangular(start=0.2, peak=0.23, end=0.07), seed=options.seed, callbacks=callbacks,
        memory_format=torch.channels_last,
    )  # fmt: skip
    return {"seconds": time.perf_counter() - start, "accuracy": ann_accuracy(model, test)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, list(CONTENDERS), epochs=5, batch=512)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 80], help="default 16 64 80")
    parser.add_argument("--matrix-lr", type=float, default=0.1, help="rate of Muon; default 0.1")
    options = parse(parser, argv)
    known = read_json(options.out) if options.out and options.out.exists() else {}
    results: dict[str, Any] = known.get("results", {}) if known.get("settings") == settings(options) else {}
    print(f"FastCNN {options.widths}, {options.epochs} epochs of CIFAR-10 without its last {KEPT_OUT:,} training images")
    for name in options.contenders:
        if name not in results:
            results[name] = trained(*CONTENDERS[name], options)
            save(__file__, options, results=results)
        print(f"{name:<12}{results[name]['accuracy']:8.2f} %{results[name]['seconds']:8.0f} s")


if __name__ == "__main__":
    main()
