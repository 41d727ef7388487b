"""From a name in a recipe to a class: looked up in the slot's home module, or imported if dotted; then checked against the slot.

Within ``spikeprop.runtime.imports.record_foreign_names`` names from outside are recorded instead of imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from spikeprop.errors import RecipeError
from spikeprop.recipe.component import Component, parameters_of, purpose_of
from spikeprop.recipe.nearest import nearest
from spikeprop.runtime import imports
from spikeprop.runtime.places import folders, nearest_path

EXPERIMENTS = "spikeprop.experiment"
PLUGINS = "spikeprop.plugins"  # a recipe names them with this prefix
HOMES = {
    "torch.nn.modules.module.Module": "spikeprop.ann",
    "torch.optim.optimizer.Optimizer": "torch.optim",
    "spikeprop.ann.activation.Clipped": "spikeprop.ann.activation",
}
ELSEWHERE = {  # rooms that have components of a slot beside its home: a recipe names these with the room
    "torch.optim.optimizer.Optimizer": "spikeprop.learn",
    "spikeprop.learn.rule.LearningRule": "spikeprop.deploy",
}
LARGEST_CODE = 2**20  # bytes of a file that is searched for a name
RESERVED = {"params"}  # an optimiser's parameters: they exist only when the network does


def home(base: type) -> str:
    """Module in which bare names of a slot are looked up."""
    return HOMES.get(_full_name(base), base.__module__.rpartition(".")[0])


def _full_name(base: type) -> str:
    return f"{base.__module__}.{base.__qualname__}"


def components(base: type) -> dict[str, dict[str, Any]]:
    """The components of a slot: name to {parameter: default}; those of other rooms and of plugins with their prefix.

    A plugin whose import fails is named in a warning, and left out.
    """
    room = ELSEWHERE.get(_full_name(base))
    others = _public(room) if room is not None else {}
    found = _public(home(base)) | {f"{room}.{name}": cls for name, cls in others.items()}
    known = {id(cls) for cls in found.values()}
    found |= {f"{PLUGINS}.{name}": cls for name, cls in _plugins().items() if id(cls) not in known}
    return {name: _defaults(cls) for name, cls in found.items() if fits(cls, base)}


def purposes(base: type) -> dict[str, str]:
    """What each component of a slot is for, in words."""
    return {name: purpose_of(find(name, base.__name__, base, home(base))) for name in components(base)}


def _public(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    return {key: getattr(module, key) for key in sorted(getattr(module, "__all__", dir(module)))}


def _plugins() -> dict[str, Any]:
    """The public names of the plugins that can be imported: one that cannot leaves the others usable."""
    module, found = importlib.import_module(PLUGINS), {}
    broken: dict[str, list[str]] = {}  # by what is wrong
    for name in dir(module):
        try:
            found[name] = getattr(module, name)
        except Exception as error:  # the plugin's own code may raise anything
            broken.setdefault(f"{type(error).__name__}: {error}", []).append(name)
    for why, names in broken.items():
        warnings.warn(f"{PLUGINS}: {', '.join(names)} cannot be imported and left out ({why})", stacklevel=3)
    return found


def slots(experiment: type) -> dict[str, type]:
    """Path to base class of every component slot of an experiment, nested settings included."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(experiment).items():
        base = base_of(hint)
        if base is not None:
            found[name] = base
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= {f"{name}.{inner}": base for inner, base in slots(hint).items()}
    return found


def find(use: str, path: str, base: type | None, module: str, given: Mapping[str, Any] | None = None) -> Any:
    """The class (or function) that a name means in a slot; ``given`` are its arguments."""
    where, name = split(use)
    parts = [name] if imports.is_file(where) else [*filter(None, where.split(".")), name]
    if any(not part.isidentifier() or part.startswith("_") for part in parts):
        raise RecipeError(f"{path}: {use!r} is not a public name; expected Name, package.module.Name or file.py:Name")
    if where and not imports.importable(where):
        _note(use, path)
        return unseen
    try:
        there = imports.import_named(where or module)
        found = getattr(there, name, None)
    except Exception as error:  # the module's own code may raise anything
        extra = _extra_of(where)
        raise RecipeError(f"{path}: cannot import {where!r} for {use!r}: {error}{extra}") from error
    if found is None or (base is not None and not where and not fits(found, base)):
        elsewhere = "" if where or base is None else _in_a_file(name)
        known = _own_names(there) if where else components(base) if base is not None else _experiments(module)
        raise RecipeError(f"{path}: no component {name!r} in {where or module}{elsewhere or _nearest(name, known)}")
    if base is None:
        return found
    if not fits(found, base) and _room_adapts(base) and not imports.may_call(where, name):
        raise RecipeError(
            f"{path}: {use!r} is no class of {base.__name__}, and a network's file may not call functions by itself; if you "
            f"trust it, name it: --import {where}:{name}"
        )
    adapted = _adapted(found, base, given or {}, there)
    if adapted is None:
        raise RecipeError(f"{path}: {use} is not a {base.__name__}{nearest(name, components(base))}")
    return adapted


def _room_adapts(base: type) -> bool:
    return hasattr(importlib.import_module(home(base)), "adapt")


