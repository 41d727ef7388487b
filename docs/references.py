"""The recipe reference and the CLI reference, made from the code: settings, slots, components, verbs and their options."""

from __future__ import annotations

import dataclasses
import html
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import griffe
from docstrings import one_name_an_entry

SLOTS = {
    "ImageData",
    "LabelledData",
    "Module",
    "LearningRule",
    "Optimizer",
    "Schedule",
    "Callback",
    "Neuron",
    "Encoder",
    "ThresholdCalibrator",
}
SLOTS |= {"Surrogate", "Loss", "Clipped"}  # inside components
REQUIRED = object()


def recipe_reference() -> str:
    """Keys of the pipelines, then the components of each slot, then the experiments of plugins."""
    from spikeprop import plugins
    from spikeprop.ann.activation import Clipped
    from spikeprop.experiment import HybridConversion, SpikingTraining
    from spikeprop.learn import Loss
    from spikeprop.recipe import home, slots
    from spikeprop.snn import Neuron, Surrogate

    parts = ["## Keys", *_keys(HybridConversion, ""), "## Keys of SpikingTraining", *_keys(SpikingTraining, "")]
    bases: dict[type, list[str]] = {}
    for path, base in [*slots(HybridConversion).items(), *slots(SpikingTraining).items()]:
        if path not in bases.setdefault(base, []):
            bases[base].append(path)
    bases[Surrogate] = [f"{path}.surrogate" for path in bases[Neuron]]
    bases |= {Clipped: ["ann.activation"], Loss: ["train.rule.loss", "finetune.rule.loss"]}
    for base, paths in bases.items():
        where = ", ".join(f"`{path}`" for path in paths)
        parts += [f"## {base.__name__}", f"Slots: {where}. Bare names are looked up in `{home(base)}`.", *_components(base)]
    parts += ["## Experiments of plugins", "A recipe names them by its key `use`; `HybridConversion` above is the default."]
    for name in dir(plugins):
        found = getattr(plugins, name)
        if isinstance(found, type) and dataclasses.is_dataclass(found) and hasattr(found, "run"):
            parts += [f"### spikeprop.plugins.{name}", summary(found), settings(found, _fields(found))]
    return "\n\n".join(parts)


def _keys(owner: type, path: str) -> list[str]:
    """A table of an experiment's keys, and one for each group of settings in it."""
    found = [summary(owner), settings(owner, _fields(owner), path)]
    for name, hint in get_type_hints(owner).items():
        if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
            found += [f"### {path}{name}", *_keys(hint, f"{path}{name}.")]
    return found


def _fields(cls: type) -> dict[str, Any]:
    """Settings of an experiment, or of a group of them, with their defaults."""
    found = {}
    for field in dataclasses.fields(cls):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found[field.name] = REQUIRED if made is dataclasses.MISSING else made
    return found


def _components(base: type) -> Iterable[str]:
    """A heading, the first sentence and the settings of each component; one table of names where they are another library's."""
    from spikeprop.recipe import components, home

    known = {name: (_class(name, home(base)), defaults) for name, defaults in components(base).items()}
    foreign = [name for name, (cls, _) in known.items() if not cls.__module__.startswith("spikeprop")]
    if foreign:
        yield f"From `{home(base)}`, with the settings documented there: {', '.join(f'`{name}`' for name in foreign)}."
    for name, (cls, defaults) in known.items():
        if name not in foreign:
            yield from (f"### {name}", summary(cls), settings(cls, defaults))


def _class(name: str, module: str) -> type:
    """The class that a name means in a slot."""
    where, _, bare = name.rpartition(".")
    return getattr(importlib.import_module(where or module), bare)


def settings(cls: type, defaults: Mapping[str, Any], path: str = "") -> str:
    """Table of what a component or an experiment takes: key, type, default, meaning."""
    hints = get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    texts = documented(cls)
    if not defaults:
        return "No settings."
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, default in defaults.items():
        shown = "" if default is REQUIRED or default == "(required)" else f"`{_plain(default)}`"
        lines.append(f"| `{path}{name}` | {_cell(type_name(hints.get(name)))} | {_cell(shown)} | {_cell(texts.get(name, ''))} |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A default as YAML has it."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def type_name(hint: Any) -> str:
    """A type in Markdown, as a reader of recipes has it: of a component, its base class; of a group of settings, its heading."""
    from spikeprop.recipe import Component

    if get_origin(hint) is Component:
        return _linked(get_args(hint)[0])
    if get_origin(hint) in (list, dict) and get_args(hint):
        inner = type_name(get_args(hint)[-1])
        return f"list of {inner}" if get_origin(hint) is list else f"{inner} by name"
    if get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("`null`" if one is NoneType else type_name(one) for one in get_args(hint))
    if inspect.isclass(hint) and get_origin(hint) is None:
        if dataclasses.is_dataclass(hint) and not inspect.isabstract(hint):
            return "settings, see below"
        return _linked(hint) if inspect.isabstract(hint) else f"`{hint.__name__}`"
    return "any" if hint is None else f"`{re.sub(r'(?:[A-Za-z_]+[.])+', '', str(hint))}`"


def _linked(base: type) -> str:
    """A slot's base class, linked to its components where this page has them."""
    return f"[{base.__name__}](#{base.__name__.lower()})" if base.__name__ in SLOTS else f"`{base.__name__}`"


def documented(cls: type) -> dict[str, str]:
    """Name to text of what a class takes, from its docstring and those of its bases, the nearest first."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != "spikeprop":
            continue
        for section in parsed(base.__doc__ or ""):
            if section.kind in (griffe.DocstringSectionKind.attributes, griffe.DocstringSectionKind.parameters):
                for item in section.value:
                    found.setdefault(item.name, item.description.replace("``", "`"))
    return found


def parsed(text: str) -> list[Any]:
    """Sections of a docstring in Google's style."""
    return griffe.Docstring(one_name_an_entry(inspect.cleandoc(text)), lineno=1).parse("google", warnings=False)


def summary(cls: Any) -> str:
    """The first paragraph of a docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def cli_reference() -> str:
    """What each verb does, takes and returns."""
    from spikeprop.cli import main

    context = click.Context(main, info_name="spikeprop")
    parts = [_help(main)]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join([context.info_name or "", name, *command.collect_usage_pieces(inner)])
        parts += [f"## {name}", f"```console\n$ {usage}\n```", _help(command), _options(command, inner)]
        parts += [f"```console\n$ {command.example}\n```"] if getattr(command, "example", None) else []
    return "\n\n".join(parts)


def exit_codes() -> str:
    """The exit codes of all verbs, as ``spikeprop --help`` ends with them."""
    from spikeprop.cli import main

    _, _, codes = (main.epilog or "").partition("Exit codes:\n")
    return f"```text\n{inspect.cleandoc(codes)}\n```"


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").replace("\b\n", "")


def _options(command: click.Command, context: click.Context) -> str:
    """Table of a verb's options."""
    lines = ["| option | meaning |", "| --- | --- |"]
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            lines.append(f"| <code>{_text(record[0])}</code> | {_text(record[1])} |")
    return "\n".join(lines) if len(lines) > 2 else "No options."


def _text(text: str) -> str:
    """Text for a table, in which nothing is Markdown."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;")
