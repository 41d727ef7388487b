"""Environments of their own for simulators that live beside nothing else, each made once in the user's cache.

lava-nc 0.10.0 needs Python 3.10 and numpy below 2; nengo-loihi needs numpy below 2; sinabs and rockpool ask for a nir of long ago
and a package that no index has. None of their packages enters the caller's environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from spikeprop_hardware.errors import LavaMissing, SimulatorMissing

VARIABLE = "SPIKEPROP_LAVA_PYTHON"
VERSION = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
BORROWED = "zz_of_the_caller.pth"  # read last, after what the environment has of its own


@dataclass(frozen=True)
class Environment:
    """A simulator's environment.

    Attributes:
        title: of the simulator, in messages.
        folder: its name in the cache; says the version.
        packages: for pip, with what they need.
        alone: for pip, without what they say that they need.
        modules: that its Python must find.
        borrowed: modules that are large, and are taken from the caller's environment where it has them; pip gets them elsewhere.
    """

    title: str
    folder: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    alone: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()

    def base(self) -> Path:
        """The Python that it is made with: this one."""
        return Path(getattr(sys, "_base_executable", sys.executable))

    def path(self) -> Path:
        """Where it is, or would be."""
        return cache_folder() / self.folder

    def python(self, notify: Callable[[str], None]) -> Path:
        """Its Python; the environment is made if it is missing or broken.

        Raises:
            SimulatorMissing: it cannot be made; says why.
        """
        if not self.is_ready():
            base, folder = self.base(), self.path()
            folder.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(notify):
                if not self.is_ready():  # another process may have made it meanwhile
                    self._make(folder, base, notify)
        return _python_of(self.path())

    def is_ready(self) -> bool:
        """Whether it is made, runs and finds its modules: its base Python or a package may have been removed."""
        needed = f"import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, {self.modules!r})))"
        try:
            return (self.path() / ".ready").exists() and (
                subprocess.run([_python_of(self.path()), "-c", needed], capture_output=True, check=False, timeout=60).returncode
                == 0
            )
        except (OSError, subprocess.TimeoutExpired):
            return False

    def _make(self, folder: Path, base: Path, notify: Callable[[str], None]) -> None:
        broken = (folder / ".ready").exists()
        what = (
            f"{self.title}'s environment is broken, so it is made again" if broken else f"making {self.title}'s environment once"
        )
        notify(f"{what}, in {folder}, with {base}")
        shutil.rmtree(folder, ignore_errors=True)  # incomplete where a run was stopped
        self._must([str(base), "-m", "venv", str(folder)], "cannot make the environment")
        pip = [str(_python_of(folder)), "-m", "pip", "install", "--quiet"]
        found = {name: _site_of(name) for name in self.borrowed}
        wanted = [*self.packages, *(name for name, site in found.items() if site is None)]
        sites = sorted({str(site) for site in found.values() if site is not None})
        if sites:
            (next(folder.glob("lib/python*/site-packages")) / BORROWED).write_text("\n".join(sites) + "\n")
        self._must([*pip, *wanted], f"cannot install {self.title}")
        if self.alone:
            self._must([*pip, "--no-deps", *self.alone], f"cannot install {self.title}")
        (folder / ".ready").touch()

    def _must(self, command: list[str], problem: str) -> None:
        try:
            _must(command)
        except RuntimeError as error:
            raise SimulatorMissing(
                f"{self.title} cannot be had, for pip or venv failed: {problem} ({' '.join(command)}): {error}"
            ) from None

    @contextmanager
    def _locked(self, notify: Callable[[str], None]) -> Iterator[None]:
        """Hold the environment's lock; the system frees it when its process ends, however that ends."""
        import fcntl  # not on Windows, where these environments are not made either

        path = self.path().with_name(f"{self.folder}.lock")
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                notify(f"waiting for another process, which is making {self.title}'s environment ({path})")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _Lava(Environment):
    def base(self) -> Path:
        return find_python310()


LAVA = _Lava(
    "Lava",
    "lava-0.10.0",
    ("lava-nc==0.10.0", "nir>=1.0.8", "h5py>=3.11", "scipy>=1.11,<1.16"),
    ("lava", "nir", "h5py", "scipy"),
)


def cache_folder() -> Path:
    """Where spikeprop keeps things between runs: ``$XDG_CACHE_HOME/spikeprop`` or ``~/.cache/spikeprop``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikeprop"


def lava_python(notify: Callable[[str], None]) -> Path:
    """Python of the environment that has Lava; the environment is made if it is missing or broken.

    Raises:
        LavaMissing: no Python 3.10, or the installation failed.
    """
    try:
        return LAVA.python(notify)
    except LavaMissing:
        raise
    except SimulatorMissing as error:
        raise LavaMissing(f"Lava is missing: {error}") from None


def lava_is_ready() -> bool:
    """Whether Lava's environment is made and runs."""
    return LAVA.is_ready()


def why_no_lava() -> str | None:
    """Why Lava cannot be had; None where its environment was made, or a Python 3.10 is here to make it with."""
    try:
        if not (LAVA.path() / ".ready").exists():
            find_python310()
    except LavaMissing as error:
        return str(error)
    return None


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _site_of(module: str) -> Path | None:
    """The folder that a module of this environment lies in."""
    spec = find_spec(module)
    return Path(spec.origin).parents[1] if spec is not None and spec.origin else None


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


def _must(command: list[str]) -> None:
    """Run a command; RuntimeError with the end of its errors where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-800:])
