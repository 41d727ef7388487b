"""Recipes: YAML to checked components. The only file that knows YAML and pydantic.

A recipe names components as ``{use: LIF, leak: 0.99}`` or just ``LIF``. A bare name is looked up in the slot's home
module, a dotted one is imported; then it must be a subclass of the slot's base, and its keys must be in its signature
with values of the annotated types. Every mistake is found here, before any data loads, and named by its path
(``finetune.lr``) with the nearest name. Within ``spikeprop.imports.looking`` names from outside are noted instead of imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from spikeprop import imports
from spikeprop.errors import RecipeError

T = TypeVar("T")
EXPERIMENTS = "spikeprop.pipeline"
PLUGINS = "spikeprop.plugins"  # listed beside a slot's own components; a recipe names them with this prefix
DEFAULT_EXPERIMENT = "HybridConversion"
HOMES = {
    "torch.nn.modules.module.Module": "spikeprop.ann",
    "torch.optim.optimizer.Optimizer": "torch.optim",
    "spikeprop.ann.activation.Clipped": "spikeprop.ann.activation",
}
RESERVED = {"params"}  # an optimiser's parameters exist only once the network does
LARGEST_RECIPE = 2**20  # bytes
LARGEST_TREE = 100_000  # values, each counted as often as anchors and merges repeat it
DEEPEST_TREE = 50
GIVEN_LATER = RESERVED | {"timesteps"}  # may come from the stage's own setting


@dataclass(frozen=True)
class Component(Generic[T]):
    """A component that a recipe named, checked but not yet made.

    Attributes:
        use: its name, as written.
        target: what makes it.
        arguments: checked keyword arguments; nested components are Components.
        path: where in the recipe, for errors.
    """

    use: str
    target: Callable[..., T]
    arguments: dict[str, Any]
    path: str

    def build(self, *late: Any, **more: Any) -> T:
        """Make it; ``late`` and ``more`` are arguments that only exist now."""
        arguments = {k: v.build() if isinstance(v, Component) else v for k, v in self.arguments.items()}
        try:
            return self.target(*late, **{**more, **arguments})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{self.path}: {self.use}: {error}") from error

    def replace(self, **arguments: Any) -> Component[T]:
        """The same with other arguments."""
        return dataclasses.replace(self, arguments={**self.arguments, **arguments})

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The target's parameters by name."""
        return _parameters(self.target)

    def describe(self) -> dict[str, Any]:
        """As it would be written in a recipe, defaults included."""
        defaults = {
            name: p.default
            for name, p in _parameters(self.target).items()
            if p.default is not p.empty and isinstance(p.default, bool | int | float | str | list | tuple | None)
        }
        values = {k: v.describe() if isinstance(v, Component) else v for k, v in self.arguments.items()}
        return {"use": self.use, **_plain({**defaults, **values})}


@dataclass(frozen=True)
class Recipe:
    """The complete description of a run."""

    name: str
    experiment: Any

    def describe(self) -> dict[str, Any]:
        """Everything, defaults included, as YAML and JSON can hold it."""
        kind = type(self.experiment)
        use = kind.__name__ if kind.__module__ == EXPERIMENTS else f"{kind.__module__}.{kind.__qualname__}"
        return {"use": use, **_describe(self.experiment)}


