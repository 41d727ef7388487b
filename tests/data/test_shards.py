"""WebDataset shards give the batches of a folder of photographs, for each process too; damage is named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from spikeprop.data import ImageNet, WebDataset
from spikeprop.errors import MissingDataError
from spikeprop.runtime.processes import Processes
from tests.conftest import need


def pack(shard: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(shard, "w") as file:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


@pytest.fixture
def folder(data_root: Path) -> ImageNet:
    need(data_root, "imagenet-sample")
    return ImageNet(root=str(data_root / "imagenet-sample"), workers=0, test_limit=5, size=32)


@pytest.fixture
def shards(folder: ImageNet, tmp_path: Path) -> Path:
    samples = folder.test(5).samples
    for name, part in (("val-000.tar", samples[:3]), ("val-001.tar", samples[3:])):
        members = []
        for number, (path, label) in enumerate(part):
            image, text = (f"{number}.jpg", Path(str(path)).read_bytes()), (f"{number}.cls", f"{label}\n".encode())
            members += [image, text] if number % 2 else [text, image]
        pack(tmp_path / name, [*members, ("notes.txt", b"neither")])
    return tmp_path


def data(root: Path, **settings: object) -> WebDataset:
    return WebDataset(root=str(root), workers=0, size=32, **settings)  # type: ignore[arg-type]


def test_shards_give_the_batches_of_the_folder(folder: ImageNet, shards: Path) -> None:
    for (x, y), (a, b) in zip(data(shards).test(2).epoch(0), folder.test(2).epoch(0), strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    train = data(shards, train_shards="val-*.tar").train(2, seed=3)
    whole, late = list(train.epoch(1)), list(train.epoch(1, start=1))
    assert all(torch.equal(x, a) for (x, _), (a, _) in zip(whole[1:], late, strict=True))
    parts = [next(train.shard(Processes(rank, 2)).epoch(1)) for rank in range(2)]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0][0])
    assert data(shards, test_limit=2).test(2).fingerprint() != data(shards).test(2).fingerprint()


def test_invalid_shards_are_refused_with_a_reason(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no shard train-\*\.tar in"):
        data(shards).train(2, seed=0)
    with pytest.raises(MissingDataError, match=r"val-000\.tar .*a class number is 0 to 1"):
        data(shards, classes=2).test(2)
    (bad := tmp_path / "bad").mkdir()
    photograph = b"\xff\xd8 not one"
    pack(bad / "val-0.tar", [("a.jpg", photograph)])
    with pytest.raises(MissingDataError, match=r"has no a\.cls"):
        data(bad).test(1)
    pack(bad / "val-0.tar", [("a.jpg", photograph), ("a.cls", b"7")])
    with pytest.raises(MissingDataError, match=r"val-0\.tar, at byte 512, is truncated or not a JPEG"):
        next(data(bad).test(1).epoch(0))
    whole = (shards / "val-001.tar").read_bytes()
    for size in (100, len(whole) // 3):
        (bad / "val-0.tar").write_bytes(whole[:size])
        with pytest.raises(MissingDataError, match=r"val-0\.tar"):
            data(bad).test(1)
    with pytest.raises(ValueError, match="classes is 1"):
        data(bad, classes=1)


def test_a_class_number_without_a_readable_photograph_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "val-0.tar", [("a.png", b""), ("a.cls", b"0"), ("b.gif", b"GIF8"), ("b.cls", b"1")])
    with pytest.raises(MissingDataError, match=r"no photograph for b\.cls: photographs end in \.jpg"):
        data(tmp_path).test(2)
