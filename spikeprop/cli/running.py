"""Verbs that compute: run, sweep, eval; and check, which tests whether a recipe can run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spikeprop.cli import completing
from spikeprop.cli.group import main
from spikeprop.cli.looking import report
from spikeprop.cli.options import NETWORK_NAMES, TARGET, TRUSTED, CheckpointPath, RecipeName, numbers, split_overrides
from spikeprop.cli.printing import columns, result, say, table, write

if TYPE_CHECKING:
    from spikeprop.evaluate import EarlyExit
    from spikeprop.recipe import Recipe

SMOKE = "smoke run, not a result: a few examples and steps, to see that it runs; its figures say nothing about the method"


@main.command(
    short_help="Run a recipe, or continue its run.", example="spikeprop run digits_cnn_stdb finetune.epochs=5 --out runs/mine"
)
@click.argument("recipe", type=RecipeName(), shell_complete=completing.recipes)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completing.settings)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/RECIPE.")
@click.option("--smoke", is_flag=True, help="A few images, epochs and steps, to see that it runs.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default torch's choice.")
@click.option("--save-every", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds between two checkpoints within an epoch.")  # fmt: skip
@click.option("--ann", "trained", type=click.Path(), metavar="RUN",
              help="Run folder, or zoo:NAME, whose ANN is taken over; seed, data, ann and train must be the same.")  # fmt: skip
@click.option(
    "--tensorboard/--no-tensorboard", default=True, show_default=True, help="Write scalars for TensorBoard, if it is installed."
)
def run(
    recipe: str, overrides: tuple[str, ...], out: Path | None, smoke: bool, threads: int | None, trained: str | None,
    **context: Any,
) -> None:  # fmt: skip
    """Run RECIPE (a YAML file, or a name that `ls` shows). The same command again continues where it stopped.

    KEY=VALUE overrides a setting, such as finetune.lr=1e-4. With several processes, which share the work: torchrun
    --nproc-per-node=2 -m spikeprop run ...
    """
    import torch

    from spikeprop.experiment.zoo import located
    from spikeprop.recipe import load_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    source = None if trained is None else located(trained)
    run_in_folder(lambda: load_recipe(recipe, overrides), out, smoke, source, **context)


def run_in_folder(
    load: Callable[[], Recipe], out: Path | None, smoke: bool = False, trained: Path | None = None, same_training: bool = True,
    **context: Any,
) -> Path | None:  # fmt: skip
    """Run a recipe in its folder, which is recorded as this user's own; print its report.

    Args:
        load: reads the recipe; what that and its check import is what later commands on the folder may import.
        out: run folder; default runs/RECIPE.
        smoke: the tiny version.
        trained: run folder whose trained ANN is taken over.
        same_training: whether it must be the ANN that this recipe would train.
        context: more arguments of ``Context``.

    Returns:
        the folder; of several processes in the one that writes.
    """
    import dataclasses

    from spikeprop.experiment.context import Context
    from spikeprop.experiment.optimizers import fixed_rates
    from spikeprop.experiment.run_folder import RunFolder, check_same
    from spikeprop.experiment.run_record import RunRecord
    from spikeprop.experiment.trained_ann import check_same_training, find_start, take_over
    from spikeprop.runtime.files import check_writable
    from spikeprop.runtime.imports import note_foreign_names
    from spikeprop.runtime.locks import locked
    from spikeprop.runtime.processes import processes
    from spikeprop.runtime.signals import deferred_signals

    check_writable(out or Path("runs"))
    with note_foreign_names() as named:
        loaded = load()
        if smoke:
            loaded = dataclasses.replace(loaded, experiment=loaded.experiment.smoke())
        path = out or Path("runs") / (loaded.name + ("-smoke" if smoke else ""))
        check_same(path, loaded.describe())
        if trained is not None and same_training:
            check_same_training(trained, loaded)
        sources = [folder for folder in (path, trained) if folder is not None and (folder / "run.json").is_file()]
        smoke |= any(RunRecord.read(folder).smoke for folder in sources)  # a result of a smoke run's network is none
        start = find_start(path, loaded, trained)
        _check(loaded.experiment, here=True)  # before the folder is made, since a folder belongs to one recipe
    with processes() as group:
        notify = say if group.rank == 0 else lambda _: None
        if smoke and group.rank == 0:
            write(SMOKE)
        with locked(path, group), deferred_signals(notify):
            if trained is not None:
                group.on_rank_zero(lambda: take_over(trained, path, start))
            folder = RunFolder(path, loaded, smoke, group, notify)
            group.on_rank_zero(lambda: _record(path, named, loaded))
            notify(f"{loaded.name} -> {path}")
            for path_of, text in fixed_rates(loaded.experiment).items():
                if trained is None or path_of != "train.lr":  # an ANN that is taken over is not trained
                    notify(f"note: {text}")
            report = loaded.experiment.run(Context(folder, loaded.name, notify, **context))
        if group.rank == 0:
            table(f"{report.name}{', smoke run: not a result' if smoke else ''}", report.rows)
            write(f"\nreport: {folder.path / 'report.json'}")
            result(recipe=loaded.name, folder=path, smoke=smoke, report=report.values)
    return path if group.rank == 0 else None


def _record(path: Path, named: Collection[str], loaded: Recipe) -> None:
    """Record the folder as this user's own; where that cannot be written, later commands ask for what they import."""
    from spikeprop.runtime.own_folders import record_own

    data = loaded.describe().get("data", {})
    root = data.get("root")
    if root is not None and Path(root).expanduser().is_dir():  # it holds in any working directory
        data = {**data, "root": str(Path(root).expanduser().resolve())}
    try:
        record_own(path, named, data)
    except OSError as error:
        say(f"warning: {path} cannot be recorded as your own ({error}): commands on it will ask for --import and --root")


