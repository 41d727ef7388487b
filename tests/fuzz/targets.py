"""Reads each kind of file; anything but a result or a SpikepropError counts as a failure."""

from __future__ import annotations

import random
import resource
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from spikeprop.data import FrameData
from spikeprop.data.cifar_pickles import read_batch
from spikeprop.data.events.files import packets_of_aedat3, read_aedat2, read_aedat3, read_gesture_array, read_nmnist
from spikeprop.data.events.spike_trains import read_labels, read_spike_trains
from spikeprop.data.photographs import read_photograph
from spikeprop.data.speech import read_wav
from spikeprop.errors import SpikepropError
from spikeprop.experiment.network_checkpoint import load_network
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.experiment.simulation_input import open_simulation_input
from spikeprop.learn import load_checkpoint
from spikeprop.recipe import load_recipe, recipe_folder
from spikeprop.runtime.files import read_json
from spikeprop.runtime.imports import only_trusted, record_foreign_names
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import SUFFIXES, seeds

ADDRESSES = 16 * 2**30  # bytes of address space; torch needs some of it
SECONDS = 20.0  # for one input, on a busy machine


class Hang(BaseException):
    """An input took too long; not an Exception, so that no handler catches it."""


def recipe(file: Path) -> None:
    """Read as ``run`` does; no foreign code is imported, because a corrupted name could name any module."""
    with only_trusted():
        load_recipe(str(file))


def looked_at_recipe(file: Path) -> None:
    """As ``check --no-import`` does."""
    with record_foreign_names():
        load_recipe(str(file))


def checked_recipe(file: Path) -> None:
    """Build every component, as ``check`` does."""
    with only_trusted():
        experiment = load_recipe(str(file)).experiment
        if hasattr(experiment, "check"):
            experiment.check()


def checkpoint(file: Path) -> None:
    load_checkpoint(file)
    load_network(file)


def nir(file: Path) -> None:
    with open_simulation_input(file):
        pass


def cifar(file: Path) -> None:
    read_batch(file)


def image(file: Path) -> None:
    read_photograph(file)


def json(file: Path) -> None:
    """As a file of a run folder."""
    read_json(file)
    folder = file.parent / "run"
    folder.mkdir(exist_ok=True)
    for name in ("run.json", "stages.json"):
        (folder / name).write_bytes(file.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            RunFolder(folder, load_recipe("digits_cnn_stdb"))


def nmnist(file: Path) -> None:
    read_nmnist(file)


def aedat2(file: Path) -> None:
    read_aedat2(file)


def aedat3(file: Path) -> None:
    """As one gesture that lasts as long as the trial."""
    read_aedat3(file, packets_of_aedat3(file), 0, 2**62)


def gesture(file: Path) -> None:
    read_gesture_array(file)


def spikes(file: Path) -> None:
    labels = read_labels(file, 20)
    for _ in read_spike_trains(file, range(len(labels))):
        pass


def frames(file: Path) -> None:
    FrameData(root=str(file.parent), train_file=file.name, frame_shape=[3], classes=2, timesteps=4).train(2, 0)


def sound(file: Path) -> None:
    read_wav(file)


TARGETS: dict[str, Callable[[Path], None]] = {
    "recipe": recipe, "checkpoint": checkpoint, "nir": nir, "cifar": cifar, "image": image, "json": json,
    "nmnist": nmnist, "aedat2": aedat2, "aedat3": aedat3, "gesture": gesture, "spikes": spikes, "frames": frames, "sound": sound,
}  # fmt: skip


def attempt(kind: str, content: bytes, guard: Guard, target: Callable[[Path], None] | None = None) -> str | None:
    """Read one file under guard; None if the outcome is allowed, else what was wrong."""
    file = guard.folder / f"input{SUFFIXES[kind]}"
    file.write_bytes(content)
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with guard, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (target or TARGETS[kind])(file)
    except SpikepropError:
        pass
    except Hang:
        return f"it took more than {SECONDS:.0f} s"
    except OSError as error:
        if str(file) not in str(error):
            return traceback.format_exc(limit=-4)
    except BaseException:
        return traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return f"it touched {guard.touched}" if guard.touched else None


def one(kind: str, source: random.Random, guard: Guard) -> tuple[bytes, str | None]:
    """Corrupt a file and read it; returns the file, and what was wrong with the reading."""
    content = mutated(kind, source, guard.folder)
    depth = source.random() if kind == "recipe" else 1.0
    target = checked_recipe if depth < 0.02 else looked_at_recipe if depth < 0.2 else None
    return content, attempt(kind, content, guard, target)


def ready(folder: Path) -> Guard:
    """A guard for a folder, made after the libraries have filled their caches and finished their imports."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    load_recipe("digits_cnn_stdb").experiment.check()
    for path in recipe_folder().glob("*.yaml"):
        load_recipe(str(path))
    guard = Guard(folder)
    for kind in SUFFIXES:
        seeds(kind)
    return guard


def limited() -> None:
    """In a dedicated process: limit the memory, so that a file which asks for too much gets an error early."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang
