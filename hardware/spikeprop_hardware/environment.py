"""Lava's own Python 3.10 environment, made once in the user's cache.

lava-nc 0.10.0 needs Python 3.10 and numpy below 2, which nothing else here can use.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spikeprop_hardware.errors import LavaMissing

PACKAGES = ["lava-nc==0.10.0", "nir>=1.0.8", "h5py>=3.11", "scipy>=1.11,<1.16"]
VARIABLE = "SPIKEPROP_LAVA_PYTHON"
NEEDED = "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, ('lava', 'nir', 'h5py', 'scipy'))))"
VERSION = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"


def cache_folder() -> Path:
    """Where spikeprop keeps things between runs: ``$XDG_CACHE_HOME/spikeprop`` or ``~/.cache/spikeprop``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikeprop"


def lava_python(notify: Callable[[str], None]) -> Path:
    """Python of the environment that has Lava; the environment is made if it is missing or broken.

    Raises:
        LavaMissing: no Python 3.10, or the installation failed.
    """
    folder = _folder()
    if not _is_ready(folder):
        base = find_python310()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f"{folder.name}.lock", notify):
            if not _is_ready(folder):  # another process may have made it meanwhile
                _make(folder, base, notify)
    return _python_of(folder)


def lava_is_ready() -> bool:
    """Whether Lava's environment is made and runs."""
    return _is_ready(_folder())


def why_no_lava() -> str | None:
    """Why Lava cannot be had; None where its environment was made, or a Python 3.10 is here to make it with."""
    try:
        if not (_folder() / ".ready").exists():
            find_python310()
    except LavaMissing as error:
        return str(error)
    return None


def _folder() -> Path:
    return cache_folder() / "lava-0.10.0"


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _is_ready(folder: Path) -> bool:
    return (folder / ".ready").exists() and _has_lava(_python_of(folder))


def _has_lava(python: Path) -> bool:
    """Whether it runs and finds its packages: its base Python or a package may have been removed."""
    try:
        return subprocess.run([python, "-c", NEEDED], capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _make(folder: Path, base: Path, notify: Callable[[str], None]) -> None:
    broken = (folder / ".ready").exists()
    what = "Lava's environment is broken, so it is made again" if broken else "making Lava's environment once"
    notify(f"{what}, in {folder}, with {base}")
    shutil.rmtree(folder, ignore_errors=True)  # incomplete where a run was stopped
    _must([str(base), "-m", "venv", str(folder)], "cannot make the environment")
    _must([str(_python_of(folder)), "-m", "pip", "install", "--quiet", *PACKAGES], "cannot install Lava")
    (folder / ".ready").touch()


@contextmanager
def _locked(path: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the file's lock; the system frees it when its process ends, however that ends."""
    import fcntl  # not on Windows, where Lava's environment is not made either

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"waiting for another process, which is making Lava's environment ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_python310() -> Path:
    """A Python 3.10 that runs: ``$SPIKEPROP_LAVA_PYTHON``, PATH, pyenv's versions, uv's.

    Raises:
        LavaMissing: there is none; says what to install.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if _is_310(named):
            return Path(named)
        raise LavaMissing(f"${VARIABLE} is {named!r}, which is not a Python 3.10 that runs")
    for candidate in _candidates():
        if _is_310(candidate):
            return Path(candidate)
    raise LavaMissing(
        "Lava needs Python 3.10 and none was found (looked at python3.10 on PATH, pyenv's versions, uv). Install one, as with "
        f"'uv python install 3.10' or 'pyenv install 3.10', or set {VARIABLE} to its path; then run again"
    )


def _candidates() -> Iterator[str]:
    if sys.version_info[:2] == (3, 10):
        yield sys.executable
    on_path = shutil.which("python3.10")
    if on_path:
        yield on_path
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(p) for p in sorted(root.glob("versions/3.10*/bin/python"), reverse=True))
    uv = shutil.which("uv")
    if uv:
        found = subprocess.run([uv, "python", "find", "3.10"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            yield found.stdout.strip()


def _is_310(python: str) -> bool:
    try:
        asked = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0 and asked.stdout == "3.10"


def _must(command: list[str], problem: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LavaMissing(f"{problem} ({' '.join(command)}): {done.stderr.strip()[-800:]}")
