"""Say what a run's job asks a cluster for, and check it before sbatch sees it."""

import argparse
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from experiments.sweep import Sweep
from jaxcifar.machine.errors import UserError, unknown


class Resources(NamedTuple):
    """Hold what a run's job asks for, as sbatch writes it; '' is what the cluster gives."""

    partition: str = ''
    account: str = ''
    gpus: int | str = 1  # on each node, as 2 or volta:2; one process drives them all
    cpus: int = 4
    memory: str = '16G'
    time: str = '1-00:00:00'  # then it saves and queues again
    nodes: int = 1
    at_once: int = 0  # how many runs of an array may go at a time, 0 for all
    pack: int = 1  # runs that share a job, with `gpus` each: for clusters that give whole nodes
    setup: str = ''  # a line of shell before the run: module load …
    sbatch: tuple[str, ...] = ()  # further options of sbatch: constraint=v100, exclusive

    def gres(self, runs: int = 1) -> str:
        """Return the GPUs of so many runs as --gres writes them; '' for none."""
        kind, count = parse_gpus(self.gpus)
        return f'gpu:{kind + ":" if kind else ""}{count * runs}' if count else ''

    def options(self) -> dict[str, str]:
        """Return the further options of sbatch, {name: value}, '' for those without one."""
        return {name.lstrip('-'): value for name, _, value in (o.partition('=') for o in self.sbatch)}


# Slurm sends SIGTERM two minutes before the end. Within a shorter time a run may not get to a step, and would
# queue again for ever.
LEAST_MINUTES = 10
LEAST = {'cpus': 1, 'nodes': 1, 'at_once': 0, 'pack': 1}
MOST = 100_000  # of anything that is counted
# The scripts and their submission depend on these.
OURS = ('array', 'dependency', 'job-name', 'output', 'error', 'open-mode', 'parsable', 'requeue',
        'no-requeue', 'signal', 'wrap', 'test-only', 'chdir', 'wait')  # fmt: skip
# Options of sbatch whose flags here also count in the summary, in packed jobs or in the last job.
HAVE_FLAGS = {'time': 'time', 'gres': 'gpus', 'mem': 'memory', 'nodes': 'nodes', 'cpus-per-task': 'cpus'}
# Flags that --slurm would ignore, and what to use instead.
NOT_WITH_SLURM = {
    'collect': 'its last job collects the results',
    'jobs': '--at-once limits how many runs go at a time',
    'retries': 'the same command submits failed runs again',
    'follow': 'the command prints how to watch the jobs',
}
# What sbatch takes as a time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
NUMBER = r'\d{1,9}'
TIME = re.compile(
    rf'(?:(?P<d>{NUMBER})-(?P<h>{NUMBER})(?::(?P<m>{NUMBER})(?::(?P<s>{NUMBER}))?)?)'
    rf'|(?P<p>{NUMBER}(?::{NUMBER}){{0,2}})',
    re.ASCII,
)
HELP = {
    'gpus': 'on each node, as 2 or volta:2',
    'time': f'at least {LEAST_MINUTES} minutes, as H:MM:SS or D-HH:MM:SS',
    'at_once': 'at most so many runs of an array at a time, 0 for all',
    'pack': 'so many runs share a job',
    'setup': 'a line of shell before each run, as module load cuda',
    'sbatch': 'any further option of sbatch, as constraint=v100; may be given several times',
}


def add_flags(parser: argparse.ArgumentParser):
    """Add --slurm and what goes with it."""
    about = 'With --slurm. What each run asks for, on each node; after --time it saves and queues again.'
    flags = parser.add_argument_group('on a cluster', about)
    flags.add_argument('--slurm', action='store_true', help='submit jobs that do all of it')
    flags.add_argument(
        '--dry-run', action='store_true', help='say what would run; with --slurm write scripts'
    )
    flags.add_argument('--test-only', action='store_true', help='… and let sbatch check them')
    for name, default in Resources._field_defaults.items():
        kind: Any = {'action': 'append', 'metavar': 'OPTION=VALUE'} if name == 'sbatch' else {}
        said = ' '.join(filter(None, [HELP.get(name), f'({default})' if default not in ('', ()) else '']))
        flags.add_argument('--' + name.replace('_', '-'), help=said or None, **kind)


def refuse_ignored(args: argparse.Namespace):
    """Raise `UserError` for a flag that has no effect with --slurm, or without it."""
    for name, instead in NOT_WITH_SLURM.items():
        if args.slurm and getattr(args, name):
            raise UserError(f'{_flag(name)} is for runs on this machine, not for --slurm: {instead}')
    for name in ('test_only', *Resources._fields):
        if not args.slurm and getattr(args, name) not in (None, False):
            raise UserError(f'{_flag(name)} is for jobs of a cluster: give --slurm too')


