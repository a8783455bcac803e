"""Define a table of experiments, and find out which of its runs are done."""

import contextlib
import io
import json
import re
import runpy
import shlex
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from experiments import record
from jaxcifar.config.command_line import parse
from jaxcifar.config.fields import get_config
from jaxcifar.config.values import flatten
from jaxcifar.machine.errors import UserError, lookup, unknown
from jaxcifar.machine.files import read_json, reading, write_json
from jaxcifar.runs import results_file

KEPT = 'kept.json'  # in a workdir whose numbers are in the table of results: how it was run, and how far
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.+=,-]{0,99}')
CHANGE = re.compile(r'--config\.[\w.]+=')
# Flags that leave a run's results as they are.
HARMLESS = re.compile(
    r'--verbose|--config\.(data\.(workers|loader|root)|(log|checkpoint|profile)\.\w+|compile_cache|devices)=.*'
)
TAKEN = ('slurm', 'report', 'results.csv', 'table.md')  # a sweep's own files beside its workdirs


class Run(NamedTuple):
    """Hold one training: a config file, and the changes to it."""

    name: str  # of its workdir: `check_name` says what it may be
    row: str  # of the table; runs of one row are its seeds
    config: str  # FILE[:ARGUMENT]
    changes: dict[str, Any]  # field -> value; {folder} in it is where the sweep's workdirs are
    after: tuple[str, ...] = ()  # names of runs before it in the sweep that must be finished first

    def arguments(self, folder: Path) -> list[str]:
        """Return what follows `python -m jaxcifar.main`."""
        values = {field: str(value).replace('{folder}', str(folder)) for field, value in self.changes.items()}
        changes = [f'--config.{field}={value}' for field, value in values.items()]
        return ['--config', self.config, '--workdir', str(folder / self.name), *changes]


class Sweep(NamedTuple):
    """Hold runs that are one table."""

    title: str  # printed above it: what was done, and what was shortened
    runs: list[Run]
    baseline: str = ''  # the row that the others are compared with, network by network
    slurm: dict[str, Any] = {}  # noqa: RUF012  fields of `slurm.Resources` that are not as usual


def load(sweep: str, changes: Sequence[str] = ()) -> Sweep:
    """Return the sweep of SWEEP.py[:ARGUMENT], its fields changed by `take_changes`.

    Raises `UserError` where the file has none, or its runs are invalid.
    """
    path, _, argument = sweep.partition(':')
    if not Path(path).is_file():
        raise UserError(f'expected a sweep file, got {path}: no such path')
    try:
        make = runpy.run_path(path).get('get_sweep')
        loaded = make(argument) if callable(make) else None
    except UserError:
        raise
    except Exception as error:  # a file of the user's own may raise anything
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
        ]
        where = f', line {lines[-1]}' if lines else ''
        raise UserError(f'{path}{where}: the sweep file fails: {type(error).__name__}: {error}') from error
    if not isinstance(loaded, Sweep):
        raise UserError(f'{path} must have a function get_sweep(argument) that returns a Sweep')
    check(loaded.runs, path)
    return with_changes(loaded, changes)


