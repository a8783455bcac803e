"""The jobs of a sweep on a cluster: readable sbatch scripts in FOLDER/slurm, and their submission.

Runs that wait for the same others are one array job; a job that Slurm takes back, or whose time is over,
saves, ends with exit status 75 and puts itself into the queue again.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.sweep import Run, Sweep, is_finished
from jaxcifar.machine.errors import EXIT_PREEMPTED, UserError, unknown


class Resources(NamedTuple):
    """What a run's job asks for, as sbatch writes it; '' is what the cluster gives."""

    partition: str = ''
    account: str = ''
    gpus: int = 1  # on each node; one process drives them all
    cpus: int = 4
    memory: str = '16G'
    time: str = '1-00:00:00'  # then it saves and queues again
    nodes: int = 1
    at_once: int = 0  # how many runs of an array may go at a time, 0 for all
    pack: int = 1  # runs that share a job, with `gpus` each: for clusters that give whole nodes
    setup: str = ''  # a line of shell before the run: module load …


def add_flags(parser: argparse.ArgumentParser):
    """--slurm and what goes with it."""
    about = 'With --slurm. What each run asks for, on each node; after --time it saves and queues again.\n'
    about += '--pack N: so many runs share a job; --setup: a line of shell before each, as module load cuda'
    flags = parser.add_argument_group('on a cluster', about)
    flags.add_argument('--slurm', action='store_true', help='submit jobs that do all of it')
    flags.add_argument('--dry-run', action='store_true', help='of --slurm: only write the scripts')
    flags.add_argument('--test-only', action='store_true', help='… and let sbatch check them')
    for name, default in Resources._field_defaults.items():
        flag = '--' + name.replace('_', '-')
        flags.add_argument(flag, type=type(default), help=f'({default})' if default != '' else None)


def resources(sweep: Sweep, args: argparse.Namespace) -> Resources:
    """The flags, what the sweep says where there is none, and the usual."""
    for name in sweep.slurm:
        if name not in Resources._fields:
            raise unknown('field of Sweep.slurm', name, Resources._fields)
    given = {name: getattr(args, name) for name in Resources._fields}
    return Resources(**sweep.slurm | {name: value for name, value in given.items() if value is not None})


class Job(NamedTuple):
    """A script: the runs that it has, and those that it waits for."""

    name: str
    runs: list[Run]
    after: tuple[str, ...]


def jobs(sweep: Sweep, folder: Path, pack: int) -> list[Job]:
    """What is not finished, as few jobs as may be.

    An array is of runs that wait for the same others; packed are those that wait for as long a chain.
    """
    todo: dict[str, Run] = {}
    depth: dict[str, int] = {}
    groups: dict[Any, list[Run]] = {}
    for run in sweep.runs:
        if is_finished(run, folder):
            continue
        after = tuple(name for name in run.after if name in todo)
        todo[run.name] = run._replace(after=after)
        depth[run.name] = 1 + max((depth[name] for name in after), default=0)
        groups.setdefault(depth[run.name] if pack > 1 else after, []).append(todo[run.name])
    found: list[Job] = []
    for runs in groups.values():
        size = pack if pack > 1 else len(runs)
        for part in (runs[start : start + size] for start in range(0, len(runs), size)):
            needed = dict.fromkeys(name for run in part for name in run.after)
            found.append(Job(f'job{len(found)}', part, tuple(needed)))
    return sorted(found, key=lambda job: max(depth[run.name] for run in job.runs))


def header(name: str, folder: Path, ask: Resources, share: int = 1, **more: Any) -> Iterator[str]:
    """The #SBATCH lines of a job with `share` runs side by side."""
    wanted = {
        'job-name': name,
        'nodes': ask.nodes,
        'ntasks-per-node': share,
        'cpus-per-task': ask.cpus,
        'gres': f'gpu:{ask.gpus * share}' if ask.gpus else '',
        'mem': _times(ask.memory, share),
        'time': ask.time,
        'partition': ask.partition,
        'account': ask.account,
        'output': folder.absolute() / 'slurm' / '%x-%j.out',
        'open-mode': 'append',
        **more,
    }
    yield '#!/bin/bash'
    for option, value in wanted.items():
        if value != '':
            yield f'#SBATCH --{option}={value}'


def _times(memory: str, count: int) -> str:
    amount = re.fullmatch(r'(\d+)([KMGT]?)', memory)
    if amount is None:
        raise UserError(f'memory={memory} is not like 16G')
    return f'{int(amount[1]) * count}{amount[2]}'


