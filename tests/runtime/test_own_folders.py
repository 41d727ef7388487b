"""Folders that the user made: recognised by a record outside of them, and granted no more than that record says."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from spikeprop.runtime.imports import may_call, note_foreign_names, only_trusted
from spikeprop.runtime.own_folders import OwnFolder, own_folder, record_own, state_folder


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recorded folder whose recipe named the module owned_net, which lies beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "owned_net.py").write_text("made = True\n")
    folder = tmp_path / "run"
    folder.mkdir()
    record_own(folder, ["owned_net"], {"use": "Digits", "root": "somewhere"})
    return folder


def test_a_recorded_folder_is_the_users_own_by_any_path_to_it(made: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(made)
    for path in (made, tmp_path / "link", made / ".." / "run"):
        found = own_folder(path)
        assert found.packages() == ("owned_net",)
        assert found.data == {"use": "Digits", "root": "somewhere"}


def test_copies_other_folders_at_the_path_and_marks_within_are_not_the_users_own(made: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(made, tmp_path / "copy"))
    shutil.copytree(state_folder(), copied / "state" / "spikeprop" / "folders")  # a mark inside, as anyone could put it there
    assert own_folder(copied) == OwnFolder()
    made.rename(tmp_path / "moved")
    copied.rename(made)
    assert own_folder(made) == OwnFolder()


def test_a_module_of_another_file_is_not_granted(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    assert own_folder(made).packages() == ("owned_net",)  # found again where it was
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "owned_net.py").write_text("made = False\n")
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert own_folder(made).packages() == ()
    (tmp_path / "other" / "owned_net.py").unlink()
    (tmp_path / "owned_net.py").unlink()
    assert own_folder(made).packages() == ()
    assert "owned_net" not in sys.modules


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
def test_a_record_of_another_user_grants_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert own_folder(made) == OwnFolder()


@pytest.mark.parametrize("content", ["", "[]", '{"folder": 1}', "{" * 100_000])
def test_a_damaged_record_grants_nothing(made: Path, content: str) -> None:
    (record,) = state_folder().iterdir()
    record.write_text(content)
    assert own_folder(made) == OwnFolder()


def test_a_function_of_a_library_is_granted_alone(made: Path) -> None:
    with note_foreign_names() as named:
        assert may_call("torch.hub", "list")
    assert named == {"torch.hub:list"}
    record_own(made, named, {})
    with only_trusted(own_folder(made).packages()):
        assert may_call("torch.hub", "list")
        assert not may_call("torch.hub", "load")
