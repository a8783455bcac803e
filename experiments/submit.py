"""Submit the jobs of a sweep: write the scripts, let sbatch check them, say what they ask for."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from experiments.resources import Resources, hours, parse_gpus, resources
from experiments.slurm import Job, collector, jobs, script, submission
from experiments.sweep import Sweep
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import write_bytes

# What sbatch says, and what helps. The first that fits counts: a refused account may also name a partition.
ACCOUNTS = '`sacctmgr show assoc user=$USER` lists your accounts; name one with --account'
REMEDIES = {
    'invalid account': ACCOUNTS,
    'policy': 'submit fewer runs, use --pack, or ask for a shorter --time',
    'array': 'let runs share jobs with --pack',
    'feature': '`sinfo -o "%P %f"` lists the features; name one with --sbatch constraint=FEATURE',
    'partition': '`sinfo -s` lists the partitions; name one with --partition',
    'account': ACCOUNTS,
    'qos': '`sacctmgr show qos` lists them; name one with --sbatch qos=NAME',
    'time limit': '`sinfo -o "%P %l"` shows the longest times; ask for a shorter --time',
    'node configuration': '`sinfo -o "%P %c %m %G"` shows what nodes have; ask a run for less',
    'memory': '`sinfo -o "%P %m"` shows what nodes have; ask for less --memory',
    'gres': '`sinfo -o "%P %G"` shows the kinds of GPUs; name one with --gpus KIND:COUNT',
    'contact': 'the cluster does not answer; try again later',
    'connect': 'the cluster does not answer; try again later',
    'unrecognized option': 'leave it out of --sbatch',
}


def submit(sweep: Sweep, folder: Path, args: argparse.Namespace):
    """Write the scripts, let sbatch check them, and submit them."""
    ask, place = resources(sweep, args), folder.absolute() / 'slurm'
    if re.search(r'[\x00-\x1f]', str(place)):
        raise UserError(f'--workdir must be a path without control characters, got {str(folder)!r}')
    # Everything is checked and written as text before the first file is made.
    todo = jobs(sweep, folder, ask.pack)
    if not todo:
        print(f'all of {folder} is finished; --collect makes the table')
        return
    scripts = {job.name: script(job, folder, ask) for job in todo}
    scripts['results'] = collector(args.sweep, args.changes, folder, ask)
    texts = {f'{name}.sbatch': text for name, text in scripts.items()}
    texts['submit.sh'] = submission(todo, folder.absolute(), ask.pack > 1)
    for name, text in texts.items():
        # They hold paths, which have the bytes that the file system gave them.
        write_bytes(place / name, os.fsencode(text))
    print(*(place / name for name in texts), sep='\n')
    print(summary(todo, ask))
    if args.dry_run:
        print(f'submit: bash {shlex.quote(str(place / "submit.sh"))}, or the same command without --dry-run')
        return
    if shutil.which('sbatch') is None:
        raise UserError(
            'expected sbatch on this machine, got none: on the cluster, submit with bash '
            f'{shlex.quote(str(place / "submit.sh"))}'
        )
    # sbatch checks all jobs before any of them is queued.
    for name in scripts:
        _call(f'{name}.sbatch', place, 'sbatch', '--test-only', f'{name}.sbatch')
    if args.test_only:
        print('sbatch would accept them')
        return
    listed = _call('submit.sh', place, 'bash', 'submit.sh').splitlines()
    follow(todo, folder, dict(line.split() for line in listed))


def summary(todo: list[Job], ask: Resources) -> str:
    """Return a line about how many jobs there are, and what they ask for."""
    runs, (_, gpus) = sum(len(job.runs) for job in todo), parse_gpus(ask.gpus)
    each = ask.nodes * gpus
    kind = 'packed job' if ask.pack > 1 else 'array job'
    at_once = f', at most {ask.at_once} of an array at a time' if ask.at_once and ask.pack == 1 else ''
    return (
        f'{_count(runs, "run")} in {_count(len(todo), kind)}, and a job for the results; each run asks for '
        f'{_count(each, "GPU")} and {_count(ask.nodes * ask.cpus, "CPU")} for {hours(ask.time):,.4g} hours '
        f'at a time{at_once}: in one turn {runs * each * hours(ask.time):,.4g} GPU hours in all'
    )


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'


def follow(todo: list[Job], folder: Path, numbers: dict[str, str]):
    """Print the numbers of the jobs, how to watch and cancel them, and where results will be."""
    for job in todo:
        for run in job.runs:  # the pattern below must find something before the first job begins
            (folder / f'{run.name}.log').touch()
        print(f'{numbers[job.name]}: {", ".join(run.name for run in job.runs)}')
    print(f'{numbers["results"]}: table.md, results.csv and report/ in {folder}, when all others have ended')
    print(f'watch:  squeue -j {",".join(numbers.values())}')
    print(f'        tail -F {shlex.quote(str(folder))}/*.log')
    print(f'cancel: scancel {" ".join(numbers.values())}')
    print('again:  the same command submits what is not finished')


def _call(what: str, place: Path, *command: str) -> str:
    """Return what a command prints; if sbatch refuses, raise a `UserError` with its reason and a remedy."""
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if not done.returncode:
        return done.stdout
    said = [re.sub(r'^(sbatch|allocation failure|error)\W+', '', line) for line in done.stderr.splitlines()]
    said = [re.sub(r'^(error|allocation failure)\W+', '', line).strip() for line in said]
    reason = next(filter(None, said), f'exit status {done.returncode}')
    # The first remedy that fits sbatch's words; else the script itself must tell.
    helps = [remedy for word, remedy in REMEDIES.items() if word in ' '.join(said).lower()]
    raise UserError(f'sbatch refused {what}: {reason}; {(helps or [f"the script is in {place}"])[0]}')