def _adapted(found: Any, base: type, given: Mapping[str, Any], module: Any) -> Any:
    """It, if it fits the slot; or what the slot's room, or ``snn.interop``, makes of it."""
    adapt = getattr(importlib.import_module(home(base)), "adapt", None)
    adapted = None if adapt is None else adapt(found, given, module)
    if adapted is not None or fits(found, base):
        return adapted or found
    return importlib.import_module("spikeprop.snn.interop").adapt(found, base)


def expanded(settings: Mapping[str, Any], base: type, path: str) -> Mapping[str, Any]:
    """Settings of a component, with the class that a scheme means ("torchvision:resnet18"), and the path of a file in ``use``."""
    expand = getattr(importlib.import_module(home(base)), "expand", None)
    settings = settings if expand is None else expand(settings)
    if imports.is_file(settings["use"]):
        raise RecipeError(f"{path}: {settings['use']} is a file; add what to take from it: {settings['use']}:Name")
    where, name = split(settings["use"])
    if not imports.is_file(where):
        return settings
    file = imports.find_file(where)
    if file is None:
        looked = " or ".join(str(folder) for folder in folders())
        raise RecipeError(f"{path}: there is no file {where} (looked for in {looked}){nearest_path(where)}")
    return {**settings, "use": f"{file}:{name}"}


def split(use: str) -> tuple[str, str]:
    """Module or file, and name, of "package.module.Name", "package.module:Name" or "file.py:Name"; no module for a bare name."""
    where, _, name = use.rpartition(":" if ":" in use else ".")
    return where, name


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on a bare name; a component of another room, or of a plugin, is found without its prefix too."""
    full = {known_name.rpartition(".")[2]: known_name for known_name in sorted(known, reverse=True)}
    near = get_close_matches(name.lower(), {bare.lower(): bare for bare in full}, n=1, cutoff=0.8)
    meant = next((full[bare] for bare in full if near and bare.lower() == near[0]), "")
    return f"; did you mean {meant!r}?" if "." in meant else nearest(name, known)


def _in_a_file(name: str) -> str:
    """The end of a message where a file in the recipe's folders defines a bare name; the file is read, and not run."""
    defined = re.compile(rf"^(?:class|def) {re.escape(name)}\b", re.MULTILINE)
    for file in (file for folder in folders() for file in sorted(folder.glob("*.py"))):
        with contextlib.suppress(OSError):
            if file.stat().st_size <= LARGEST_CODE and defined.search(file.read_text(encoding="utf-8", errors="replace")):
                return f"; {file.name} defines it: write {file.name}:{name}"
    return ""


def _own_names(module: Any) -> list[str]:
    """The names that a module lists (plugins are not in its dictionary before their first use), else what it defines itself, or
    where that is nothing what it imports."""
    if hasattr(module, "__all__") or "__dir__" in vars(module):
        return list(getattr(module, "__all__", dir(module)))
    public = {n: v for n, v in vars(module).items() if not n.startswith("_") and not inspect.ismodule(v)}
    return [n for n, v in public.items() if getattr(v, "__module__", None) == module.__name__] or list(public)


def fits(found: Any, base: type) -> bool:
    """Whether it is a class that fits a slot and can be instantiated."""
    return inspect.isclass(found) and issubclass(found, base) and found is not base and not inspect.isabstract(found)


def _experiments(module: str) -> list[str]:
    return [n for n, c in vars(importlib.import_module(module)).items() if dataclasses.is_dataclass(c) and hasattr(c, "run")]


def _extra_of(module: str) -> str:
    package = module.partition(".")[0]
    if package in {"snntorch", "norse"}:
        return "; in a copy of the repository: pip install ./hardware '.[interop]'"
    missing = package.isidentifier() and importlib.util.find_spec(package) is None
    return f"; put {package}.py into this folder, or install the package that has it" if missing else ""


def _defaults(target: Any) -> dict[str, Any]:
    made = {f.name: f.default_factory for f in dataclasses.fields(target)} if dataclasses.is_dataclass(target) else {}
    made = {name: factory() for name, factory in made.items() if factory is not dataclasses.MISSING}
    return {
        name: "(required)" if p.default is p.empty else made.get(name, p.default)
        for name, p in parameters_of(target).items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in RESERVED
    }


def base_of(hint: Any) -> Any:
    """X of Component[X], and of lists and dictionaries of such; else None."""
    if get_origin(hint) is Component:
        return get_args(hint)[0]
    return base_of(get_args(hint)[-1]) if get_origin(hint) in (list, dict) else None


def unseen(*_: Any, **__: Any) -> Any:
    """Placeholder of a component that was recorded and not imported."""
    raise RecipeError("a recipe whose code was not imported cannot be run")


def note_names(value: Any, path: str) -> None:
    """Record the names of components inside one that is not imported."""
    if isinstance(value, Mapping):
        if isinstance(value.get("use"), str) and not imports.importable(split(value["use"])[0] or "spikeprop"):
            _note(value["use"], f"{path}.use")
        for key, inner in value.items():
            note_names(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            note_names(inner, f"{path}.{number}")


def _note(use: str, path: str) -> None:
    found = imports.recorded_names()
    if found is None:
        package = imports.package_of(use)
        raise RecipeError(
            f"{path}: {use!r} is code of {package!r}, which a network's file may not import by itself; "
            f"if you trust it, name it: --import {package}"
        )
    found.append(f"{path}: {use}")
