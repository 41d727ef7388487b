"""Random networks: the caller's module = the converted graph = the simulation written here = plain = packed = NIR = simulator.

One alone: ``pytest tests/witness/test_networks.py -k 'network_of[17]'``; ``make test-slow`` has 300.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.witness import networks
from tests.witness.networks import Difference, Examination, draw, examine

SHORT, LONG = 40, 300


@pytest.mark.parametrize("seed", [*range(SHORT), *(pytest.param(s, marks=pytest.mark.slow) for s in range(SHORT, LONG))])
def test_a_random_network_is_the_same_everywhere(seed: int, counted: Callable[[Counter[str]], None]) -> None:
    counted(examine(seed))


def test_most_random_networks_are_compared_and_spike() -> None:
    """A generator of networks that are all refused, or silent, would check nothing."""
    total: Counter[str] = Counter()
    for seed in range(0, SHORT, 2):
        total += examine(seed)
    assert total["equal to the module"] > 0.7 * total["networks"]
    assert total["= simulator"] > 0.5 * total["networks"]
    assert total["of them with exact sums"] > 0.15 * total["networks"]
    assert total["spikes"] > 1000 * total["networks"]


def converts(seed: int) -> bool:
    return examine(seed)["= simulator"] > 0


def test_a_wrong_weight_a_wrong_threshold_and_a_changed_module_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(s for s in range(SHORT) if converts(s))
    convert, to_nir = networks.convert, networks.to_nir

    def other_weight(*args: Any, **kwargs: Any) -> Any:
        network = convert(*args, **kwargs)
        with torch.no_grad():
            next(iter(network.parameters())).mul_(1.01)
        return network

    def other_threshold(network: Any) -> Any:
        graph = to_nir(network)
        node = next(node for node in graph.nodes.values() if hasattr(node, "v_threshold"))
        node.v_threshold = node.v_threshold * 0.9
        return graph

    def changes_the_ann(ann: Any, *args: Any, **kwargs: Any) -> Any:
        network = convert(ann, *args, **kwargs)
        with torch.no_grad():
            list(ann.parameters())[-1].add_(0.1)
        return network

    for name, wrong, says in [
        ("convert", other_weight, "differ by"),
        ("to_nir", other_threshold, "NIR round trip"),
        ("convert", changes_the_ann, "changed the caller's network"),
    ]:
        with monkeypatch.context() as changed:
            changed.setattr(networks, name, wrong)
            with pytest.raises(Difference, match=says) as caught:
                examine(seed)
        assert f"seed {seed}:" in str(caught.value)


def test_an_error_that_is_not_the_librarys_own_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def raw(*args: Any, **kwargs: Any) -> Any:
        return torch.zeros(2) @ torch.zeros(3)

    monkeypatch.setattr(networks, "convert", raw)
    with pytest.raises(Difference, match="convert ends in RuntimeError that is not the library's own"):
        Examination(draw(0)).run()