def script(job: Job, folder: Path, ask: Resources) -> str:
    """An array job: a run for each of its tasks; or a packed one: all its runs side by side."""
    packed = ask.pack > 1
    at_once = f'%{ask.at_once}' if ask.at_once else ''
    array = {} if packed else {'array': f'0-{len(job.runs) - 1}{at_once}'}
    lines = [
        *header(f'{folder.name}-{job.name}', folder, ask, len(job.runs) if packed else 1, **array),
        '#SBATCH --requeue',
        '#SBATCH --signal=TERM@120',
        '',
        f'cd {shlex.quote(str(Path.cwd()))} || exit 1',
        *([ask.setup] if ask.setup else []),
        f'folder={shlex.quote(str(folder))}',
        '',
        'train() {  # NUMBER NAME ARGUMENTS: what it prints is in NAME.log, and here behind its name',
        '    local number=$1 name=$2; shift 2',
        f'    srun {_srun(ask)} {sys.executable} -u -m jaxcifar.main "$@" 2>&1 |',
        '        tee -a "$folder/$name.log" | sed -u "s/^/[task-$number-$name] /"',
        '}',
        '',
        'set -o pipefail',
    ]
    if packed:
        for i, run in enumerate(job.runs):
            lines += [f'train {i} {_command(run, folder)} &', 'pids+=($!)']
        lines += [
            'for pid in "${pids[@]}"; do',
            '    wait "$pid"; ended=$?',
            '    # One to be resumed counts more than one that failed: finished ones say so at once.',
            f'    [ $ended = 0 ] || [ "${{status:-0}}" = {EXIT_PREEMPTED} ] || status=$ended',
            'done',
            'status=${status:-0}',
        ]
    else:
        lines.append('case $SLURM_ARRAY_TASK_ID in')
        for i, run in enumerate(job.runs):
            lines += [f'{i}) train {i} {_command(run, folder)} ;;']
        lines += ['esac', 'status=$?']
    lines += [
        f'if [ $status = {EXIT_PREEMPTED} ]; then  # it has saved, and goes on in its next turn',
        '    scontrol requeue "$SLURM_JOB_ID"',
        'fi',
        'exit $status',
    ]
    return '\n'.join(lines) + '\n'


def _srun(ask: Resources) -> str:
    if ask.pack == 1:
        return '--kill-on-bad-exit=1'
    gpus = f' --gres=gpu:{ask.gpus}' if ask.gpus else ''
    return f'--exact --nodes=1 --ntasks=1 --cpus-per-task={ask.cpus} --mem={ask.memory}{gpus}'


def _command(run: Run, folder: Path) -> str:
    words = [shlex.quote(word) for word in run.arguments(folder)]
    return ' \\\n    '.join([run.name, ' '.join(words[:4]), *words[4:]])


def collector(sweep: str, folder: Path, ask: Resources) -> str:
    """The last job, which writes the results."""
    ask = ask._replace(gpus=0, cpus=1, nodes=1, memory='4G', time='30:00')
    command = [sys.executable, '-m', 'experiments.run', sweep, '--workdir', str(folder), '--collect']
    lines = [
        *header(f'{folder.name}-results', folder, ask),
        '',
        f'cd {shlex.quote(str(Path.cwd()))} || exit 1',
        *([ask.setup] if ask.setup else []),
        f'JAX_PLATFORMS=cpu {shlex.join(command)}',
    ]
    return '\n'.join(lines) + '\n'


def submission(todo: list[Job], folder: Path, packed: bool) -> str:
    """submit.sh: each job with those that it comes after; it prints their names and numbers."""
    place = {run.name: (job.name, i) for job in todo for i, run in enumerate(job.runs)}
    lines = ['#!/bin/bash', 'set -euo pipefail', f'cd {shlex.quote(str(folder / "slurm"))}', '']
    for job in todo:
        needs = [
            f'${{{name}}}' + ('' if packed else f'_{i}') for name, i in map(place.__getitem__, job.after)
        ]
        after = f' --dependency=afterok:{":".join(dict.fromkeys(needs))}' if needs else ''
        lines += [f'{job.name}=$(sbatch --parsable{after} {job.name}.sbatch)', f'echo {job.name} ${job.name}']
    everything = ':'.join(f'${job.name}' for job in todo)
    lines += [
        f'results=$(sbatch --parsable --dependency=afterany:{everything} results.sbatch)',
        'echo results $results',
    ]
    return '\n'.join(lines) + '\n'


def submit(sweep: Sweep, folder: Path, args: argparse.Namespace):
    """Write the scripts, let sbatch check them, and submit them."""
    ask, place = resources(sweep, args), folder.absolute() / 'slurm'
    todo = jobs(sweep, folder, ask.pack)
    if not todo:
        print(f'all of {folder} is finished; --collect makes the table')
        return
    if ask.pack > 1 and ask.nodes > 1:
        raise UserError('pack is for runs that share a node: leave out nodes')
    place.mkdir(exist_ok=True)
    scripts = {job.name: script(job, folder, ask) for job in todo}
    scripts['results'] = collector(args.sweep, folder, ask)
    for name, text in scripts.items():
        (place / f'{name}.sbatch').write_text(text)
    (place / 'submit.sh').write_text(submission(todo, folder.absolute(), ask.pack > 1))
    print(*(place / f'{name}.sbatch' for name in scripts), place / 'submit.sh', sep='\n')
    if args.dry_run:
        return
    if shutil.which('sbatch') is None:
        raise UserError('there is no sbatch here; --dry-run writes the scripts only')
    for name in scripts:
        _call('sbatch', '--test-only', str(place / f'{name}.sbatch'))
    if args.test_only:
        print('sbatch would take them')
        return
    numbers = dict(line.split() for line in _call('bash', str(place / 'submit.sh')).splitlines())
    for job in todo:
        print(f'{numbers[job.name]}: {", ".join(run.name for run in job.runs)}')
    print(f'{numbers["results"]}: table.md, results.csv and report/ in {folder}, when all others have ended')
    listed = ','.join(numbers.values())
    print(f'watch:  squeue -j {listed}')
    print(f'        tail -F {folder}/*.log')
    print(f'cancel: scancel {" ".join(numbers.values())}')
    print('again:  the same command submits what is not finished')


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f'{Path(command[-1]).name}: {"; ".join(lines)}')
    return done.stdout
