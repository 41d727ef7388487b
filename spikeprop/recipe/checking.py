"""From a recipe's tree to checked components and settings. The only file that uses pydantic.

All mistakes are found here, before any data loads, and each is named by its path (``finetune.lr``) with the nearest name. An
experiment may complete what its recipes leave out: ``complete(tree)`` gives the complete tree and the mistakes that it met.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from abc import ABCMeta
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from spikeprop.errors import RecipeError
from spikeprop.recipe.component import Component, hints_of, parameters_of, source_of
from spikeprop.recipe.names import EXPERIMENTS, PLUGINS, RESERVED, base_of, components, expanded, find, home, note_names, unseen
from spikeprop.recipe.nearest import unknown_keys
from spikeprop.recipe.problems import Problems
from spikeprop.recipe.text import read_yaml
from spikeprop.runtime.imports import recorded_names
from spikeprop.runtime.places import resolved

T = TypeVar("T")
DEFAULT_EXPERIMENT = "HybridConversion"
# Files and folders, which are looked for in the working directory, and beside the recipe:
PATHS = {"weights", "path", "root", "table", "test_table", "train_file", "test_file", "train_labels", "test_labels"}
GIVEN_LATER = RESERVED | {"timesteps"}  # may come from the stage's settings


def check(tree: Mapping[str, Any]) -> Any:
    """The experiment that a recipe's tree describes, every component checked.

    Raises:
        RecipeError: naming every mistake.
    """
    settings = dict(tree)
    use = settings.pop("use", DEFAULT_EXPERIMENT)
    if not isinstance(use, str):
        raise RecipeError(f"use: expected the name of an experiment, got {use!r}")
    experiment = find(use, "use", None, EXPERIMENTS)
    if experiment is unseen:
        note_names(settings, "")
        return None
    if not (dataclasses.is_dataclass(experiment) and hasattr(experiment, "run")):
        raise RecipeError(f"use: {use!r} is not an experiment: a frozen dataclass with run(context) -> Report")
    problems = Problems()
    if hasattr(experiment, "complete"):
        settings, found = experiment.complete(settings)  # type: ignore[union-attr]
        problems.add(*found)
    made = None
    with problems.collected():
        made = _settings(experiment, settings, "")  # type: ignore[arg-type]
    problems.raise_all()
    return made


def _check_section(section: Any) -> None:
    """The section's own check, if it has one that needs nothing else."""
    own = getattr(section, "check", None)
    if callable(own) and not any(p.default is p.empty for p in inspect.signature(own).parameters.values()):
        own()


def check_component(base: type[T], value: Any, path: str) -> Component[T]:
    """Check ``value`` ("Name" or {"use": "Name", ...}) for a slot of type ``base``."""
    settings = {"use": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("use"), str):
        raise RecipeError(f"{path}: expected a component, as in '{{use: Name, key: value}}' or 'Name', got {value!r}")
    settings = expanded(settings, base, path)
    use = settings["use"]
    given = {k: v for k, v in settings.items() if k != "use"}
    target = find(use, path, base, home(base), given)
    if target is unseen:
        note_names(given, path)
        return Component(use, target, given, path)
    arguments = _arguments(source_of(target), given, path, use)
    return Component(use, target, arguments, path)


def check_component_text(base: type[T], text: str, path: str) -> Component[T]:
    """Check a component written on the command line, in YAML; a bare name may be that of a plugin.

    Raises:
        RecipeError: as ``check_component`` does, or text that is not YAML.
    """
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{path}: {text!r} is not YAML: {error}") from error
    use = value.get("use") if isinstance(value, dict) else value
    if isinstance(use, str) and "." not in use and use in dir(importlib.import_module(PLUGINS)):
        value = {**(value if isinstance(value, dict) else {}), "use": f"{PLUGINS}.{use}"}
    return check_component(base, value, path)


