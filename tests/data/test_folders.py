"""Folders of photographs: every format that is read, and what is not read is counted and named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from spikeprop.data import ImageNet
from spikeprop.data.photographs import FORMATS, SUFFIXES, read_photograph
from spikeprop.errors import MissingDataError

WNIDS = ("n01443537", "n07747607")


def fill(root: Path, suffixes: tuple[str, ...]) -> ImageNet:
    for wnid in WNIDS:
        (root / "val" / wnid).mkdir(parents=True)
        for i, suffix in enumerate(suffixes):
            Image.new("RGB", (8, 8), (10 * i, 20, 30)).save(root / "val" / wnid / f"{i}{suffix}")
    return ImageNet(root=str(root), workers=0, size=8)


def test_every_suffix_of_torchvision_is_read(tmp_path: Path) -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMG_EXTENSIONS) == set(SUFFIXES)
    split = fill(tmp_path, (*SUFFIXES, ".JPEG", ".PNG")).test(100)
    ((x, y),) = split.epoch(0)
    assert len(x) == len(y) == 2 * (len(SUFFIXES) + 2)
    assert torch.isfinite(x).all()


def test_what_is_not_read_is_counted_and_named(tmp_path: Path) -> None:
    data = fill(tmp_path, (".png", ".gif"))
    (tmp_path / "val" / WNIDS[0] / "deeper").mkdir()
    (tmp_path / "val" / WNIDS[0] / ".DS_Store").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "loose.png")
    with pytest.warns(
        UserWarning, match=r"4 of 7 entries in .*val are not read \(n01443537/1\.gif, n01443537/deeper, .*\.jpg, \.jpeg"
    ):
        assert len(data.test(4).samples) == 2


def test_a_class_folder_without_photographs_is_named(tmp_path: Path) -> None:
    data = fill(tmp_path, (".png",))
    (tmp_path / "val" / WNIDS[1] / "0.png").unlink()
    with pytest.warns(UserWarning, match=r"1 class folders in .* have no photograph \(n07747607\)"):
        assert len(data.test(4).samples) == 1


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_deeper_pixels_are_refused_and_not_clipped_to_white(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4), 700).save(tmp_path / "deep.tiff")
    with pytest.raises(MissingDataError, match="only 8 bits a channel"):
        read_photograph(tmp_path / "deep.tiff")
    assert "EPS" not in FORMATS
