"""Run a table of experiments: python -m experiments.run SWEEP.py[:ARGUMENT] [--jobs N] [--workdir FOLDER]

A sweep file has a function `get_sweep(argument)` that returns a `Sweep`. Its runs go one after the
other, or N at a time, each in FOLDER/NAME with what it prints in FOLDER/NAME.log. Finished runs are
skipped and others resumed: after a stop, the same command goes on. Each new result is appended to
experiments/results/accuracy.csv, and at the end the table is printed in Markdown.
"""

import argparse
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import record
from jaxcifar.cli import run_command
from jaxcifar.errors import EXIT_PREEMPTED, Preempted, UserError
from jaxcifar.logs import read_json, write_json

GPUS = sorted(Path('/dev').glob('nvidia[0-9]*'))
KEPT = 'kept.json'  # in a workdir whose numbers are in the table of results: how it was run


class Run(NamedTuple):
    """One training: a config file, and what is different from it."""

    name: str  # of its workdir
    row: str  # of the table; runs of one row are its seeds
    config: str  # FILE[:ARGUMENT]
    changes: dict[str, Any]  # field -> value

    def arguments(self, folder: Path) -> list[str]:
        """What follows `python -m jaxcifar.main`."""
        changes = [f'--config.{field}={value}' for field, value in self.changes.items()]
        return ['--config', self.config, '--workdir', str(folder / self.name), *changes]


class Sweep(NamedTuple):
    """Runs that are one table."""

    title: str  # printed above it: what was done, and what was shortened
    runs: list[Run]
    baseline: str = ''  # the row that the others are compared with, network by network


def is_finished(run: Run, folder: Path) -> bool:
    """Whether this very run came to its end, and its numbers are in the table of results."""
    kept = read_json(folder / run.name / KEPT)
    return kept == run.arguments(folder)


class Runner:
    """Runs trainings as processes, and stops them all where one was stopped."""

    def __init__(self, sweep: Sweep, folder: Path, jobs: int):
        self.sweep, self.folder, self.jobs, self._started = sweep, folder, jobs, 0
        self.failed, self.stopped = list[str](), False
        self._processes, self._lock = (
            set[subprocess.Popen](),
            threading.RLock(),
        )  # of a signal that comes while it is held, too

    def stop(self, *_):
        """Ask all trainings to save and leave."""
        with self._lock:
            self.stopped = True
            for process in self._processes:
                process.terminate()

    def __call__(self, number: int):
        """Run the training of this number, if it is not finished, and say so in a line."""
        run, start = self.sweep.runs[number], time.monotonic()
        where = f'[{number + 1}/{len(self.sweep.runs)}] {run.name}'
        if self.stopped:
            return
        if is_finished(run, self.folder):
            print(f'{where}: finished before, {score(self.folder / run.name)}', flush=True)
            return
        status = self._train(run)
        if status == 0:
            with self._lock:
                record.append([self.folder / run.name])
                write_json(self.folder / run.name / KEPT, run.arguments(self.folder))
            seconds = time.monotonic() - start
            print(f'{where}: {score(self.folder / run.name)} after {seconds:,.0f} s', flush=True)
        elif status == EXIT_PREEMPTED or self.stopped:
            self.stop()
            print(f'{where}: stopped, to be resumed', flush=True)
        else:
            self.failed.append(run.name)
            log = self.folder / f'{run.name}.log'
            last = (log.read_text(errors='replace').splitlines() or [''])[-1]
            print(f'{where}: failed with exit status {status}: {last} ({log})', flush=True)

    def _device(self) -> dict[str, str]:
        """The environment of a training: all GPUs, or one of them where several run at a time."""
        if self.jobs == 1 or 'CUDA_VISIBLE_DEVICES' in os.environ or not GPUS:
            return dict(os.environ)
        self._started += 1
        return {**os.environ, 'CUDA_VISIBLE_DEVICES': str(self._started % len(GPUS))}

    def _train(self, run: Run) -> int:
        command = [sys.executable, '-m', 'jaxcifar.main', *run.arguments(self.folder)]
        with open(self.folder / f'{run.name}.log', 'a') as log:
            with self._lock:
                if self.stopped:
                    return EXIT_PREEMPTED
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self._device())
                self._processes.add(process)
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
            return status


