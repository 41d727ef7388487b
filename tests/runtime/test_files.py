"""Files have the permissions that the umask gives, in every writer."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from torch import nn

from spikeprop.learn import save_checkpoint
from spikeprop.runtime.files import write_atomically, write_json, write_tensors, write_text

WRITERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda p: save_checkpoint(p, nn.Linear(2, 2), {}),
    "tensors": lambda p: write_tensors(p, {"a": torch.zeros(1)}),
    "text": lambda p: write_text(p, "a"),
    "json": lambda p: write_json(p, {}),
    "picture": lambda p: write_atomically(p, lambda t: matplotlib.figure.Figure().savefig(t, format="png")),
    "replaced by a private file": lambda p: write_atomically(p, _private),
}


def _private(path: Path) -> None:
    own = path.with_suffix(".own")
    os.close(os.open(own, os.O_CREAT | os.O_WRONLY, 0o600))
    os.replace(own, path)


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("writer", WRITERS)
def test_files_follow_the_umask(tmp_path: Path, umask: int, writer: str) -> None:
    path = tmp_path / "file.safetensors"
    for _ in range(2):  # new, and replaced
        WRITERS[writer](path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask for file in tmp_path.iterdir())
