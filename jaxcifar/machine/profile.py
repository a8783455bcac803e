"""Measure what a step costs: compile time, FLOPs, share of the device's peak, and a trace of its time."""

import threading
import time
from collections import Counter, deque
from pathlib import Path

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from rich.console import Console
from rich.table import Table

from jaxcifar.machine import hosts, status
from jaxcifar.machine.compiler import blocks_of
from jaxcifar.machine.errors import UserError

AHEAD = 4  # steps that the host may be ahead of the devices
JAXPRS = Jaxpr, ClosedJaxpr

# Dense bfloat16 FLOP/s by device kind, from the vendors' data sheets (float32 goes through TF32 at
# half of it, or slower). For devices that are not listed, no share is reported.
PEAK = {
    'NVIDIA H200': 989e12,
    'NVIDIA H100 80GB HBM3': 989e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA A100-SXM4-80GB': 312e12,
    'NVIDIA A100-SXM4-40GB': 312e12,
    'NVIDIA A100-PCIE-40GB': 312e12,
    'Tesla V100-SXM2-32GB': 125e12,
    'Tesla V100-SXM2-16GB': 125e12,
    'NVIDIA GeForce RTX 4090': 165e12,
    'NVIDIA GeForce RTX 3090': 71e12,
}


class Compiled:
    """Compile a step, (state, batch) -> (state, row), for each batch shape, and measure what that costs.

    The host waits when more than `AHEAD` steps are in flight; otherwise their batches would fill the memory.

    Shapes passed to `expect` compile in a thread, while steps with the first shape are already running.

    stacked: whether a batch holds several steps along its first axis.
    """

    def __init__(self, function, say=print, poll=lambda: None, stacked: bool = False):
        self._function, self._say, self._poll, self._stacked = function, say, poll, stacked
        self._programs: dict[tuple, _Compilation] = {}
        self._expecting = False
        self._in_flight: deque = deque()
        self.flops = 0.0  # of a step with the first shape, on one device
        self.seconds = 0.0  # of all compilations
        self.waited = 0.0  # of those, seconds in which no step could be taken

    def __call__(self, state, batch):
        shape = jax.tree.leaves(batch)[0].shape
        if shape not in self._programs:
            self._programs[shape] = _Compilation(self._function, state, batch)
        compilation = self._programs[shape]
        if not compilation.taken:
            self._take(shape, compilation)
        # Nothing may be transferred to or from the host here, or the host would wait for every step.
        with jax.transfer_guard('disallow'):
            state, row = compilation.program(state, batch)
        self._in_flight.append(row)
        if len(self._in_flight) > AHEAD:
            jax.block_until_ready(self._in_flight.popleft())
        return state, row

    def expect(self, state, batches):
        """Start compiling for later arguments, given as `jax.ShapeDtypeStruct`s; only the first call counts.

        With several hosts this does nothing, because they must compile in the same order.
        """
        if self._expecting or not hosts.alone():
            return
        self._expecting = True
        for batch in batches:
            shape = jax.tree.leaves(batch)[0].shape
            if shape not in self._programs:
                self._programs[shape] = _Compilation(self._function, state, batch)

    def _take(self, shape: tuple[int, ...], compilation: '_Compilation'):
        """Wait for a program, and print how long it took to compile."""
        start = time.perf_counter()
        with status.during('compiling the step'):
            compilation.wait(self._poll)
        self.waited += time.perf_counter() - start
        # The first shape is that of whole batches, which the speed is reported for.
        flops = compilation.flops / (shape[0] if self._stacked else 1)
        self.flops, self.seconds = self.flops or flops, self.seconds + compilation.seconds
        self._say(
            f'compiled the step for images {shape} in {compilation.seconds:.1f} s, '
            f'{flops / 1e9:,.1f} GFLOP a step'
        )

    def leave(self, kind: type | None = None, *_):
        """Wait for running compilations, as Python must not exit during them; after a signal, do not wait."""
        if kind is None or issubclass(kind, UserError):
            for compilation in self._programs.values():
                compilation.thread.join()


