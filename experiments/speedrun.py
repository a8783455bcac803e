"""Train CIFAR-10 to a target accuracy as fast as it goes.

    python -m experiments.speedrun [MARK [RUNS [FOLDER]]] [--config.FIELD=VALUE …]

Trains configs/speedrun.py:MARK with so many seeds, each in a process of its own, and prints the mean test
accuracy of the last epoch with its standard error, the seconds of training without and with compilation,
and those of the whole process. Fields of the config may be changed. The runs share compiled programs, except
the step, which holds its seed as a constant. Finished runs are not repeated. A stopped run starts over, so
that its seconds are those of one process. Each run is a row of experiments/results/speedrun_seeds.csv as soon
as it has ended.
"""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from experiments import results
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, write_json

SECONDS = ('seconds', 'seconds_with_compilation', 'seconds_of_process')


def train(mark: str, seed: int, folder: Path, changes: list[str]) -> dict:
    """Return a run's row, which is kept in its folder; raise `UserError` if a kept row has other changes."""
    workdir = folder / f'{mark}_{seed}'
    kept = workdir / 'row.json'
    row = read_json(kept)
    if row is None:
        row = _measure(mark, seed, workdir, changes)
        write_json(kept, row)
        results.append('speedrun_seeds', [row])
    if row['changes'] != ' '.join(changes):
        raise UserError(
            f'expected the same changes as in {workdir}, {row["changes"] or "none"}: choose another FOLDER'
        )
    return row


def _measure(mark: str, seed: int, workdir: Path, changes: list[str]) -> dict:
    """Run a training in its own process and return its row."""
    shutil.rmtree(workdir, ignore_errors=True)
    command = ['-m', 'jaxcifar.main', '--config', f'configs/speedrun.py:{mark}', '--workdir', str(workdir)]
    command += [f'--config.seed={seed}', '--config.log.tensorboard=False', '--config.log.pictures=False']
    command += [f'--config.compile_cache={workdir.parent / "compiled"}', *changes]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f'seed {seed} ended with exit status {done.returncode}')
    process = time.perf_counter() - start
    with open(workdir / 'timing.csv') as file:
        training = sum(float(line['seconds']) for line in csv.DictReader(file))
    found = json.loads((workdir / 'results.json').read_text())
    session = json.loads((workdir / 'run.json').read_text())['sessions'][-1]
    seconds = training, training + session['speed']['compile_seconds'], process
    return {
        **results.here(session['devices'][0]),  # this process leaves the device to the runs
        'commit': session['commit'],
        'mark': mark,
        'changes': ' '.join(changes),
        'seed': seed,
        'accuracy': round(100 * found['mean']['last']['accuracy'], 2),
        **{name: round(value, 2) for name, value in zip(SECONDS, seconds)},
    }


def main(*words: str):
    """Run, append and print."""
    changes = [word for word in words if word.startswith('--')]
    given = [word for word in words if word not in changes]
    if len(given) > 3:
        raise UserError(f'expected at most the words MARK RUNS FOLDER, got {" ".join(given)}: see --help')
    mark, runs, folder = (*given, *('94', '20', 'runs/speedrun')[len(given) :])
    rows = []
    for seed in range(int(runs)):
        rows.append(train(mark, seed, Path(folder), changes))
        print(f'seed {seed}: {rows[-1]["accuracy"]:.2f} % after {rows[-1]["seconds"]:.2f} s', flush=True)
    accuracy = np.array([row['accuracy'] for row in rows])
    error = accuracy.std(ddof=1) / np.sqrt(len(accuracy)) if len(accuracy) > 1 else np.nan
    training, compiled, process = (np.mean([row[name] for row in rows]) for name in SECONDS)
    print(
        f'{len(accuracy)} runs: {accuracy.mean():.2f} ± {error:.2f} % (mean and its standard error); '
        f'{training:.2f} s of training, {compiled:.2f} s with compilation, '
        f'{process:.2f} s from start to end of the process'
    )


if __name__ == '__main__':
    run_words(main)
