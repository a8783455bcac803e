"""Read run folders, finished or still running: the input of `jaxcifar.report`."""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxcifar.config.members import network_of, own_numbers, titled
from jaxcifar.config.values import flatten
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, reading
from jaxcifar.runs.metrics import verdict

NONE = '—'  # stands for a number or a setting that is not there
FUSED = 'fused'  # the name that a fused prediction has in metrics.csv
GROUPS = ('mean_recall', 'many', 'medium', 'few', 'head', 'tail')
UNITS = {  # how a field is printed: unit, factor, digits
    'accuracy': ('%', 100, 2),
    'top5': ('top-5 %', 100, 2),
    'nll': ('NLL', 1, 4),
    'loss': ('loss', 1, 4),
    'ece': ('ECE %', 100, 2),
}
COLUMNS = {
    'metrics.csv': {'epoch', 'member', 'split', 'checkpoint', 'loss', 'accuracy', 'lr'},
    'timing.csv': {'seconds', 'images_per_second'},
    'per_class.csv': {'member', 'checkpoint', 'split', 'class', 'name', 'train_images', 'images', 'recall'},
}


@dataclass
class RunFiles:
    """Hold what the files of a run say; `results` is empty until the run is finished."""

    number: int
    folder: Path
    name: str
    config: dict  # dotted key -> value
    rows: list[dict[str, str]]
    timing: list[dict[str, str]]
    results: dict
    sessions: list[dict]
    calibration: dict = field(default_factory=dict)
    rejection: dict = field(default_factory=dict)

    def __post_init__(self):
        outputs = list(dict.fromkeys(r['member'] for r in self.rows if r['member']))
        self.members = [name for name in outputs if name != FUSED]
        self.fused = FUSED in outputs
        self.epoch = max((to_float(r['epoch']) for r in self.rows), default=0.0)
        if self.epoch > self.results.get('epoch', self.epoch):
            self.results = {}  # the run has trained further since they were written
        self.selection = self.results.get('selection') or self.config.get('data.validation')
        held = {'validation', 'val_lt'} & {r['split'] for r in self.rows}
        self.watched = min(held) if held and self.selection != 'test' else 'test'
        for made in (self.calibration, self.rejection):
            if made.get('step') != self.results.get('step'):
                made.clear()  # they are of earlier weights

    @cached_property
    def classes(self) -> list[dict[str, str]]:
        """Return the rows of per_class.csv, which only a report reads: a row for each class and member."""
        return read_csv(self.folder / 'per_class.csv')

    def numbers(self) -> dict[str, list]:
        """Return the fields in which members have numbers of their own, {field: [K]}; never the seed."""
        return own_numbers(self.config, len(self.members))

    def titles(self) -> list[str]:
        """Return what the members are called, with their losses, views and numbers where these differ."""
        words = [str(self.config.get(kind)).split('+') for kind in ('loss', 'view')]
        # One loss for all is no part of a member's name.
        kinds = [of for of in words if len(of) == len(self.members) > 1]
        numbers = self.numbers()
        return [
            titled(name, [of[k] for of in kinds], {field: of[k] for field, of in numbers.items()})
            for k, name in enumerate(self.members)
        ]

    def held_out(self) -> np.ndarray | None:
        """Return the held-out accuracies [K] that chose the weights; None where no images were held out."""
        found = [(m.get('best') or {}).get('validation_accuracy') for m in self.results.get('members', [])]
        return np.array(found, float) if found and None not in found and self.watched != 'test' else None

    def best_of_sweep(self) -> int | None:
        """Return the member with the best number, by held-out images; None where no number differs."""
        held_out = self.held_out()
        return int(held_out.argmax()) if self.numbers() and held_out is not None else None

    @property
    def differ(self) -> bool:
        """Return whether members differ in more than their draws: in networks, images or numbers too."""
        kinds = {network_of(title) for title in self.titles()}
        own = self.results.get('own_images') or self.config.get('split') in ('overlap', 'disjoint')
        return len(kinds) > 1 or bool(own)

    def groups(self) -> list[str]:
        """Return the columns of metrics.csv about groups of a long tail's classes."""
        return [g for g in GROUPS if self.rows and g in self.rows[0]]

    def curve(self, split: str, column: str, fused: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return epochs (E,) and values (K, E) of one column; NaN where a member has no number.

        fused: of the fused prediction instead, (1, E).
        """
        cells = {place: to_float(row[column]) for place, row in rows_of(self.rows, split).items()}
        epochs = sorted({epoch for (_, epoch), value in cells.items() if not np.isnan(value)})
        names = [FUSED] if fused else self.members
        values = [[cells.get((m, e), np.nan) for e in epochs] for m in names]
        return np.array(epochs), np.array(values, float).reshape(len(names), len(epochs))

    def latest(self, split: str, field: str, fused: bool = False) -> np.ndarray:
        """Return the members' values (K,) at the last epoch that has all of them, else an empty array."""
        _, values = self.curve(split, field, fused)
        whole = np.flatnonzero(~np.isnan(values).any(axis=0))
        return values[:, whole[-1]] if len(whole) else np.array([])

    def scores(self, weights: str, field: str) -> np.ndarray:
        """Return the test scores (K,) of the 'last' or 'best' weights; empty where there are none."""
        found = [m.get(weights) for m in self.results.get('members', [])]
        return np.array([f['test'].get(field) for f in found if f], float)

    def headline(self, weights: str, field: str) -> list | np.ndarray:
        """Return a run's main scores: the fused prediction's, or else its members'."""
        if not self.fused:
            return self.scores(weights, field)
        return [scores[field] for name, scores in self.fusion(weights).items() if name == FUSED]

    def fusion(self, weights: str) -> dict[str, dict]:
        """Return the scores of a fused prediction and of what it has to beat; {} of other runs."""
        found = (self.results.get('fusion', {}).get(weights) or {}).get('test', {})
        return {name: scores for name, scores in found.items() if isinstance(scores, dict)}

    def against_mean(self) -> str:
        """Return the verdict on the fused prediction against the mean, for the chosen weights or the last."""
        found = self.results['fusion']
        return verdict(found.get('best', found['last'])['test'])

    def ensemble(self, weights: str, field: str) -> list[float]:
        """Return the members' joint test score, in a list that is empty where there is none."""
        found = self.results.get('ensemble', {}).get(weights) or {}
        return [found[field]] if len(self.members) > 1 and field in found else []


def rows_of(rows: list[dict[str, str]], split: str) -> dict[tuple[str, float], dict[str, str]]:
    """Return {(member, epoch): row} of a split's rows of metrics.csv, without those of the chosen weights."""
    # After a resume an epoch may occur twice; the later row counts.
    return {
        (row['member'], to_float(row['epoch'])): row
        for row in rows
        if row['split'] == split and row['checkpoint'] != 'best'
    }


def to_float(cell: str) -> float:
    """Return a CSV cell as a number; an empty one is NaN."""
    try:
        return float(cell) if cell else np.nan
    except ValueError:
        raise UserError(f"a cell of a run's table must be a number, got {show(cell)!r}") from None


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the whole lines of a table; a line that a killed run left incomplete is dropped."""
    text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    lines = io.StringIO(text[: text.rfind('\n') + 1], newline='')
    try:
        # A row with too few or too many cells is damaged, too.
        rows = [r for r in csv.DictReader(lines) if None not in r and None not in r.values()]
    except csv.Error as error:
        raise UserError(f'{path} is damaged: {error}') from None
    # A table without rows is of a run that has just begun.
    if rows and (missing := COLUMNS[path.name] - rows[0].keys()):
        raise UserError(f'{path} lacks the columns {", ".join(sorted(missing))}')
    return rows


def show(value) -> str:
    """Return a value from a file as one printable line."""
    if value is None:
        return NONE
    # Floats as short as they can be read: 0.3 and not 0.30000000000000004.
    values = [
        f'{v:.6g}' if isinstance(v, float) else str(v)
        for v in (value if isinstance(value, list) else [value])
    ]
    text = ', '.join(values)
    # Control characters of a damaged file could move the cursor of a terminal.
    return ''.join(c if c.isprintable() else ' ' for c in text)


def reads(folder: Path):
    """Return a context in which unexpected contents of a run's files raise a `UserError`."""
    return reading(folder, 'restore its .json and .csv files, or leave the run out')


def load(dirs: Sequence[str | Path]) -> list[RunFiles]:
    """Return the runs in these folders; folders that are not runs are named on stderr, a line each."""
    # A folder given twice is one run.
    folders = list(dict.fromkeys(Path(d).resolve() for d in dirs))
    missing = [folder for folder in folders if not (folder / 'metrics.csv').is_file()]
    if len(missing) == len(folders):
        given = ', '.join(map(str, folders)) or 'none'
        raise UserError(f'expected the folder of a run, got {given}: there is no metrics.csv')
    leaves, runs = [f.name for f in folders], list[RunFiles]()
    for folder in folders:
        if folder in missing:
            print(f'left out: {folder} is not a run folder: it has no metrics.csv', file=sys.stderr)
            continue
        # Runs of a sweep may share a leaf; the folder above tells them apart.
        twice = leaves.count(folder.name) > 1
        names = ('config', 'results', 'run', 'calibration', 'rejection')
        json_files = [read_json(folder / f'{n}.json', {}) for n in names]
        with reads(folder):
            runs.append(
                RunFiles(
                    number=len(runs) + 1,
                    folder=folder,
                    name=f'{folder.parent.name}/{folder.name}' if twice else folder.name,
                    config=flatten(json_files[0]),
                    rows=read_csv(folder / 'metrics.csv'),
                    timing=read_csv(folder / 'timing.csv'),
                    results=json_files[1],
                    sessions=json_files[2].get('sessions', []),
                    calibration=json_files[3],
                    rejection=json_files[4],
                )
            )
    return runs
