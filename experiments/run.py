"""Run a table of experiments: python -m experiments.run SWEEP.py[:ARGUMENT] [--jobs N | --slurm]

A sweep file has a function `get_sweep(argument)` that returns a `Sweep`. Its runs are trained one after
another, or N at a time with a GPU each, or a share of one if there are fewer. The run NAME is in FOLDER/NAME,
and its output in FOLDER/NAME.log. Finished runs are skipped and others resumed, so the same command continues
after a stop. Each new result is appended to experiments/results/accuracy.csv. At the end the table is printed
in Markdown, and FOLDER has results.csv and a page about all runs. With --slurm, cluster jobs do all of this.
--dry-run lists the commands, or with --slurm writes the scripts. --config.FIELD=VALUE changes a field of all
runs.
"""

import argparse
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from experiments import resources, submit, sweep_table
from experiments.display import Display
from experiments.resources import whole
from experiments.sweep import (
    Run,
    Sweep,
    has_ended,
    is_finished,
    last_command,
    load,
    record_results,
    require_length,
    score,
    take_changes,  # fmt: skip
)
from jaxcifar.machine.command import a_path, command_parser, run_command
from jaxcifar.machine.errors import EXIT_PREEMPTED, Preempted, UserError

# The variable for the share of a GPU's memory that a process takes, by its names in older and newer JAX.
SHARES = 'XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION'
# CUDA counts what it sees from 0, whatever the numbers of the files.
GPUS = [str(i) for i, _ in enumerate(Path('/dev').glob('nvidia[0-9]*'))]


