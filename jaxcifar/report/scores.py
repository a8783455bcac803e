"""Lay evaluations out in one table, a row for each member of each run: on the terminal, or as a CSV file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcifar.machine.files import csv_bytes, write_where_asked
from jaxcifar.machine.text import print_table
from jaxcifar.report.history import read_history
from jaxcifar.report.run_files import GROUPS, UNITS

# A column, its heading, and the field whose unit it has. Accuracies are in percent on the terminal alone.
SHOWN = {
    'train_accuracy': ('train {unit}', 'accuracy'),
    'train_loss': ('train {unit}', 'loss'),
    'accuracy': ('{split} {unit}', 'accuracy'),
    'loss': ('{split} {unit}', 'loss'),
    'top5': ('{unit}', 'top5'),
    'ece': ('{unit}', 'ece'),
    **{group: (f'{group.replace("_", " ")} {{unit}}', 'accuracy') for group in GROUPS},
    'improvement': ('better by', 'accuracy'),
}


def score_rows(found: dict) -> list[dict]:
    """Return the rows of one evaluation: its members, their mean and std, and what they predict together.

    found: what `jaxcifar.evaluate.evaluate` returns. train_accuracy and train_loss are from metrics.csv, for
    the epoch of the weights; exports and weights of other programs have none.
    """
    members = [dict(member) for member in found['members']]
    names = [member.pop('name') for member in members]
    together = {'ensemble': found['ensemble']} if len(members) > 1 else {}
    if 'fusion' in found:
        together |= {name: found['fusion'][name] for name in ('mean_of_logits', 'fused')}
    training = _training(found, [*names, *together])
    rows = [_row(found, name, {**training.get(name, {}), **m}) for name, m in zip(names, members)]
    if len(members) > 1:
        # metrics.csv may lack a member's training scores; then there is no mean over the others.
        shared = [key for key in rows[0] if key in SHOWN and all(key in row for row in rows)]
        values = {key: [row[key] for row in rows] for key in shared}
        for name, of in (('mean', np.mean), ('std', lambda values: np.std(values, ddof=1))):
            rows.append(_row(found, name, {key: float(of(values[key])) for key in values}))
    return rows + [_row(found, name, {**training.get(name, {}), **s}) for name, s in together.items()]


def _row(found: dict, member: str, scores: dict) -> dict:
    """Return a row of scores, in which the loss is called so and not `nll`."""
    named = {'loss' if key == 'nll' else key: value for key, value in scores.items()}
    where = {'run': found['workdir'], 'member': member, 'split': found['split']}
    own = {'test_images': found['test_images']} if found.get('test_images') else {}
    return where | own | named


def _training(found: dict, names: list[str]) -> dict[str, dict[str, float]]:
    """Return {name: its training accuracy and loss} in the epoch of its weights, where the run wrote them."""
    workdir, steps = Path(found['workdir']), found['step']
    if steps is None or found['split'] == 'train' or not (workdir / 'metrics.csv').is_file():
        return {}
    outputs, history = read_history(workdir)
    train = history.get('train', {'step': np.array([])})
    # The weights of a joint prediction were chosen at one step.
    steps = steps if isinstance(steps, list) else [steps] * len(names)
    steps = [*steps, *steps[:1] * len(names)]
    training = {}
    for name, step in zip(names, steps):
        epochs = np.flatnonzero(train['step'] == step)
        if name in outputs and len(epochs):
            cell = outputs.index(name), epochs[-1]
            training[name] = {f'train_{key}': float(train[key][cell]) for key in ('accuracy', 'loss')}
    return training


def print_scores(rows: Sequence[dict]):
    """Print rows as a table, with the runs' names where there are several."""
    several = len({row['run'] for row in rows}) > 1
    columns = [column for column in SHOWN if any(column in row for row in rows)]
    split = rows[0]['split']
    headings = [text.format(split=split, unit=UNITS[of][0]) for text, of in (SHOWN[c] for c in columns)]
    before, lines = None, []
    for row in rows:
        # A run is named once: its rows belong together.
        named = [row['run'] if row['run'] != before else ''] if several else []
        before = row['run']
        lines.append([*named, row['member'], *(_cell(row, column) for column in columns)])
    left = ['run', ''] if several else ['']
    print_table([*left, *headings], lines, len(left))


def _cell(row: dict, column: str) -> str:
    _, factor, digits = UNITS[SHOWN[column][1]]
    sign = '+' if column == 'improvement' else ''
    value = row.get(column, np.nan)
    return '' if np.isnan(value) else f'{factor * value:{sign}.{digits}f}'


def write_scores(path: Path, rows: Sequence[dict]):
    """Write rows as a CSV file; accuracies are shares, and the split is part of the columns' names."""
    words = ['run', 'member', *(['test_images'] if 'test_images' in rows[0] else [])]
    columns = [*words, *(column for column in SHOWN if any(column in row for row in rows))]
    split = rows[0]['split']
    names = [f'{split}_{name}' if name in ('accuracy', 'loss') else name for name in columns]
    table = [[row.get(name, '') for name in columns] for row in rows]
    rounded = [[f'{x:.6g}' if isinstance(x, float) else x for x in cells] for cells in table]
    write_where_asked(path, csv_bytes(names, rounded))
