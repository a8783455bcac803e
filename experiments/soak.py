"""Do a small run every harm, and see that it ends as if nothing had been: python -m experiments.soak [N]

N times (200) a training process is killed (at any time, within a save, between best weights and checkpoint),
asked to leave, or finds the disk full; or a file of its newest checkpoint is cut or gets a wrong bit. When
the run comes to its end, as every 20 faults it may, it is compared to the last bit with one that was left
alone, and begun again. A row is appended to experiments/results/soak.csv. Some 5 seconds a
fault on a quiet core.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import results
from jaxcifar.machine.command import NO_SPACE, run_words
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
}
FAULTS = ('kill', 'kill in a save', 'kill before a save', 'sigterm', 'full disk', 'cut file', 'wrong bit')
LEFT_ALONE = 20  # faults after which a run may come to its end
LONGEST = 2.0  # seconds from a run's first file until a fault comes


class Soak:
    """One workdir, and what is done to it."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.workdir, self.reference = folder / 'run', folder / 'reference'
        rng = np.random.default_rng(0)
        pictures = rng.integers(40, 216, (4, 8, 8, 3))
        arrays: dict[str, Any] = {}
        for part, count in (('train', 96), ('test', 40)):
            labels = np.arange(count) % 4
            noise = rng.integers(-40, 40, (count, 8, 8, 3))
            arrays |= {f'x_{part}': (pictures[labels] + noise).astype(np.uint8), f'y_{part}': labels}
        np.savez(folder / 'small.npz', **arrays)

    def start(self, workdir: Path) -> subprocess.Popen:
        """A training process."""
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

    def round(self, fault: str) -> bool:
        """A process that the fault comes to; whether it came to its end before."""
        files = [p for p in self.workdir.glob('checkpoints/*/state/**/*') if p.is_file()]
        if fault in ('cut file', 'wrong bit'):
            self._damage(files, fault)
        process = self.start(self.workdir)
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
        status = process.returncode
        good = {'full disk': (0, 1), 'sigterm': (0, EXIT_PREEMPTED)}.get(fault, (0, -signal.SIGKILL))
        if status not in good or (status == 1 and NO_SPACE not in err):
            raise UserError(f'{fault} in {self.workdir}: exit status {status}: {err}')
        return status == 0

    def _wait(self, process: subprocess.Popen, fault: str):
        """For the moment of the fault, or the end of the process."""
        sessions, until = self.workdir / 'run.json', 0.0
        begun, before = time.time(), self._saved()
        while process.poll() is None:
            if not until and sessions.exists() and sessions.stat().st_mtime > begun:
                until = time.monotonic() + self.rng.uniform(0, LONGEST)
            if fault == 'kill in a save' and until and any(self.workdir.glob('checkpoints/*tmp*')):
                return
            stamps = [int(path.stem) for path in self.workdir.glob('best/*/[0-9]*.npz')]
            if fault == 'kill before a save' and max(stamps, default=0) > self._saved() > before:
                return
            if until and time.monotonic() > until + 3 * ('save' in fault):
                return
            time.sleep(0.0005)

    def _saved(self) -> int:
        return max(
            (int(p.name) for p in self.workdir.glob('checkpoints/[0-9]*') if p.name.isdigit()), default=0
        )

    def _damage(self, files: list[Path], fault: str):
        newest = f'checkpoints/{self._saved()}/'
        files = [path for path in files if newest in str(path) and path.stat().st_size]
        if not files:
            return
        path = self.rng.choice(files)
        if fault == 'cut file':
            os.truncate(path, path.stat().st_size // 2)
        else:
            data = bytearray(path.read_bytes())
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)

    def differences(self) -> list[str]:
        """What is not as in the run that was left alone."""
        patterns = 'results.json', 'metrics.csv', 'best/*/*'
        names = {
            p.relative_to(d) for d in (self.workdir, self.reference) for q in patterns for p in d.glob(q)
        }
        found = [
            str(n) for n in sorted(names) if self._bytes(self.workdir / n) != self._bytes(self.reference / n)
        ]
        ours, theirs = (
            _state(d / 'checkpoints' / str(self._saved())) for d in (self.workdir, self.reference)
        )
        if [leaf.tobytes() for leaf in ours] != [leaf.tobytes() for leaf in theirs]:
            found.append(f'checkpoints/{self._saved()}')
        return found

    def _bytes(self, path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None


def _state(checkpoint: Path) -> list[np.ndarray]:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(checkpoint / 'state').item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return jax.tree.leaves(reader.restore(checkpoint / 'state', restore_args=args))


def main(faults: str = '200', seed: str = '0', minutes: str = 'inf'):
    """Soak, print and append to experiments/results/soak.csv; stops after that many minutes."""
    start, counts, compared = time.monotonic(), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix='soak-') as folder:
        soak = Soak(Path(folder), int(seed))
        soak.finish(soak.reference)
        while sum(counts.values()) < int(faults) and time.monotonic() - start < 60 * float(minutes):
            fault = soak.rng.choice(FAULTS)
            if soak.round(fault):
                compared += _compare(soak)
            else:
                counts[fault] += 1
                if sum(counts.values()) % LEFT_ALONE == 0:
                    soak.finish(soak.workdir)
                    compared += _compare(soak)
            if sum(counts.values()) % 10 == 0:
                print(f'{sum(counts.values())} faults, {compared} runs compared', flush=True)
        soak.finish(soak.workdir)
        compared += _compare(soak)
    row = {
        **results.here(),
        'faults': sum(counts.values()),
        **{name.replace(' ', '_'): counts[name] for name in FAULTS},
        'runs_bitwise_equal': compared,
        'runs_different': 0,
        'minutes': f'{(time.monotonic() - start) / 60:.1f}',
        'seed': seed,
    }
    results.append('soak', [row])
    print(*(f'{name}: {value}' for name, value in row.items()), sep='\n')


def _compare(soak: Soak) -> int:
    found = soak.differences()
    if found:
        kept = shutil.copytree(soak.folder, tempfile.mkdtemp(prefix='soak-different-'), dirs_exist_ok=True)
        raise UserError(f'the run has other {", ".join(found)} than one that was left alone: see {kept}')
    shutil.rmtree(soak.workdir)
    return 1


if __name__ == '__main__':
    run_words(main)
