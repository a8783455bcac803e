"""Run one way to train in its own process, which takes its turns when told to.

The threads of PyTorch and XLA wait for work by spinning, and each library keeps the memory it has allocated.
In one process the two would slow each other down. Each worker imports this module, so it must stay small.
"""

import json
import os
import pkgutil
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.machine import memory
from jaxcifar.machine.errors import UserError

ROOT = Path(__file__).parents[2]
CLASSES = 100
LEAVE_SECONDS = 30  # for a worker to end after its last answer


def noise(count: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return what all ways train on: random images uint8 [count,size,size,3] and labels int32 [count]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), np.uint8), rng.integers(0, CLASSES, count, np.int32)


class Step(NamedTuple):
    """Hold a way to train, ready to go."""

    take: Callable[[int], Any]  # calls its step so many times, and waits for the last
    report: dict[str, Any]
    device_bytes: Callable[[], float] | None = None  # at the peak; None where the process's memory is all


class WorkerError(UserError):
    """Say what a worker said, or how its process ended."""


class Worker:
    """Run a process with the Step that `make` ('module:function') returns; a context manager.

    folder: where compilers keep what they have made.
    limit: seconds for its first answer; then the process is killed. Some compilers take many minutes.
    """

    def __init__(self, make: str, folder: Path, limit: float | None = None, **arguments):
        self._limit, self.is_late = limit, False
        # A GPU's memory is taken as it is needed, so that the peak tells what was.
        environment = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **memory.huge_page_environment()}
        environment |= {'JAX_COMPILATION_CACHE_DIR': f'{folder}/xla'}
        environment |= {'TORCHINDUCTOR_CACHE_DIR': f'{folder}/inductor'}
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'experiments.bench.worker', make, json.dumps(arguments)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> 'Worker':
        return self

    def __exit__(self, *fault):
        # The process sees the end of its input and leaves, unless it hangs in a call of the device.
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.__exit__(*fault)

    def answer(self) -> dict[str, Any]:
        """Return the process's next answer; the first, once the Step is built, is its report."""
        if not select.select([self._process.stdout], [], [], self._limit)[0]:
            self._process.kill()
            self.is_late = True
            raise WorkerError(f'no answer in {self._limit:.0f} s')
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            status = self._process.wait()
            how = f'killed by {signal.Signals(-status).name}' if status < 0 else f'exit status {status}'
            raise WorkerError(how)
        answer = json.loads(line)
        if 'failed' in answer:
            raise WorkerError(answer['failed'])
        return answer

    def turn(self, seconds: float) -> dict[str, float]:
        """Take a step to warm up, and then steps until so many seconds are over.

        Returns the calls of the step ('steps'), the 'seconds' that they took, and the 'bytes' at the peak
        so far.
        """
        with suppress(BrokenPipeError):  # it has ended, as it will turn out
            self._process.stdin.write(f'{seconds}\n'.encode())  # type: ignore[union-attr]
        return self.answer()


def serve(make: str, arguments: str):
    """Print a line of JSON when the Step is built, and one for each turn that a line of input asks for."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**answer):
        print(json.dumps(answer), file=answers, flush=True)

    try:
        build = pkgutil.resolve_name(make)
        before = resident('VmRSS')
        step = build(**json.loads(arguments))
        say(**step.report)
        for line in sys.stdin:
            steps, took = turn(step.take, float(line))
            peak = step.device_bytes() if step.device_bytes else resident('VmHWM') - before
            say(steps=steps, seconds=took, bytes=peak)
    except Exception as error:  # whatever it was, the other ways go on
        first = (str(error).strip().splitlines() or [''])[0]
        say(failed=f'{type(error).__name__}: {first}'[:100])


def turn(take: Callable[[int], Any], limit: float) -> tuple[int, float]:
    """Return the calls of a step that took `limit` seconds or a little more, and those seconds."""

    def clock(steps: int) -> float:
        start = time.perf_counter()
        take(steps)
        return time.perf_counter() - start

    some = max(1, round(limit / 10 / clock(1)))  # calls per reading, since each reading waits for the GPU
    steps, took = 0, 0.0
    while steps == 0 or took < limit:
        steps, took = steps + some, took + clock(some)
    return steps, took


def resident(what: str) -> float:
    """Return the bytes of this process in memory: VmRSS now, VmHWM at the most.

    `ru_maxrss` would have the parent's too.
    """
    found = re.search(rf'{what}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return 1024 * float(found[1]) if found else float('nan')


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too: no traceback of each
    serve(*sys.argv[1:])