def _settings(cls: type, settings: Any, path: str) -> Any:
    if not isinstance(settings, Mapping):
        raise RecipeError(f"{path}: expected settings (key: value), got {settings!r}")
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    problems, values, made = Problems(), {}, None
    problems.add(*unknown_keys(settings, fields, path, cls.__name__))
    readable, wrong = not problems, []
    for name, field in fields.items():
        where = f"{path}.{name}" if path else name
        with problems.collected():
            if name in settings:
                values[name] = _value(hints[name], settings[name], where)
            elif not _has_default(field):
                raise RecipeError(f"{where} is missing: {_expected(hints[name])}")
            elif get_origin(hints[name]) is Component:
                raise RecipeError(f"{where}: a component slot cannot have a default")
        if name in settings and name not in values:
            wrong.append(name)
        readable = readable and (name in settings or _has_default(field))
    if problems and not path and recorded_names() is None:
        for section in values.values():  # a wrong value in a section that is otherwise right is found in the same call
            with problems.collected():
                _check_section(section)
        with problems.collected():
            getattr(cls, "check_parts", lambda _: None)(values)
    if problems and not readable:
        problems.raise_all()
    with problems.collected():
        try:
            made = _check_rest(cls, values, wrong) if wrong else cls(**values)
        except ValueError as error:
            raise RecipeError(f"{path or cls.__name__}: {error}") from error
    problems.raise_all()
    return made


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _value(hint: Any, value: Any, path: str) -> Any:
    if get_origin(hint) is Component:
        return check_component(get_args(hint)[0], value, path)
    held = held_by(hint)
    if held is not None:
        kind = get_origin(hint)
        if not isinstance(value, kind):
            shown = "[Name, {use: Name, key: value}]" if kind is list else "{key: Name, other: {use: Name, key: value}}"
            raise RecipeError(f"{path}: expected a {kind.__name__} of components, as in '{shown}', got {value!r}")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        built = _each({str(key): item for key, item in items}, {}, path, held)
        return built if kind is dict else list(built.values())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not inspect.isabstract(hint):
        return _settings(hint, value, path)
    base = slot_base(hint)
    if base is not None and value is not None:
        return check_component(base, value, path)
    return _typed(hint, value, path)


def held_by(hint: Any) -> Any:
    """The element type of a list or dictionary of components; None for other types."""
    inner = get_args(hint)[-1] if get_origin(hint) in (list, dict) else None
    return None if inner is None or (base_of(inner) is None and slot_base(inner) is None) else inner


def slot_base(hint: Any) -> type | None:
    """The base class of spikeprop in a type, such as ``Surrogate | None``: its values are components."""
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, ABCMeta) and candidate.__module__.startswith("spikeprop"):
            return candidate
    return None


def nested(base: type) -> dict[type, list[str]]:
    """Base class to keys of the slots inside the components of a slot, such as a neuron's surrogate."""
    found: dict[type, list[str]] = {}
    for name in components(base):
        for key, hint in hints_of(source_of(find(name, base.__name__, base, home(base)))).items():
            inner = slot_base(hint if held_by(hint) is None else held_by(hint))
            if inner is not None and key not in found.setdefault(inner, []):
                found[inner].append(key)
    return found


def _typed(hint: Any, value: Any, path: str) -> Any:
    try:
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value  # a type of another library: its own constructor checks it
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        said = reason.replace("Input should be", "it should be").replace("a valid array", "a list, as in [1, 2]")
        raise RecipeError(f"{path}: {_wrong_part(value, error)} is not valid: {said}") from error


def _wrong_part(value: Any, error: Exception) -> str:
    """What of a value is wrong, and where in it."""
    part: Any = value
    place = ""
    keys: Any = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
    for key in keys:
        if (isinstance(part, list) and isinstance(key, int)) or (isinstance(part, dict) and key in part):
            part, place = part[key], f"{place}[{key}]"
    return f"{part!r}, at {place} of {value!r}," if place else repr(value)


class _Unknown:
    """Stands for a value that is wrong, while the others are checked; whatever is done with it is an error."""

    __slots__ = ()


def _check_rest(cls: type, values: Mapping[str, Any], wrong: Collection[str]) -> None:
    """Raises ValueError if other settings are wrong too, beside the ``wrong`` ones, which are not among ``values``."""
    try:
        cls(**values, **dict.fromkeys(wrong, _Unknown()))
    except Exception as error:
        if not isinstance(error, TypeError | AttributeError) and _Unknown.__name__ not in str(error):
            raise
        # else the check came to a value that is wrong


def _arguments(target: Any, given: Mapping[str, Any], path: str, use: str) -> dict[str, Any]:
    parameters, problems, values = parameters_of(target), Problems(), {}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        problems.add(*unknown_keys(given, parameters.keys() - RESERVED, path, use))
    for name, p in parameters.items():
        required = p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if required and name not in given and name not in GIVEN_LATER:
            problems.add(f"{path}.{name} is missing: {use} needs it")
    with problems.collected():
        values = _each(given, hints_of(target), path)
    problems.raise_all()
    return values | {k: resolved(v) for k, v in values.items() if k in PATHS and isinstance(v, str)}


def _each(given: Mapping[str, Any], hints: Mapping[str, Any], path: str, held: Any = None) -> dict[str, Any]:
    """Every value checked: against the type of its key, or against ``held``; values without a type stay as they are."""
    problems, values = Problems(), {}
    for key, value in given.items():
        hint = hints.get(key, held)
        with problems.collected():
            values[key] = value if hint is None else _value(hint, value, f"{path}.{key}")
    problems.raise_all()
    return values


def _expected(hint: Any) -> str:
    if get_origin(hint) is Component:
        base = get_args(hint)[0]
        return f"a component, one of {', '.join(components(base))}"
    return f"a value of type {getattr(hint, '__name__', str(hint))}"
