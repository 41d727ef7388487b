"""The verb that lists what there is: recipes, components of every slot, run folders."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from spikeprop.cli.group import main
from spikeprop.cli.printing import columns, result, say, write
from spikeprop.cli.zoo import list_zoo

HEADS = ("run", "state", "recipe", "accuracy (%) or means", "begun", "size")
WORDS = {  # what people call the components of a slot, and the slot's base class
    "data": "LabelledData",
    "networks": "Module",
    "neurons": "Neuron",
    "encoders": "Encoder",
    "calibrators": "ThresholdCalibrator",
    "rules": "LearningRule",
    "optimizers": "Optimizer",
    "schedules": "Schedule",
    "callbacks": "Callback",
    "surrogates": "Surrogate",
    "losses": "Objective",
    "regularisers": "Regulariser",
    "activations": "Clipped",
    "heads": "AuxiliaryHead",
    "readouts": "ReadoutDynamics",
}


@main.command(short_help="List recipes, components and runs.", example="spikeprop ls calibrators")
@click.argument(
    "what", required=False, shell_complete=lambda *a: [w for w in (*WORDS, "recipes", "runs", "zoo", "all") if w.startswith(a[2])]
)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def ls(what: str | None, folder: Path | None) -> None:
    """List the recipes, each with what it does.

    `ls neurons` lists components, with what each is for and its settings; so do networks, data, encoders, calibrators, rules,
    optimizers, schedules, callbacks, surrogates, losses, regularisers, activations, heads and readouts, and a slot by its path
    in a recipe (train.rule); `ls all` lists all of them, `ls MuonSGD` the slots that one component fits.
    `ls runs [FOLDER]` lists the run folders in FOLDER (default runs), `ls zoo` the trained networks of the zoo.
    """
    if what == "runs":
        _list_runs(folder or Path("runs"))
        return
    if what == "zoo" and folder is None:
        list_zoo()
        return
    if folder is not None:
        raise click.UsageError(f"a folder is for `ls runs {folder}`; only runs have one")
    if what in (None, "recipes", "all"):
        _list_recipes()
    if what is None:
        write(f"\ncomponents: spikeprop ls {' | '.join(WORDS)} | all; runs: spikeprop ls runs; networks: spikeprop ls zoo")
    elif what != "recipes":
        _list_components(what)


def _list_recipes() -> None:
    from spikeprop.recipe import recipe_folder
    from spikeprop.recipe.text import description

    found = [(path.stem, description(path)) for path in sorted(recipe_folder().glob("*.yaml"))]
    result(recipes=[{"name": name, "description": text} for name, text in found])
    width = max(len(name) for name, _ in found)
    room = shutil.get_terminal_size().columns - width - 4 if sys.stdout.isatty() else None
    for name, text in found:
        shown = text if room is None or len(text) <= room else text[: max(room - 3, 20)] + "..."
        write(f"  {click.style(f'{name:<{width}}', bold=True)}  {shown}")


def _list_components(what: str) -> None:
    from spikeprop.experiment import HybridConversion, SpikingTraining
    from spikeprop.recipe import components, slots
    from spikeprop.recipe.nearest import nearest

    bases: dict[type, list[str]] = {}
    for experiment in (HybridConversion, SpikingTraining):
        for path, base in slots(experiment).items():
            known_paths = bases.setdefault(base, [])
            known_paths += [path] if path not in known_paths else []
    bases |= _nested(bases)
    names = {base: {base.__name__, *paths, *(w for w, b in WORDS.items() if b == base.__name__)} for base, paths in bases.items()}
    known, written = {name for found in names.values() for name in found} | {"all"}, what.lower()
    words = [word for word in WORDS if written in (word[:-1], word[:-2])]  # losses for loss, before the class Loss
    meant = what if what in known else next(iter((*words, *(n for n in sorted(known) if n.lower() == written))), None)
    if meant is not None:
        for base, paths in bases.items():
            if meant == "all" or meant in names[base]:
                _list_slot(paths, base)
        return
    fitting = {base: [name for name in components(base) if written in (name.lower(), _bare(name))] for base in bases}
    if not any(fitting.values()):
        bare = {_bare(name): name.rpartition(".")[2] for base in bases for name in components(base)}
        meant = get_close_matches(written, bare, n=1, cutoff=0.8)
        near = f"; did you mean {bare[meant[0]]!r}?" if meant else nearest(what, known | {"recipes", "runs", "zoo"})
        raise click.BadParameter(f"{what!r} is neither a slot nor a component{near}")
    for base, found in fitting.items():
        if found:
            _list_slot(bases[base], base, found)


def _bare(name: str) -> str:
    """A component's name without its room, in small letters."""
    return name.rpartition(".")[2].lower()


def _nested(bases: Mapping[type, list[str]]) -> dict[type, list[str]]:
    """Slots inside components, such as a neuron's surrogate."""
    from spikeprop.recipe import nested

    found: dict[type, list[str]] = {}
    for base, paths in bases.items():
        for inner, keys in nested(base).items():
            if inner not in bases:
                places = [f"{path}.{key}" for path in paths for key in keys]
                found[inner] = list(dict.fromkeys([*found.get(inner, []), *places]))
    return found


def _list_slot(paths: list[str], base: type, only: Collection[str] | None = None) -> None:
    """The components of a slot, or some of them."""
    from spikeprop.recipe import components, purposes

    texts = purposes(base)
    found = {name: settings for name, settings in components(base).items() if only is None or name in only}
    listed = [{"name": name, "for": texts[name], "settings": _settings(found[name])} for name in found]
    result(slots=[{"slots": paths, "components": listed}])
    write(f"\n{', '.join(paths)}")
    for name, parameters in found.items():
        shown = ", ".join(k if v == "(required)" else f"{k}={v!r}" for k, v in parameters.items())
        write(f"  {click.style(name, bold=True)}({shown})")
        write(f"      {texts[name]}")


def _settings(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, bool | int | float | str | None) else repr(value) for name, value in parameters.items()
    }


def _list_runs(folder: Path) -> None:
    from spikeprop.errors import RunError
    from spikeprop.experiment.run_record import RunRecord, run_folders

    rows, damaged = [], []
    for path in run_folders(folder):
        try:
            run = RunRecord.read(path)
        except RunError as error:
            damaged.append(str(error))
            continue
        size = f"{run.size() / 1e6:.1f} MB"
        rows.append((str(path.relative_to(folder)), run.state, run.recipe, run.headline_text(), run.started(), size))
    result(runs=[{**dict(zip(HEADS, row)), "folder": folder / row[0]} for row in rows], damaged=damaged)
    if rows:
        columns(HEADS, rows)
    else:
        write(f"no runs in {folder}")
    for why in damaged:
        say(f"warning: {why}")
