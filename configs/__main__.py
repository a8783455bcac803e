"""Print the shipped configs and every field in Markdown: python -m configs > configs/README.md"""

import ast
import re
from pathlib import Path

from jaxcifar.config.command_line import documented_fields
from jaxcifar.config.fields import FIELDS

MARKS = re.compile(r' *\[(K|resumable|auto[^]]*)\]')
RUN = 'The run'
LEGEND = '[K]: one number, or one per member (`.1,.2`). resumable: may change when a run is continued.'


def examples() -> list[str]:
    """Return what each shipped config is, and its commands, from its docstring."""
    lines = []
    for path in sorted(Path(__file__).parent.glob('[a-z]*.py')):
        text = ast.get_docstring(ast.parse(path.read_text())) or ''
        commands = [re.sub(' +', ' ', c) for c in re.findall('^    (python -m .+)$', text, re.M)]
        if commands:
            lines += ['', f'### {path.name}', '', text.partition('\n')[0], '', '```bash', *commands, '```']
    return lines


def tables() -> dict[str, list[str]]:
    """Return {group: the rows of its table} of jaxcifar.config.fields, the run's own fields first."""
    groups: dict[str, list[str]] = {}
    for field, default, comment in documented_fields():
        if choices := ' | '.join(FIELDS[field].choices):
            comment = f'{choices}: {comment}'
        marks = ', '.join(f'[{mark}]' if mark == 'K' else mark for mark in MARKS.findall(comment))
        cells = f'`{field}`', f'`{default}`' if default else '', MARKS.sub('', comment), marks
        row = '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
        groups.setdefault(field.rpartition('.')[0] or RUN, []).append(row)
    return groups


def page() -> str:
    """Return the page: contents, configs, and a table for each group of fields."""
    groups = tables()
    links = [f'[{name}](#{name.lower().replace(" ", "-")})' for name in ('The configs', *groups)]
    lines = ['# Configs, and every field of a run', '', '```bash']
    lines += [
        'python -m jaxcifar.main --config configs/quickstart.py --workdir runs/x --config.epochs=3',
        '```',
    ]
    lines += [
        '',
        'A config is a file that sets fields. `--config.FIELD=VALUE` changes one on the command line.',
    ]
    lines += ['This page is made by `python -m configs > configs/README.md`.', '', ' · '.join(links)]
    lines += ['', '## The configs', *examples(), '', '## How to read the tables', '', LEGEND]
    lines += ['auto: filled in after the command line is read, with the value named after the colon.']
    for name, rows in groups.items():
        lines += ['', f'## {name}', '', '| field | default | what it is | |', '|---|---|---|---|', *rows]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(page(), end='')
