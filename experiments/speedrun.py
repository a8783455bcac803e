"""How fast CIFAR-10 comes to a mark: python -m experiments.speedrun [MARK [RUNS [FOLDER]]]

Trains configs/speedrun.py:MARK with so many seeds, each in a process of its own, and prints the mean test
accuracy of the last epoch with its standard error, the seconds of training without and with compilation,
and those of the whole process. Finished runs are not repeated, and one that was stopped begins anew, for its
seconds to be those of one process; rows go to experiments/results/speedrun.csv.
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
from jaxcifar.machine.files import write_json


def train(mark: str, seed: int, workdir: Path) -> dict[str, float]:
    """The numbers of a run, which are kept beside it."""
    kept = workdir / 'speedrun.json'
    if kept.exists():
        return json.loads(kept.read_text())
    shutil.rmtree(workdir, ignore_errors=True)
    command = ['-m', 'jaxcifar.main', '--config', f'configs/speedrun.py:{mark}', '--workdir', str(workdir)]
    command += [f'--config.seed={seed}', '--config.log.tensorboard=False']
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f'seed {seed} ended with exit status {done.returncode}')
    process = time.perf_counter() - start
    with open(workdir / 'timing.csv') as file:
        training = sum(float(row['seconds']) for row in csv.DictReader(file))
    found = json.loads((workdir / 'results.json').read_text())
    compiling = json.loads((workdir / 'run.json').read_text())['sessions'][-1]['speed']['compile_seconds']
    numbers = {
        'accuracy': found['mean']['last']['accuracy'],
        'seconds': training,
        'seconds_with_compilation': training + compiling,
        'seconds_of_process': process,
    }
    write_json(kept, numbers)
    return numbers


def main(mark: str = '94', runs: str = '20', folder: str = 'runs/speedrun'):
    """Run, print and append."""
    found: dict[str, list[float]] = {}
    for seed in range(int(runs)):
        numbers = train(mark, seed, Path(folder) / f'{mark}_{seed}')
        for name, value in numbers.items():
            found.setdefault(name, []).append(value)
        print(f'seed {seed}: {numbers["accuracy"]:.2%} after {numbers["seconds"]:.2f} s', flush=True)
    accuracy = 100 * np.array(found['accuracy'])
    error = accuracy.std(ddof=1) / np.sqrt(len(accuracy)) if len(accuracy) > 1 else np.nan
    seconds = {name: float(np.mean(values)) for name, values in found.items() if name != 'accuracy'}
    row = {**results.here(), 'mark': mark, 'runs': runs, 'accuracy': f'{accuracy.mean():.3f}'}
    row |= {'standard_error': f'{error:.3f}', 'lowest': f'{accuracy.min():.2f}'}
    results.append('speedrun', [row | {name: f'{value:.2f}' for name, value in seconds.items()}])
    print(
        f'{len(accuracy)} runs: {accuracy.mean():.2f} ± {error:.2f} % (mean and its standard error); '
        f'{seconds["seconds"]:.2f} s of training, {seconds["seconds_with_compilation"]:.2f} s with '
        f'compilation, {seconds["seconds_of_process"]:.2f} s from start to end of the process'
    )


if __name__ == '__main__':
    run_words(main)