def load_recipe(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, or the name of a recipe that comes with spikeprop.
        overrides: "path.to.key=value", value in YAML.

    Raises:
        RecipeError: naming the place and the fix.
    """
    path = find_recipe(source)
    size = path.stat().st_size
    if size > LARGEST_RECIPE:
        raise RecipeError(f"{path} has {size:,} bytes; a recipe has at most {LARGEST_RECIPE:,}")
    try:
        tree = _read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path} is not YAML that a recipe can be: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} must hold a mapping of settings")
    for override in overrides:
        _override(tree, override)
    return Recipe(path.stem, check(tree))


def check(tree: Mapping[str, Any]) -> Any:
    """The experiment that a recipe's tree describes, every component checked."""
    settings = dict(tree)
    use = settings.pop("use", DEFAULT_EXPERIMENT)
    if not isinstance(use, str):
        raise RecipeError(f"use: expected the name of an experiment, got {use!r}")
    experiment = _find(use, "use", None, EXPERIMENTS)
    if experiment is unseen:
        _note_names(settings, "")
        return None
    if not (dataclasses.is_dataclass(experiment) and hasattr(experiment, "run")):
        raise RecipeError(f"use: {use!r} is not an experiment: a frozen dataclass with run(context) -> Report")
    return _dataclass(experiment, settings, "")  # type: ignore[arg-type]


def component(base: type[T], value: Any, path: str) -> Component[T]:
    """Check ``value`` ("Name" or {"use": "Name", ...}) for a slot of type ``base``."""
    settings = {"use": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("use"), str):
        raise RecipeError(f"{path}: expected a component, as in '{{use: Name, key: value}}' or 'Name', got {value!r}")
    use = settings["use"]
    target = _find(use, path, base, home(base))
    given = {k: v for k, v in settings.items() if k != "use"}
    if target is unseen:
        _note_names(given, path)
        return Component(use, target, given, path)
    arguments = _arguments(_source(target), given, path, use)
    return Component(use, target, arguments, path)


def unseen(*_: Any, **__: Any) -> Any:
    """What stands for a component that was noted and not imported."""
    raise RecipeError("a recipe that was only looked at cannot be run")


def component_of_text(base: type[T], text: str, path: str) -> Component[T]:
    """Check a component written on the command line, in YAML; a bare name may be that of a plugin.

    Raises:
        RecipeError: as ``component`` does, or text that is not YAML.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {text!r} is not YAML: {error}") from error
    use = value.get("use") if isinstance(value, dict) else value
    if isinstance(use, str) and "." not in use and use in dir(importlib.import_module(PLUGINS)):
        value = {**(value if isinstance(value, dict) else {}), "use": f"{PLUGINS}.{use}"}
    return component(base, value, path)


def home(base: type) -> str:
    """Module in which bare names of a slot are looked up."""
    return HOMES.get(f"{base.__module__}.{base.__qualname__}", base.__module__.rpartition(".")[0])


def components(base: type) -> dict[str, dict[str, Any]]:
    """The components of a slot: name to {parameter: default}; those of plugins under the name that a recipe gives them."""
    found = _public(home(base)) | {f"{PLUGINS}.{name}": cls for name, cls in _public(PLUGINS).items()}
    return {name: _defaults(cls) for name, cls in found.items() if _fits(cls, base)}


def _public(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    return {key: getattr(module, key) for key in sorted(getattr(module, "__all__", dir(module)))}


def slots(experiment: type) -> dict[str, type]:
    """Path to base class of every component slot of an experiment, nested settings included."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(experiment).items():
        base = _base_of(hint)
        if base is not None:
            found[name] = base
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= {f"{name}.{inner}": base for inner, base in slots(hint).items()}
    return found


def recipe_folder() -> Path:
    """Folder of the recipes that come with spikeprop: inside the package, or beside it in a checkout."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "recipes"


def find_recipe(source: str) -> Path:
    """The file of a recipe given as path or as name."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path
    names = {p.stem: p for p in sorted(recipe_folder().glob("*.yaml"))}
    if path.suffix == "" and source in names:
        return names[source]
    raise RecipeError(f"no recipe {source!r}{_nearest(path.stem, names)}; 'spikeprop ls' shows all")


def dump(tree: Mapping[str, Any]) -> str:
    """YAML text of a described recipe."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


# the tree ---------------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _read_yaml(text: str) -> Any:
    """YAML within bounds, which are counted before anything is made of it.

    Raises:
        ValueError: it is not YAML, or it is too large once anchors are followed.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _count(node, 0, [0])
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # of dates and numbers that are none
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: Any, depth: int, count: list[int]) -> None:
    count[0] += 1
    if count[0] > LARGEST_TREE or depth > DEEPEST_TREE:
        raise ValueError(f"more than {LARGEST_TREE:,} values, or nested deeper than {DEEPEST_TREE}, its anchors followed")
    below = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else ()
    for item in below:
        for inner in item if isinstance(item, tuple) else (item,):
            _count(inner, depth + 1, count)


