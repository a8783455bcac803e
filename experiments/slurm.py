"""Write the jobs of a sweep on a cluster: readable sbatch scripts in FOLDER/slurm, and their submission.

Runs that wait for the same runs form one array job. A job that Slurm preempts, or whose time is up, saves,
ends with exit status 75 and requeues itself.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.resources import Resources, times
from experiments.sweep import Run, Sweep, check_name, is_finished
from jaxcifar.machine.errors import EXIT_PREEMPTED

FOR_RESULTS = ('qos', 'reservation', 'clusters', 'comment', 'export', 'mail-type', 'mail-user')


class Job(NamedTuple):
    """Hold a script: its runs, the runs that it waits for, and its runs' numbers in the sweep."""

    name: str
    runs: list[Run]
    after: tuple[str, ...]
    numbers: list[int]


def jobs(sweep: Sweep, folder: Path, pack: int) -> list[Job]:
    """Return the unfinished runs in as few jobs as possible.

    An array holds runs that wait for the same runs, a packed job runs that wait for equally long chains.
    """
    # Jobs of one depth wait for none of each other; a finished run is no longer waited for.
    todo: dict[str, Run] = {}
    depth: dict[str, int] = {}
    groups: dict[Any, list[Run]] = {}
    numbers = {run.name: i for i, run in enumerate(sweep.runs)}
    for run in sweep.runs:
        check_name(run.name)
        if is_finished(run, folder):
            continue
        after = tuple(name for name in run.after if name in todo)
        todo[run.name] = run._replace(after=after)
        depth[run.name] = 1 + max((depth[name] for name in after), default=0)
        # A packed job holds runs with different needs, and waits for them all.
        groups.setdefault(depth[run.name] if pack > 1 else after, []).append(todo[run.name])
    made: list[Job] = []
    for runs in groups.values():
        size = pack if pack > 1 else len(runs)
        for part in (runs[start : start + size] for start in range(0, len(runs), size)):
            needed = dict.fromkeys(name for run in part for name in run.after)
            own = [numbers[run.name] for run in part]
            made.append(Job(f'job{len(made)}', part, tuple(needed), own))
    return sorted(made, key=lambda job: max(depth[run.name] for run in job.runs))


def header(name: str, ask: Resources, share: int = 1, **more: Any) -> Iterator[str]:
    """Yield the #SBATCH lines of a job with `share` runs side by side.

    No line holds a path: a job writes into the folder that it was submitted in.
    """
    wanted = {
        'job-name': re.sub(r'[^\w.+=-]', '_', name),
        'nodes': ask.nodes,
        'ntasks-per-node': share,
        'cpus-per-task': ask.cpus,
        'gres': ask.gres(share),
        'mem': times(ask.memory, share),
        'time': ask.time,
        'partition': ask.partition,
        'account': ask.account,
        'output': '%x-%j.out',
        'open-mode': 'append',
        **more,
    }
    yield '#!/bin/bash'
    for option, value in wanted.items():
        if value != '' and option not in ask.options():
            yield f'#SBATCH --{option}={value}'
    for option, value in ask.options().items():
        yield f'#SBATCH --{option}' + (f'={value}' if value else '')


def script(job: Job, folder: Path, ask: Resources) -> str:
    """Return the script of an array job, one run per task, or of a packed job, all runs side by side."""
    # The number of an array's task counts its own runs; what is printed has the run's number in the sweep.
    packed = ask.pack > 1
    at_once = f'%{ask.at_once}' if ask.at_once else ''
    array = {} if packed else {'array': f'0-{len(job.runs) - 1}{at_once}'}
    python = shlex.quote(sys.executable)
    lines = [
        *header(f'{folder.absolute().name}-{job.name}', ask, len(job.runs) if packed else 1, **array),
        '#SBATCH --requeue',
        '#SBATCH --signal=TERM@120',
        '',
        *_begin(ask),
        f'folder={shlex.quote(str(folder))}',
        '',
        'train() {  # NUMBER NAME ARGUMENTS: what it prints is in NAME.log, and here behind its name',
        '    local number=$1 name=$2 line; shift 2',
        # The line's prefix is printed by bash itself: in a pattern of sed, a name could act.
        f'    srun {_srun(ask)} {python} -u -m jaxcifar.main "$@" 2>&1 | tee -a "$folder/$name.log" |',
        '        while IFS= read -r line || [ -n "$line" ]; do',
        '            printf "[task-%s-%s] %s\\n" "$number" "$name" "$line"',
        '        done',
        '}',
        '',
        'set -o pipefail',
        *(_side_by_side(job, folder) if packed else _one_of(job, folder)),
        f'if [ $status = {EXIT_PREEMPTED} ]; then  # it has saved, and goes on in its next turn',
        '    scontrol requeue "$SLURM_JOB_ID"',
        'fi',
        'exit $status',
    ]
    return '\n'.join(lines) + '\n'


