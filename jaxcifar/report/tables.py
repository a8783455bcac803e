"""Sum up runs in tables and notes, and write the files of a report."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from jaxcifar.machine import text
from jaxcifar.machine.files import write_bytes
from jaxcifar.report import classes
from jaxcifar.report import long_tail as report_long_tail
from jaxcifar.report import page as report_page
from jaxcifar.report.figures import Picture, draw_comparison, draw_run, render
from jaxcifar.report.members import member_table, session_table, spread
from jaxcifar.report.page import ON_TEST, UNFINISHED, Table
from jaxcifar.report.run_files import NONE, RunFiles, load, reads, show, to_float

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


def summary(runs: list[RunFiles]) -> Table:
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


def notes(runs: list[RunFiles]) -> list[str]:
    """Return what a reader must know to read the summary right."""
    found = [
        'last: test accuracy of the weights after the last epoch. selected: of the weights of the '
        'best epoch. Ensemble, NLL (in nats) and ECE are test figures of the last weights.'
    ]
    # First, whatever makes a run's numbers look better than they are.
    if any(run.selection == 'test' for run in runs):
        found.append(
            f'{ON_TEST}: the best epoch was chosen on the test set itself, so "selected" is '
            'optimistically biased and no estimate of the accuracy on new images.'
        )
    if any(run.config.get('split') == 'long_tail' for run in runs):
        found.append(
            'split=long_tail: val_lt was taken from the test images, so the rest is not quite balanced; mean '
            "recall, in the run's own section, weights all classes equally."
        )
    joined = any('+' in str(run.config.get(field)) for run in runs for field in ('loss', 'network'))
    if joined or any(run.results.get('own_images') or run.numbers() for run in runs):
        found.append(
            'If members of a run differ in loss, network, images or a number such as the learning rate, '
            'their ± is a spread, not an error bar.'
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
        found.append('K = 1 is a single seed: it has no ±, because its spread is unknown.')
    return found


def differences(runs: list[RunFiles]) -> Table:
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


def section(run: RunFiles) -> report_page.Section:
    """Return what the page has of one run."""
    return report_page.Section(
        number=run.number,
        title=f'{run.number}. {show(run.name)}',
        finished=bool(run.results),
        curves=render(partial(draw_run, run)),
        members=member_table(run),
        long_tail=report_long_tail.sections(run),
        drawn=classes.drawn(run),
        classes=classes.class_table(run),
        sessions=session_table(run),
    )


def write(dirs: Sequence[str | Path], out: str | Path | None = None) -> list[Path]:
    """Write the page, the Markdown table and the curves into `out`; return their paths, in this order.

    out: by default the folder of the first run.
    """
    runs = load(dirs)
    out = Path(out or runs[0].folder)
    # Every picture is drawn before a file is written: a damaged run leaves an old report whole.
    sections, pictures = [], dict[str, Picture]()
    for run in runs:
        with reads(run.folder):
            summary([run]), notes([run])  # so that an error in them names this run
            sections.append(section(run))
            # Names of runs become names of files, on any file system.
            slug = re.sub(r'[^\w.-]+', '_', run.name, flags=re.ASCII)[:60]
            pictures[f'curves_{run.number:02d}_{slug}'] = sections[-1].curves
    if len(runs) > 1:
        pictures['comparison'] = render(partial(draw_comparison, runs))
    tables = [summary(runs), differences(runs)]
    html = report_page.page(tables, notes(runs), sections, pictures.get('comparison'))
    files = {
        'report.html': html.encode(),
        'report.md': report_page.markdown(tables, notes(runs)).encode(),
        # The files are meant for white pages; only the report itself follows the reader's theme.
        **{f'{name}.png': picture['light'] for name, picture in pictures.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(out / name, content)  # whole, or on a full disk not at all
    return [out / name for name in files]


def report(dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the report on the run folders `dirs` into the folder `out`.

    Returns the path of the page. Raises `UserError` for a folder without metrics.csv and for files
    that cannot be read as what they should be.
    """
    return write(dirs, out)[0]
