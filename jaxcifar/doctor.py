"""Check this machine for problems: python -m jaxcifar.doctor [--config FILE[:ARGUMENT] --workdir FOLDER]

Prints versions, devices, memory, disk space and the data sets found. With a config, and changes to it as
for jaxcifar.main, it also runs a few steps of that run and estimates how long all of it will take. It
leaves no files behind. The exit status is 1 if there is a problem.
"""

import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from jaxcifar.config.command_line import parse_about
from jaxcifar.machine import memory
from jaxcifar.machine.command import asked_for_help, explain, run_command
from jaxcifar.machine.errors import UserError

STEPS = 5
NVIDIA = '/proc/driver/nvidia/gpus'  # a folder for each GPU that the driver knows
# Variables that hide GPUs from jax, and which of their values do.
HIDING: dict[str, Callable[[str], bool]] = {
    'JAX_PLATFORMS': lambda value: value != '' and 'cuda' not in value and 'gpu' not in value,
    'CUDA_VISIBLE_DEVICES': lambda value: value.strip() in ('', '-1', 'NoDevFiles'),
}
# What jax's packages for GPUs need.
PLUGINS = {
    'jax-cuda13-plugin': (
        'driver 580 or newer, and GPUs from Turing on: for older ones, pip uninstall jax-cuda13-plugin '
        "jax-cuda13-pjrt, and pip install -c constraints.txt -e '.[cuda12]'"
    ),
    'jax-cuda12-plugin': 'driver 525 or newer',
}
SETS = ('cifar10', 'cifar100')
GB = 1e9


