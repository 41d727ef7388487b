"""The structure of the library, read from the source with ast: which room may import which, where code may print or unpickle.

``python -m tests.test_architecture`` lists the classes that are defined twice and the modules at the root.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "spikeprop"
LEVELS = [  # a room imports only rooms of the lines below its own
    {"__main__"},
    {"cli"},
    {"report", "sweep"},
    {"plugins"},
    {"experiment"},
    {"deploy"},
    {"evaluate", "learn", "convert", "data", "ann"},
    {"snn", "recipe"},
    {"runtime"},
    {"errors"},
]
ROOT_MODULES = {"__init__", "__main__", "errors"}
NAMESAKES: dict[str, str] = dict.fromkeys(["ALIF", "GradedIF"], "a node of a NIR file, as nir.IF is")
OTHER_TESTS = {"hardware", "faults", "fuzz", "witness"}  # directories of tests/ that mirror no room


def imports(file: Path, running: bool = False) -> set[str]:
    """Dotted names of all modules that a file imports, at the top or in a function; ``running`` leaves types alone."""
    found, tree = set(), ast.parse(file.read_text(encoding="utf-8"))
    if running:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full, so that this test can read them"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(file: Path) -> set[str]:
    """Rooms of spikeprop that a file imports."""
    own = [name for name in imports(file) if name.partition(".")[0] == "spikeprop"]
    return {name.split(".")[1] for name in own if "." in name}


def library_files() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(LIBRARY).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if name in rooms)


def modules() -> dict[str, Path]:
    """Dotted name of every module of the library."""
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in library_files()}


def imported_modules(file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the library that a file imports; ``from a import b`` counts as the module a.b, or as a if there is none.

    An import for type checkers does not count, since nothing runs by it.
    """
    found = {name if name in known else name.rpartition(".")[0] for name in imports(file, running=True)}
    return found & known.keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            todo += [n for n in graph[todo.pop()] if n not in seen and not seen.add(n)]
        reached[start] = seen
    groups = {frozenset({n, *(m for m in reached[n] if n in reached[m])}) for n in graph if n in reached[n]}
    return sorted(map(sorted, groups))


