"""Who may import whom: the rooms of the package, as docs/code.md draws them."""

import ast
from pathlib import Path

import jaxcifar

PACKAGE = Path(jaxcifar.__file__).parent
# A room, and the rooms whose modules it may import. Commands are the files at the top.
ROOMS = {
    'machine': '',
    'config': 'machine',
    'models': 'machine',
    'augment': 'machine',
    'data': 'config machine',
    'engine': 'augment models config machine',
    'formats': 'engine models augment config machine',
    'runs': 'formats engine data augment models config machine',
    'report': 'runs.metrics config machine',
    'export': 'runs formats engine data augment models config machine',
    'commands': 'export report runs formats engine data augment models config machine',
}
# What commands import of one another.
DOORS = {('', 'loop'), ('', 'run'), ('main', 'loop'), ('loop', 'calibrate'), ('loop', 'pictures')}
WITHOUT_JAX = {'machine.errors', 'machine.command', 'machine.memory', 'machine.files', 'machine.status'}
# Worker processes import those of data.
WITHOUT_JAX |= {'config', 'report', 'data.gather', 'data.stream', 'data.files', 'data.vision'}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path} imports by a relative name, which hides the room'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def within(name: str, places) -> bool:
    """Return whether a dotted name is one of the places or lies in one."""
    return any(f'{name}.'.startswith(f'{place}.') for place in places)


def modules() -> dict[str, set[str]]:
    """Return {module: what it imports} of the whole package, jaxcifar.main by 'main'."""
    paths = {p.relative_to(PACKAGE).with_suffix('').parts: p for p in sorted(PACKAGE.rglob('*.py'))}
    named = {'.'.join(parts).removesuffix('__init__').removesuffix('.'): p for parts, p in paths.items()}
    return {name: imports(path) for name, path in named.items()}


def ours(names: set[str]) -> set[str]:
    """Return those of the package's own modules, without 'jaxcifar.'."""
    return {name.removeprefix('jaxcifar.') for name in names if name.startswith('jaxcifar.')}


def test_no_room_imports_what_it_may_not():
    for here, names in modules().items():
        room, dot, _ = here.partition('.')
        allowed = [*ROOMS.get(room, ROOMS['commands']).split(), *({room} & ROOMS.keys())]
        for name in sorted(ours(names)):
            door = room not in ROOMS and (here, name.partition('.')[0]) in DOORS
            assert within(name, allowed) or door or name == '__version__', f'{here} imports {name}'
        assert not {n.partition('.')[0] for n in names} & {'configs', 'experiments', 'tests'}, here
        if room in ROOMS and not dot and room != 'models':
            assert not (PACKAGE / room / '__init__.py').read_text(), f'importing {room} must cost nothing'


def test_what_workers_and_fast_commands_import_has_no_jax():
    table = modules()

    def reached(name: str, seen: set[str]) -> set[str]:
        """Return the packages that importing one of our modules brings."""
        own = max((m for m in table if m and within(name, [m])), key=len)
        if own in seen:
            return set()
        seen.add(own)
        others = {n.partition('.')[0] for n in table[own]}
        return others.union(*(reached(n, seen) for n in ours(table[own]) - {'__version__'}))

    for here in (m for m in table if within(m, WITHOUT_JAX)):
        assert not reached(here, set()) & {'jax', 'flax', 'optax', 'orbax'}, f'{here} brings JAX'
