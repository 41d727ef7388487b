"""Verbs that show what a run or a network is like: report, diagnose, explain."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from spikeprop.cli.group import main
from spikeprop.cli.options import NETWORK_NAMES, TRUSTED, RunFolderPath, numbers
from spikeprop.cli.printing import result, table, write

VERDICTS = {"agrees": "agree", "differs": "differ", "kink": "at a kink", "surrogate": "by a surrogate"}
FEW = 4  # names of calls in a row


@main.command(short_help="Show run folders on one HTML page.", example="spikeprop report runs/digits_cnn_stdb -o digits.html")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=RunFolderPath())
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="HTML file.")
@click.option("--samples", type=click.IntRange(min=0), default=500, show_default=True,
              help="Test images to predict where a run kept no predictions; 0 for none.")  # fmt: skip
@TRUSTED
def report(runs: tuple[Path, ...], out: Path, samples: int, trusted: tuple[str, ...]) -> None:
    """Show run folders on one self-contained HTML page: curves, layers, spikes, confusions, images, provenance.

    RUN is a run folder or zoo:NAME. What a report does not hold is made from the run's checkpoint and data, and kept in its
    folder (page.json). The page names what is missing.
    """
    from spikeprop.experiment.run_record import RunRecord
    from spikeprop.experiment.zoo import located
    from spikeprop.report import document
    from spikeprop.report.evidence import evidence
    from spikeprop.runtime.files import write_text

    found = [RunRecord.read(located(str(path))) for path in runs]
    write_text(out, document(found, [evidence(run, samples, trusted) for run in found]))
    write(f"wrote {out} ({out.stat().st_size:,} bytes)")
    result(page=out, bytes=out.stat().st_size)


@main.command(
    short_help="Tell where a conversion loses accuracy, and why.", example="spikeprop diagnose runs/digits_cnn_stdb --timesteps 4"
)
@click.argument("run", type=RunFolderPath())
@click.option("--timesteps", help="Numbers of steps, for example 4,8; default the recipe's.")
@click.option("--samples", type=click.IntRange(min=1), default=100, show_default=True, help="Test images to compare on.")
@click.option("--keep", is_flag=True, help="Write it into the folder too, for the run's page (spikeprop report).")
@TRUSTED
def diagnose(run: Path, timesteps: str | None, samples: int, keep: bool, trusted: tuple[str, ...]) -> None:
    """Tell which layers of the converted network in the folder RUN lose how much against its ANN, why, and what to do."""
    from spikeprop.experiment.diagnosis import explain_run
    from spikeprop.experiment.run_record import DIAGNOSIS
    from spikeprop.runtime.files import write_text

    found = explain_run(run, numbers(timesteps) if timesteps else (), samples, trusted)
    write(str(found))
    result(run=run, **found.values())
    if keep:
        write_text(run / DIAGNOSIS, f"{found}\n")


@main.command(
    short_help="Write a page on one training step of a network.", example="spikeprop explain digits_cnn_stdb -o step.html"
)
@click.argument("model")
@click.option("--data", help="Data set; default the model's own.")
@click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA.")
@click.option("--network", type=NETWORK_NAMES, help="Of a run folder, or of a recipe.")
@click.option("--samples", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--timesteps", type=click.IntRange(min=1), help="Of a spiking network; default the recipe's.")
@click.option(
    "--rule", "rules", multiple=True, metavar="RULE", help="Compared with backprop: a name, or '{use: NAME, key: value}'."
)
@click.option("--eval", "evaluation", is_flag=True, help="In evaluation mode; default in training mode.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of dropout and encoders.")
@click.option(
    "--entries", type=click.IntRange(min=0), help="Tensors of at most so many numbers are shown complete; larger ones in samples."
)
@TRUSTED
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("explain.html"), show_default=True)
def explain(
    model: str, rules: tuple[str, ...], evaluation: bool, seed: int, entries: int | None, out: Path, **request: Any
) -> None:
    """Write a page on one training step of MODEL: forward, backward, every edge in numbers, each derivative with its card.

    MODEL is a recipe, a run folder, a checkpoint, zoo:NAME, or module:callable (the callable returns a network, or network,
    inputs, targets and optionally a loss). The page is one HTML file and works without internet.
    """
    import importlib

    from spikeprop.experiment.model_source import ModelRequest, find_model
    from spikeprop.learn import LearningRule
    from spikeprop.recipe import check_component_text

    plugin = importlib.import_module("spikeprop.plugins.explain")  # by name, as recipes name plugins
    chosen = [check_component_text(LearningRule, text, "--rule") for text in rules]
    found = find_model(model, ModelRequest(**request))
    chosen = [rule.with_timesteps(found.timesteps) if found.timesteps else rule for rule in chosen]
    named = {f"{i + 1}. {rule.use.rpartition('.')[2]}": rule.build() for i, rule in enumerate(chosen)}
    subject = plugin.TrainingStep(**vars(found), training=not evaluation, seed=seed)
    data = plugin.explain(subject, out, named, **({} if entries is None else {"limit": entries}))
    table(f"{data['name']} -> {out}", _explained(data))
    result(page=out, name=data["name"], loss=float(data["loss"]), checks=data["checks"], complete=data["complete"])


def _explained(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows on the page."""
    checks, nodes = data["checks"], data["nodes"]
    flags = sorted({flag for node in nodes for flag in node["flags"]})
    differs = [node for node in nodes if node["difference"] and node["difference"]["verdict"] == "differs"]
    verdicts = [f"{count} {VERDICTS[verdict]}" for verdict, count in checks["differences"].items() if count]
    return [
        ("loss", f"{data['loss']:.6g}"),
        ("calls", f"{len(data['nodes'])}" + (f", without a card: {', '.join(data['unknown'])}" if data["unknown"] else "")),
        (
            "backward edges",
            f"{checks['edges']}, of which {checks['edges_with_numbers']} in numbers, {checks['edges_that_match']} add up",
        ),
        ("finite differences", f"calls: {', '.join(verdicts) or 'none'}" + (f": {_calls(differs)}" if differs else "")),
        ("flags", "; ".join(f"{flag}: {_calls(n for n in nodes if flag in n['flags'])}" for flag in flags) or "none"),
        ("saved for backward", f"{sum(node['saved'] for node in data['nodes']):,} bytes"),
        ("page", f"{data['bytes'] / 1e6:.2f} MB, {'complete' if data['complete'] else 'activations sampled'}"),
    ]


def _calls(nodes: Iterable[dict[str, Any]]) -> str:
    """The names of some calls, each once, as of several time steps."""
    names = list(dict.fromkeys(n["name"] + (f" in {n['module']}" if n["module"] else "") for n in nodes))
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
