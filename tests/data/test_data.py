"""Data sets: shapes, one normalisation, augmentation, resuming in the middle, and what is said when files are missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from spikeprop.data import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST, ImageData, ImageNet
from spikeprop.data.base import augment
from spikeprop.errors import MissingDataError
from tests.conftest import need


def test_digits_are_real_split_and_in_range() -> None:
    data = Digits()
    train, test = data.train(100_000, seed=0), data.test(100_000)
    (x, y), (tx, ty) = next(train.epoch(0)), next(test.epoch(0))
    assert len(y) + len(ty) == 1797
    assert len(ty) == 360
    assert x.shape[1:] == tx.shape[1:] == data.input_shape
    assert x.min() == 0
    assert x.max() == 1
    assert set(ty.tolist()) == set(range(10))
    assert not {tuple(i.flatten().tolist()) for i in x} & {tuple(i.flatten().tolist()) for i in tx}


def test_an_epoch_can_start_anywhere_and_is_the_same() -> None:
    split = Digits(crop=1, flip=True).train(64, seed=3)
    whole = list(split.epoch(2))
    rest = list(split.epoch(2, start=len(split) - 3))
    assert len(whole) == len(split) == 23
    assert len(rest) == 3
    for (x, y), (x2, y2) in zip(whole[-3:], rest):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert not torch.equal(whole[0][1], next(split.epoch(3))[1])


def test_normalisation_is_shared_by_train_and_test() -> None:
    plain, shifted = Digits(), Digits(mean=0.5, std=0.5)
    torch.testing.assert_close(next(shifted.test(8).epoch(0))[0], next(plain.test(8).epoch(0))[0] * 2 - 1)
    torch.testing.assert_close(next(shifted.train(8, 0).epoch(0))[0], next(plain.train(8, 0).epoch(0))[0] * 2 - 1)


def test_augmentation_shifts_by_at_most_the_padding_and_flips() -> None:
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 200
    seen = set()
    for seed in range(60):
        out = augment(image, 2, False, torch.Generator().manual_seed(seed))
        assert out.shape == image.shape
        ((_, _, row, column),) = out.nonzero().tolist()
        seen.add((row - 4, column - 4))
    assert max(abs(a) for pair in seen for a in pair) == 2
    assert len(seen) > 15
    ramp = torch.arange(9, dtype=torch.uint8).expand(40, 1, 9, 9)
    flipped = augment(ramp, 0, True, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in flipped[:, 0, 0].tolist()} == {tuple(range(9)), tuple(range(8, -1, -1))}


def test_limits() -> None:
    assert len(Digits(train_limit=10, test_limit=7).train(4, 0)) == 3
    assert len(next(Digits(test_limit=7).test(100).epoch(0))[1]) == 7
    with pytest.raises(ValueError, match="leaves nothing"):
        Digits(train_limit=0)
    with pytest.raises(ValueError, match="test_limit is -1, which leaves nothing"):
        ImageNet(test_limit=-1)


def test_a_limit_on_imagenet_sees_all_classes(tmp_path: Path) -> None:
    for wnid in ("n1", "n2", "n3"):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "val" / wnid / f"{i}.JPEG").touch()
    for limit, labels in ((3, [0, 1, 2]), (6, [0, 0, 1, 1, 2, 2]), (99, [0] * 4 + [1] * 4 + [2] * 4)):
        samples = ImageNet(root=str(tmp_path), test_limit=limit).test(4).samples
        assert [label for _, label in samples] == labels


@pytest.mark.parametrize(
    ("data", "folder", "images"),
    [(FashionMNIST(), "FashionMNIST", 60_000), (MNIST(), "MNIST", 60_000), (CIFAR10(), "cifar-10-batches-py", 50_000)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_real_sets(data_root: Path, data: ImageData, folder: str, images: int) -> None:
    need(data_root, folder)
    split = data.train(images, seed=0)
    x, y = next(split.epoch(0))
    assert x.shape == (images, *data.input_shape)
    assert torch.bincount(y).min() > 0.08 * images
    low, high = (0 - data.mean) / data.std, (1 - data.mean) / data.std
    assert (float(x.min()), float(x.max())) == (low, high)


def test_imagenet_layout(data_root: Path, tmp_path: Path) -> None:
    need(data_root, "imagenet-sample")
    data = ImageNet(root=str(data_root / "imagenet-sample"), workers=0, test_limit=6)
    x, y = next(data.test(6).epoch(0))
    assert x.shape == (6, 3, 224, 224)
    rows = [line.split("\t") for line in (data_root / "imagenet-sample" / "classes.tsv").read_text().splitlines()]
    numbers = [int(number) for _, number, _ in sorted(row for row in rows if row[1].isdigit())]
    assert y.tolist() == [numbers[i * 100 // 6] for i in range(6)]  # numbered by classes.tsv, not by folder; from all over
    with pytest.raises(MissingDataError, match=r"no class folders at .*train"):
        data.train(4, seed=0)
    source = next((data_root / "imagenet-sample" / "val").iterdir())
    for split in ("train", "val"):
        shutil.copytree(source, tmp_path / split / source.name)
    train = ImageNet(root=str(tmp_path), workers=0).train(1, seed=0)
    assert torch.equal(next(train.epoch(0))[0], next(train.epoch(0))[0])
    assert not torch.equal(next(train.epoch(0))[0], next(train.epoch(1))[0])
    photograph = next((tmp_path / "val" / source.name).iterdir())
    photograph.write_bytes(photograph.read_bytes()[:2000])
    with pytest.raises(MissingDataError, match="truncated"):
        next(ImageNet(root=str(tmp_path), workers=0).test(1).epoch(0))


@pytest.mark.parametrize("cls", [FashionMNIST, CIFAR10, CIFAR100, MNIST])
def test_missing_files_say_which_where_and_how(tmp_path: Path, cls: type[ImageData]) -> None:
    with pytest.raises(MissingDataError) as caught:
        cls(root=str(tmp_path)).train(4, seed=0)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert cls.__name__ in text
    assert "data.download=true" in text
    assert getattr(cls, "files") in text  # noqa: B009


def test_no_root_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKEPROP_DATA", raising=False)
    with pytest.raises(MissingDataError, match=r"data\.root=FOLDER.*SPIKEPROP_DATA"):
        CIFAR10().test(4)


def test_truncated_files_are_errors(data_root: Path, tmp_path: Path) -> None:
    need(data_root, "FashionMNIST")
    raw = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(data_root / "FashionMNIST" / "raw", raw)
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1000])
    with pytest.raises(MissingDataError, match="truncated or damaged"):
        FashionMNIST(root=str(tmp_path)).test(4)