def test_rooms_are_those_of_the_plan() -> None:
    rooms = {p.name for p in LIBRARY.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == set().union(*LEVELS) - ROOT_MODULES
    assert {p.stem for p in LIBRARY.glob("*.py")} == ROOT_MODULES


@pytest.mark.parametrize("file", library_files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_rooms_import_only_rooms_below(file: Path) -> None:
    own = room(file)
    below = (
        set().union(*LEVELS[level(own) + 1 :])
        if own != "__init__"
        else {"ann", "convert", "data", "evaluate", "learn", "snn", "deploy", "experiment"}  # the last two when first used
    )
    wrong = rooms_of(file) - below - {own}
    assert not wrong, f"{own} must not import {sorted(wrong)}"


@pytest.mark.parametrize("file", library_files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_imports_plugins(file: Path) -> None:
    assert "plugins" not in rooms_of(file) or room(file) == "plugins"


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    graph = {name: imported_modules(file, known) - {name} for name, file in known.items()}
    assert sum(map(len, graph.values())) > 500
    assert circles(graph) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def class_names() -> dict[str, list[str]]:
    """Names of the classes that several modules of spikeprop and spikeprop_hardware define, and those modules."""
    found: dict[str, list[str]] = {}
    for file in [*library_files(), *sorted((ROOT / "hardware" / "spikeprop_hardware").rglob("*.py"))]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(file.relative_to(ROOT).as_posix())
    return {name: files for name, files in found.items() if len(files) > 1}


def test_one_name_is_one_class() -> None:
    twice = class_names()
    assert {name: files for name, files in twice.items() if name not in NAMESAKES} == {}
    assert NAMESAKES.keys() <= twice.keys()


def test_tests_mirror_the_rooms() -> None:
    folders = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("*.py")} - {Path()}
    assert len(folders) > 10
    assert [str(f) for f in sorted(folders) if f.parts[0] not in OTHER_TESTS and not (LIBRARY / f).is_dir()] == []


@pytest.mark.parametrize("file", sorted((ROOT / "hardware").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_hardware_imports_neither_spikeprop_nor_torch(file: Path) -> None:
    packages = {name.partition(".")[0] for name in imports(file)}
    worker = file.parent.name == "vendors" and file.name.endswith("_worker.py")  # runs in the vendor's environment
    assert not packages & ({"spikeprop"} if worker else {"spikeprop", "torch"})


@pytest.mark.parametrize(("package", "file"), [("yaml", "recipe/text.py"), ("pydantic", "recipe/checking.py")])
def test_one_file_imports_yaml_and_one_pydantic(package: str, file: str) -> None:
    users = [f.relative_to(LIBRARY).as_posix() for f in library_files() if package in {n.partition(".")[0] for n in imports(f)}]
    assert users == [file]


def test_only_the_command_line_prints() -> None:
    printing = set()
    for file in [*library_files(), *(ROOT / "hardware").rglob("*.py")]:
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)}
        if calls & {"print", "click.echo"}:
            printing.add(file.relative_to(ROOT).parts[:2])
    assert printing == {("spikeprop", "cli")}


def test_the_command_line_imports_heavy_packages_only_in_the_verb_that_needs_them() -> None:
    program = (
        "import sys, spikeprop.cli; print(*{'yaml', 'pydantic', 'matplotlib', 'h5py', 'filelock', 'nir'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def test_nothing_is_pickled() -> None:
    """Only the reader of CIFAR's files, which are pickles, imports pickle; it allows no function but those of numpy arrays."""
    everywhere = [f for folder in ("spikeprop", "hardware", "benchmarks") for f in sorted((ROOT / folder).rglob("*.py"))]
    assert len(everywhere) > 100
    pickling = {f.relative_to(ROOT).as_posix() for f in everywhere if PICKLES & {n.partition(".")[0] for n in imports(f)}}
    assert pickling == {"spikeprop/data/cifar_pickles.py"}
    unsafe = [
        f"{f.relative_to(ROOT)}:{line}" for f in everywhere for line in unsafe_loads(ast.parse(f.read_text(encoding="utf-8")))
    ]
    assert not unsafe


def unsafe_loads(tree: ast.AST) -> list[int]:
    """Lines that call a loader which may run a pickle: torch.load without weights_only=True, np.load with allow_pickle."""
    found = []
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name.endswith("torch.load") and given.get("weights_only") != "True":
            found.append(call.lineno)
        if given.get("allow_pickle", "False") != "False" or name.endswith(("read_pickle", "load_lua", "_object", "_object_list")):
            found.append(call.lineno)
    return found


def test_unsafe_loads_are_found() -> None:
    lines = [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "dist.broadcast_object_list(x)",
    ]
    assert unsafe_loads(ast.parse("\n".join(lines))) == [1, 2, 3, 4]
    assert unsafe_loads(ast.parse("torch.load(p, weights_only=True)\nnp.load(p)\nnp.load(p, allow_pickle=False)")) == []


def test_every_module_has_a_docstring() -> None:
    files = [*library_files(), *(ROOT / "hardware" / "spikeprop_hardware").rglob("*.py")]
    assert not [f.name for f in files if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))]


def main() -> None:
    """Print what a reader of the tree should know: classes defined twice, with the reason, and the modules at the root."""
    for name, files in sorted(class_names().items()):
        print(f"defined {len(files)} times: {name} ({', '.join(files)}): {NAMESAKES.get(name, 'NO REASON GIVEN')}")  # noqa: T201
    print("modules at the root:", *sorted(f"{p.stem}.py" for p in LIBRARY.glob("*.py")))  # noqa: T201


if __name__ == "__main__":
    main()


def test_dir_lists_the_names_that_are_imported_when_they_are_used() -> None:
    """Tab completion reads it."""
    import spikeprop as sp

    assert set(sp.__all__) | {"__version__"} <= set(dir(sp))
    assert [name for name in sp.__all__ if isinstance(getattr(sp, name), ModuleType)] == ["plot"]
    assert not hasattr(sp, "_no_such_name")
