"""Lay out the details behind a row of the summary: members, their joint predictions, and sessions."""

from collections.abc import Sequence

import numpy as np

from jaxcifar.machine import text
from jaxcifar.report.page import Table
from jaxcifar.report.run_files import FUSED, NONE, UNITS, RunFiles, show


def spread(values: Sequence | np.ndarray, field: str = 'accuracy') -> str:
    """Return the mean of a field over the members ± their sample standard deviation, in the field's unit."""
    _, scale, digits = UNITS[field]
    if not len(values):
        return NONE
    numbers = np.asarray(values, float)
    if numbers.ndim != 1:
        raise ValueError(f'{field} must be a number, got {values}')
    with np.errstate(invalid='ignore'):  # a member that diverged has an infinite loss
        return text.spread(scale * numbers, f'.{digits}f')


Columns = dict[tuple[str, str], np.ndarray]  # (weights or split, field) -> the members' values [K]


def member_table(run: RunFiles) -> Table:
    """Return the numbers behind a row of the summary: a row per member, their mean and the ensemble."""
    # The scores: columns of numbers, and rows of members and of what they predict together.
    columns = _member_columns(run)
    head = [f'{"selected" if of == "best" else of} {UNITS[field][0]}' for of, field in columns]
    rows = [*_member_rows(run, columns), *_joint_rows(run, columns)]
    # Which epoch's weights were chosen, and by which accuracy.
    chosen = {show(m['name']): m.get('best') or {} for m in run.results.get('members', [])}
    # A fused prediction chose for all members, and its row has the accuracy.
    chosen[FUSED] = run.results.get('fusion', {}).get('best', {})
    if any(chosen.values()):
        head += ['best epoch', f'{run.watched} % then']
        for row in rows:
            best = chosen.get(row[0], {})
            then = best.get('validation_accuracy')
            row += [show(best.get('epoch')), spread([then] if then is not None else [])]
    # Titles replace the names only now, because rows were looked up by name until here.
    titles = dict(zip(map(show, run.members), map(show, run.titles())))
    rows = [[titles.get(row[0], row[0]), *row[1:]] for row in rows]
    return [['member', *head], *rows] if head else []


def _member_columns(run: RunFiles) -> Columns:
    """Return the test scores of a finished run, otherwise the latest training scores; no empty columns."""
    columns: Columns
    if run.results:
        fields = [(w, f) for w in ('last', 'best') for f in ('accuracy', 'top5', 'nll', 'ece')]
        columns = {(w, f): run.scores(w, f) for w, f in fields}
    else:
        fields = [(s, f) for s in ('train', run.watched) for f in ('accuracy', 'loss')]
        columns = {(s, f): run.latest(s, f) for s, f in fields}
    # Where nothing was chosen, or no epoch is over yet, a column has no numbers.
    return {key: v for key, v in columns.items() if len(v) and not np.isnan(v).all()}


def _member_rows(run: RunFiles, columns: Columns) -> Table:
    """Return a row for each member and, of several, their mean."""
    # An unfinished run has its members' names in metrics.csv only.
    names = [m['name'] for m in run.results.get('members', [])] or run.members
    rows = [
        # A slice, because `spread` takes arrays; it prints no ± for one value.
        [show(name), *(spread(v[i : i + 1], f) for (_, f), v in columns.items())]
        for i, name in enumerate(names)
    ]
    if len(rows) > 1:
        rows.append(['mean ± std', *(spread(v, f) for (_, f), v in columns.items())])
    return rows


def _joint_rows(run: RunFiles, columns: Columns) -> Table:
    """Return rows of what the members predict together: their ensemble, and a fused prediction."""
    rows = []
    # The members of an unfinished run have not been averaged.
    if any(run.ensemble(*key) for key in columns):
        rows.append(['ensemble', *(spread(run.ensemble(*key), key[1]) for key in columns)])
    for name in run.fusion('last'):
        scores = [run.fusion(w).get(name, {}).get(f) for w, f in columns]
        cells = (spread([] if s is None else [s], f) for s, (_, f) in zip(scores, columns))
        rows.append([name.replace('_', ' '), *cells])
    return rows


def session_table(run: RunFiles) -> Table:
    """Return where the numbers come from: a row per session."""
    keys = ['started', 'commit', 'devices', 'command', 'packages']
    rows = []
    for session in run.sessions:
        packages = [f'{name} {version}' for name, version in session.get('packages', {}).items()]
        rows.append([show(v) for v in (*(session.get(k) for k in keys[:-1]), packages)])
    return [keys, *rows] if rows else []
