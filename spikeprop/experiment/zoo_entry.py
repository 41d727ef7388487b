"""``add_entry``: from a run folder to an entry of the zoo: its network, recipe and report, a card, and a line in the index."""

from __future__ import annotations

import shutil
from pathlib import Path

from spikeprop.errors import CheckpointError
from spikeprop.experiment.network_checkpoint import find_checkpoints, load_network
from spikeprop.experiment.run_record import RunRecord
from spikeprop.experiment.trained_ann import write_history
from spikeprop.experiment.zoo import CARD
from spikeprop.recipe import dump
from spikeprop.runtime.files import file_hash, write_json, write_text
from spikeprop.runtime.zoo_index import INDEX, NAME, ZooEntry, read_index

LARGEST_NETWORK = 10 * 2**20  # bytes; a zoo is part of the repository


def add_entry(
    run: Path, name: str, zoo: Path, *, network: str | None = None, about: str | None = None, licence: str = "Apache-2.0"
) -> ZooEntry:
    """Make, or replace, the entry ``name`` of the zoo in the folder ``zoo``.

    Args:
        run: folder of a finished run.
        name: of the entry: small letters, digits, "-" and "_".
        zoo: made if absent.
        network: of the run; None for the last of its pipeline.
        about: one line; None for recipe, network and data.
        licence: of the weights.

    Raises:
        CheckpointError: a name that cannot be one, a network that is too large or needs code from outside, or an unfinished run.
        RunError: no run folder.
    """
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{name!r} is no name of a zoo's network: small letters, digits, '-' and '_'")
    record = RunRecord.read(run)
    if record.report is None or not record.pipeline or record.smoke:
        raise CheckpointError(f"{run} has no report of a complete run ({record.state}, {record.recipe}); finish one first")
    (file,) = find_checkpoints(run, [network] if network else [])
    if file.stem == "ann" and not {"data", "ann"} <= record.stages.keys():
        raise CheckpointError(f"{run} does not say how its ANN was trained (stages.json): give the folder of the run itself")
    if file.stat().st_size > LARGEST_NETWORK:
        raise CheckpointError(
            f"{file} has {file.stat().st_size / 2**20:.1f} MiB; a network of the zoo has at most {LARGEST_NETWORK // 2**20}"
        )
    loaded = load_network(file, as_stranger=True)  # nothing but spikeprop and torch may be needed
    folder = zoo / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    for source in (file, file.with_suffix(".json"), run / "report.json"):
        shutil.copyfile(source, folder / source.name)
    settings = {**record.settings, "data": {**record.settings["data"], "root": None}}  # a folder of the machine that trained it
    write_json(folder / "run.json", {**record.about, "recipe": settings})
    if file.stem == "ann":  # another run may take it over
        write_history(record, folder)
    write_text(folder / f"{name}.yaml", dump(settings))
    line = about or f"{file.stem} network of {record.recipe}, {loaded.data.get('use', 'its own data')}"
    write_text(folder / CARD, _card(record, file.stem, name, line, licence))
    listed = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    entry = {
        "about": line,
        "network": file.stem,
        "timesteps": loaded.timesteps if file.stem != "ann" else None,
        "accuracy": _accuracy(record, file.stem),
        "licence": licence,
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": file_hash(p)} for p in listed},
    }
    known = read_index(zoo / INDEX) if (zoo / INDEX).is_file() else {}
    others = {key: {k: v for k, v in vars(held).items() if k != "name"} for key, held in known.items() if key != name}
    write_json(zoo / INDEX, {"format": 1, "networks": dict(sorted({**others, name: entry}.items()))})
    return ZooEntry(name, **entry)


def _accuracy(record: RunRecord, kind: str) -> dict[str, float]:
    report = record.report or {}
    ann = {"ANN": report["ann"]["accuracy"]} if record.hybrid else {}
    return {**ann, **(report[kind]["accuracy"] if kind != "ann" else {})}


def _card(record: RunRecord, kind: str, name: str, about: str, licence: str) -> str:
    """The entry in words: figures as the run's report has them, command, provenance, licence."""
    report = record.report or {}
    commits = sorted({commit or "unknown" for commit in report["provenance"]["commits"].values()})
    machine = record.about.get("machine", {})
    versions = record.about.get("versions", {})
    hours = sum(report.get("seconds", {}).values()) / 3600
    found = report.get(kind, {})
    rows = [f"| ANN | {report['ann']['accuracy']:.2f} | {_interval(report['ann']['interval'])} |"] if record.hybrid else []
    if kind != "ann":
        rows += [f"| {kind}, T = {t} | {a:.2f} | {_interval(found['interval'][t])} |" for t, a in found["accuracy"].items()]
    cost = ""
    if kind != "ann":
        joules = report["energy_joules"]["snn"] * 1e6
        cost = f"\nAt T = {report['rates_at']}: {sum(report['synops'].values()):,.0f} SynOps and {joules:.3g} uJ a sample "
        cost += "(arithmetic, 45 nm).\n"
    simulated = report.get("simulate", {})
    lava = ""
    if simulated.get("samples") and kind != "ann":
        equal = "all equal" if simulated["spikes_equal"] else "NOT equal"
        where = "On Lava" if simulated.get("backend", "lava") == "lava" else "In the reference simulator, not on Lava"
        lava = f"\n{where}, {simulated['samples']} samples: spikes {equal} to PyTorch's.\n"
    use = f'Load it: `sp.load("{name}")`'
    if kind == "ann":
        use = f"Convert it: `spikeprop convert zoo:{name}`; or by a recipe with the same `data`, `ann` and `train`: "
        use += f"`spikeprop run RECIPE --ann zoo:{name}`"
    return f"""# {name}

{about}.

| network | top-1 (%) | 95 % interval |
| --- | --- | --- |
{chr(10).join(rows)}
{cost}{lava}
- {use}; evaluate it: `spikeprop eval zoo:{name}`. Every file is compared with its SHA-256 in `index.json`.
- Made by: `spikeprop run zoo/{name}/{name}.yaml` (recipe {record.recipe}, seed {record.settings.get("seed")})
- Commit: {", ".join(commits)}
- Machine: {machine.get("cores")} cores of {machine.get("processor")}, {hours:.2f} hours, PyTorch {versions.get("torch")}
- Data: {record.settings.get("data", {}).get("use")}, which has a licence of its own
- Licence of weights and card: {licence}

Every figure above is in `report.json`.
"""


def _interval(bounds: list[float]) -> str:
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}"
