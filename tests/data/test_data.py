"""Data sets: shapes, one normalisation, augmentation, resuming within an epoch, and the errors for missing files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from spikeprop.data import CIFAR10, CIFAR100, MNIST, Digits, DigitsOnPhotographs, FashionMNIST, ImageData, ImageNet, InMemorySplit
from spikeprop.data.base import augment
from spikeprop.data.imagenet import _class_numbers, _ilsvrc_wnids, _read_table
from spikeprop.errors import MissingDataError
from spikeprop.runtime.processes import Processes
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


def test_epoch_gives_the_same_batches_from_any_start() -> None:
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


def test_reflected_padding_is_torchs_and_shows_no_black() -> None:
    images = torch.randint(1, 256, (50, 3, 6, 7), dtype=torch.uint8)
    padded = F.pad(images.float(), (2, 2, 2, 2), "reflect")
    windows = padded.unfold(2, 6, 1).unfold(3, 7, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (B, 25, C, 6, 7)
    out = augment(images, 2, False, torch.Generator().manual_seed(0), "reflect")
    found = (windows == out[:, None]).flatten(2).all(2)
    assert bool(found.any(1).all())
    assert int(found.any(0).sum()) > 15


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images = torch.arange(40 * 4, dtype=torch.uint8).reshape(40, 1, 1, 4)
    split = InMemorySplit(images, torch.arange(40), 16, 0.0, 1.0, 1.0, seed=5, flip="alternating")
    flipped = torch.zeros(4, 40, dtype=torch.bool)
    for epoch in range(4):
        for x, y in split.epoch(epoch):
            flipped[epoch, y] = x[:, 0, 0, 0] > x[:, 0, 0, 1]
    assert torch.equal(flipped[0], ~flipped[1])
    assert torch.equal(flipped[0], flipped[2])
    assert 8 < int(flipped[0].sum()) < 32


def test_cutout_zeroes_one_square_of_the_normalised_image() -> None:
    images = torch.full((64, 2, 9, 9), 200, dtype=torch.uint8)
    split = InMemorySplit(images, torch.zeros(64).long(), 64, 0.5, 0.5, seed=0, cutout=4)
    zero = next(split.epoch(0))[0] == 0
    assert torch.equal(zero[:, 0], zero[:, 1])
    rows, columns = zero[:, 0].any(2).sum(1), zero[:, 0].any(1).sum(1)
    assert torch.equal(zero[:, 0].sum((1, 2)), rows * columns)  # a rectangle, cut off where it reaches over the border
    assert int(rows.max()) == int(columns.max()) == 4
    assert bool((rows >= 2).all())
    assert not (next(InMemorySplit(images, split.labels, 64, 0.5, 0.5, cutout=4).epoch(0))[0] == 0).any()


def test_augmentation_that_no_image_has_is_refused() -> None:
    with pytest.raises(ValueError, match="can reflect fewer pixels"):
        Digits(crop=8, padding="reflect")
    with pytest.raises(ValueError, match="cutout is -1"):
        Digits(cutout=-1)


def test_limits_take_the_first_examples() -> None:
    assert len(Digits(train_limit=10, test_limit=7).train(4, 0)) == 3
    assert len(next(Digits(test_limit=7).test(100).epoch(0))[1]) == 7
    with pytest.raises(ValueError, match="leaves no examples"):
        Digits(train_limit=0)
    with pytest.raises(ValueError, match="test_limit is -1, which leaves no examples"):
        ImageNet(test_limit=-1)


def test_limit_on_imagenet_covers_all_classes(tmp_path: Path) -> None:
    for wnid in ("n1", "n2", "n3"):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "val" / wnid / f"{i}.JPEG").touch()
    (tmp_path / "classes.tsv").write_text("wnid\tindex\tname\nn1\t0\ta\nn2\t1\tb\nn3\t2\tc\n")
    for limit, labels in ((3, [0, 1, 2]), (6, [0, 0, 1, 1, 2, 2]), (99, [0] * 4 + [1] * 4 + [2] * 4)):
        samples = ImageNet(root=str(tmp_path), test_limit=limit).test(4).samples
        assert [label for _, label in samples] == labels


@pytest.mark.parametrize(
    ("data", "folder", "images"),
    [(FashionMNIST(), "FashionMNIST", 60_000), (MNIST(), "MNIST", 60_000), (CIFAR10(), "cifar-10-batches-py", 50_000)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_real_data_sets_have_their_sizes_and_ranges(data_root: Path, data: ImageData, folder: str, images: int) -> None:
    need(data_root, folder)
    split = data.train(images, seed=0)
    x, y = next(split.epoch(0))
    assert x.shape == (images, *data.input_shape)
    assert torch.bincount(y).min() > 0.08 * images
    assert not isinstance(data.mean, list)
    assert not isinstance(data.std, list)
    low, high = (0 - data.mean) / data.std, (1 - data.mean) / data.std
    assert (float(x.min()), float(x.max())) == (low, high)


def test_digits_on_photographs_are_labelled_pixel_by_pixel(data_root: Path) -> None:
    need(data_root, "MNIST")
    need(data_root, "cifar-10-batches-py")
    data = DigitsOnPhotographs(train_limit=40, test_limit=40)
    (x, y), photographs = next(data.test(40).epoch(0)), next(CIFAR10().test(40).epoch(0))[0]
    assert (x.shape, y.shape) == ((40, *data.input_shape), (40, *data.label_shape))
    digits = y.flatten(1).amax(1)
    assert all(set(one.unique().tolist()) == {0, int(digit)} for one, digit in zip(y, digits))  # one digit, some background
    assert len(digits.unique()) == 10
    changed = (x != photographs).any(1)
    assert bool(changed[y > 0].all())
    assert 0.03 < float((y > 0).float().mean()) < float(changed.float().mean()) < 0.5
    assert torch.equal(next(data.test(40).epoch(0))[0], x)
    other = next(DigitsOnPhotographs(test_limit=40, place_seed=1).test(40).epoch(0))[1]
    assert not torch.equal(other, y)
    with pytest.raises(ValueError, match="crop, flip and cutout"):
        DigitsOnPhotographs(flip=True)


def test_each_process_decodes_its_own_photographs(data_root: Path) -> None:
    need(data_root, "imagenet-sample")
    split = ImageNet(root=str(data_root / "imagenet-sample"), workers=0, test_limit=4, size=32).test(3)  # batches of 3 and 1
    whole = list(split.epoch(0))
    parts = [list(split.shard(Processes(rank, 2)).epoch(0)) for rank in range(2)]
    assert [[len(x) for x, _ in part] for part in parts] == [[1, 1], [2, 1]]  # every process reads a batch that is too small
    assert torch.equal(torch.cat([part[0][0] for part in parts]), whole[0][0])
    for part in parts:
        assert torch.equal(part[1][0], whole[1][0])
        assert all(torch.equal(mine, y) for (_, mine), (_, y) in zip(part, whole, strict=True))


def test_imagenet_layout(data_root: Path, tmp_path: Path) -> None:
    need(data_root, "imagenet-sample")
    data = ImageNet(root=str(data_root / "imagenet-sample"), workers=0, test_limit=6)
    x, y = next(data.test(6).epoch(0))
    assert x.shape == (6, *data.input_shape) == (6, 3, 224, 224)
    small = ImageNet(root=str(data_root / "imagenet-sample"), workers=0, test_limit=1, size=64)
    assert next(small.test(1).epoch(0))[0].shape == (1, *small.input_shape) == (1, 3, 64, 64)
    rows = [line.split("\t") for line in (data_root / "imagenet-sample" / "classes.tsv").read_text().splitlines()]
    numbers = [int(number) for _, number, _ in sorted(row for row in rows if row[1].isdigit())]
    assert y.tolist() == [numbers[i * 100 // 6] for i in range(6)]  # numbered by classes.tsv, not by folder; at even distances
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


def folders(root: Path, *wnids: str) -> ImageNet:
    """A data set with one empty file in each class folder."""
    for wnid in wnids:
        (root / "val" / wnid).mkdir(parents=True)
        (root / "val" / wnid / "0.JPEG").touch()
    return ImageNet(root=str(root), workers=0)


def test_subset_of_imagenet_keeps_its_class_numbers(tmp_path: Path) -> None:
    """Goldfish and orange are classes 1 and 950 of ILSVRC-2012, with any number of folders and with a table of names only."""
    data = folders(tmp_path, "n01443537", "n07747607")
    (tmp_path / "classes.tsv").write_text("wnid\tname\nn01443537\tgoldfish\nn07747607\torange\n")
    assert [label for _, label in data.test(2).samples] == [1, 950]
    assert [data.class_names()[i] for i in (1, 950)] == ["goldfish", "orange"]


def test_unknown_class_folders_are_refused(tmp_path: Path) -> None:
    data = folders(tmp_path, "n01443537", "n99999999")
    with pytest.raises(MissingDataError, match=r"class folder n99999999 is not one of ILSVRC-2012's.*write .*classes\.tsv"):
        data.test(2)
    (tmp_path / "classes.tsv").write_text("wnid\tindex\tname\nn01443537\t1\tgoldfish\n")
    with pytest.raises(MissingDataError, match=r"classes\.tsv has no line for class folder n99999999"):
        data.test(2)


def test_a_thousand_folders_of_other_names_are_numbered_in_order(tmp_path: Path) -> None:
    data = folders(tmp_path, *(f"c{i:03d}" for i in range(1000)))
    assert [label for _, label in data.test(2).samples] == list(range(1000))


def test_the_list_of_wnids_agrees_with_the_sample(data_root: Path) -> None:
    need(data_root, "imagenet-sample")
    table = data_root / "imagenet-sample" / "classes.tsv"
    wnids = sorted(line.split("\t")[0] for line in table.read_text().splitlines()[1:])
    assert _read_table(table) == {wnid: number for wnid, number in _class_numbers(Path("none"), wnids).items() if wnid in wnids}
    assert len(_ilsvrc_wnids()) == len(set(_ilsvrc_wnids())) == 1000
    assert _ilsvrc_wnids() == sorted(_ilsvrc_wnids())


def test_fingerprint_changes_with_the_examples(tmp_path: Path) -> None:
    assert Digits().test(7).fingerprint() == Digits().test(50).fingerprint()
    assert Digits().test(7).fingerprint() != Digits(test_limit=99).test(7).fingerprint()
    data = folders(tmp_path / "a", "n01443537", "n07747607")
    assert data.test(1).fingerprint() == folders(tmp_path / "b", "n01443537", "n07747607").test(1).fingerprint()
    (tmp_path / "b" / "val" / "n01443537" / "0.JPEG").write_bytes(b"more")
    assert data.test(1).fingerprint() != ImageNet(root=str(tmp_path / "b")).test(1).fingerprint()


@pytest.mark.parametrize("cls", [FashionMNIST, CIFAR10, CIFAR100, MNIST])
def test_error_for_missing_files_names_them_the_folder_and_the_remedy(tmp_path: Path, cls: type[ImageData]) -> None:
    with pytest.raises(MissingDataError) as caught:
        cls(root=str(tmp_path)).train(4, seed=0)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert cls.__name__ in text
    assert "data.download=true" in text
    assert getattr(cls, "files") in text  # noqa: B009


def test_truncated_files_are_refused(data_root: Path, tmp_path: Path) -> None:
    need(data_root, "FashionMNIST")
    raw = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(data_root / "FashionMNIST" / "raw", raw)
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1000])
    with pytest.raises(MissingDataError, match="truncated or damaged"):
        FashionMNIST(root=str(tmp_path)).test(4)


def test_normalisation_by_channel() -> None:
    data = CIFAR10(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0])
    split = InMemorySplit(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), torch.zeros(1).long(), 1, data.mean, data.std)
    x, _ = next(split.epoch(0))
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([0.9, 0.4, 0.175]))
    with pytest.raises(ValueError, match="3 channels"):
        CIFAR10(mean=[0.1, 0.2])
    with pytest.raises(ValueError, match="must be positive"):
        CIFAR10(std=[1.0, 0.0, 1.0])


def test_death_of_a_worker_is_found_behind_any_error() -> None:
    """torch's handler can raise anywhere, such as while a thread starts, which then raises its own error."""
    from spikeprop.errors import worker_died

    def broken() -> None:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError:
            raise KeyError("thread")  # noqa: B904 - as in torch

    with pytest.raises(KeyError) as caught:
        broken()
    assert "pid 7" in str(worker_died(caught.value))
    assert worker_died(RuntimeError("Caught RuntimeError in DataLoader worker process 0.")) is None


@pytest.mark.parametrize(("code", "error", "found"), [(1, ConnectionResetError(104, "reset"), True), (0, EOFError(), False)])
def test_death_of_a_worker_that_sends_is_found_by_its_exit(code: int, error: Exception, found: bool) -> None:
    """Its connection breaks before torch notices the death, so the error does not name a DataLoader."""
    import multiprocessing
    import os

    from spikeprop.data.imagenet import _closed

    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(code,))
    process.start()
    died = _closed(error, [process])
    assert (died is not None) is found
    assert died is None or f"process {process.pid} closed its connection" in str(died)
    assert _closed(OSError("no space"), [process]) is None
