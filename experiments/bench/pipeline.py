"""Time trainings from a cold start: python -m experiments.bench.pipeline [NETWORK DATASET EPOCHS ROUNDS]

In turns, each in a process of its own: `python -m jaxcifar.main` with its loader, augmentation, evaluation,
checkpoints and logs, and `experiments.bench.classic_loop` in both of its forms. All evaluate the test images
after each epoch and save. Each one's median seconds from start to end, by the clock and in all cores, are
appended to experiments/results/pipeline.csv after its last turn.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import torch

from experiments import results
from experiments.bench.classic_loop import BATCH
from experiments.bench.turns import take_turns
from experiments.results import ON_GPU
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError


def commands(network: str, dataset: str, epochs: str, folder: Path) -> dict[str, list[str]]:
    """Return what is run, by name; ours twice, so that the second finds what the first compiled."""
    changes = {
        'epochs': epochs,
        'batch_size': str(BATCH),
        'data.drop_last': 'False',
        'augment': 'crop(4)+flip',
        'data.validation': 'test',
        'data.loader': 'device' if ON_GPU else 'host',
        'precision': 'bfloat16' if ON_GPU else 'float32',
        'compile_cache': str(folder / 'cache'),
    }
    ours = ['-m', 'jaxcifar.main', '--config', f'configs/single.py:{network},{dataset}']
    ours += [f'--config.{field}={value}' for field, value in changes.items()]
    classic = ['-m', 'experiments.bench.classic_loop', network, dataset, epochs]
    return {
        'ours': ours,
        'ours, compiled before': ours,
        'classic': classic,
        'classic, fast': [*classic, 'fast'],
    }


def run(name: str, command: list[str], folder: Path) -> dict[str, float]:
    """Train in a process; return its 'seconds' by the clock and its 'cpu_seconds' in all cores.

    Ours begins in an empty folder, without what a round before it has compiled.
    """
    if name == 'ours':  # the first of a round
        shutil.rmtree(folder, ignore_errors=True)
    if name.startswith('ours'):
        command = [*command, '--workdir', str(folder / name)]
    # The cores' seconds include those of all workers that the training has waited for.
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=os.environ)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f'{" ".join(command)} failed: {done.stderr.strip().splitlines()[-1]}')
    return {
        'seconds': seconds,
        'cpu_seconds': after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def main(network: str = 'resnet8', dataset: str = 'cifar10', epochs: str = '2', rounds: str = '1'):
    """Measure, append and print."""
    # The device is not asked in this process: its memory belongs to what is measured.
    common = {**results.here(results.device_kind()), 'jax': jax.__version__, 'torch': torch.__version__}
    common |= {'network': network, 'dataset': dataset, 'epochs': epochs}
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / 'runs'
        words = commands(network, dataset, epochs, folder)
        turns = {name: partial(run, name, command, folder) for name, command in words.items()}
        for name, times in take_turns(turns, int(rounds)):
            medians[name], cores = times.median('seconds'), times.median('cpu_seconds')
            per_minute = 60 * int(epochs) / medians[name]
            row = {'what': name, 'seconds': f'{medians[name]:.1f}', 'cpu_seconds': f'{cores:.1f}'}
            row['epochs_per_minute'] = f'{per_minute:.2f}'
            results.append('pipeline', [common | row])
            took = f'{medians[name]:8.1f} s, {cores:8.1f} s of cores'
            print(f'{name:22} {took}, {per_minute:6.2f} epochs a minute', flush=True)
    for name, seconds in medians.items():
        print(f'{name:22} {medians["classic"] / seconds:.2f} times as fast as classic')


if __name__ == '__main__':
    run_words(main)
