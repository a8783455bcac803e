"""Whole trainings from a cold start: python -m experiments.pipeline [NETWORK DATASET EPOCHS ROUNDS]

In turn, each in a process of its own: `python -m jaxcifar.main` with its loader, augmentation, evaluation,
checkpoints and logs, and `experiments.classic_loop` in both of its forms. All evaluate the test images
after each epoch and save. Each one's seconds from start to end, by the clock and in all cores, are
appended to experiments/results/pipeline.csv when it ends; printed are the medians of the rounds, and the
epochs a minute of them.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import torch

from experiments import results
from experiments.classic_loop import BATCH
from experiments.on_gpu import device_kind
from experiments.results import ON_GPU
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError


def commands(network: str, dataset: str, epochs: str, folder: str) -> dict[str, list[str]]:
    """What is run, by name; ours twice, so that the second finds what the first compiled."""
    changes = {
        'epochs': epochs,
        'batch_size': str(BATCH),
        'data.drop_last': 'False',
        'augment': 'crop(4)+flip',
        'data.validation': 'test',
        'data.loader': 'device' if ON_GPU else 'host',
        'precision': 'bfloat16' if ON_GPU else 'float32',
        'compile_cache': f'{folder}/cache',
    }
    ours = ['-m', 'jaxcifar.main', '--config', f'configs/single.py:{network},{dataset}']
    ours += [f'--config.{field}={value}' for field, value in changes.items()]
    classic = ['-m', 'experiments.classic_loop', network, dataset, epochs]
    return {
        'ours': ours,
        'ours, compiled before': ours,
        'classic': classic,
        'classic, fast': [*classic, 'fast'],
    }


def run(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock and in all cores."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=os.environ)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f'{" ".join(command)} failed: {done.stderr.strip().splitlines()[-1]}')
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(network: str = 'resnet8', dataset: str = 'cifar10', epochs: str = '2', rounds: str = '1'):
    """Measure, append and print."""
    # Not asked here: the device's memory belongs to what is measured.
    common = {**results.here(device_kind()), 'jax': jax.__version__, 'torch': torch.__version__}
    common |= {'network': network, 'dataset': dataset, 'epochs': epochs}
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as folder:
            for name, command in commands(network, dataset, epochs, folder).items():
                workdir = ['--workdir', str(Path(folder) / name)] if name.startswith('ours') else []
                seconds, cores = run([*command, *workdir])
                times.setdefault(name, []).append((seconds, cores))
                row = {**common, 'what': name, 'seconds': f'{seconds:.1f}', 'cpu_seconds': f'{cores:.1f}'}
                row['epochs_per_minute'] = f'{60 * int(epochs) / seconds:.2f}'
                results.append('pipeline', [row])
    medians = {name: [statistics.median(t) for t in zip(*found)] for name, found in times.items()}
    for name, (seconds, cores) in medians.items():
        per_minute, ratio = 60 * int(epochs) / seconds, medians['classic'][0] / seconds
        print(
            f'{name:22} {seconds:8.1f} s, {cores:8.1f} s of cores, {per_minute:6.2f} epochs a minute, '
            f'{ratio:.2f} times as fast as classic'
        )


if __name__ == '__main__':
    run_words(main)
