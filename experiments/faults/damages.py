"""What can happen to a file: other bytes, other values in its JSON, or something else in its place."""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from experiments.faults.images import damaged

BYTES: dict[str, Callable[[bytes], bytes]] = {
    'cut': lambda data: data[: len(data) // 2],
    'empty': lambda data: b'',
    'no text': lambda data: b'\xff' + data,
    'a list': lambda data: b'[]',
    'a number': lambda data: b'3',
    'null': lambda data: b'null',
    'an object': lambda data: b'{}',
    'deep': lambda data: b'[' * 100_000,
    'NUL': lambda data: bytes(len(data)),
    'twice': lambda data: data + data,
    'ends of Windows': lambda data: data.replace(b'\n', b'\r\n'),
    'a mark before it': lambda data: b'\xef\xbb\xbf' + data,
    'sixteen bits': lambda data: data.decode(errors='replace').encode('utf-16'),
    'quotes': lambda data: data.replace(b'"', b"'").replace(b',', b';'),
}
OTHERS: tuple[Any, ...] = (None, [], {}, 'text', -1, 10**30, float('nan'), [[]], True, [None], '', 0.5)
INSTEAD: dict[str, Callable[[Path], Any]] = {
    'a folder': Path.mkdir,
    'a dead link': lambda path: path.symlink_to('nowhere'),
    'a link to itself': lambda path: path.symlink_to(path),
}


def with_other_values(content: dict, share: float = 1) -> Iterator[tuple[str, bytes]]:
    """Yield (description, JSON) of an object with one value at a time replaced by one of another kind."""
    draw = random.Random(0)
    for path in places(content):
        if path:
            for other in draw.sample(OTHERS, max(1, round(share * 3))):
                yield (
                    f'{".".join(map(str, path))} = {other!r}',
                    json.dumps(replaced(content, path, other)).encode(),
                )


def places(tree, path=()) -> Iterator[tuple]:
    """Yield the paths of all parts of a tree, its own first."""
    yield path
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def replaced(tree, path: tuple, part):
    """Return the tree with another part at that path."""
    if not path:
        return part
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], part)
    return copy


def damages(file: Path, share: float = 1) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yield (name, function that does it to a path) for each kind of damage to a file."""
    data, draw = file.read_bytes(), random.Random(0)
    contents = [(name, damage(data)) for name, damage in BYTES.items()]
    contents += [(f'bytes {i}', copy) for i, copy in enumerate(damaged(data, draw, round(8 * share)))]
    if data[:1] == b'{' and file.suffix != '.packed':
        text = data.decode()
        contents += [('a key twice', text.replace('{', '{"name": 1, "name": 2, ', 1).encode())]
        others = [*with_other_values(json.loads(text), share)]
        contents += draw.sample(others, min(len(others), round(40 * share)))
    for name, content in contents:
        yield name, partial(Path.write_bytes, data=content)
    yield 'gone', Path.unlink
    for name, make in INSTEAD.items():
        yield name, partial(_replace, make)


def _replace(make: Callable[[Path], Any], path: Path):
    path.unlink()
    make(path)
