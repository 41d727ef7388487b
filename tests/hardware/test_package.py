"""The package's public names, which are imported only when they are used."""

from __future__ import annotations

import subprocess
import sys

import spikeprop_hardware


def test_every_public_name_is_found_and_no_other() -> None:
    found = {name: getattr(spikeprop_hardware, name) for name in spikeprop_hardware.__all__}
    assert all(value.__name__ == name for name, value in found.items() if not isinstance(value, str))
    assert not hasattr(spikeprop_hardware, "import_module_of_another_name")


def test_the_errors_are_imported_without_the_libraries() -> None:
    program = "import sys, spikeprop_hardware.errors; print(*{'numpy', 'scipy', 'h5py', 'nir', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