class Runner:
    """Run trainings as processes, and stop all of them if one is stopped."""

    def __init__(self, sweep: Sweep, folder: Path, jobs: int, retries: int, display: Display):
        self.sweep, self.folder, self.jobs, self.retries = sweep, folder, jobs, retries
        self.display = display
        self.failed, self.stopped = list[str](), False
        self._processes = set[subprocess.Popen]()
        self._lock = threading.RLock()  # reentrant: a signal may come while it is held
        self._slots: queue.Queue[int] = queue.Queue()
        for slot in range(jobs):
            self._slots.put(slot)

    def stop(self, *_):
        """Ask all trainings to save and leave."""
        with self._lock:
            self.stopped = True
            for process in self._processes:
                process.terminate()

    def run(self):
        """Train all runs, each when those that it comes after are finished."""
        waiting, going = list(enumerate(self.sweep.runs)), set[Future]()
        # Threads only wait for processes; a run is submitted when all that it comes after is finished.
        with ThreadPoolExecutor(self.jobs) as pool:
            while waiting or going:
                for number, run in list(waiting):
                    missing = [n for n in run.after if not is_finished(self._named(n), self.folder)]
                    lost = [name for name in missing if name in self.failed]
                    if lost:
                        self.failed.append(run.name)
                        self.display.say(number, run.name, f'not begun, as {", ".join(lost)} failed')
                    elif not missing:
                        going.add(pool.submit(self._one, number, run))
                    if lost or not missing:
                        waiting.remove((number, run))
                if self.stopped:
                    waiting.clear()
                done, going = wait(going, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()

    def _named(self, name: str) -> Run:
        return next(run for run in self.sweep.runs if run.name == name)

    def _one(self, number: int, run: Run):
        """Train a run, if it is not finished, and say a line about it."""
        start = time.monotonic()
        say = lambda text: self.display.say(number, run.name, text)  # noqa: E731
        workdir = self.folder / run.name
        if self.stopped:
            return
        if is_finished(run, self.folder):
            say(f'finished before, {score(workdir)}')
            return
        status = 0 if has_ended(run, self.folder) else self._train(number, run)
        # A run that was stopped is not retried, because somebody wanted it to stop.
        for retry in range(self.retries):
            if status in (0, EXIT_PREEMPTED) or self.stopped:
                break
            say(f'failed with exit status {status}; try {retry + 2} of {self.retries + 1}')
            status = self._train(number, run)
        if status == 0:
            try:
                with self._lock:
                    require_length(run, self.folder)
                    record_results(run, self.folder)
                say(f'{score(workdir)} after {time.monotonic() - start:,.0f} s')
            except UserError as error:  # the other runs go on
                self.failed.append(run.name)
                say(str(error))
        elif status == EXIT_PREEMPTED or self.stopped:
            self.stop()
            say('stopped, to be resumed')
        else:
            self.failed.append(run.name)
            log = self.folder / f'{run.name}.log'
            last = (log.read_text('utf-8', errors='replace').splitlines() or [''])[-1]
            say(f'failed with exit status {status}: {last} ({log})')

    def _train(self, number: int, run: Run) -> int:
        command = [sys.executable, '-m', 'jaxcifar.main', *run.arguments(self.folder)]
        slot = self._slots.get()
        try:
            with open(self.folder / f'{run.name}.log', 'a', encoding='utf-8') as log:
                with self._lock:
                    if self.stopped:
                        return EXIT_PREEMPTED
                    process = subprocess.Popen(
                        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                        errors='replace', env=self._device(slot),
                    )  # fmt: skip
                    self._processes.add(process)
                assert process.stdout is not None
                with process.stdout as lines:
                    for line in lines:
                        log.write(line)
                        log.flush()
                        self.display.line(number, run.name, line.rstrip())
                status = process.wait()
                with self._lock:
                    self._processes.discard(process)
                return status
        finally:
            self._slots.put(slot)

    def _device(self, slot: int) -> dict[str, str]:
        """Return the environment of a training: all GPUs, or one of them where several run at a time."""
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        gpus = GPUS if visible is None else visible.split(',')
        if self.jobs == 1 or not gpus:  # one training at a time drives all that there are
            return dict(os.environ)
        chosen = {'CUDA_VISIBLE_DEVICES': gpus[slot % len(gpus)]}
        # By default each process takes three quarters of a GPU's memory. XLA refuses both names at once.
        at_once = min(self.jobs, len(self.sweep.runs))
        if (sharing := -(-at_once // len(gpus))) > 1 and not any(name in os.environ for name in SHARES):
            chosen[SHARES[0]] = f'{0.9 / sharing:.3f}'
        return {**os.environ, **chosen}


def run_here(sweep: Sweep, folder: Path, jobs: int, retries: int, follow: bool):
    """Run what is not finished, and write the results."""
    with Display(sweep, follow) as display:
        runner = Runner(sweep, folder, jobs, retries, display)
        before = {number: signal.signal(number, runner.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            runner.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    sweep_table.write(sweep, folder)
    if runner.stopped:
        raise Preempted('stopped; run the same command to continue')
    if runner.failed:
        raise UserError(f'failed: {", ".join(runner.failed)}; the same command tries them again')


def collect(sweep: Sweep, folder: Path):
    """Keep the numbers of what jobs have finished, and write the results."""
    # Jobs only train; their numbers are kept here, by one process.
    for run in sweep.runs:
        if not is_finished(run, folder) and has_ended(run, folder):
            record_results(run, folder)
    sweep_table.write(sweep, folder)
    missing = [run for run in sweep.runs if not is_finished(run, folder)]
    for run in missing:
        if words := last_command(run, folder):
            print(f"{run.name} ended, but with another command than the sweep's: {shlex.join(words)}")
    if missing:
        names = ', '.join(run.name for run in missing)
        raise UserError(f'not finished: {names}; their .log files in {folder} say why')


def list_commands(sweep: Sweep, folder: Path):
    """Print what would run, a command a line, in the order of the sweep."""
    todo = 0
    for number, run in enumerate(sweep.runs):
        begin = f'[{number + 1}/{len(sweep.runs)}] {run.name}:'
        if is_finished(run, folder):
            print(f'{begin} finished before')
            continue
        todo += 1
        after = f'  # after {", ".join(run.after)}' if run.after else ''
        print(f'{begin} {shlex.join(["python", "-m", "jaxcifar.main", *run.arguments(folder)])}{after}')
    print(f'{todo} of {len(sweep.runs)} runs left in {folder}; the same command without --dry-run runs them')


def main():
    """Read the command line and run, list, submit or collect."""
    parser = command_parser('experiments.run', __doc__)
    parser.add_argument('sweep', metavar='SWEEP.py[:ARGUMENT]')
    parser.add_argument('--jobs', help='how many runs at a time (1)')
    parser.add_argument('--retries', help='how often a failed run is resumed (0)')
    parser.add_argument('--follow', action='store_true', help='print their lines, with [task-NUMBER-NAME]')
    parser.add_argument('--collect', action='store_true', help='only gather what is finished')
    parser.add_argument('--workdir', type=a_path, help='(runs/SWEEP)')
    resources.add_flags(parser)
    changes, others = take_changes(sys.argv[1:])
    args = parser.parse_args(others, argparse.Namespace(changes=changes))
    jobs = whole('--jobs', 1 if args.jobs is None else args.jobs, 1)
    retries = whole('--retries', 0 if args.retries is None else args.retries, 0)
    resources.refuse_ignored(args)
    sweep = load(args.sweep, args.changes)
    path, _, argument = args.sweep.partition(':')
    # The folder's name is made of the argument, which may hold a path.
    name = '-'.join(filter(None, [Path(path).stem, argument]))
    folder = args.workdir or Path('runs') / re.sub(r'[^\w.+=,-]', '-', name)
    if args.dry_run and not args.slurm:
        return list_commands(sweep, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if args.slurm:
        submit.submit(sweep, folder, args)
    elif args.collect:
        collect(sweep, folder)
    else:
        run_here(sweep, folder, jobs, retries, args.follow)
    return None


if __name__ == '__main__':
    run_command(main)
