"""Training runs as processes of their own, to be killed, starved and compared to the byte."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.conftest import CACHED

ROOT = Path(__file__).parent.parent
SMALL = {
    'network': 'tiny',
    'devices': 1,
    'epochs': 6,
    'batch_size': 24,
    'augment': 'crop(1)+flip',
    'optimizer.lr': 0.05,
    # Moves with the step and knows nothing of the last epoch, so that more epochs compile nothing new.
    'schedule.name': 'step',
    'schedule.step_size': 1,
    'schedule.gamma': 0.8,
    'data.validation': 'test',  # to hold images out, scikit-learn is imported
    'data.loader': 'device',
    'eval.batch_size': 20,
    'log.tensorboard': False,
    'log.pictures': False,
}


class Ahead:
    """Decorates the slow tests of a module: their bodies run two at a time, from the first one on.

    The bodies take what the module's fixture `running` gives to `run`.
    """

    def __init__(self):
        self._bodies: dict = {}

    def __call__(self, body):
        def test(running):
            running[body.__name__].result()

        self._bodies[body.__name__] = body
        test.__name__, test.__module__ = body.__name__, body.__module__
        return test

    def run(self, request, *arguments):
        """A generator for a fixture: name -> future of those tests that were asked for."""
        asked = {item.name for item in request.session.items if item.module is request.module}
        bodies = {name: body for name, body in self._bodies.items() if name in asked}
        folder = request.getfixturevalue('tmp_path_factory').mktemp('ahead')
        with ThreadPoolExecutor(2) as pool:
            yield {name: pool.submit(body, folder / name, *arguments) for name, body in bodies.items()}
            pool.shutdown(cancel_futures=True)


# A command that has these does not begin once more to ask for them.
HUGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


@contextlib.contextmanager
def started(workdir: Path, npz: Path, *words: str, environment=None, **fields):
    """A process that trains in `workdir`, dead when the block is left; `__` in a field is a dot.

    Its command has further `words`.
    """
    fields = SMALL | {'dataset': f'npz:{npz}'} | {k.replace('__', '.'): v for k, v in fields.items()}
    command = [sys.executable, '-m', 'jaxcifar.main', '--config=tests/small.py', f'--workdir={workdir}']
    command += [*(f'--config.{name}={value}' for name, value in fields.items()), *words]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    environment = os.environ | CACHED | HUGE_PAGES | (environment or {})
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# Lines that C++ libraries (XLA, Gloo) write past Python: which, and when, depends on the machine.
NATIVE = re.compile(
    r'[IWEF]\d{4} \d\d:\d\d:.*|\d{4}-\d\d-\d\d \d\d:\d\d:.*: [IWEF] .*'
    r'|\[Gloo\].*|WARNING: All log messages .*'
)


def of_python(text: str) -> str:
    """The lines of a process's output that Python wrote, empty ones left out."""
    lines = [line for line in text.splitlines() if line.strip() and not NATIVE.fullmatch(line)]
    return ''.join(f'{line}\n' for line in lines)


def outcome(process) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a process that ends by itself; the streams as Python wrote them."""
    out, err = process.communicate(timeout=900)
    return process.returncode, of_python(out), of_python(err)


def train(workdir: Path, npz: Path, **fields) -> tuple[int, str, str]:
    """The outcome of a process that is left alone."""
    with started(workdir, npz, **fields) as process:
        return outcome(process)


def finish(workdir: Path, npz: Path, **fields):
    """Train to the end, and without a word on stderr."""
    status, _, err = train(workdir, npz, **fields)
    assert (status, err) == (0, '')
    return workdir


@cache
def reference(npz: Path) -> Path:
    """The workdir of a run that nothing happened to, with the checkpoints 20 and 24."""
    return finish(npz.with_suffix('.reference'), npz, data__loader='host')


@contextlib.contextmanager
def frozen(process, condition):
    """Freeze the process in the moment that `condition()` is true of what it leaves on disk."""
    while True:
        assert process.poll() is None, f'ended before: {process.communicate()}'
        if condition():
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if condition():
                break
            process.send_signal(signal.SIGCONT)
        time.sleep(0.0005)
    yield
    process.send_signal(signal.SIGCONT)


def checkpoints(workdir: Path) -> list[int]:
    """Complete checkpoints, oldest first."""
    return sorted(int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit())


def state(workdir: Path, step: int):
    """All that orbax kept of a step, as numpy arrays."""
    folder = workdir / 'checkpoints' / str(step) / 'state'
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder, restore_args=args)


def meta(workdir: Path, step: int) -> dict:
    """What is kept beside the state of a step."""
    return json.loads((workdir / 'checkpoints' / str(step) / 'meta' / 'metadata').read_text())


def contents(workdir: Path, *patterns: str) -> dict[str, bytes]:
    """Relative name -> bytes of the files that match."""
    files = [p for pattern in patterns for p in workdir.glob(pattern) if p.is_file()]
    return {str(p.relative_to(workdir)): p.read_bytes() for p in files}


def assert_same(workdir: Path, reference: Path):
    """Two finished runs agree to the bit: state, best weights, metrics and results."""
    written = ('results.json', 'metrics.csv', 'best/*/*')
    assert contents(workdir, *written) == contents(reference, *written)
    step = checkpoints(reference)[-1]
    assert meta(workdir, step) == meta(reference, step)
    assert_same_state(workdir, reference)


def assert_same_state(workdir: Path, reference: Path):
    """Their newest checkpoints agree to the bit: parameters, optimiser, all that goes on."""
    step = checkpoints(reference)[-1]
    assert checkpoints(workdir)[-1] == step
    ours, theirs = (jax.tree.leaves_with_path(state(w, step)) for w in (workdir, reference))
    assert [p for p, _ in ours] == [p for p, _ in theirs]
    assert all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(ours, theirs))