class _Compilation:
    """Compile one program in a thread.

    Python handles signals only between its own instructions. Compiling in a thread leaves the main thread
    free to `poll` while XLA compiles for a minute, or to take steps with another program.
    """

    def __init__(self, function, state, batch):
        self.flops = self.seconds = 0.0
        self.taken = False
        self._error: BaseException | None = None
        # Keep shapes only: the thread must not keep the state's memory, or a donated array, alive.
        self._arguments = function, *jax.tree.map(_abstract, (state, batch))
        self.thread = threading.Thread(target=self._run, name='compile', daemon=True)
        self.thread.start()

    def _run(self):
        function, state, batch = self._arguments
        start, devices = time.perf_counter(), jax.tree.leaves(state)[0].sharding.num_devices
        try:
            # One trace serves both: the program, and the count of its FLOPs.
            traced = function.trace(state, batch)
            self.program = traced.lower().compile()
            self.flops = count_flops(traced.jaxpr.jaxpr) / devices
        except BaseException as error:  # raised again where the program is wanted
            self._error = error
        self.seconds = time.perf_counter() - start

    def wait(self, poll):
        """Wait for the program, and call `poll()` meanwhile."""
        while self.thread.is_alive():
            self.thread.join(0.2)
            poll()
        if self._error is not None:
            raise self._error
        self.taken = True


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    """Return an array's shape, dtype and sharding, which is all that compiling needs."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def count_flops(jaxpr: Jaxpr) -> float:
    """Return FLOPs of all products and convolutions on all devices; a multiply-add counts as two.

    XLA's own count misses the work of a GPU's libraries. Of branches for several platforms, the costliest
    counts. Products with the zeros of a block-diagonal kernel are no work, and do not count.
    """
    return float(sum(_flops(eqn) / blocks_of(str(eqn.source_info.name_stack)) for eqn in jaxpr.eqns))


def _flops(eqn) -> float:
    shapes = [np.array(v.aval.shape, int) for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, 'shape')]
    params, name = eqn.params, eqn.primitive.name
    if name == 'conv_general_dilated':
        # Each output costs one product for every kernel entry of its channel.
        channels = params['dimension_numbers'].rhs_spec[0]
        zeros = np.prod(params['lhs_dilation'])  # all but one of so many pixels are
        return 2 * shapes[-1].prod() * np.delete(shapes[1], channels).prod() / zeros
    if name == 'dot_general':
        # Each output costs one product for every index that is summed over.
        (summed, _), _ = params['dimension_numbers']
        return 2 * shapes[-1].prod() * shapes[0][list(summed)].prod()
    # Any other operation costs only what the programs within it do: loops, branches, calls.
    within = jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: isinstance(leaf, JAXPRS))
    closed = [leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf for leaf in within]
    costs = [count_flops(leaf) for leaf in closed if isinstance(leaf, Jaxpr)]
    # A shard_map contains the program of one device, and a loop that of one iteration.
    times = params['mesh'].size if name == 'shard_map' else params.get('length', 1)
    return times * (max(costs) if name == 'cond' else sum(costs))


def share_of_peak(flops_per_second: float) -> float | None:
    """Return the fraction of a device's bfloat16 peak, None where that is not known."""
    peak = PEAK.get(jax.devices()[0].device_kind)
    return flops_per_second / peak if peak else None


class Tracer:
    """Trace the steps from `first` up to `end` into WORKDIR/profile and print the top operations."""

    def __init__(self, steps: tuple[int, int], workdir: Path, step: int, total: int, say=print):
        # An empty range on the other hosts: two traces would write the same files.
        self._first, self._end = steps if hosts.is_first() else (0, 0)
        self._say = say
        if self._end and not step <= self._first < min(self._end, total):
            say(f'no trace: profile.steps={steps} must lie within steps {step} to {total} of this run')
        self._folder = workdir / 'profile'
        self._running = False

    def before(self, step: int):
        """Start the trace if its first step is next."""
        if step == self._first < self._end:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # keeps the trace small and the timings true
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def after(self, step: int, results):
        """End the trace if its last step is done; `results` is what that step returned."""
        if self._running and step + 1 >= self._end:
            # The host runs ahead: the devices may not have begun the last step yet.
            jax.block_until_ready(results)
            self.stop()

    def stop(self):
        """End a trace that is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(f'trace of steps {self._first} to {self._end} in {self._folder}')
            for line in top_operations(self._folder):
                self._say(line)


def top_operations(folder: Path, count: int = 15) -> list[str]:
    """Return a table of the operations with the most device time, from the newest trace in `folder`."""
    # A run that was continued leaves a folder for each of its traces.
    newest = max(folder.rglob('*.xplane.pb'), key=lambda p: p.stat().st_mtime)
    data = jax.profiler.ProfileData.from_file(str(newest))
    seconds: Counter = Counter()
    calls: Counter = Counter()
    for plane in data.planes:
        device = plane.name.startswith('/device:')
        for line in plane.lines:
            # A GPU has lines of operations on its device plane, a CPU on threads of XLA's pool.
            if not device and 'XLA' not in line.name and 'tf_' not in line.name:
                continue
            for event in line.events:
                if device or any(key == 'hlo_op' for key, _ in event.stats):
                    # XLA numbers its operations: fusion.12 counts as fusion.
                    name = event.name.split('.')[0]
                    seconds[name] += event.duration_ns / 1e9
                    calls[name] += 1
    total = sum(seconds.values()) or 1.0
    table = Table('operation', 'share', 'ms', 'calls', box=None)
    for name, spent in seconds.most_common(count):
        table.add_row(name, f'{spent / total:.1%}', f'{spent * 1e3:.1f}', str(calls[name]))
    terminal = Console(width=100)
    with terminal.capture() as captured:
        terminal.print(table)
    return captured.get().splitlines()
