"""The command line: run, sweep, report, check, ls, eval, export, simulate, budget, explain. The only place that prints."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from spikeprop.errors import SpikepropError, Stopped, worker_died


class _Friendly(click.Group):
    """Shows errors that a user can mend as one message; Ctrl-C and bad files end without a traceback."""

    def main(self, args: Any = None, *rest: Any, **more: Any) -> Any:
        self.told = list(sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            _say(f"stopped, and everything so far is saved; go on with: {shlex.join(['spikeprop', *self.told])}")
            ctx.exit(128 + stopped.signal)
        except (SpikepropError, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            died = worker_died(error)
            if died is None:
                raise
            raise click.ClickException(str(died)) from error


_TRUSTED = click.option(
    "--import", "trusted", multiple=True, metavar="PACKAGE", help="Code from outside that a checkpoint or run may import."
)


@click.group(cls=_Friendly, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spikeprop")
def main() -> None:
    """From recipe to neuromorphic chip: train, convert, fine-tune with STDB, evaluate, export, run on Lava."""
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")


@main.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/RECIPE.")
@click.option("--smoke", is_flag=True, help="A few images, epochs and steps, to see that it runs.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default torch's choice.")
@click.option("--save-every", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds between two checkpoints within an epoch.")  # fmt: skip
@click.option("--tensorboard/--no-tensorboard", default=True, show_default=True, help="Scalars for it, where it is installed.")
def run(recipe: str, overrides: tuple[str, ...], out: Path | None, smoke: bool, threads: int | None, **context: Any) -> None:
    """Run RECIPE (a YAML file, or a name that `ls` shows). The same command again goes on where it stopped.

    With several processes, which share the work: torchrun --nproc-per-node=2 -m spikeprop run ...
    """
    import dataclasses

    import torch

    from spikeprop.experiment import Context
    from spikeprop.processes import processes
    from spikeprop.recipe import load_recipe
    from spikeprop.runfolder import RunFolder
    from spikeprop.stopping import held

    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_recipe(recipe, overrides)
    if smoke:
        loaded = dataclasses.replace(loaded, experiment=loaded.experiment.smoke())
    _check(loaded.experiment, here=True)  # before the folder is made, which belongs to one recipe for good
    with processes() as group:
        say = _say if group.rank == 0 else lambda _: None
        folder = RunFolder(out or Path("runs") / (loaded.name + ("-smoke" if smoke else "")), loaded, smoke, group)
        say(f"{loaded.name} -> {folder.path}")
        with held(say):
            report = loaded.experiment.run(Context(folder, loaded.name, say, **context))
        if group.rank == 0:
            _table(report.name, report.rows)
            click.echo(f"\nreport: {folder.path / 'report.json'}")


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="HTML file.")
@click.option("--samples", type=click.IntRange(min=0), default=500, show_default=True,
              help="Test images to ask where a run kept no answers; 0 for none.")  # fmt: skip
@_TRUSTED
def report(runs: tuple[Path, ...], out: Path, samples: int, trusted: tuple[str, ...]) -> None:
    """Show run folders on one HTML page that stands alone: curves, layers, spikes, confusions, images, provenance.

    What a report does not hold is made from the run's checkpoint and data, and kept in its folder (page.json); what a folder
    cannot tell is said on the page.
    """
    from spikeprop.evidence import evidence
    from spikeprop.files import write_text
    from spikeprop.page import document
    from spikeprop.runs import Run

    found = [Run.read(path) for path in runs]
    write_text(out, document(found, [evidence(run, samples, trusted) for run in found]))
    click.echo(f"wrote {out} ({out.stat().st_size:,} bytes)")


@main.command()
@click.argument("recipe")
@click.argument("axes", nargs=-1, required=True, metavar="KEY=VALUE[,VALUE]...")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the trials; default runs/RECIPE-sweep.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at once.")
@click.option("--sampler", type=click.Choice(["grid", "tpe"]), default="grid", show_default=True,
              help="grid: all combinations. tpe: Optuna's, with ranges too: KEY=LOW..HIGH, KEY=log:LOW..HIGH.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Of tpe, in all.")
@click.option("--metric", help="Key of report.json to sort by, and for tpe to raise; default the last network's accuracy.")
@click.option("--least/--most", default=False, show_default=True, help="Which values of the metric are good.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a trial; default its share of the cores.")
@click.option("--smoke", is_flag=True, help="A few images, epochs and steps in every trial.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of tpe.")
@click.pass_context
def sweep(context: click.Context, recipe: str, axes: tuple[str, ...], out: Path | None, **settings: Any) -> None:
    """Run RECIPE with every combination of values, such as finetune.lr=1e-4,1e-5 evaluate.timesteps=[2],[4,8].

    Every trial is a run folder. The same command goes on where it was stopped; it writes sweep.csv, sweep.json and report.html.
    """
    from spikeprop.sweep import Plan, Sweep

    plan = Plan.of(recipe, axes, **settings)
    folder = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    swept = Sweep(plan, folder, _say)
    heads, rows = swept.run()
    _columns(heads, rows)
    failed = swept.failed()
    for trial in failed:
        _say(f"{trial.name} failed: {trial.why}; its log is {swept.log(trial)}")
    click.echo(f"\ntable: {folder / 'sweep.csv'}, {folder / 'sweep.json'}")
    if swept.finished():
        context.invoke(report, runs=tuple(swept.finished()), out=folder / "report.html", samples=0)
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(rows)} trials failed; the same command tries them again")


@main.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="An override; may be given several times.")
@click.option("--no-import", is_flag=True, help="Only look: name the code from outside that it would import; build nothing.")
def check(recipes: tuple[str, ...], overrides: tuple[str, ...], no_import: bool) -> None:
    """Check recipes without running them: every key, component and value."""
    from spikeprop.imports import looking
    from spikeprop.recipe import load_recipe

    for recipe in recipes:
        if no_import:
            with looking() as noted:
                name = load_recipe(recipe, overrides).name
            click.echo(f"{name}: looked at; {'it would import' if noted else 'all of it is part of spikeprop'}")
            for line in noted:
                click.echo(f"  {line}")
            continue
        loaded = load_recipe(recipe, overrides)
        _check(loaded.experiment)
        click.echo(f"{loaded.name}: ok ({type(loaded.experiment).__name__})")


@main.command()
@click.argument("slot", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def ls(slot: str | None, folder: Path | None) -> None:
    """List recipes, and the components of every slot with their parameters and defaults (or only of SLOT).

    `ls runs [FOLDER]` lists the run folders in FOLDER (default runs) instead.
    """
    if slot == "runs":
        _list_runs(folder or Path("runs"))
        return
    if folder is not None:
        raise click.UsageError(f"a folder is for `ls runs {folder}`; slots have none")
    from spikeprop.pipeline import HybridConversion
    from spikeprop.recipe import components, recipe_folder, slots

    bases: dict[type, list[str]] = {}
    for path, base in slots(HybridConversion).items():
        bases.setdefault(base, []).append(path)
    bases |= _nested(bases)
    known = [name for base, paths in bases.items() for name in (base.__name__, *paths)]
    if slot is not None and slot not in known:
        raise click.BadParameter(f"{slot!r} is not a slot; known: {', '.join(known)}")
    if slot is None:
        click.echo("recipes")
        for path in sorted(recipe_folder().glob("*.yaml")):
            click.echo(f"  {path.stem}")
    for base, paths in bases.items():
        if slot is None or slot in (base.__name__, *paths):
            _list_slot(", ".join(paths), components(base))


@main.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--network", "networks", multiple=True, type=click.Choice(["ann", "converted", "finetuned"]),
              help="Of a run folder; may be given several times; default the best there.")  # fmt: skip
@click.option("--data", help="Digits, MNIST, FashionMNIST, CIFAR10, CIFAR100 or ImageNet; default the network's own.")
@click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA.")
@click.option("--timesteps", help="Numbers of steps, for example 25,50,100; default the recipe's.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many test images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--activity-images", type=click.IntRange(min=0), default=200, show_default=True,
              help="Count the spikes of about so many images.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto (CUDA where there is one), cpu, cuda or cuda:1.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default eval-DATA/NETWORK beside the checkpoint.")
@click.option("--restart", is_flag=True, help="Throw away what the folder holds.")
@click.option("--save-every", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Seconds between two writes.")
@_TRUSTED
def evaluate(
    checkpoint: Path, networks: tuple[str, ...], out: Path | None, restart: bool, timesteps: str | None, **settings: Any
) -> None:
    """Accuracy of a CHECKPOINT, or of a run folder's networks, on test images at each number of steps.

    Writes a report (JSON, CSV by class, PNG). The same command again goes on where it was stopped. With several processes:
    torchrun --nproc-per-node=2 -m spikeprop eval ...
    """
    from spikeprop.assess import Assessment, assess, find_checkpoints
    from spikeprop.processes import processes
    from spikeprop.stopping import held

    how = Assessment(timesteps=_numbers(timesteps) if timesteps else (), **settings)
    found = find_checkpoints(checkpoint, networks)
    with held(_say), processes() as group:
        for file in found:
            folder = out / file.stem if out is not None and len(found) > 1 else out
            report, folder = assess(file, how, out=folder, restart=restart, processes=group)
            if group.rank == 0:
                _table(str(file), report.rows)
                click.echo(f"\nreport: {folder / 'report.json'}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="NIR file; default beside the checkpoint.")
@click.option("--for", "reader", type=click.Choice(["norse", "snntorch"]), help="As that library's own NIR importer reads it.")
@click.option("--format", "form", type=click.Choice(["nir", "netx"]), default="nir", show_default=True,
              help="netx: integers in HDF5 for lava-dl; one chain, reset to zero, Poisson input, no biases.")  # fmt: skip
@_TRUSTED
def export(checkpoint: Path, out: Path | None, reader: str | None, form: str, trusted: tuple[str, ...]) -> None:
    """Write a spiking network's CHECKPOINT as a NIR file, or for lava-dl.

    Without --for the file is for spikeprop and its hardware: other libraries would take it for something else (reset by
    subtraction, milliseconds). What a library does not have is refused.
    """
    from spikeprop.deploy import export as write
    from spikeprop.deploy import export_netx

    if reader and form == "netx":
        raise click.UsageError("--for is for NIR; netx is lava-dl's alone")
    file = out or checkpoint.with_suffix(".nir" if form == "nir" else ".net")
    loaded = _spiking(checkpoint, trusted)
    if form == "nir":
        write(loaded.network, file, loaded.description, reader)
        click.echo(f"wrote {file}")
        return
    layers = export_netx(loaded.network, file)
    _table(f"wrote {file}", _integers(layers))


def _integers(layers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows on what quantisation did to each layer."""
    rows = []
    for layer in layers:
        weights = f"weights off by {100 * layer['weight_error']:.2f} % in {layer['bits']} bits"
        rows.append((f"integers of {layer['name']}", f"{weights}, {layer['saturated']:,} of {layer['weights']:,} clipped"))
    return rows