def _begin(ask: Resources) -> list[str]:
    return [f'cd {shlex.quote(str(Path.cwd()))} || exit 1', *([ask.setup] if ask.setup else [])]


def _side_by_side(job: Job, folder: Path) -> list[str]:
    lines = []
    for number, run in zip(job.numbers, job.runs):
        lines += [f'train {number} {_command(run, folder)} &', 'pids+=($!)']
    return [
        *lines,
        'for pid in "${pids[@]}"; do',
        '    wait "$pid"; ended=$?',
        '    # One to be resumed counts more than one that failed: finished ones say so at once.',
        f'    [ $ended = 0 ] || [ "${{status:-0}}" = {EXIT_PREEMPTED} ] || status=$ended',
        'done',
        'status=${status:-0}',
    ]


def _one_of(job: Job, folder: Path) -> list[str]:
    cases = [
        f'{i}) train {number} {_command(run, folder)} ;;'
        for i, (number, run) in enumerate(zip(job.numbers, job.runs))
    ]
    return ['case $SLURM_ARRAY_TASK_ID in', *cases, 'esac', 'status=$?']


def _srun(ask: Resources) -> str:
    if ask.pack == 1:
        return '--kill-on-bad-exit=1'
    gpus = f' --gres={ask.gres()}' if ask.gres() else ''
    return f'--exact --nodes=1 --ntasks=1 --cpus-per-task={ask.cpus} --mem={ask.memory}{gpus}'


def _command(run: Run, folder: Path) -> str:
    name, *words = (shlex.quote(word) for word in (run.name, *run.arguments(folder)))
    return ' \\\n    '.join([name, ' '.join(words[:4]), *words[4:]])


def collector(sweep: str, changes: list[str], folder: Path, ask: Resources) -> str:
    """Return the script of the last job, which writes the results of the sweep with these changes."""
    # The last job needs neither a GPU nor the nodes that have them.
    kept = tuple(option for option in ask.sbatch if option.lstrip('-').partition('=')[0] in FOR_RESULTS)
    ask = ask._replace(gpus=0, cpus=1, nodes=1, memory='4G', time='30:00', sbatch=kept)
    command = [sys.executable, '-m', 'experiments.run', sweep, *changes]
    lines = [
        *header(f'{folder.absolute().name}-results', ask),
        '',
        *_begin(ask),
        f'JAX_PLATFORMS=cpu {shlex.join([*command, "--workdir", str(folder), "--collect"])}',
    ]
    return '\n'.join(lines) + '\n'


def submission(todo: list[Job], folder: Path, packed: bool) -> str:
    """Return submit.sh, which submits each job with its dependencies and prints their names and numbers."""
    place = {run.name: (job.name, i) for job in todo for i, run in enumerate(job.runs)}
    lines = [
        '#!/bin/bash',
        'set -euo pipefail',
        f'cd {shlex.quote(str(folder / "slurm"))}',
        '',
        'submitted=()',
        'undo() {  # where one is refused, none shall run',
        '    [ ${#submitted[@]} = 0 ] || scancel "${submitted[@]}"',
        '}',
        'trap undo ERR',
        '',
    ]
    for job in todo:
        # In an array, a run waits for just those tasks that it comes after.
        needs = [
            f'${{{name}}}' + ('' if packed else f'_{i}') for name, i in map(place.__getitem__, job.after)
        ]
        after = ''
        if needs:
            # A run that fails would leave these jobs pending for ever, and the results with them.
            after = f' --kill-on-invalid-dep=yes --dependency=afterok:{":".join(dict.fromkeys(needs))}'
        lines += _submit(job.name, after)
    everything = ':'.join(f'${job.name}' for job in todo)
    lines += _submit('results', f' --dependency=afterany:{everything}')
    return '\n'.join(lines) + '\n'


def _submit(name: str, after: str) -> list[str]:
    return [
        f'{name}=$(sbatch --parsable{after} {name}.sbatch)',
        f'{name}=${{{name}%%;*}}; submitted+=("${name}"); echo {name} ${name}',
    ]