def take_changes(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line that are --config.FIELD=VALUE, and the others."""
    changes = [word for word in words if word.startswith('--config.')]
    strange = [word for word in changes if not CHANGE.match(word)]
    if strange:
        raise UserError(f'expected --config.FIELD=VALUE, got {" ".join(strange)}: join field and value by =')
    return changes, [word for word in words if word not in changes]


def with_changes(sweep: Sweep, words: Sequence[str]) -> Sweep:
    """Return the sweep with fields of all runs changed by `take_changes`, which its title then tells.

    Raises `UserError` for an unknown field, and where two runs have become the same.
    """
    changes = dict(word.removeprefix('--config.').split('=', 1) for word in words)
    # An unknown field would make every run fail, on a cluster hours later.
    known = flatten(get_config().to_dict())
    for name in changes:
        lookup('field', known, name)
    runs = [run._replace(changes={**run.changes, **changes}) for run in sweep.runs]
    _refuse_twins(sweep.runs, runs, changes)
    told = [f'{name}={value}' for name, value in changes.items()]
    told = [change for change in told if not HARMLESS.fullmatch(f'--config.{change}')]
    title = f'{sweep.title}; changed: {", ".join(told)}' if told else sweep.title
    return sweep._replace(title=title, runs=runs)


def _refuse_twins(before: list[Run], after: list[Run], changes: dict[str, str]):
    """Raise `UserError` if `changes` make one run of two, which the table would count as two seeds."""
    first: dict[tuple, Run] = {}
    for old, new in zip(before, after):
        fields = {name: str(value) for name, value in new.changes.items()}
        twin = first.setdefault((new.config, *sorted(fields.items())), old)
        lost = [name for name in changes if old.changes.get(name) != twin.changes.get(name)]
        if lost:
            words = ' '.join(f'--config.{name}={changes[name]}' for name in lost)
            raise UserError(
                f'expected runs that differ, got {twin.name} and {old.name} with the same fields: leave out '
                f'{words}, or edit the sweep file'
            )


def check_name(name: str):
    """Raise `UserError` for a name that is not plain enough for workdirs, logs and jobs, which carry it."""
    is_text = isinstance(name, str)
    taken = is_text and (name in TAKEN or name.endswith('.log'))
    if not is_text or taken or not NAME.fullmatch(name):
        plain = re.sub(r'[^A-Za-z0-9_.+=,-]+', '-', str(name)).strip('-.+=,_')[:100]
        hint = f'; try {plain!r}' if plain and not taken else ''
        raise UserError(
            "a run's name must begin with a letter or digit, then letters, digits and _.+=,- (at most 100), "
            f'and be none of {", ".join(TAKEN)} and *.log; got {name!r}{hint}'
        )


def check(runs: list[Run], path: str):
    """Raise `UserError` unless every run has its own name and comes after the runs that it waits for."""
    before: list[str] = []
    for run in runs:
        check_name(run.name)
        if run.name in before:
            raise UserError(f'expected runs of different names in {path}, got two called {run.name}')
        for name in run.after:
            if name not in before:
                raise unknown(f'run before {run.name}:', name, before)
        before.append(run.name)


def is_finished(run: Run, folder: Path) -> bool:
    """Return whether this very run came to its end, was not continued, and is in the table of results."""
    path = folder / run.name / KEPT
    if not path.exists():
        return False
    with reading(path):
        kept = json.loads(path.read_bytes())
        # Older versions kept the arguments alone.
        step, arguments = (kept['step'], kept['arguments']) if isinstance(kept, dict) else (None, kept)
        same = _anywhere(arguments) == _anywhere(run.arguments(folder))
    return same and step in (None, results_file.last_step(path.parent))


def has_ended(run: Run, folder: Path) -> bool:
    """Return whether the last session in its workdir had this command and came to its end.

    Further flags that do not affect the results may follow the command, since job scripts can be edited.
    """
    words, arguments = (
        [word for word in _anywhere(given) if not HARMLESS.fullmatch(word)]
        for given in (last_command(run, folder), run.arguments(folder))
    )
    return words[-len(arguments) :] == arguments


def last_command(run: Run, folder: Path) -> list[str]:
    """Return the command, as words, of the last session that finished in a run's workdir; [] if none did."""
    workdir = folder / run.name
    results, config = workdir / 'results.json', workdir / 'config.json'
    # A session writes its config first and its results last.
    if not (results.exists() and config.exists() and (workdir / 'run.json').exists()):
        return []
    if results.stat().st_mtime_ns < config.stat().st_mtime_ns:
        return []
    return shlex.split(read_json(workdir / 'run.json')['sessions'][-1]['command'])


def _anywhere(arguments: list[str]) -> list[str]:
    """Return a run's arguments with {folder} for the sweep's folder, however that was spelt."""
    if '--workdir' not in arguments[:-1]:
        return arguments
    workdir = Path(arguments[arguments.index('--workdir') + 1])
    return [re.sub(rf'(?<![\w/.-]){re.escape(str(workdir.parent))}(?=/)', '{folder}', a) for a in arguments]


def require_length(run: Run, folder: Path):
    """Raise `UserError` if the run in a workdir has other epochs than the sweep's: it was longer before."""
    # The training program calls such a run finished and leaves it as it is.
    with contextlib.redirect_stderr(io.StringIO()):  # the run itself has printed the remarks of its config
        asked = parse(['main', *run.arguments(folder)])[0].epochs
    there = (read_json(folder / run.name / 'config.json') or {}).get('epochs')
    if there != asked:
        epochs = f'{asked} epoch{"" if asked == 1 else "s"}'
        raise UserError(f'expected {epochs}, got {there} in {folder / run.name}: choose another --workdir')


def record_results(run: Run, folder: Path):
    """Put a run's numbers into the table of results, once."""
    workdir = folder / run.name
    kept, ended = workdir / KEPT, workdir / 'results.json'
    with one_at_a_time(folder):
        # A sweep repeated with more workers finds the same results; only their command differs.
        if not kept.exists() or kept.stat().st_mtime_ns < ended.stat().st_mtime_ns:
            record.append([workdir])
        write_json(kept, {'step': results_file.last_step(workdir), 'arguments': run.arguments(folder)})


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time write what a sweep has found; others wait for it."""
    lock = FileLock(folder / '.lock', fallback_to_soft=False)
    # Some file systems have no locks. Writing there is better than not writing.
    with contextlib.suppress(OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def weights_that_count(results: dict) -> str:
    """Return 'best' where held-out images chose the weights, else 'last': test images never choose."""
    return 'last' if results['selection'] in ('test', 'none') else 'best'


def score(workdir: Path) -> str:
    """Return a finished run's test accuracy, as text."""
    results = json.loads((workdir / 'results.json').read_text())
    weights = weights_that_count(results)
    if 'fusion' not in results:
        return f'test {100 * results["mean"][weights]["accuracy"]:.2f} %'
    found = results['fusion'][weights]['test']
    mean = max(found[name]['accuracy'] for name in ('mean_of_logits', 'mean_of_probabilities'))
    return f'test {100 * found["fused"]["accuracy"]:.2f} %, mean of the experts {100 * mean:.2f} %'