def _note_names(value: Any, path: str) -> None:
    """What lies under something that is not imported: names in it may be components too."""
    if isinstance(value, Mapping):
        if isinstance(value.get("use"), str) and not imports.importable(value["use"].rpartition(".")[0] or "spikeprop"):
            _note(value["use"], f"{path}.use")
        for key, inner in value.items():
            _note_names(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _note_names(inner, f"{path}.{number}")


def _note(use: str, path: str) -> None:
    found = imports.noted()
    if found is None:
        package = use.partition(".")[0]
        raise RecipeError(
            f"{path}: {use!r} is code of {package!r}, which the file of a network may not have imported unasked; "
            f"if you trust it, name it: --import {package}"
        )
    found.append(f"{path}: {use}")


def _override(tree: dict[str, Any], text: str) -> None:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise RecipeError(f"override {text!r}: write it as path.to.key=value")
    *parents, last = path.split(".")
    node: Any = tree
    for i, key in enumerate(parents):
        below = node.get(key)
        if isinstance(below, str):  # a bare component name gets settings
            below = node[key] = {"use": below}
        if below is None and i == 0:
            raise RecipeError(f"override {text!r}: the recipe has no {key!r}{_nearest(key, node)}")
        node = node.setdefault(key, {}) if below is None else below
        if not isinstance(node, dict):
            raise RecipeError(f"override {text!r}: {'.'.join(parents[: i + 1])} is {node!r}, which has no keys")
    try:
        node[last] = _read_yaml(value)
    except ValueError as error:
        raise RecipeError(f"override {text!r}: the value is not YAML: {error}") from error


def _dataclass(cls: type, settings: Any, path: str) -> Any:
    if not isinstance(settings, Mapping):
        raise RecipeError(f"{path}: expected settings (key: value), got {settings!r}")
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    _refuse_unknown(settings, fields, path, cls.__name__)
    values = {}
    for name, field in fields.items():
        where = f"{path}.{name}" if path else name
        if name in settings:
            values[name] = _value(hints[name], settings[name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{where} is missing: {_expected(hints[name])}")
        elif get_origin(hints[name]) is Component:
            raise RecipeError(f"{where}: a component slot cannot have a default")
    try:
        return cls(**values)
    except ValueError as error:
        raise RecipeError(f"{path or cls.__name__}: {error}") from error


def _value(hint: Any, value: Any, path: str) -> Any:
    if get_origin(hint) is Component:
        return component(get_args(hint)[0], value, path)
    held = _held(hint)
    if held is not None:
        kind = get_origin(hint)
        if not isinstance(value, kind):
            shown = "[Name, {use: Name, key: value}]" if kind is list else "{key: Name, other: {use: Name, key: value}}"
            raise RecipeError(f"{path}: expected a {kind.__name__} of components, as in '{shown}', got {value!r}")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        built = {str(key): _value(held, item, f"{path}.{key}") for key, item in items}
        return built if kind is dict else list(built.values())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not inspect.isabstract(hint):
        return _dataclass(hint, value, path)
    base = _slot_base(hint)
    if base is not None and value is not None:
        return component(base, value, path)
    return _typed(hint, value, path)


def _base_of(hint: Any) -> Any:
    """X of Component[X], and of lists and dictionaries of such; else None."""
    if get_origin(hint) is Component:
        return get_args(hint)[0]
    return _base_of(get_args(hint)[-1]) if get_origin(hint) in (list, dict) else None


def _held(hint: Any) -> Any:
    """What a list or dictionary of components holds, which may be lists of them; None for other hints."""
    inner = get_args(hint)[-1] if get_origin(hint) in (list, dict) else None
    return None if inner is None or _base_of(inner) is None else inner


def _typed(hint: Any, value: Any, path: str) -> Any:
    try:
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value  # a type of another library: its own constructor will judge
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RecipeError(f"{path}: {value!r} is not valid: {reason}") from error


def _arguments(target: Any, given: Mapping[str, Any], path: str, use: str) -> dict[str, Any]:
    parameters = _parameters(target)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _refuse_unknown(given, parameters, path, use)
    for name, p in parameters.items():
        required = p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if required and name not in given and name not in GIVEN_LATER:
            raise RecipeError(f"{path}.{name} is missing: {use} needs it")
    hints = _hints(target)
    return {k: _value(hints[k], v, f"{path}.{k}") if k in hints else v for k, v in given.items()}


def _find(use: str, path: str, base: type | None, module: str) -> Any:
    """The class (or function) that a name means in a slot."""
    where, _, name = use.rpartition(".")
    if any(not part.isidentifier() or part.startswith("_") for part in use.split(".")):
        raise RecipeError(f"{path}: {use!r} is not a public name; expected Name or package.module.Name")
    if where and not imports.importable(where):
        _note(use, path)
        return unseen
    try:
        found = getattr(importlib.import_module(where or module), name, None)
    except Exception as error:  # the module's own code may raise anything
        extra = _extra_of(where)
        raise RecipeError(f"{path}: cannot import {where!r} for {use!r}: {error}{extra}") from error
    if found is None or (base is not None and not where and not _fits(found, base)):
        known = components(base) if base is not None else _experiments(module)
        raise RecipeError(f"{path}: no component {name!r} in {where or module}{_nearest(name, known)}")
    if base is None or _fits(found, base):
        return found
    adapted = importlib.import_module("spikeprop.snn.interop").adapt(found, base)
    if adapted is None:
        raise RecipeError(f"{path}: {use} is not a {base.__name__}{_nearest(name, components(base))}")
    return adapted


def _fits(found: Any, base: type) -> bool:
    return inspect.isclass(found) and issubclass(found, base) and found is not base and not inspect.isabstract(found)


def _experiments(module: str) -> list[str]:
    return [n for n, c in vars(importlib.import_module(module)).items() if dataclasses.is_dataclass(c) and hasattr(c, "run")]


def _slot_base(hint: Any) -> type | None:
    for candidate in (hint, *get_args(hint)):
        if inspect.isclass(candidate) and inspect.isabstract(candidate) and candidate.__module__.startswith("spikeprop"):
            return candidate
    return None


def _source(target: Any) -> Any:
    """What carries the signature: an adapter's own target, or the target itself."""
    return getattr(target, "adapts", target)


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(_source(target)).parameters)


def _hints(target: Any) -> dict[str, Any]:
    try:
        constructor = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
        return get_type_hints(constructor)
    except (NameError, TypeError):
        return {}


def _defaults(target: Any) -> dict[str, Any]:
    made = {f.name: f.default_factory for f in dataclasses.fields(target)} if dataclasses.is_dataclass(target) else {}
    made = {name: factory() for name, factory in made.items() if factory is not dataclasses.MISSING}
    return {
        name: "(required)" if p.default is p.empty else made.get(name, p.default)
        for name, p in _parameters(target).items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in RESERVED
    }


def _refuse_unknown(given: Mapping[str, Any], known: Iterable[str], path: str, owner: str) -> None:
    names = set(known) - RESERVED
    for key in given:
        if key not in names:
            where = f"{path}.{key}" if path else str(key)
            raise RecipeError(f"{where}: {owner} has no {key!r}{_nearest(str(key), names)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = [str(k) for k in known]
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _extra_of(module: str) -> str:
    package = module.partition(".")[0]
    return "; install the extra with: pip install 'spikeprop[interop]'" if package in {"snntorch", "norse"} else ""


def _expected(hint: Any) -> str:
    if get_origin(hint) is Component:
        base = get_args(hint)[0]
        return f"a component, one of {', '.join(components(base))}"
    return getattr(hint, "__name__", str(hint))


def _describe(value: Any) -> dict[str, Any]:
    return {field.name: _described(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _described(item: Any) -> Any:
    if isinstance(item, Component):
        return item.describe()
    if dataclasses.is_dataclass(item):
        return _describe(item)
    if isinstance(item, Mapping):
        return {k: _described(i) for k, i in item.items()}
    return [_described(i) for i in item] if isinstance(item, list | tuple) else item


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