class Doctor:
    """Report what this machine has, and collect its problems."""

    def __init__(self, say=print):
        self.say = say
        self.faults: list[str] = []

    def fault(self, text: str):
        """Print a problem, and count it."""
        self.faults.append(text)
        self.say(f'PROBLEM: {text}')

    def attempt(self, what: str, work, *arguments):
        """Return the result of `work`, or None with a fault where it fails as a run would."""
        # One fault must not hide the others, so the checks continue.
        try:
            return work(*arguments)
        except Exception as error:
            self.fault(f'{what}: {explain(error) or f"{type(error).__name__}: {error}"}')
            return None

    def machine(self):
        """Say which versions, devices and memory there are."""
        import jax
        import torch

        from jaxcifar.machine.versions import PACKAGES, git_commit, installed

        found = ', '.join(f'{name} {installed(name) or "is not installed"}' for name in PACKAGES)
        self.say(
            f'Python {platform.python_version()} on {platform.machine()}, commit {git_commit() or "none"}'
        )
        self.say(found)
        devices = self.attempt('jax finds no device', jax.devices) or []
        kinds = [device.device_kind for device in devices]
        # A job may use fewer cores than the machine has, but macOS does not say how many.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        self.say(f'{len(kinds)} x {kinds[0] if kinds else "no device"} for jax; {cores} CPU cores')
        # Without this check, a jax for CPUs would train slowly and say nothing.
        gpus = len(list(Path(NVIDIA).glob('*')))
        if gpus and not any(device.platform == 'gpu' for device in devices):
            self.fault(f'the driver knows {gpus} NVIDIA GPUs, and jax does not see them: {why_unseen()}')
        self.say(f'torch {torch.__version__} only loads data; its CPU build is enough')
        total, free = memory.total(), memory.available()
        there = f'{total / GB:.1f} GB of memory'
        self.say(there if free is None else f'{free / GB:.1f} of {there} are free')

    def data(self, root: Path):
        """Say which data sets are there."""
        there = [name for name in SETS if (root / f'{name}.npz').exists()]
        self.say(f'data in {root}: {", ".join(there) or "none yet; CIFAR is downloaded by the first run"}')

    def folder(self, what: str, path: Path) -> Path | None:
        """Return the part of a path that exists, or None and a fault where it cannot be written to."""
        # The run makes the folders that are missing, so that the lowest one that exists decides.
        part = path.absolute()
        while not part.exists():
            part = part.parent

        def write():
            with tempfile.TemporaryFile(dir=part) as file:
                file.write(bytes(4096))

        # `attempt` returns None for success as well: the number of faults tells them apart.
        before = len(self.faults)
        self.attempt(f'{what} {path} cannot be written', write)
        if len(self.faults) > before:
            return None
        self.say(f'{what} {path} can be written, {shutil.disk_usage(part).free / GB:.1f} GB are free')
        return part

    def run(self, config, workdir: Path):
        """Take a few steps of a run, and estimate what the whole run needs."""
        from jaxcifar.data.datasets import load_dataset
        from jaxcifar.data.long_tail import keeping_nothing
        from jaxcifar.runs.resolve import finalize

        if self.attempt('the config', finalize, config) is None:
            return
        root = Path(config.data.root).expanduser()
        self.data(root)
        place = self.folder('the workdir', workdir)
        if config.compile_cache:
            self.folder('the compile_cache', Path(config.compile_cache).expanduser())
        # Nothing is downloaded by a check.
        if config.dataset in SETS and not (root / f'{config.dataset}.npz').exists():
            self.fault(
                f'{config.dataset}.npz is not in {root}: name its folder with JAXCIFAR_DATA or data.root, or '
                'let the first run download it; without data no step is timed'
            )
            return
        size = config.data.image_size
        dataset = self.attempt('the data', load_dataset, config.dataset, config.data.root, size)
        if dataset is not None:
            with keeping_nothing(config) as apart:
                self.attempt('the run', self._steps, apart, dataset, place)

    def _steps(self, config, dataset, place: Path | None):
        import jax

        from jaxcifar.data.loader import batches
        from jaxcifar.engine.population import check_batch
        from jaxcifar.engine.state import init_state
        from jaxcifar.machine.profile import Compiled
        from jaxcifar.machine.text import about
        from jaxcifar.runs.resume import check
        from jaxcifar.runs.session import make_step, prepare

        # The run as training would build it: session, state and step.
        session = prepare(config, dataset)
        mesh, population, each = session.mesh, session.population, session.epoch_steps
        check_batch(config, mesh)
        check(session)
        state = init_state(config, population)
        # Bytes of a checkpoint: parameters, statistics and the optimiser's state.
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        several = config.steps_per_call
        step = Compiled(make_step(session, state), self.say, stacked=several > 1)
        # Take the steps, and wait for each: its time must not leak into the next.
        seconds: dict[int, list[float]] = {}
        steps = range(min((STEPS + 1) * several, each))
        with closing(batches(config, dataset, session.order, mesh, steps)) as source:
            for batch in source:
                taken = len(batch['label']) if several > 1 else 1
                start = time.perf_counter()
                state, row = step(state, batch)
                jax.block_until_ready(row)
                seconds.setdefault(taken, []).append((time.perf_counter() - start) / taken)
        # The first call of each size compiles. The fastest of the others is the least disturbed one.
        best = min(min(times[1:] or times) for times in seconds.values())
        self.say(
            f'{config.network} x {config.members} on {config.dataset}: a step takes {1e3 * best:,.1f} ms, '
            f'{config.batch_size / best:,.0f} images/s; {config.epochs} epochs of {each} steps take '
            f'{about(best * each * config.epochs)} on this {jax.devices()[0].platform.upper()}, '
            'evaluation not included'
        )
        # Linux gives kB for the peak of the whole process.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        # A CPU has no such numbers, and all devices hold the same shapes.
        peaks = [d.memory_stats() for d in mesh.devices.flat]
        on_device = ''.join(
            f'; {p["peak_bytes_in_use"] / GB:.1f} of {p["bytes_limit"] / GB:.1f} GB of a device'
            for p in peaks[:1]
            if p
        )
        self.say(
            f'the process took {peak:.1f} GB of memory{on_device}; a checkpoint takes {size / GB:.3f} GB'
        )
        # The new checkpoint is whole before the oldest is deleted.
        needed = size * (config.checkpoint.keep + 1)
        if place is not None and shutil.disk_usage(place).free < needed:
            self.fault(f'the disk of the workdir must have {needed / GB:.3f} GB free for its checkpoints')


def why_unseen() -> str:
    """Return why jax does not see the GPUs that the driver knows, and what helps."""
    from jaxcifar.machine.versions import installed

    for name, hiding in HIDING.items():
        if (value := os.environ.get(name)) is not None and hiding(value):
            return f'{name}={value} hides them'
    for plugin, needs in PLUGINS.items():
        if installed(plugin):
            return f'{plugin} needs {needs}; nvidia-smi shows the driver and the GPUs'
    return "this jax is for CPUs: pip install -c constraints.txt -e '.[cuda]'"


def main(argv: list[str]):
    """Run the command line, program name first."""
    if asked_for_help(__doc__):
        return
    doctor = Doctor()
    doctor.attempt('the machine', doctor.machine)
    if len(argv) == 1:
        doctor.data(Path(os.environ.get('JAXCIFAR_DATA') or 'data'))
        doctor.folder('the folder', Path('runs'))
    else:
        # A run would be in runs/.
        parsed = doctor.attempt('the config', parse_about, argv, 'runs')
        if parsed is not None:
            doctor.run(*parsed)
    if doctor.faults:
        count = len(doctor.faults)
        raise UserError(f'{count} problem{"s" * (count > 1)} found; {doctor.faults[-1]}')
    print('no problems found')


if __name__ == '__main__':
    # As for training, so that steps are timed in the same pages.
    memory.restart_in_huge_pages()
    run_command(lambda: main(sys.argv))
