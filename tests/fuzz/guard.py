"""Records which files a process uses: Python calls an audit hook for every file that it opens, renames or removes.

Within ``with guard`` nothing outside the folder may be written, and only files of the libraries may be read. HDF5 opens files
without Python: tests/test_untrusted.py tests its links to other files.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import spikeprop
from spikeprop.recipe import recipe_folder

WRITES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime",
    "shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkstemp", "tempfile.mkdtemp",
}  # fmt: skip
NEVER = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "urllib.Request", "ctypes.dlopen", "pickle.find_class",
}  # fmt: skip


class Guard:
    """Records forbidden accesses.

    Args:
        folder: where anything may happen.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.touched: list[str] = []
        self.on = self.compiling = False
        self.inside = str(self.folder) + os.sep
        packages = (sysconfig.get_paths()[k] for k in ("stdlib", "purelib", "platlib"))
        library = Path(spikeprop.__file__).parent
        own = (library, library.parent / "hardware", recipe_folder(), Path(__file__).parent.parent)
        known = (*packages, *own, sys.prefix, sys.base_prefix, "/proc", "/sys")
        self.libraries = tuple(str(Path(p).resolve()) + os.sep for p in known)
        sys.addaudithook(self._hear)

    def __enter__(self) -> Guard:
        self.touched, self.compiling = [], sys.dont_write_bytecode
        self.on = sys.dont_write_bytecode = True
        return self

    def __exit__(self, *_: object) -> None:
        self.on, sys.dont_write_bytecode = False, self.compiling

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in NEVER:
            self.touched.append(f"{event}{arguments}")
        elif event in WRITES:
            self._wants(event, arguments[0], writing=True)
        elif event == "open" and not isinstance(arguments[0], int):
            path, mode, flags = arguments
            writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)) if isinstance(flags, int) else mode != "r"
            self._wants(event, path, writing=writing)

    def _wants(self, event: str, path: Any, *, writing: bool) -> None:
        self.on = False  # the following code opens files too
        try:
            where = os.path.realpath(os.fsdecode(path))
            known = where.startswith(self.inside) or (not writing and where.startswith(self.libraries))
            if not known:
                self.touched.append(f"{event}: {where}{' (to write)' if writing else ''}")
        except (TypeError, ValueError):  # not a path
            pass
        finally:
            self.on = True
