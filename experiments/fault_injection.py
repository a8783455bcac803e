"""Inject faults into a small run: into its process, its checkpoints and the other files of its workdir."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxcifar.machine.command import NO_SPACE
from jaxcifar.machine.errors import EXIT_PREEMPTED, UserError

FIELDS = {
    'network': 'resnet8',
    'members': 2,
    'devices': 1,
    'epochs': 30,
    'batch_size': 24,
    'augment': 'crop(1)+flip',
    'optimizer.lr': 0.05,
    'ema': 0.9,
    'data.validation': 'test',
    'eval.batch_size': 20,
    'checkpoint.every_steps': 3,
    'log.tensorboard': False,
    'log.pictures': False,
}
TO_PROCESS = ('kill', 'kill in a save', 'kill before a save', 'sigterm', 'full disk')
TO_CHECKPOINT = ('cut file', 'wrong bit')
TO_FILE = {
    'deleted metrics': 'metrics.csv', 'deleted config': 'config.json', 'damaged results': 'results.json'
}  # fmt: skip
FAULTS = (*TO_PROCESS, *TO_CHECKPOINT, *TO_FILE)
SHORTEST, LONGEST = 2.0, 64.0  # seconds from a run's first file until the fault in a process, at most


class FaultyRun:
    """Hold one workdir, the faults injected into it, and what the program said about them."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.workdir, self.reference = folder / 'run', folder / 'reference'
        self._patience = SHORTEST
        self.refused = 0  # faults that the program refused, and that were repaired as its message says
        self.lost_rows = False  # whether the program has said that rows of metrics.csv are gone
        rng = np.random.default_rng(0)
        pictures = rng.integers(40, 216, (4, 8, 8, 3))
        arrays: dict[str, Any] = {}
        for part, count in (('train', 96), ('test', 40)):
            labels = np.arange(count) % 4
            noise = rng.integers(-40, 40, (count, 8, 8, 3))
            arrays |= {f'x_{part}': (pictures[labels] + noise).astype(np.uint8), f'y_{part}': labels}
        np.savez(folder / 'small.npz', **arrays)

    def begin_again(self):
        """Delete the workdir."""
        shutil.rmtree(self.workdir, ignore_errors=True)
        self.lost_rows = False

    def start(self, workdir: Path) -> subprocess.Popen:
        """Return a training process."""
        fields = FIELDS | {
            'dataset': f'npz:{self.folder}/small.npz',
            'compile_cache': self.folder / 'compiled',
        }
        command = [sys.executable, '-m', 'jaxcifar.main', '--config=configs/base.py', f'--workdir={workdir}']
        command += [f'--config.{name}={value}' for name, value in fields.items()]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(self, workdir: Path):
        """Train to the end."""
        process = self.start(workdir)
        _, err = process.communicate()
        if process.returncode:
            raise UserError(f'a run that was left alone ended with {process.returncode}: {err}')

    def saved(self) -> int:
        """Return the step of the newest checkpoint, 0 without any."""
        names = (path.name for path in self.workdir.glob('checkpoints/[0-9]*'))
        return max((int(name) for name in names if name.isdigit()), default=0)

    def choose(self) -> str:
        """Return a random fault; files are damaged only once there is a checkpoint to continue from."""
        return self.rng.choice(FAULTS if self.saved() else TO_PROCESS)

    def inject(self, fault: str) -> bool:
        """Start a process and inject the fault into it or its files; return whether it finished first."""
        if fault in TO_FILE:
            return self._damage_file(fault)
        # A damaged checkpoint must be noticed by the next process, which is then killed as usual.
        if fault in TO_CHECKPOINT:
            self._damage_checkpoint(fault)
        before, process = self.saved(), self.start(self.workdir)
        try:
            self._wait(process, fault)
            if fault == 'full disk':
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
            elif fault == 'sigterm':
                process.terminate()
            else:
                process.kill()
        except ProcessLookupError:
            pass
        _, err = process.communicate()
        self.lost_rows |= 'metrics.csv' in err  # the fault may have been an earlier one
        # On a busy machine a process may save nothing in time; it then gets more time.
        self._patience = SHORTEST if self.saved() > before else min(2 * self._patience, LONGEST)
        status = process.returncode
        # Any other exit status is a fault: of the program, or of this one.
        good = {'full disk': (0, 1), 'sigterm': (0, EXIT_PREEMPTED)}.get(fault, (0, -signal.SIGKILL))
        if status not in good or (status == 1 and NO_SPACE not in err):
            raise UserError(f'{fault} in {self.workdir}: exit status {status}: {err}')
        return status == 0

    def _damage_file(self, fault: str) -> bool:
        """Delete or damage a file; where the program refuses to continue, apply the remedy of its message."""
        path = self.workdir / TO_FILE[fault]
        if fault == 'damaged results':  # a run writes them last
            self.finish(self.workdir)
        kept = path.read_bytes() if path.exists() else b''
        if fault == 'damaged results':
            damages = kept[: len(kept) // 2], b'[]', b'{"step": null}', b'\xff' + kept
            path.write_bytes(self.rng.choice(damages))
        else:
            path.unlink(missing_ok=True)
        # The next process must make the file again, warn of what is lost, or refuse.
        process = self.start(self.workdir)
        self._wait(process, fault)
        if fault != 'damaged results':
            process.kill()
        _, err = process.communicate()
        self.lost_rows |= fault == 'deleted metrics' and path.name in err
        if process.returncode == 1:
            self._repair(fault, path, kept, err)
        elif process.returncode not in (0, -signal.SIGKILL):
            raise UserError(f'{fault} in {self.workdir}: exit status {process.returncode}: {err}')
        return process.returncode == 0

    def _repair(self, fault: str, path: Path, kept: bytes, err: str):
        """Apply the remedy of an error message; raise `UserError` where it has none."""
        lines = [line for line in err.splitlines() if line.startswith('error: ')]
        if len(lines) != 1 or 'Traceback' in err or path.name not in lines[0]:
            raise UserError(f'{fault} in {self.workdir} must end in one line about {path.name}, got: {err}')
        # The remedy in the line is applied by its words, as a user would.
        if re.search(r'\b(put|copy|bring)\b.*\bback\b|\brestore\b', lines[0]):
            path.write_bytes(kept)
        elif re.search(r'\b(new|empty) (--)?workdir\b|\bbegin anew\b', lines[0]):
            self.begin_again()
        else:
            raise UserError(f'{fault}: expected a way out (put it back, a new --workdir), got: {lines[0]}')
        self.refused += 1

    def _damage_checkpoint(self, fault: str):
        """Cut a file of the newest checkpoint, or turn one of its bits."""
        newest = self.workdir / 'checkpoints' / str(self.saved()) / 'state'
        files = [path for path in newest.glob('**/*') if path.is_file() and path.stat().st_size]
        if not files:
            return
        path = self.rng.choice(files)
        if fault == 'cut file':
            os.truncate(path, path.stat().st_size // 2)
        else:
            data = bytearray(path.read_bytes())
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)

    def _wait(self, process: subprocess.Popen, fault: str):
        """Wait until the fault is due or the process has ended."""
        sessions, until = self.workdir / 'run.json', 0.0
        begun, before = time.time(), self.saved()
        while process.poll() is None:
            if not until and sessions.exists() and sessions.stat().st_mtime > begun:
                until = time.monotonic() + self.rng.uniform(0, self._patience)
            if fault == 'kill in a save' and until and any(self.workdir.glob('checkpoints/*tmp*')):
                return
            stamps = [int(path.stem) for path in self.workdir.glob('best/*/[0-9]*.npz')]
            if fault == 'kill before a save' and max(stamps, default=0) > self.saved() > before:
                return
            if until and time.monotonic() > until + 3 * ('save' in fault):
                return
            time.sleep(0.0005)
