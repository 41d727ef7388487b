"""Photographs of one's own: ``ImageFolder``, a folder for each class; ``CSVLabels``, a table of files and classes."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spikeprop.data.photographs import SUFFIXES
from spikeprop.data.picture_files import SHOWN, Named, PictureFiles, held_out
from spikeprop.errors import MissingDataError
from spikeprop.runtime.places import nearest_path

TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")  # names of folders, and values of a column
LARGEST_TABLE = 2**28  # bytes


@dataclass(frozen=True, kw_only=True)
class ImageFolder(PictureFiles):
    """A folder of photographs, with a folder for each class, whose names are the classes' names.

    ``root`` holds ``train/CLASS/...`` and ``test/CLASS/...`` (or ``val``), or ``CLASS/...`` alone: then every ``holdout``-th
    image of a class is a test image. Files in folders below a class are read too. Classes are numbered in the order of their
    sorted names, as by torchvision's class of this name.

    Attributes:
        train_folder, test_folder: names of the two folders in ``root``; default those above.
    """

    train_folder: str | None = None
    test_folder: str | None = None

    def listed(self) -> tuple[list[Named], list[Named]]:
        if self.root is None:
            raise MissingDataError("ImageFolder: set data.root to the folder that holds a folder of images for each class")
        train, test = self._folders()
        if test is None:
            return held_out(_of_classes(train or self.folder()), self.holdout)
        return [] if train is None else _of_classes(train), _of_classes(test)

    def ordered(self, found: set[str]) -> list[str]:
        """Sorted, with folders that have no image, so that the others keep their numbers."""
        empty = {p.name for folder in self._folders() if folder is not None for p in _class_folders(folder)}
        return sorted(found | empty)

    def _folders(self) -> tuple[Path | None, Path | None]:
        """The folders of training and of test images; None for one that is not there."""
        root = self.folder()
        if not root.is_dir():
            raise MissingDataError(
                f"ImageFolder: there is no folder {root}; set data.root (--root of convert){nearest_path(root)}"
            )
        return _named(root, self.train_folder, TRAIN), _named(root, self.test_folder, TEST)


@dataclass(frozen=True, kw_only=True)
class CSVLabels(PictureFiles):
    """Photographs whose classes stand in a table (CSV, or TSV), a line for each file.

    Attributes:
        table: the table; a path, or its name in ``root``. Files in it are relative to ``root``, or to the table's folder.
        test_table: another one, of the test images.
        image_column, label_column: names of columns; default the first and the second.
        split_column: of "train" and "test" (or "val"); without it and ``test_table`` every ``holdout``-th image is a test image.
        suffix: what the table leaves out of the files' names, such as ".jpg".
    """

    table: str = "labels.csv"
    test_table: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    suffix: str = ""

    def listed(self) -> tuple[list[Named], list[Named]]:
        rows = list(self._rows(self.table))
        if self.test_table is not None:
            return [(file, name) for file, name, _ in rows], [
                (file, name) for file, name, _ in self._rows(self.test_table, "test_table")
            ]
        if self.split_column is None:
            return held_out([(file, name) for file, name, _ in rows], self.holdout)
        unknown = {split for _, _, split in rows if split.lower() not in (*TRAIN, *TEST)}
        if unknown:
            raise MissingDataError(f"{self.table}: column {self.split_column} has {sorted(unknown)[:SHOWN]}; use train and test")
        parts = [[(file, name) for file, name, split in rows if split.lower() in which] for which in (TRAIN, TEST)]
        return parts[0], parts[1]

    def ordered(self, found: set[str]) -> list[str]:
        """Sorted; whole numbers are class numbers, so that a class without images keeps its place."""
        if not all(name.isdecimal() and str(int(name)) == name for name in found):
            return sorted(found)
        top = max(map(int, found), default=0)
        dense = "0" in found and top < 10 * len(found) + 100
        return [str(number) for number in range(top + 1)] if dense else sorted(found, key=int)

    def _rows(self, name: str, key: str = "table") -> Iterator[tuple[str, str, str]]:
        """File, class and split of each line; the split is empty without its column."""
        path = next((p for p in (Path(self.root or ".").expanduser() / name, Path(name).expanduser()) if p.is_file()), None)
        if path is None:
            near = nearest_path(self.root or ".") or nearest_path(Path(self.root or ".") / name)
            raise MissingDataError(
                f"CSVLabels: there is no table {name}{f' in {self.root}' if self.root else ''}; set data.{key}{near}"
            )
        folder = self.folder() if self.root else path.parent
        lines = _lines(path)
        header = lines[0]
        columns = [_column(path, header, own, place) for place, own in enumerate((self.image_column, self.label_column))]
        columns += [_column(path, header, self.split_column, 0)] if self.split_column else []
        is_file = Path(header[0]).suffix.lower() in SUFFIXES or (folder / f"{header[0].strip()}{self.suffix}").is_file()
        without_header = self.image_column is None and is_file
        for number, line in enumerate(lines if without_header else lines[1:], 1 if without_header else 2):
            if len(line) <= max(columns):
                raise MissingDataError(f"{path}, line {number} has {len(line)} columns; column {max(columns) + 1} is read")
            file, label, *split = (line[column].strip() for column in columns)
            if not (file and label):
                raise MissingDataError(
                    f"{path}, line {number} has no {'class' if file else 'file'}; fill it in, or leave the line out"
                )
            yield str(folder / f"{file}{self.suffix}"), label, split[0] if split else ""


def _named(root: Path, own: str | None, usual: tuple[str, ...]) -> Path | None:
    if own is not None and not (root / own).is_dir():
        raise MissingDataError(f"ImageFolder: there is no folder {root / own}; set data.train_folder and data.test_folder")
    return root / own if own is not None else next((root / name for name in usual if (root / name).is_dir()), None)


def _class_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _of_classes(folder: Path) -> list[Named]:
    """The images below each class folder, in sorted order; a warning names what is not read."""
    classes = _class_folders(folder)
    found = [(p, c.name) for c in classes for p in sorted(c.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    images = [(str(p), name) for p, name in found if p.suffix.lower() in SUFFIXES]
    if not images:
        raise MissingDataError(
            f"ImageFolder: {folder} has no image in a class folder; it should hold CLASS/NAME with one of {', '.join(SUFFIXES)}"
        )
    beside = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix.lower() in SUFFIXES]
    left = [*(p for p, _ in found if p.suffix.lower() not in SUFFIXES), *beside]
    empty = sorted({c.name for c in classes} - {name for _, name in images})
    if left:
        shown = ", ".join(str(p.relative_to(folder)) for p in left[:SHOWN])
        warnings.warn(f"ImageFolder: {len(left)} files in {folder} are not read ({shown}): an image is CLASS/NAME with one of "
                      f"{', '.join(SUFFIXES)}", stacklevel=2)  # fmt: skip
    if empty:
        warnings.warn(f"ImageFolder: {len(empty)} folders in {folder} have no image ({', '.join(empty[:SHOWN])})", stacklevel=2)
    return images


def _lines(path: Path) -> list[list[str]]:
    """The lines of a table that are not empty, at least one.

    Raises:
        MissingDataError: too large, not text, or without lines.
    """
    if path.stat().st_size > LARGEST_TABLE:
        raise MissingDataError(f"{path} has more than {LARGEST_TABLE:,} bytes; that is no table of labels")
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        lines = [line for line in csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count)) if any(line)]
    except (ValueError, csv.Error) as error:
        raise MissingDataError(f"{path} is no table in UTF-8 with a line for each image: {error}") from error
    if not lines:
        raise MissingDataError(f"{path} is empty; it should have a line for each image: file, class")
    return lines


def _column(path: Path, header: list[str], name: str | None, place: int) -> int:
    if name is None:
        return place
    heads = [head.strip() for head in header]
    if name not in heads:
        raise MissingDataError(f"{path} has no column {name!r}; it has {', '.join(heads)[:200]}")
    return heads.index(name)
