"""Sum up runs in tables and notes, and write the files of a report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcifar.machine import text
from jaxcifar.report import long_tail as report_long_tail
from jaxcifar.report import page as report_page
from jaxcifar.report.figures import Picture
from jaxcifar.report.page import ON_TEST, UNFINISHED, Table
from jaxcifar.report.runs import FUSED, NONE, Run, load, reads, show, to_float

SELECTION = {
    'holdout': 'best on hold-out',
    'val_lt': 'best on val_lt',
    'fusion_holdout': 'best on the fusion holdout',
    'fusion_validation': 'best on the fusion validation images',
    'file': 'best on images of a file',
    'none': 'none (last epoch)',
    'test': ON_TEST,
}
SUMMARY = (
    'run, state, network, dataset, K, epochs, test % last, test % selected, ensemble %, NLL, '
    'ECE %, selection, images/s, h:mm:ss'
)
UNITS = {  # how a field is printed: unit, factor, digits
    'accuracy': ('%', 100, 2),
    'top5': ('top5 %', 100, 2),
    'nll': ('NLL', 1, 4),
    'loss': ('NLL', 1, 4),
    'ece': ('ECE %', 100, 2),
}


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


def summary(runs: list[Run]) -> Table:
    """Return the main table: a row per run."""
    table = [SUMMARY.split(', ')]
    for run in runs:
        members = len(run.members)
        last = spread(run.headline('last', 'accuracy'))
        # A run without results shows its newest accuracy, with the name of the split before it.
        if not run.results and (so_far := spread(run.latest(run.watched, 'accuracy', run.fused))) != NONE:
            last = f'{run.watched} {so_far}'
        # The median ignores a few epochs in which the machine was busy with something else.
        speed = [to_float(r['images_per_second']) for r in run.timing]
        table.append(
            [
                f'{run.number}. {show(run.name)}',
                'finished' if run.results else UNFINISHED,
                show(run.config.get('network')),
                show(run.config.get('dataset')),
                str(members) if members else show(run.config.get('members')),
                f'{int(run.epoch)}/{show(run.config.get("epochs"))}',
                last,
                spread(run.headline('best', 'accuracy')),
                spread(run.ensemble('last', 'accuracy')),
                spread(run.headline('last', 'nll'), 'nll'),
                spread(run.headline('last', 'ece'), 'ece'),
                SELECTION.get(str(run.selection), show(run.selection)),
                f'{np.nanmedian(speed):,.0f}' if speed else NONE,
                text.duration(sum(to_float(r['seconds']) for r in run.timing)) if run.timing else NONE,
            ]
        )
    return table


def notes(runs: list[Run]) -> list[str]:
    """Return what a reader must know to read the summary right."""
    found = [
        'last: test accuracy of the weights after the last epoch. selected: of the weights of the '
        'best epoch. Ensemble, NLL (in nats) and ECE are test figures of the last weights.'
    ]
    # What makes the numbers of a run better than they are comes first.
    if any(run.selection == 'test' for run in runs):
        found.append(
            f'{ON_TEST}: the best epoch was chosen on the test set itself, so "selected" is '
            'optimistically biased and no estimate of the accuracy on new images.'
        )
    if any(run.config.get('split') == 'long_tail' for run in runs):
        found.append(
            'split=long_tail: val_lt came out of the test images, so that the rest is not quite balanced; '
            "mean recall, in the run's own section, weighs all classes alike."
        )
    joined = any('+' in str(run.config.get(field)) for run in runs for field in ('loss', 'network'))
    if joined or any(run.results.get('own_images') for run in runs):
        found.append(
            'Members of one run with different losses, networks or images: their ± is a spread over these, '
            'and no error bar.'
        )
    found += [
        f'{show(run.name)}: the learned rule {run.against_mean()}; its numbers are '
        'those of the fused prediction, but for "ensemble", the mean of the experts\' probabilities.'
        for run in runs
        if 'fusion' in run.results
    ]
    # What the table cannot say yet, and what its ± means.
    if not all(run.results for run in runs):
        found.append(
            f'{UNFINISHED}: no final test figures yet. The latest accuracy on the split that is '
            'named stands in their place; it does not compare with them.'
        )
    if any(len(run.members) > 1 for run in runs):
        found.append(
            '± is the sample standard deviation (ddof = 1) over the K members of one run. Members '
            'that are coupled are not independent repetitions.'
        )
    if any(len(run.members) == 1 for run in runs):
        found.append('K = 1 is one seed: it has no ±, its spread is unknown.')
    return found


def differences(runs: list[Run]) -> Table:
    """Return the settings that are not the same in all runs; empty when there are none."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    values = {key: [show(run.config.get(key)) for run in runs] for key in keys}
    values = {key: row for key, row in values.items() if len(set(row)) > 1}
    if not values:
        return []
    table = [['run', *(f'{run.number}. {show(run.name)}' for run in runs)]]
    table += [[key, *row] for key, row in values.items()]
    # The longer side goes down the page, where there is more room.
    return [list(row) for row in zip(*table)] if len(runs) >= len(values) else table


