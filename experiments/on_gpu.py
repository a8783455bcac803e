"""Measure on a borrowed GPU, the most important first: python -m experiments.on_gpu [--budget 560]

Made for a machine that is lent for 13 minutes, takes commands of at most ten, has no network and gives a few
files back. Each step is a command of this repository. Every row is kept as soon as it exists: OUT/on_gpu.zip
always holds all rows, the logs and the small files of the runs. After the loan, `--take on_gpu.zip` appends
its rows to experiments/results. Finished steps are skipped the next time on the same kind of device. Stopped
trainings continue where they were, as long as the machine keeps its folder.

The data come as two halves (`python -m experiments.carried_data cifar10 DEST`), if need be one in each call:
--carried names the folder where they arrive, and --data, outside the checkout, the one where they are kept.
Steps that need a set wait until it is whole. JAXCIFAR_COMMIT says which commit is measured; git is asked
where it is not set. --rehearse runs every step on a CPU in miniature. --list shows the steps, and --only runs
some of them.
"""

import argparse
import contextlib
import csv
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from experiments import carried_data, results
from experiments.gpu_steps import STEPS
from jaxcifar.machine.command import a_path, command_parser, run_command
from jaxcifar.machine.errors import EXIT_PREEMPTED, Preempted, UserError, lookup
from jaxcifar.machine.files import reading

NATIVE = re.compile(r'[IWEF]\d{4} |\d{4}-\d\d-\d\d .*: [IWEF] |===|external/')  # lines of XLA's C++
LAST_LINES = 15  # of a log that are shown where a step fails
SAVE_SECONDS = 30  # between asking a step to leave and making it
KEPT = ('config.json', 'results.json', 'run.json', 'metrics.csv', 'timing.csv', 'dataset.json',
        'calibration.json', 'row.json')  # of a run, in the archive  # fmt: skip


