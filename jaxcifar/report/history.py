"""Read a run's tables as arrays: what `run.history` gives."""

from pathlib import Path

import numpy as np

from jaxcifar.machine.errors import UserError
from jaxcifar.report.run_files import read_csv, reads, rows_of, to_float

ABOUT = ('epoch', 'step', 'member', 'split', 'checkpoint')  # columns that say what a row is about
History = dict[str, dict[str, np.ndarray]]


def read_history(workdir: Path) -> tuple[list[str], History]:
    """Return (names, {split: {column: array}}) of a run that has begun.

    The K names are the members and, for a fused run, 'fused'. Each split has `epoch` and `step` [E], and its
    other columns as float64 [K,E], NaN where there is no number. `timing` has columns [E]. Rows of the chosen
    weights are left out. Raises `UserError` where metrics.csv is missing or damaged.
    """
    if not (workdir / 'metrics.csv').is_file():
        raise UserError(f'{workdir} is not a run folder: it has no metrics.csv')
    with reads(workdir):
        rows = [row for row in read_csv(workdir / 'metrics.csv') if row['checkpoint'] != 'best']
        names = list(dict.fromkeys(row['member'] for row in rows))
        splits = list(dict.fromkeys(row['split'] for row in rows))
        history = {split: _columns(rows_of(rows, split), names) for split in splits}
        # A killed run has taken some epochs twice: the last row counts, as it does for metrics.
        timing = [*{row['epoch']: row for row in read_csv(workdir / 'timing.csv')}.values()]
        numbers = [name for name in (timing[0] if timing else {}) if name != 'timestamp']
        history['timing'] = {name: np.array([to_float(row[name]) for row in timing]) for name in numbers}
    return names, history


def _columns(of: dict[tuple[str, float], dict[str, str]], names: list[str]) -> dict[str, np.ndarray]:
    """Return the columns of one split's `rows_of`; those in which nobody has a number are left out."""
    steps = {epoch: to_float(row['step']) for (_, epoch), row in of.items()}
    epochs = sorted(steps)
    columns = {'epoch': np.array(epochs), 'step': np.array([steps[epoch] for epoch in epochs])}
    for column in (name for name in next(iter(of.values())) if name not in ABOUT):
        cells = [[to_float(of.get((name, epoch), {}).get(column, '')) for epoch in epochs] for name in names]
        if not np.isnan(cells).all():
            columns[column] = np.array(cells)
    return columns
