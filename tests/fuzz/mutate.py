"""Corrupts files: bits and bytes anywhere, and the parts of each format.

A checkpoint with a changed description gets a correct checksum, a NIR file stays valid HDF5, a recipe stays YAML: so the damage
reaches the code behind the first check. ``source`` is a Random, or Hypothesis's replacement for one.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

from spikeprop.runtime.files import write_tensors
from tests.fuzz.seeds import Seed, seeds

Mutation = Callable[[Seed, random.Random, Path], bytes]
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**6, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e-300, 1e308, float("nan"), float("inf"),
    "", " ", "IF", "CNN", "MLP", "SGD", "Digits", "Poisson", "use", "\u2603", "\0", "../../x", "/", "a.b.c", "spikeprop.cli.main",
    "spikeprop.plugins.RIFLE", "torch.nn.Linear", "9" * 50, [], {}, [[]], [None], {"use": "IF"}, {"use": None}, {"": {}},
    [1, 2, 3], [-1], [0], ["A"], [10**9, 10**9], {"use": "CNN", "plan": [1]}, {"use": "os.system"},
)  # fmt: skip


def mutated(kind: str, source: random.Random, folder: Path) -> bytes:
    """A corrupted file.

    Args:
        kind: of file.
        source: of all choices.
        folder: for temporary files.
    """
    seed = source.choice(seeds(kind))
    own = _OWN.get(kind)
    if own is not None and source.random() < 0.6:
        content = own(seed, source, folder)
        return corrupted(content, source) if source.random() < 0.05 else content
    return corrupted(seed.content, source, kind)


def corrupted(content: bytes, source: random.Random, kind: str | None = None) -> bytes:
    """The content with a few bytes changed."""
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        content = source.choice(_BYTES)(content, source, kind)
    return content[: 2**20]


# bytes ------------------------------------------------------------------------------------------------------------------------


def _place(content: bytes, source: random.Random) -> int:
    """A random position, in half of the cases near the start, where formats have their headers."""
    return source.randrange(max(1, len(content) if source.random() < 0.5 else min(len(content), 200)))


def _flip(content: bytes, source: random.Random, _: str | None) -> bytes:
    at = _place(content, source)
    return content[:at] + bytes(b ^ (1 << source.randrange(8)) for b in content[at : at + 1]) + content[at + 1 :]


def _truncate(content: bytes, source: random.Random, _: str | None) -> bytes:
    return content[: _place(content, source)]


def _number(content: bytes, source: random.Random, _: str | None) -> bytes:
    at, size = _place(content, source), source.choice((1, 2, 4, 8))
    value = source.choice(NUMBERS) % 256**size
    return content[:at] + value.to_bytes(size, source.choice(("little", "big"))) + content[at + size :]


def _repeat(content: bytes, source: random.Random, _: str | None) -> bytes:
    at, length = _place(content, source), source.choice((1, 4, 16, 64, 1024))
    return content[:at] + content[at : at + length] * source.choice((0, 2, 3, 50)) + content[at + length :]


def _noise(content: bytes, source: random.Random, _: str | None) -> bytes:
    at = _place(content, source)
    return content[:at] + bytes(source.randrange(256) for _ in range(source.choice((1, 2, 8, 30)))) + content[at:]


def _splice(content: bytes, source: random.Random, kind: str | None) -> bytes:
    other = source.choice(seeds(kind)).content if kind else content
    return content[: _place(content, source)] + other[_place(other, source) :]


_BYTES = (_flip, _flip, _flip, _truncate, _number, _number, _repeat, _noise, _splice)


# trees ------------------------------------------------------------------------------------------------------------------------


def odd_tree(tree: Any, source: random.Random) -> Any:
    """A tree of dictionaries and lists with a few values, keys or branches changed."""
    tree = copy.deepcopy(tree)
    for _ in range(source.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return source.choice(ODD)
        node, key = source.choice(places)
        other, at = source.choice(places)
        action = source.randrange(6)
        if action <= 1:
            node[key] = copy.deepcopy(source.choice(ODD))
        elif action == 2:
            node.pop(key)
        elif action == 3:
            node[key] = copy.deepcopy(other[at]) if at in (other if isinstance(other, dict) else range(len(other))) else None
        elif action == 4:
            node[key] = [node[key]] * source.choice((1, 2, 40))
        elif isinstance(node, dict):
            node[source.choice(("use", "seed", "weights", "root", str(key)[:-1], str(key) + "s", "lr"))] = node.pop(key)
    return tree


def _places(tree: Any) -> Any:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _recipe(seed: Seed, source: random.Random, folder: Path) -> bytes:
    return yaml.safe_dump(odd_tree(yaml.safe_load(seed.content), source), sort_keys=False, allow_unicode=True).encode()


def _json(seed: Seed, source: random.Random, folder: Path) -> bytes:
    return json.dumps(odd_tree(json.loads(seed.content), source)).encode()


def _checkpoint(seed: Seed, source: random.Random, folder: Path) -> bytes:
    """Another description, or other tensors, with their correct checksum."""
    described, tensors = seed.description, dict(seed.tensors)
    if source.random() < 0.7:
        described = odd_tree(described, source)
    else:
        name = source.choice(sorted(tensors))
        tensor = tensors.pop(name)
        changes = (
            lambda: {name + "x": tensor},
            lambda: {name: tensor.flatten()[:1].clone()},
            lambda: {name: torch.zeros(source.choice(((), (0,), (0, 2**40), (1, 1, 1, 1, 1), (3,))))},
            lambda: {name: tensor.to(source.choice((torch.float64, torch.int8, torch.bool, torch.bfloat16, torch.complex64)))},
            lambda: {name: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor},
            dict,
        )
        tensors |= source.choice(changes)()
    file = folder / "made.safetensors"
    write_tensors(file, tensors, {"spikeprop": json.dumps(described)})
    return file.read_bytes()


def _nir(seed: Seed, source: random.Random, folder: Path) -> bytes:
    """Another array, type, name or edge, in a valid HDF5 file."""
    memory = io.BytesIO(seed.content)
    with h5py.File(memory, "r+") as file:
        for _ in range(source.choice((1, 1, 2, 4))):
            found: list[str] = []
            file.visit(found.append)
            if not found:  # everything is deleted
                break
            name = source.choice(sorted(found))
            item = file[name]
            with suppress(ValueError, KeyError, RuntimeError, OSError, TypeError):  # changes that HDF5 refuses
                _odd_object(file, name, item, source)
    return memory.getvalue()


def _odd_object(file: Any, name: str, item: Any, source: random.Random) -> None:
    action = source.randrange(5)
    if action == 0:
        del file[name]
    elif action == 1:
        file.move(name, f"{name}{source.choice(('x', '_', '.', '0', '/deep'))}")
    elif isinstance(item, h5py.Dataset):
        value = _odd_array(item[()], source)
        del file[name]
        file[name] = value
    else:
        file.copy(item, f"{name}{source.choice(('copy', '2'))}")


def _odd_array(value: Any, source: random.Random) -> Any:
    if isinstance(value, bytes):
        return source.choice(
            (b"IF", b"LIF", b"Conv2d", b"Linear", b"Flatten", b"Output", b"Input", b"NIRGraph", b"", b"zero", b"\xff")
        )
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        return source.choice((array[:1], array[::-1], array[:0], np.array(["input", "output"], dtype="S9"))) if array.ndim else 1
    changes = (
        lambda: np.full_like(array, source.choice((0, 1, -1, 100))),
        lambda: np.full(array.shape, source.choice((np.nan, np.inf, 1e308, -1e308, 1e-308))),
        lambda: array.reshape(-1),
        lambda: array[..., None],
        lambda: array.astype(source.choice((np.float64, np.int8, np.int64, np.float16))),
        lambda: np.array(source.choice(NUMBERS[:-2])),
        lambda: np.array([source.choice(NUMBERS[:-2]) for _ in range(source.choice((0, 1, 2, 3, 4)))], dtype=np.int64),
        lambda: source.choice(("zero", "subtract", "same", "Poisson", "text")),
    )
    with np.errstate(all="ignore"):
        return source.choice(changes)()


def _cifar(seed: Seed, source: random.Random, folder: Path) -> bytes:
    """Opcodes removed, repeated, exchanged or inserted."""
    content = seed.content
    ends = [place for _, _, place in pickletools.genops(content)] + [len(content)]
    parts = [content[a:b] for a, b in pairwise(ends)]
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.randrange(len(parts))
        action = source.randrange(4)
        if action == 0:
            parts[at] = b""
        elif action == 1:
            parts[at] *= 2
        elif action == 2:
            parts[at] = source.choice(parts)
        else:
            parts.insert(at, source.choice(_OPCODES))
    return b"".join(parts)


_OPCODES = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\nobject\n", b"cnumpy\nload\n", b"cnumpy\ndtype\n",
    b"U\x04echo\x85R", b"(", b"0", b"1", b"2", b"R", b"b", b"\x81", b"}", b"]", b"N", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\x00",
    b"T\xff\xff\xff\x7f", b"\x8a\xff", b"I9\n", b"\x82\x01", b"P1\n", b"i", b"o", b"\x93", b"\x8c\x02os", b"K\x05", b"u", b"s",
    b"a", b"e", b"cnumpy\nndarray\n",
)  # fmt: skip

_OWN: dict[str, Mutation] = {"recipe": _recipe, "checkpoint": _checkpoint, "nir": _nir, "cifar": _cifar, "json": _json}