def _shown(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options of commands that show images to a NETWORK."""
    options = [
        click.argument("network", type=click.Path(path_type=Path)),
        click.option("--data", help="Data set; default the one that it was trained on."),
        click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA."),
        click.option("--mean", type=float, help="Normalisation, where the file does not say it; default 0."),
        click.option("--std", type=float, help="The same; default 1."),
        click.option("--timesteps", type=click.IntRange(min=1), help="Default the recipe's."),
        click.option("--encoder", type=click.Choice(["Direct", "Poisson"]), help="Of a NIR file that does not name its own."),
        _TRUSTED,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_shown
@click.option("--samples", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--backend", type=click.Choice(["lava", "reference"]), default="lava", show_default=True,
              help="Lava's CPU simulation (needs Python 3.10), or the fast simulator that equals it.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float", "fixed"]), default="float", show_default=True,
              help="fixed: in the integers of Loihi 2.")  # fmt: skip
def simulate(
    network: Path,
    samples: int,
    backend: Any,
    precision: Any,
    data: str | None,
    encoder: str | None,
    trusted: tuple[str, ...],
    **told: Any,
) -> None:
    """Run a NETWORK (a spiking network's checkpoint, or a NIR file) on Lava and compare every spike with PyTorch's.

    Both get the same encoded inputs. A NIR file that `export` wrote says which data, normalisation, encoder and steps belong
    to it; for any other, the options do.
    """
    from spikeprop.deploy import Target, compare
    from spikeprop.seeding import seed_torch
    from spikeprop.subject import opened

    with opened(network, encoder, trusted) as found:
        subject = found.told(use=data, **told)
        images, labels = subject.images(samples)
        seed_torch(subject.seed, 3)
        target = Target(backend=backend, precision=precision)
        result = compare(subject.network, subject.file, images, labels, subject.timesteps or 0, _say, target)
    _table(str(network), _comparison(result))
    rows = [(name, ours, theirs, result["mismatches"][name]) for name, (ours, theirs) in result["layers"].items()]
    _columns(("layer", "spikes in PyTorch", f"in {backend}", "that differ"), rows)


@main.command()
@_shown
@click.option("--samples", type=click.IntRange(min=0), default=20, show_default=True, help="To count spikes on; 0 for none.")
def budget(network: Path, samples: int, data: str | None, encoder: str | None, trusted: tuple[str, ...], **told: Any) -> None:
    """Neurons, synapses, axons, cores and chips of Loihi 2 that a NETWORK (checkpoint or NIR file) takes, SynOps and energy.

    An estimate: which limits are published, which are assumed, and whose energy figures these are stands in
    spikeprop_hardware/budget.py.
    """
    from spikeprop.deploy import chip_budget, encoded
    from spikeprop.evaluate.report import chip_rows
    from spikeprop.seeding import seed_torch
    from spikeprop.subject import opened

    with opened(network, encoder if encoder or samples else "Direct", trusted) as found:
        subject, inputs = found.told(use=data, **told), None
        if samples:
            images, _ = subject.images(samples)
            seed_torch(subject.seed, 3)
            inputs = encoded(subject.network, images, subject.timesteps or 0)
        chip = chip_budget(subject.file, inputs)
    rows = chip_rows(chip)
    if inputs is not None:
        about = f"{chip['energy_joules'] * 1e6:.3g} uJ, with the operations' energies of the first Loihi; T = {inputs.shape[1]}"
        synops = sum(layer["synops"] for layer in chip["activity"])
        rows += [("SynOps a sample", f"{synops:,.0f}"), ("energy a sample, estimated", about)]
    _table(str(network), rows)
    keys = ("neurons", "synapses", "fan_in", "fan_out", "axons", "axons_per_core", "bytes", "cores")
    heads = ("layer", *(key.replace("_", " ") for key in keys), "filled by")
    _columns(heads, [(layer["name"], *(layer[key] for key in keys), layer["bound"]) for layer in chip["layers"]])
    if inputs is not None:
        active = [(layer["name"], round(layer["spikes"]), round(layer["synops"])) for layer in chip["activity"]]
        _columns(("spikes of", "a sample", "SynOps"), active)


@main.command()
@click.argument("model")
@click.option("--data", help="Data set; default the model's own.")
@click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA.")
@click.option("--network", type=click.Choice(["ann", "converted", "finetuned"]), help="Of a run folder, or of a recipe.")
@click.option("--samples", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--timesteps", type=click.IntRange(min=1), help="Of a spiking network; default the recipe's.")
@click.option(
    "--rule", "rules", multiple=True, metavar="RULE", help="Shown beside backprop: a name, or '{use: NAME, key: value}'."
)
@click.option("--eval", "evaluation", is_flag=True, help="In evaluation mode; default as in training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of dropout and encoders.")
@click.option("--entries", type=click.IntRange(min=0), help="Numbers up to which the page holds every one; beyond, samples.")
@_TRUSTED
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("explain.html"), show_default=True)
def explain(
    model: str, rules: tuple[str, ...], evaluation: bool, seed: int, entries: int | None, out: Path, **asked: Any
) -> None:
    """Write a page on one training step of MODEL: forward, backward, every edge in numbers, each derivative with its card.

    MODEL is a recipe, a run folder, a checkpoint, or module:callable (the callable returns a network, or network, inputs, targets
    and perhaps a loss). The page is one HTML file and works without a network.
    """
    import importlib

    from spikeprop.learn import LearningRule
    from spikeprop.models import Request, find_model
    from spikeprop.recipe import component_of_text

    plugin = importlib.import_module("spikeprop.plugins.explain")  # by name, as recipes name plugins
    chosen = [component_of_text(LearningRule, text, "--rule") for text in rules]
    found = find_model(model, Request(**asked))
    steps = found.timesteps
    named = {f"{i + 1}. {rule.use.rpartition('.')[2]}": rule.build(**_steps(rule, steps)) for i, rule in enumerate(chosen)}
    subject = plugin.Subject(**vars(found), training=not evaluation, seed=seed)
    data = plugin.explain(subject, out, named, **({} if entries is None else {"limit": entries}))
    _table(f"{data['name']} -> {out}", _explained(data))


def _steps(rule: Any, timesteps: int | None) -> dict[str, int]:
    """The network's number of steps for a rule that needs one and was not given it."""
    needs = "timesteps" in rule.parameters() and "timesteps" not in rule.arguments
    return {"timesteps": timesteps} if needs and timesteps else {}


def _explained(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows on a page that was written."""
    checks, differences = data["checks"], data["checks"]["differences"]
    flags = sorted({flag for node in data["nodes"] for flag in node["flags"]})
    return [
        ("loss", f"{data['loss']:.6g}"),
        ("calls", f"{len(data['nodes'])}" + (f", without a card: {', '.join(data['unknown'])}" if data["unknown"] else "")),
        (
            "backward edges",
            f"{checks['edges']}, of which {checks['edges_with_numbers']} in numbers, {checks['edges_that_match']} add up",
        ),
        ("finite differences", ", ".join(f"{count} {verdict}" for verdict, count in differences.items() if count)),
        ("flags", ", ".join(flags) or "none"),
        ("saved for backward", f"{sum(node['saved'] for node in data['nodes']):,} bytes"),
        ("page", f"{data['bytes'] / 1e6:.2f} MB, {'complete' if data['complete'] else 'activations sampled'}"),
    ]


def _comparison(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows on a simulation that ``compare`` held against PyTorch's."""
    equal = "all equal" if result["spikes_equal"] else "NOT equal"
    rows = [
        ("samples, steps", f"{result['samples']}, {result['timesteps']}"),
        ("predictions agree", f"{result['agreement']:.1f} %"),
        *((f"accuracy, {name}", f"{percent:.2f} %") for name, percent in result["accuracy"].items()),
        ("spike trains", f"{equal} ({result['spikes']:,} spikes)"),
        ("largest output difference", f"{result['output_error']:.2g}"),
    ]
    first = result["first_difference"]
    if first:
        rows.append(("first difference", ", ".join(f"{key} {value}" for key, value in first.items())))
    return rows + _integers(result.get("quantization", []))


def _check(experiment: Any, **options: bool) -> None:
    """An experiment's own test of itself; one from outside may have none."""
    if hasattr(experiment, "check"):
        experiment.check(**options)


def _spiking(checkpoint: Path, trusted: tuple[str, ...]) -> Any:
    from spikeprop.errors import CheckpointError
    from spikeprop.networks import load_network

    loaded = load_network(checkpoint, trusted)
    if loaded.description["kind"] != "snn":
        raise CheckpointError(f"{checkpoint} is an ANN; give the converted or finetuned checkpoint of its run")
    return loaded


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: give whole numbers, for example 25,50,100") from error
    if min(numbers) < 1:
        raise click.BadParameter(f"{text!r}: a simulation needs at least 1 step")
    return numbers


def _nested(bases: Iterable[type]) -> dict[type, list[str]]:
    """Slots inside components, such as a neuron's surrogate."""
    from spikeprop.snn import Neuron, Surrogate

    return {Surrogate: ["convert.neuron.surrogate"]} if Neuron in bases else {}


def _list_slot(title: str, found: dict[str, dict[str, Any]]) -> None:
    click.echo(f"\n{title}")
    for name, parameters in found.items():
        shown = ", ".join(k if v == "(required)" else f"{k}={v!r}" for k, v in parameters.items())
        click.echo(f"  {name}({shown})")


def _list_runs(folder: Path) -> None:
    from spikeprop.errors import RunError
    from spikeprop.runs import Run, run_folders

    rows, damaged = [], []
    for path in run_folders(folder):
        try:
            run = Run.read(path)
        except RunError as error:
            damaged.append(str(error))
            continue
        size = f"{run.size() / 1e6:.1f} MB"
        rows.append((str(path.relative_to(folder)), run.state, run.recipe, run.told(), run.begun(), size))
    if rows:
        _columns(("run", "state", "recipe", "accuracy (%) or means", "begun", "size"), rows)
    else:
        click.echo(f"no runs in {folder}")
    for why in damaged:
        _say(why)


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    click.echo(f"\n{title}")
    for label, text in rows:
        click.echo(f"  {label:<{width}}  {text}")


def _columns(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A table of numbers, its first column names."""
    cells = [heads, *([value if isinstance(value, str) else f"{value:,}" for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    click.echo()
    for first, *others in cells:
        click.echo("  " + "  ".join([f"{first:<{widths[0]}}", *(f"{text:>{w}}" for text, w in zip(others, widths[1:]))]))


_say: Callable[[str], None] = lambda message: click.echo(message, err=True)  # noqa: E731 - progress, beside the bars
