"""Print every field in Markdown: python -m configs > configs/README.md"""

import re

from jaxcifar.config.command_line import documented_fields

MARKS = re.compile(r' *\[(K|resumable|auto[^]]*)\]')


def page() -> str:
    """A table for each group of fields of jaxcifar.config.fields."""
    lines = [
        '# Every field of a run',
        '',
        'Made from `jaxcifar/config/fields.py` by `python -m configs`. On the command line,',
        '`--config.FIELD=VALUE` changes a field. [K]: one number, or one a member (`.1,.2`). resumable: may',
        'change between a run and its continuation. auto: filled in after the command line, from what stands',
        'behind it.',
    ]
    group = None
    for field, default, comment in documented_fields():
        before, dot, _ = field.rpartition('.')
        if before != group:
            group = before
            lines += ['', f'## {before}' if dot else '## The run', '', '| field | default | what it is | |',
                      '|---|---|---|---|']  # fmt: skip
        marks = ', '.join(f'[{mark}]' if mark == 'K' else mark for mark in MARKS.findall(comment))
        cells = f'`{field}`', f'`{default}`' if default else '', MARKS.sub('', comment), marks
        lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(page(), end='')