class Loan:
    """Hold the folders of one call on a borrowed machine, and its end."""

    def __init__(self, args: argparse.Namespace, device: str, small: bool):
        self.workdir, self.out, self.data = args.workdir, args.out, args.data
        self.device, self.small = device, small
        self.end = time.monotonic() + args.budget
        self.sets = carried_data.collect(args.carried, args.data)
        self.logs = self.workdir / 'logs'
        self.logs.mkdir(parents=True, exist_ok=True)
        results.FOLDER = self.workdir / 'results'
        self._packed = 0.0

    def left(self) -> float:
        """Return the seconds until a step must be asked to leave."""
        return self.end - SAVE_SECONDS - time.monotonic()

    def finished(self) -> dict[str, str]:
        """Return the seconds of the steps that came to their end on this kind of device."""
        rows = results.read('on_gpu')
        return {row['step']: row['seconds'] for row in rows if row['device'] == self.device}

    def take(self, name: str):
        """Run a step; raises `Preempted` where its time is over, and `UserError` where it fails."""
        step, start = STEPS[name], time.monotonic()
        # A step gets at most its share of the time, because later steps matter too.
        until = start + min(self.left(), step.most)
        for command in (step.small if self.small else step.command).split(' && '):
            left = f'{max(until - time.monotonic(), 0):.0f}'
            command = command.format(workdir=shlex.quote(str(self.workdir)), seconds=left)
            print(f'[{name}] python -m {command}', flush=True)
            status = self._run(name, shlex.split(command), until)
            # Stopped, not failed: a training has saved, and rows that exist are kept.
            if status in (None, EXIT_PREEMPTED):
                raise Preempted(f'{name} was stopped in time; the same command continues there')
            if status:
                lines = (self.logs / f'{name}.log').read_text(errors='replace').splitlines()
                # What XLA's C++ says after a fault must not hide it.
                said = [line for line in lines if line.strip() and not NATIVE.match(line)][-LAST_LINES:]
                print(*said, sep='\n', flush=True)
                raise UserError(f'{name} failed with exit status {status}: {(said or [""])[-1][:200]}')
        row = {**results.here(self.device), 'step': name, 'seconds': f'{time.monotonic() - start:.0f}'}
        results.append('on_gpu', [row])
        self.pack()  # the row of the last step is in the archive, too

    def _run(self, name: str, words: list[str], until: float) -> int | None:
        """Return a command's exit status; None where it had to leave at `until`."""
        environment = {'JAXCIFAR_DATA': str(self.data), 'JAXCIFAR_RESULTS': str(results.FOLDER)}
        # What one step has compiled and tuned serves the next; a benchmark's workers have their own.
        cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(self.workdir / 'compiled')
        environment |= {'JAX_COMPILATION_CACHE_DIR': cache}
        if STEPS[name].flags:
            environment['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {STEPS[name].flags}'
        with open(self.logs / f'{name}.log', 'ab') as log:
            # In a group, so that what the command starts can be asked to leave with it.
            process = subprocess.Popen(
                [sys.executable, '-m', *words], stdout=log, stderr=subprocess.STDOUT, process_group=0,
                env={**os.environ, **environment},
            )  # fmt: skip
        try:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
                self.pack()
            return process.poll()
        finally:
            end(process)
            self.pack(anyway=True)

    def pack(self, anyway: bool = False):
        """Rewrite OUT/on_gpu.zip if rows have been added since it was written, or if `anyway`."""
        # The archive is replaced, never changed: whenever the machine is taken back, it is whole.
        rows = sorted(results.FOLDER.glob('*.csv'))
        newest = max((path.stat().st_mtime for path in rows), default=0.0)
        if newest <= self._packed and not anyway:
            return
        # Small files only: a loan gives few megabytes back.
        files = [*rows, *self.logs.glob('*.log')]
        files += [path for kept in KEPT for path in self.workdir.glob(f'**/{kept}')]
        self.out.mkdir(parents=True, exist_ok=True)
        part = self.out / 'on_gpu.zip.part'
        with zipfile.ZipFile(part, 'w', zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                with contextlib.suppress(FileNotFoundError):  # a step may replace its files meanwhile
                    archive.write(path, path.relative_to(self.workdir))
        os.replace(part, self.out / 'on_gpu.zip')
        self._packed = newest


def end(process: subprocess.Popen):
    """Stop a process and its children; if it is still running, let it save first."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAVE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def go(loan: Loan, names: list[str]) -> list[str]:
    """Run the steps that are not finished and that there is time and data for; return those that failed."""
    failed = []
    for name in names:
        step, done = STEPS[name], loan.finished()
        if name in done:
            print(f'[{name}] finished before on {loan.device}, in {done[name]} s', flush=True)
        elif step.data and step.data not in loan.sets:
            print(f'[{name}] waits for {step.data}: carry both of its halves', flush=True)
        elif loan.left() < step.least:
            print(f'[{name}] skipped: {max(loan.left(), 0):.0f} s left, it needs {step.least}', flush=True)
        else:
            try:
                loan.take(name)
            except UserError as error:  # the others may work
                print(error, flush=True)
                failed.append(name)
            except Preempted as stop:
                if loan.left() < 1:
                    raise
                print(stop, flush=True)  # it had its share, and there is time for others
    return failed


def rehearse(args: argparse.Namespace, names: list[str]) -> list[str]:
    """Run every step on a CPU in miniature, in two calls that carry a half of each small set each."""
    rng, failed = np.random.default_rng(0), list[str]()
    os.environ['JAX_PLATFORMS'] = 'cpu'
    carried = args.workdir / 'carried'
    for name, classes in (('cifar10', 10), ('cifar100', 100)):
        counts = {'train': 2 * classes + 40, 'test': classes}
        arrays = {f'x_{part}': rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for part, n in counts.items()}
        arrays |= {f'y_{part}': np.arange(n, dtype=np.int32) % classes for part, n in counts.items()}
        whole = args.workdir / 'sets' / f'{name}.npz'
        whole.parent.mkdir(parents=True, exist_ok=True)
        np.savez(whole, **arrays)  # type: ignore[arg-type]
        carried_data.split(whole, carried)
    # As on the day: the first call brings one half of each set, the second the other.
    for call in range(2):
        args.carried = args.workdir / f'call{call}'
        args.carried.mkdir(exist_ok=True)
        for half in carried.glob(f'*-{call}.npz'):
            os.replace(half, args.carried / half.name)
        failed += go(Loan(args, 'rehearsal', small=True), names)
    return failed


def take_rows(path: Path):
    """Append the rows of an archive to experiments/results, except those that are there already."""
    with reading(path, 'fetch it again'), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            folder, _, file = name.partition('/')
            table = file.removesuffix('.csv')
            if folder != 'results' or not table.isidentifier():
                continue
            rows = list(csv.DictReader(io.StringIO(archive.read(name).decode())))
            known = results.read(table)  # the rows of an earlier archive of the same loan
            new = [row for row in rows if row not in known]
            if new:
                results.append(table, new)
            print(f'{table}: {len(new)} of {len(rows)} rows are new')


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = command_parser('experiments.on_gpu', __doc__)
    parser.add_argument('--budget', type=float, default=560, help='seconds that this call may take (560)')
    out = Path(os.environ.get('OUT') or 'runs/on_gpu')
    parser.add_argument('--out', type=a_path, default=out, help=f'where on_gpu.zip is written ({out})')
    home = Path.home() / 'on_gpu'
    parser.add_argument('--workdir', type=a_path, default=home, help=f'runs, rows and logs ({home})')
    parser.add_argument('--data', type=a_path, default=home / 'data', help=f'kept data sets ({home}/data)')
    parser.add_argument('--carried', type=a_path, default=Path('carried'), help='arriving halves (carried)')
    parser.add_argument('--only', help='steps, joined by commas')
    parser.add_argument('--list', action='store_true', help='show the steps and leave')
    parser.add_argument('--rehearse', action='store_true', help='every step on a CPU in miniature')
    parser.add_argument('--take', type=a_path, metavar='ZIP', help='append its rows to experiments/results')
    return parser.parse_args()


def main():
    """Run, list or rehearse the steps, or take the rows of a loan."""
    args = parse()
    names = args.only.split(',') if args.only else list(STEPS)
    for name in names:
        lookup('step', STEPS, name)
    if args.take:
        return take_rows(args.take)
    if args.list:
        for name in names:
            print(f'{name:16} {STEPS[name].data:9} {STEPS[name].why}')
        return None
    if args.rehearse:
        failed = rehearse(args, names)
    else:
        device = results.device_kind()
        if device in ('', 'cpu'):
            raise UserError(f'expected a GPU, got {device or "none"}: see jaxcifar doctor, or use --rehearse')
        failed = go(Loan(args, device, small=False), names)
    print(f'everything is in {args.out / "on_gpu.zip"}', flush=True)
    if failed:
        raise UserError(f'failed: {", ".join(failed)}; the same command tries them again')
    return None


if __name__ == '__main__':
    run_command(main)
