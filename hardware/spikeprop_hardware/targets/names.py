"""``target(name)``: a chip by its name."""

from __future__ import annotations

from difflib import get_close_matches

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.targets.generic import Generic
from spikeprop_hardware.targets.loihi import Loihi1, Loihi2
from spikeprop_hardware.targets.speck import Speck
from spikeprop_hardware.targets.target import Target
from spikeprop_hardware.targets.xylo import Xylo

TARGETS: dict[str, Target] = {found.name: found for found in (Loihi2(), Loihi1(), Speck(), Xylo(), Generic())}
WIDTHS = range(2, 9)  # bits of generic weights


def target(name: str | Target) -> Target:
    """A chip.

    Args:
        name: ``loihi2``, ``loihi1``, ``speck``, ``xylo``, ``generic`` or ``generic-BITS``; or a target, which is returned.

    Raises:
        HardwareError: a name that is none, with the nearest.
    """
    if isinstance(name, Target):
        return name
    key, _, bits = name.lower().replace("_", "-").partition("-")
    if key == "generic" and bits.isdecimal() and int(bits) in WIDTHS:
        return Generic(name=f"generic-{bits}", weight_bits=int(bits))
    if key in TARGETS and not bits:
        return TARGETS[key]
    near = get_close_matches(name.lower(), TARGETS, n=1)
    known = f"{', '.join(TARGETS)}, and generic-{WIDTHS[0]} to generic-{WIDTHS[-1]}"
    raise HardwareError(f"there is no target {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} Known: {known}")
