"""PMD that drifts: the rotations of all sections turn a little, and the receiver is trained on while they do.

At each update the rotation of every section is multiplied by a rotation about a random axis by a fixed angle; delays stay, so
the mean DGD does too. SNR is measured on new blocks before and after the training of the update, and with the receiver as it was
before the drift. The model of a drift that turns sections independently is that of Czegledi et al. 2016 (Sci. Rep. 6, 21217);
the angle, the same for all sections, is our choice.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spikeprop.plugins.ldbp_pmd.blocks import Link
from spikeprop.plugins.ldbp_pmd.link import Sections
from spikeprop.plugins.ldbp_pmd.receiver import LearnedReceiver
from spikeprop.plugins.ldbp_pmd.training import Fitting, fit_receiver, snr_of
from spikeprop.runtime.checks import at_least_one, positive
from spikeprop.runtime.seeding import generator

TURNS, TRAIN, TEST, BATCHES = 11, 12, 13, 14  # purposes of seeds


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Settings of the drift.

    Attributes:
        degrees: angle by which each section turns between two updates, on the Poincare sphere.
        updates: number of updates.
        iterations: training iterations of an update, at constant rates.
        blocks: new training blocks of an update; a third as many for the test.

    """

    degrees: float = 0.5
    updates: int = 10
    iterations: int = 20
    blocks: int = 60

    def __post_init__(self) -> None:
        positive(self, "degrees")
        at_least_one(self, "updates", "iterations", "blocks")


def turned(sections: Sections, degrees: float, draws: torch.Generator) -> Sections:
    """Sections whose rotations are multiplied by rotations of ``degrees`` about random axes of the Poincare sphere."""
    axis = torch.nn.functional.normalize(torch.randn(len(sections.delays), 3, dtype=torch.float64, generator=draws), dim=1)
    half = math.radians(degrees) / 2
    x, y, z = (math.sin(half) * axis).unbind(1)
    a, b = torch.complex(torch.full_like(x, math.cos(half)), z), torch.complex(y, x)
    turns = torch.stack([a, b, -b.conj(), a.conj()], 1).view(-1, 2, 2)
    return Sections(turns @ sections.rotations, sections.delays)


def track(
    drift: Drift,
    receiver: LearnedReceiver,
    link: Link,
    sections: Sections,
    power: float,
    training: Fitting,
    seed: int,
    path: Path,
) -> dict[str, Any]:
    """Train ``receiver`` in place while the sections drift.

    Args:
        drift: settings.
        receiver: trained for ``sections``.
        link: fibre and signal.
        sections: before the drift.
        power: launch power, W.
        training: batch and rates; they are constant here.
        seed: of the drift and of all blocks.
        path: file of the receiver; that of update k has k in its name.

    Returns:
        {"fixed": [...], "before": [...], "after": [...]}: SNR in dB at each update of the receiver as it was, and of the one that
        is trained, before and after the update's training.

    """
    settings = dataclasses.replace(
        training, iterations=drift.iterations, every=drift.iterations, plateau_db=0.0, decay=0, warmup=0
    )
    fixed, found = copy.deepcopy(receiver), {"fixed": [], "before": [], "after": []}
    for k in range(drift.updates):
        sections = turned(sections, drift.degrees, generator(seed, TURNS, k))
        train = link.blocks(drift.blocks, power, (seed, TRAIN, k), sections)
        test = link.blocks(max(1, drift.blocks // 3), power, (seed, TEST, k), sections)
        own = path.with_name(f"{path.stem}_{k}{path.suffix}")
        curve = fit_receiver(receiver, link.signal, (train, test), settings, (seed, BATCHES, k), own).curve
        found["fixed"].append(snr_of(fixed, link.signal, test))
        found["before"].append(curve[0][1])
        found["after"].append(curve[-1][1])
    return found