def weights_that_count(results: dict) -> str:
    """Those that held-out images chose; otherwise, and never those that test images chose, the last."""
    return 'last' if results['selection'] in ('test', 'none') else 'best'


def score(workdir: Path) -> str:
    """A finished run's test accuracy."""
    results = json.loads((workdir / 'results.json').read_text())
    return f'test {100 * results["mean"][weights_that_count(results)]["accuracy"]:.2f} %'


def table(sweep: Sweep, folder: Path) -> list[str]:
    """The finished runs in Markdown: a line for each row and network."""
    seeds: dict[tuple[str, str], list[float]] = {}  # a number for each seed
    nodes: dict[tuple[str, str], list[float]] = {}  # … and each node
    ensembles: dict[tuple[str, str], list[float]] = {}
    for run in sweep.runs:
        if not is_finished(run, folder):
            continue
        config, results = (
            json.loads((folder / run.name / f'{name}.json').read_text()) for name in ('config', 'results')
        )
        weights = weights_that_count(results)
        of_network: dict[str, list[float]] = {}
        for member in results['members']:
            network = member['name'].partition('_')[2]
            of_network.setdefault(network, []).append(100 * member[weights]['test']['accuracy'])
        for network, values in of_network.items():
            nodes.setdefault((run.row, network), []).extend(values)
            # Members that know nothing of each other are as many seeds.
            alone = config['coupling'] == 'none'
            seeds.setdefault((run.row, network), []).extend(values if alone else [float(np.mean(values))])
        if len(results['members']) > 1:
            ensemble = 100 * results['ensemble'][weights]['accuracy']
            for network in of_network:
                ensembles.setdefault((run.row, network), []).append(ensemble)
    lines = [sweep.title, '', '| experiment | network | seeds | test % | nodes | ensemble % | improvement |',
             '|---|---|---|---|---|---|---|']  # fmt: skip
    for (row, network), values in seeds.items():
        spread = f' ± {np.std(values, ddof=1):.2f}' if len(values) > 1 else ''
        lowest, highest = min(nodes[row, network]), max(nodes[row, network])
        several = len(nodes[row, network]) > 1
        base = seeds.get((sweep.baseline, network))
        better = f'{np.mean(values) - np.mean(base):+.2f}' if base and row != sweep.baseline else ''
        together = f'{np.mean(ensembles[row, network]):.2f}' if (row, network) in ensembles else ''
        lines.append(
            f'| {row} | {network} | {len(values)} | {np.mean(values):.2f}{spread} | '
            f'{f"{lowest:.2f} to {highest:.2f}" if several else ""} | {together} | {better} |'
        )
    return lines


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m experiments.run', description=__doc__)
    parser.add_argument('sweep', metavar='SWEEP.py[:ARGUMENT]')
    parser.add_argument('--jobs', type=int, default=1, help='how many runs at a time (1)')
    parser.add_argument('--workdir', type=Path, help='(runs/SWEEP)')
    args = parser.parse_args()
    path, _, argument = args.sweep.partition(':')
    if not Path(path).is_file():
        raise UserError(f'there is no sweep file {path}')
    sweep = runpy.run_path(path)['get_sweep'](argument)
    folder = args.workdir or Path('runs') / args.sweep.replace(path, Path(path).stem).replace(':', '-')
    folder.mkdir(parents=True, exist_ok=True)
    runner = Runner(sweep, folder, args.jobs)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, runner.stop)
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(runner, i) for i in range(len(sweep.runs))]:
            done.result()
    print('', *table(sweep, folder), sep='\n')
    if runner.stopped:
        raise Preempted('stopped; the same command goes on from there')
    if runner.failed:
        raise UserError(f'failed: {", ".join(runner.failed)}; the same command tries them again')


if __name__ == '__main__':
    run_command(main)