Columns = dict[tuple[str, str], np.ndarray]  # (weights or split, field) -> the members' values [K]


def member_table(run: Run) -> Table:
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
    return [['member', *head], *rows] if head else []


def _member_columns(run: Run) -> Columns:
    """Return the test scores of a finished run, or else the newest of training; without empty columns."""
    columns: Columns
    if run.results:
        fields = [(w, f) for w in ('last', 'best') for f in ('accuracy', 'top5', 'nll', 'ece')]
        columns = {(w, f): run.scores(w, f) for w, f in fields}
    else:
        fields = [(s, f) for s in ('train', run.watched) for f in ('accuracy', 'loss')]
        columns = {(s, f): run.latest(s, f) for s, f in fields}
    # Where nothing was chosen, or no epoch is over yet, a column has no numbers.
    return {key: v for key, v in columns.items() if len(v) and not np.isnan(v).all()}


def _member_rows(run: Run, columns: Columns) -> Table:
    """Return a row for each member and, of several, their mean."""
    # A run that goes on has its members' names in metrics.csv alone.
    names = [m['name'] for m in run.results.get('members', [])] or run.members
    rows = [
        # A slice, because `spread` takes arrays; it prints no ± for one value.
        [show(name), *(spread(v[i : i + 1], f) for (_, f), v in columns.items())]
        for i, name in enumerate(names)
    ]
    if len(rows) > 1:
        rows.append(['mean ± std', *(spread(v, f) for (_, f), v in columns.items())])
    return rows


def _joint_rows(run: Run, columns: Columns) -> Table:
    """Return rows of what the members predict together: their ensemble, and a fused prediction."""
    rows = []
    # While a run goes on nobody has averaged its members.
    if any(run.ensemble(*key) for key in columns):
        rows.append(['ensemble', *(spread(run.ensemble(*key), key[1]) for key in columns)])
    for name in run.fusion('last'):
        scores = [run.fusion(w).get(name, {}).get(f) for w, f in columns]
        cells = (spread([] if s is None else [s], f) for s, (_, f) in zip(scores, columns))
        rows.append([name.replace('_', ' '), *cells])
    return rows


def session_table(run: Run) -> Table:
    """Return where the numbers come from: a row per session."""
    keys = ['started', 'commit', 'devices', 'command', 'packages']
    rows = []
    for session in run.sessions:
        packages = [f'{name} {version}' for name, version in session.get('packages', {}).items()]
        rows.append([show(v) for v in (*(session.get(k) for k in keys[:-1]), packages)])
    return [keys, *rows] if rows else []


def write(dirs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Write the page, the Markdown table and the curves into `out`; return their paths, in this order."""
    runs, out = load(dirs), Path(out)
    # Every picture is drawn before a file is written: a damaged run leaves an old report whole.
    sections, pictures = [], dict[str, Picture]()
    for run in runs:
        with reads(run.folder):
            summary([run]), notes([run])  # what they cannot read is of this run
            pictures |= report_page.curves(run)
            sections.append((run, member_table(run), report_long_tail.sections(run), session_table(run)))
    pictures |= report_page.comparison(runs)
    tables = [summary(runs), differences(runs)]
    files = {
        'report.html': report_page.page(tables, notes(runs), sections, pictures).encode(),
        'report.md': report_page.markdown(tables, notes(runs)).encode(),
        # The files stand on white pages; only the report itself follows the reader's theme.
        **{f'{name}.png': picture['light'] for name, picture in pictures.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return [out / name for name in files]


def report(dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the report on the run folders `dirs` into the folder `out`.

    Returns the path of the page. Raises `UserError` for a folder without metrics.csv and for files
    that cannot be read as what they should be.
    """
    return write(dirs, out)[0]