@main.command(
    short_help="Run a recipe with every combination of values.",
    example="spikeprop sweep digits_cnn_stdb finetune.lr=1e-4,1e-5 finetune.timesteps=4,8 --smoke",
)
@click.argument("recipe", type=RecipeName(), shell_complete=completing.recipes)
@click.argument("axes", nargs=-1, required=True, metavar="KEY=VALUE[,VALUE]...", shell_complete=completing.settings)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the trials; default runs/RECIPE-sweep.")
@click.option("--on", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="local: processes of this machine. ray: the nodes of a running Ray cluster.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), help="Trials at once; default 1, on Ray as many as the nodes have room for.")
@click.option("--sampler", type=click.Choice(["grid", "tpe"]), default="grid", show_default=True,
              help="grid: all combinations. tpe: Optuna's, with ranges too: KEY=LOW..HIGH, KEY=log:LOW..HIGH.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Number of trials of tpe, in total.")
@click.option("--metric", help="Key of report.json to sort by, and for tpe to maximise; default the last network's accuracy.")
@click.option("--least/--most", default=False, show_default=True, help="Whether small or large values of the metric are good.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads of a trial; default the cores divided by the jobs, on Ray 1."
)
@click.option("--gpus", type=click.FloatRange(min=0), default=0.0, show_default=True, help="GPUs of a trial, on Ray.")
@click.option("--retries", type=click.IntRange(min=0), default=2, show_default=True,
              help="How often a trial that is lost or fails on a node is started again, on Ray.")  # fmt: skip
@click.option("--smoke", is_flag=True, help="A few images, epochs and steps in every trial.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of tpe.")
@click.pass_context
def sweep(context: click.Context, recipe: str, axes: tuple[str, ...], out: Path | None, **settings: Any) -> None:
    """Run RECIPE with every combination of values, such as finetune.lr=1e-4,1e-5 evaluate.timesteps=[2],[4,8].

    Every trial is a run folder. The same command again continues where it stopped. It writes sweep.csv, sweep.json and
    report.html. With --on ray the trials run on the nodes of a Ray cluster, which must share the folder and the data.
    """
    from click.core import ParameterSource

    from spikeprop.sweep import Sweep, SweepPlan

    given = [name for name in ("gpus", "retries") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given and settings["on"] != "ray":
        raise click.UsageError(f"--{given[0]} is for trials on a cluster; add --on ray, or leave it out")
    plan = SweepPlan.of(recipe, axes, **settings)
    folder = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    for text in plan.notes():
        say(f"note: {text}")
    if plan.smoke:
        write(SMOKE)
    swept = Sweep(plan, folder, say)
    heads, rows = swept.run()
    columns(heads, rows)
    failed = swept.failed()
    for trial in failed:
        say(f"{trial.name} failed: {trial.why}; its log is {swept.log(trial)}")
    write(f"\ntable: {folder / 'sweep.csv'}, {folder / 'sweep.json'}")
    result(folder=folder, trials=[dict(zip(heads, row)) for row in rows], failed=[trial.name for trial in failed])
    if swept.finished():
        context.invoke(report, runs=tuple(swept.finished()), out=folder / "report.html", samples=0)
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(rows)} trials failed; the same command runs them again")


@main.command(short_help="Check recipes without running them.", example="spikeprop check digits_cnn_stdb finetune.lr=1e-4")
@click.argument("arguments", nargs=-1, required=True, metavar="RECIPE... [KEY=VALUE]...", shell_complete=completing.settings)
@click.option("--no-import", is_flag=True, help="Build nothing; list the code from outside that the recipe would import.")
@TARGET
def check(arguments: tuple[str, ...], no_import: bool, target: str | None) -> None:
    """Check recipes without running them: every key, component and value. KEY=VALUE overrides a setting of each, as for run.

    With --target also whether the network will fit that chip: everything that stands in the way, by layer, before it is trained.
    """
    from spikeprop.recipe import load_recipe
    from spikeprop.runtime.imports import record_foreign_names

    recipes, overrides = split_overrides(arguments)
    if not recipes:
        raise click.UsageError("give at least one recipe")
    unfit: list[str] = []
    for recipe in recipes:
        RecipeName().check_there(recipe)
        if no_import:
            with record_foreign_names() as noted:
                name = load_recipe(recipe, overrides).name
            write(f"{name}: not built; {'it would import' if noted else 'all of it is part of spikeprop'}")
            for line in noted:
                write(f"  {line}")
            result(checked=[{"recipe": name, "would_import": noted}])
            continue
        loaded = load_recipe(recipe, overrides)
        from spikeprop.experiment.optimizers import fixed_rates  # with torch, which a recipe that is not there does not need

        _check(loaded.experiment)
        _warn_without_lava(recipe, loaded.experiment)
        for text in fixed_rates(loaded.experiment).values():
            say(f"note: {loaded.name}: {text}")
        kind, skipped = type(loaded.experiment).__name__, _check_files(loaded.experiment)
        write(f"{loaded.name}: ok ({kind}){f'; {skipped} images that cannot be read are left out' if skipped else ''}")
        result(checked=[{"recipe": loaded.name, "experiment": kind, "unreadable": skipped}])
        if target is not None:
            unfit += [] if _fits(recipe, loaded.experiment, target) else [recipe]
    if unfit:
        raise click.ClickException(f"{len(unfit)} of {len(recipes)} recipes do not fit {target}: {', '.join(unfit)}")


def _fits(recipe: str, experiment: Any, target: str) -> bool:
    """Whether a recipe's network fits a chip; written with all that stands in the way."""
    from dataclasses import asdict

    from spikeprop.evaluate.report import chip_layers

    if not hasattr(experiment, "outline"):
        raise click.ClickException(f"{recipe} is an experiment without a network for a chip ({type(experiment).__name__})")
    found = experiment.outline().fits(target)
    write(str(found))
    if found.budget is not None:
        columns(*chip_layers([asdict(layer) for layer in found.budget.layers]))
    result(
        fits=[{"recipe": recipe, "target": found.target, "fits": bool(found), "findings": [asdict(f) for f in found.findings]}]
    )
    return bool(found)


def _warn_without_lava(recipe: str, experiment: Any) -> None:
    """Say if a run would simulate on Lava, and cannot here."""
    from spikeprop_hardware import why_no_lava

    settings = getattr(experiment, "simulate", None)
    if getattr(settings, "samples", 0) and getattr(settings, "backend", "") == "lava" and (why := why_no_lava()):
        say(f"warning: {recipe}: a run here would take the reference simulator, which equals Lava's processes: {why}")


def _check(experiment: Any, **options: bool) -> None:
    """The check of an experiment; one from outside may have none."""
    if hasattr(experiment, "check"):
        experiment.check(**options)


def _check_files(experiment: Any) -> int:
    """How many files of a person's own data cannot be read; an error unless the recipe skips them."""
    described: Any = getattr(experiment, "data", None)
    data: Any = described.build() if hasattr(described, "build") else described
    return data.check_files() if hasattr(data, "check_files") else 0


@main.command(
    "eval",
    short_help="Measure the accuracy of a network at each number of steps.",
    example="spikeprop eval runs/digits_cnn_stdb --network converted --timesteps 4,8",
)
@click.argument("checkpoint", type=CheckpointPath())
@click.option("--network", "networks", multiple=True, type=NETWORK_NAMES,
              help="Of a run folder; may be given several times; default the last one of the pipeline.")  # fmt: skip
@click.option(
    "--data", help="Digits, MNIST, FashionMNIST, CIFAR10, CIFAR100, ImageNet or package.Class; default the network's own."
)
@click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA.")
@click.option("--timesteps", help="Numbers of steps, for example 25,50,100; default those that the recipe evaluates.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many test images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--activity-images", type=click.IntRange(min=0), default=200, show_default=True,
              help="Count the spikes of about so many images.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto (CUDA where there is one), cpu, cuda or cuda:1.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder; default eval-DATA/NETWORK beside the checkpoint, or NETWORK-2 and so on.",
)
@click.option("--restart", is_flag=True, help="Delete what the folder holds and begin again.")
@click.option("--save-every", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Seconds between two writes.")
@click.option("--early-exit", metavar="certain|P",
              help="Count the steps of images that leave once they are certain, or of probability P.")  # fmt: skip
@TRUSTED
def evaluate(
    checkpoint: Path,
    networks: tuple[str, ...],
    out: Path | None,
    restart: bool,
    timesteps: str | None,
    early_exit: str | None,
    **settings: Any,
) -> None:
    """Accuracy of a network on test images at each number of steps. CHECKPOINT is a checkpoint, a run folder or zoo:NAME.

    Writes a report (JSON, CSV by class, PNG). The same command again continues where it stopped; one with other options (--limit,
    --timesteps) gets a folder of its own beside it. With several processes: torchrun
    --nproc-per-node=2 -m spikeprop eval ...
    """
    from spikeprop.experiment.evaluation import EvaluationOptions, evaluate_checkpoint
    from spikeprop.experiment.network_checkpoint import find_checkpoints
    from spikeprop.runtime.processes import processes
    from spikeprop.runtime.signals import deferred_signals

    steps = numbers(timesteps) if timesteps else ()
    options = EvaluationOptions(timesteps=steps, early_exit=_early_exit(early_exit), **settings)
    found = find_checkpoints(checkpoint, networks)
    with processes() as group, deferred_signals(say if group.rank == 0 else lambda _: None):
        for file in found:
            folder = out / file.stem if out is not None and len(found) > 1 else out
            report, folder = evaluate_checkpoint(file, options, out=folder, restart=restart, processes=group)
            if group.rank == 0:
                table(str(file), report.rows)
                write(f"\nreport: {folder / 'report.json'}")
                result(reports=[{"checkpoint": file, "folder": folder, "report": report.values}])


def _early_exit(text: str | None) -> EarlyExit | None:
    """The rule that ``--early-exit`` names."""
    from spikeprop.evaluate import EarlyExit

    if text is None:
        return None
    try:
        return EarlyExit(confidence=None if text == "certain" else float(text))
    except ValueError as error:
        message = f"{text!r}: give 'certain' or a probability between 0 and 1"
        raise click.BadParameter(message, param_hint="--early-exit") from error
