"""Verbs for a network that one has already: convert, and finetune for the folder that convert (or run) made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from spikeprop.cli.group import main
from spikeprop.cli.looking import report
from spikeprop.cli.options import TRUSTED, RunFolderPath, by_channel, numbers
from spikeprop.cli.printing import table, write
from spikeprop.cli.running import run_in_folder
from spikeprop.errors import RecipeError
from spikeprop.runtime.imports import find_file
from spikeprop.runtime.places import data_folder, nearest_path

BROUGHT = ("weights", "data", "mean", "std")  # options that a trained network of a run folder has answered
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


@main.command(
    short_help="Convert a trained network of your own, and report on it.",
    example="spikeprop convert mynet.py:MyNet --weights best.pt --data ImageFolder --root photos --out runs/mine",
)
@click.argument("source")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--weights",
    help="File or folder: .pt, .pth, .safetensors, shards; default the library's own; ann.weights=null for random ones.",
)
@click.option("--data", default="ImageFolder", show_default=True,
              help="Data set with labels: one that `ls data` shows, my_data.py:MyDataset or package.Class.")  # fmt: skip
@click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA.")
@click.option("--mean", callback=by_channel, help="Mean of the normalisation, one number or one a channel; default what fits.")
@click.option("--std", callback=by_channel, help="Standard deviation of the normalisation, likewise.")
@click.option("--timesteps", default="4,8,16", show_default=True, help="Numbers of steps; calibrated for the largest.")
@click.option("--binary", is_flag=True, help="Only spikes of one bit, with a sign.")
@click.option("--samples", type=click.IntRange(min=0), default=4, show_default=True, help="Test images to simulate.")
@click.option("--backend", type=click.Choice(["lava", "reference"]),
              help="Where they are simulated; default Lava if it is installed, else the simulator that equals it.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/NETWORK, or FOLDER-converted.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default torch's choice.")
@click.pass_context
def convert(
    context: click.Context, source: str, overrides: tuple[str, ...], timesteps: str, out: Path | None, threads: int | None,
    **settings: Any,
) -> None:  # fmt: skip
    """Convert a trained network to spikes: trace, calibrate, evaluate ANN and SNN, export, budget, simulate, report.

    SOURCE is a class in a file or module (mynet.py:MyNet, package.module:Net), torchvision:resnet18, timm:resnet18 or model.onnx.
    KEY=VALUE sets an argument of the class, or anything else of the recipe: ann.width=64, data.size=32, convert.images=256.

    SOURCE may also be zoo:NAME or a run folder: its trained ANN is converted anew, with its own data, weights and normalisation.

    The folder is a run folder: eval, simulate, budget, diagnose, finetune and report read it. The same command again continues.
    """
    if source.startswith("zoo:") or (Path(source) / "run.json").is_file():
        _convert_trained(context, source, overrides, numbers(timesteps), out, threads, settings)
        return
    _check_names(source, settings["weights"], settings["data"], settings["root"])
    import torch

    from spikeprop.experiment.own_network import OwnNetwork, own_recipe
    from spikeprop.recipe import Recipe

    if threads is not None:
        torch.set_num_threads(threads)
    own = OwnNetwork(source=source, overrides=overrides, timesteps=numbers(timesteps), **settings)
    path = out or Path("runs") / own.name

    def load() -> Recipe:
        recipe, rows = own_recipe(own, path)
        _show_choice(source, path, rows)
        return recipe

    _run_and_show(context, load, path)


def _convert_trained(
    context: click.Context, source: str, overrides: tuple[str, ...], timesteps: list[int], out: Path | None, threads: int | None,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """Convert the trained ANN of a run folder, or of the zoo."""
    given = [name for name in BROUGHT if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(
            f"{source} has its own weights, data and normalisation: leave --{given[0]} out; give --root or data.KEY=VALUE"
        )
    import torch
    from spikeprop_hardware import lava_is_ready

    from spikeprop.experiment.finetuning import conversion_recipe
    from spikeprop.experiment.zoo import located
    from spikeprop.recipe import Recipe
    from spikeprop.runtime.imports import only_trusted
    from spikeprop.runtime.own_folders import own_folder

    if threads is not None:
        torch.set_num_threads(threads)
    folder = located(source)
    path = out or _beside(folder, "converted")
    backend = settings["backend"] or ("lava" if lava_is_ready() else "reference")
    options = {key: settings[key] for key in ("samples", "binary", "root")}

    def load() -> Recipe:
        recipe, rows = conversion_recipe(folder, overrides, timesteps=timesteps, backend=backend, **options)
        _show_choice(source, path, rows)
        return recipe

    with only_trusted(own_folder(folder).packages()):
        _run_and_show(context, load, path, trained=folder, same_training=False)


def _show_choice(source: str | Path, path: Path, rows: list[tuple[str, str]]) -> None:
    """What was chosen, once: each of several processes reads the recipe."""
    from spikeprop.runtime.processes import is_first

    if is_first():
        table(f"{source} -> {path}", rows)


def _beside(folder: Path, ending: str) -> Path:
    """The run folder of what is made from a run folder, beside it; from a network of the zoo in ``runs``."""
    from spikeprop.experiment.zoo import CARD

    if (folder / CARD).is_file():
        return Path("runs") / f"zoo-{folder.name}-{ending}"
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-{ending}")


def _check_names(source: str, weights: str | None, data: str, root: str | None) -> None:
    """Raises RecipeError for a file or folder that is not there, before anything heavy is imported."""
    if data == "ImageFolder" and root is None:
        return  # said first, where no data.root is given either
    for slot, text in (("ann", source), ("data", data)):
        file = text.rpartition(":")[0] if ".py:" in text else text.removeprefix("onnx:")
        if file.endswith((".py", ".onnx")) and find_file(file) is None:
            raise RecipeError(f"{slot}: there is no file {file} (looked for in {Path.cwd()}){nearest_path(file)}")
    if data == "ImageFolder" and root is not None and not Path(root).expanduser().is_dir():
        raise RecipeError(f"ImageFolder: there is no folder {root}; set data.root (--root of convert){nearest_path(root)}")
    if weights is not None and weights.endswith(WEIGHT_FILES):
        places = (Path(weights).expanduser(), data_folder() / "weights" / weights)
        if not any(place.exists() for place in places):
            stored = data_folder() / "weights"
            near = nearest_path(weights)
            raise RecipeError(f"no weights file at {weights}; give its path, or put it into the folder {stored}{near}")


@main.command(
    short_help="Fine-tune the network of a run folder with spikes.",
    example="spikeprop finetune runs/mine --timesteps 8 --epochs 3",
)
@click.argument("folder", type=RunFolderPath())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--timesteps", type=click.IntRange(min=1),
              help="Steps of a simulation; default those of FOLDER's fine-tuning, else the fewest evaluated.")  # fmt: skip
@click.option("--network", type=click.Choice(["converted", "finetuned"]),
              help="Which network of FOLDER is trained; default its last.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training images; default the recipe's, else 5.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate; default the recipe's, else 1e-4.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default FOLDER-finetuned.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default torch's choice.")
@TRUSTED
@click.pass_context
def finetune(
    context: click.Context, folder: Path, overrides: tuple[str, ...], out: Path | None, threads: int | None,
    trusted: tuple[str, ...], **settings: Any,
) -> None:  # fmt: skip
    """Fine-tune the converted network of FOLDER by backpropagation through time, and report on it.

    A network that was fine-tuned before is trained further, also with fewer time steps (--timesteps).

    FOLDER is a run folder, or zoo:NAME of an ANN. The result is a run folder of its own; FOLDER stays as it is. Graded and signed
    neurons that were calibrated for another number of steps are calibrated anew for that of the training. KEY=VALUE sets
    anything of the recipe: finetune.batch_size=16.
    """
    import torch

    from spikeprop.experiment.finetuning import finetuning_recipe
    from spikeprop.experiment.zoo import located
    from spikeprop.recipe import Recipe
    from spikeprop.runtime.imports import only_trusted
    from spikeprop.runtime.own_folders import own_folder

    if threads is not None:
        torch.set_num_threads(threads)
    source, folder = folder, located(str(folder))
    path = out or _beside(folder, "finetuned")

    def load() -> Recipe:
        recipe, rows = finetuning_recipe(folder, overrides, **settings)
        _show_choice(source, path, rows)
        return recipe

    with only_trusted((*trusted, *own_folder(folder).packages())):
        _run_and_show(context, load, path, trained=folder, same_training=False)


def _run_and_show(context: click.Context, load: Any, path: Path, **more: Any) -> None:
    """Run the recipe in its folder, and write the folder's page."""
    if run_in_folder(load, path, **more) is None:
        return
    context.invoke(report, runs=(path,), out=path / "report.html", samples=0)
    verbs = ("eval", "simulate" if (path / "network.nir").is_file() else "diagnose", "finetune")  # each works on this folder
    write(f"next: {', '.join(f'spikeprop {verb} {path}' for verb in verbs)}")