def resources(sweep: Sweep, args: argparse.Namespace) -> Resources:
    """Return the resources that the flags ask for, else the sweep, else the defaults; all are checked."""
    for name in sweep.slurm:
        if name not in Resources._fields:
            raise unknown('field of Sweep.slurm', name, Resources._fields)
    given = {name: getattr(args, name) for name in Resources._fields}
    return checked(sweep.slurm | {name: value for name, value in given.items() if value is not None})


def checked(fields: dict[str, Any]) -> Resources:
    """Return the resources of these fields; raise `UserError` where a value is invalid."""
    fields = dict(fields)
    # Numbers first: what follows counts with them.
    for name in LEAST.keys() & fields.keys():
        fields[name] = whole(_flag(name), fields[name], LEAST[name])
    for name in ('partition', 'account', 'memory', 'time', 'setup', 'gpus'):
        fields[name] = str(fields.get(name, Resources._field_defaults[name]))
    for name in ('partition', 'account'):
        if not re.fullmatch(r'[\w.,+@-]*', fields[name], re.ASCII):
            raise UserError(f'{_flag(name)} must be a name as sbatch knows it, got {fields[name]!r}')
    options = fields.get('sbatch', ())
    several = isinstance(options, list | tuple)
    fields['sbatch'] = tuple(map(str, options if several else [options]))
    # What is left is checked by reading it as the scripts will.
    ask = Resources(**fields)
    parse_gpus(ask.gpus)
    times(ask.memory, 1)
    minutes = 60 * hours(ask.time)
    if minutes < LEAST_MINUTES:
        raise UserError(
            f'--time must be at least {LEAST_MINUTES} minutes, got {ask.time} ({minutes:g} min): two hours '
            'are 2:00:00'
        )
    if ask.pack > 1 and ask.nodes > 1:
        raise UserError(
            f'--pack is for runs that share a node, got --nodes {ask.nodes}: leave one of them out'
        )
    if ask.pack > 1 and ask.at_once:
        raise UserError(f'--at-once is for job arrays, got --pack {ask.pack}: leave one of them out')
    check_options(ask.sbatch)
    return ask


def whole(flag: str, value: Any, least: int) -> int:
    """Return a whole number of at least `least`; `UserError` with the flag's name for all else."""
    if not re.fullmatch(r'-?\d{1,9}', str(value), re.ASCII) or not least <= int(value) <= MOST:
        raise UserError(f'{flag} must be a whole number from {least} to {MOST:,}, got {value}')
    return int(value)


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def parse_gpus(gpus: int | str) -> tuple[str, int]:
    """Return the type of GPU, '' for any, and how many; `UserError` where it is neither."""
    parts = re.fullmatch(r'(?:([A-Za-z][\w.-]*):)?(\d{1,9})', str(gpus), re.ASCII)
    if parts is None or int(parts[2]) > MOST:
        raise UserError(f'--gpus must be a number of GPUs, 0 or more, or as volta:2, got {str(gpus)!r}')
    return parts[1] or '', int(parts[2])


def times(memory: str, count: int) -> str:
    """Return the memory of `count` runs; `UserError` where it is not as sbatch writes it."""
    amount = re.fullmatch(r'([1-9]\d{0,8})([KMGT]?)', memory, re.ASCII)
    if amount is None:
        raise UserError(f'--memory must be as 16G, in K, M, G or T, got {memory!r}')
    return f'{int(amount[1]) * count}{amount[2]}'


def hours(time: str) -> float:
    """Return the hours of a time as sbatch writes it; `UserError` where it is none or zero."""
    match = TIME.fullmatch(time)
    seconds = 0
    if match and match['p']:
        parts = [int(part) for part in match['p'].split(':')]
        minutes = parts[0] if len(parts) < 3 else 60 * parts[0] + parts[1]
        seconds = 60 * minutes + (parts[-1] if len(parts) > 1 else 0)
    elif match:
        day, hour, minute, second = (int(match[name] or 0) for name in 'dhms')
        seconds = ((24 * day + hour) * 60 + minute) * 60 + second
    if not seconds:
        raise UserError(f'--time must be minutes, H:MM:SS or D-H:MM:SS, more than none, got {time!r}')
    return seconds / 3600


def check_options(options: Iterable[str]):
    """Raise `UserError` for an option of sbatch that would break the scripts."""
    for option in options:
        name = option.partition('=')[0].lstrip('-')
        if not re.fullmatch(r'(--)?[a-z][a-z-]+(=[^\s"\'\\#]+)?', option):
            raise UserError(
                f'--sbatch must be OPTION or OPTION=VALUE, by its long name, without blanks or quotes, got '
                f'{option!r}'
            )
        if name in OURS:
            raise UserError(f'--sbatch must leave {", ".join(OURS)} to the scripts, got {option!r}')
        if name in HAVE_FLAGS:
            raise UserError(f'--sbatch must leave {name} to {_flag(HAVE_FLAGS[name])}, got {option!r}')
