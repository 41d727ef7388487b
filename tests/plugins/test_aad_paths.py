"""Random numbers: published words, scipy's quantiles, torch's Sobol points, and skip-ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri

from spikeprop.errors import MarketError
from spikeprop.plugins.aad import Paths, PseudoRandom, Sobol
from spikeprop.plugins.aad.draws import inverse_normal, philox
from spikeprop.plugins.aad.paths import Batch
from spikeprop.runtime.seeding import mix_seed

SOURCES = [PseudoRandom(paths=1000, seed=3), Sobol(paths=1000, seed=3)]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known-answer tests of the authors' Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert tuple(int(w) for w in philox(*map(np.uint64, counter + key))) == words


def test_inverse_normal_equals_scipy() -> None:
    u = np.concatenate([np.linspace(1e-9, 1 - 1e-9, 20001), 10.0 ** -np.arange(1.0, 300.0, 7.0)])
    found = np.empty_like(u)
    inverse_normal(u, found)
    np.testing.assert_allclose(found, ndtri(u), rtol=3e-15, atol=3e-15)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dimension", [1, 7])
def test_numbers_of_a_path_do_not_depend_on_earlier_paths(source: Paths, dimension: int) -> None:
    whole = source.normals(Batch(2, 0, 60), dimension)
    assert torch.equal(source.normals(Batch(2, 37, 23), dimension), whole[:, 37:])
    assert torch.equal(source.normals(Batch(2, 0, 60), dimension), whole)
    assert not torch.equal(type(source)(paths=1000, seed=4).normals(Batch(2, 0, 60), dimension), whole)


def test_sobol_points_equal_torch() -> None:
    engine = torch.quasirandom.SobolEngine(5, scramble=True, seed=mix_seed(9, 1))
    points = engine.draw(1500, dtype=torch.float64).T
    found = Sobol(paths=3000, seed=9, scramblings=2).normals(Batch(1, 700, 800), 5)
    assert (torch.from_numpy(ndtr(found.numpy())) - points[:, 700:]).abs().max() < 1e-9  # half a cell of 2^-30


def test_normals_are_independent_and_normal() -> None:
    z = PseudoRandom(paths=40000).normals(Batch(0, 0, 40000), 6)
    covariance = z @ z.T / 40000
    assert (covariance - torch.eye(6)).abs().max() < 4 * (2 / 40000) ** 0.5
    assert z.pow(3).mean(1).abs().max() < 4 * (15 / 40000) ** 0.5
    assert (z.pow(4).mean(1) - 3).abs().max() < 4 * (96 / 40000) ** 0.5


@pytest.mark.parametrize("source", [PseudoRandom(paths=1003, groups=8), Sobol(paths=1003)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("size", [1, 64, 5000])
def test_batches_contain_every_path_once(source: Paths, size: int) -> None:
    batches = list(source.batches(size))
    paths = [(b.group if isinstance(source, Sobol) else 0, b.first + i) for b in batches for i in range(b.count)]
    assert len(paths) == len(set(paths)) == 1003
    assert max(b.count for b in batches) <= size
    assert [b.group for b in batches] == sorted(b.group for b in batches)


def test_sources_without_standard_error_are_refused() -> None:
    with pytest.raises(MarketError, match="paths is 1; a standard error needs at least 2"):
        PseudoRandom(paths=1)
    with pytest.raises(MarketError, match="scramblings is 16 and paths is 8"):
        Sobol(paths=8)
    with pytest.raises(MarketError, match="needs 30000 numbers per path; Sobol points have at most 21201"):
        Sobol(paths=64).normals(Batch(0, 0, 1), 30000)
