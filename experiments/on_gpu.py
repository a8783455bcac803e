"""All that needs a GPU, the most important first: python -m experiments.on_gpu [--workdir runs] [--minutes N]

Each step is a command of this repository that keeps its rows in experiments/results, or several; what
came to its end is noted in on_gpu.csv there and skipped the next time on the same kind of device. Steps
that were stopped go on where they were. --minutes stops in time: all that the step has started is asked to
save and leave. --list shows the steps, --only runs some.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from experiments import results
from jaxcifar.machine.command import command_parser, run_command
from jaxcifar.machine.errors import Preempted, UserError, lookup

SAVE_SECONDS = 60  # between asking a step to leave and making it


class Step(NamedTuple):
    """Commands joined by ' && ' and why they are worth the time; {workdir} stands for the folder of runs."""

    commands: str
    why: str


MAIN = 'jaxcifar.main --workdir {workdir}/'
# What makes a long training on a GPU fast; it saves, too, when it is asked to leave.
FAST = (
    '--config.precision=bfloat16 --config.data.loader=device --config.checkpoint.every_epochs=10 '
    '--config.compile_cache={workdir}/compiled'
)
STEPS = {
    'smoke': Step(
        MAIN + 'smoke --config configs/single.py:resnet18,cifar10 --config.members=2 --config.epochs=2 '
        '--config.precision=bfloat16 --config.data.loader=device --config.profile.steps=50,60',
        'the whole program works here: transfer guard, device loader, trace',
    ),
    'bench': Step('experiments.bench', 'images/s beside PyTorch, six networks, batches of 128 and 512'),
    'options_resnet32': Step('experiments.bench.options resnet32 64', 'which options small steps want'),
    'options_resnet18': Step('experiments.bench.options resnet18 128', '… and middling ones'),
    'options_wideresnet28_10': Step('experiments.bench.options wideresnet28_10 128', '… and large ones'),
    'members': Step(
        'experiments.bench.members resnet32 64 32 30', 'what K members cost where one leaves gaps'
    ),
    'speedrun_94': Step(
        'experiments.speedrun 94 20 {workdir}/speedrun', 'seconds to 94 % on CIFAR-10, 20 runs'
    ),
    'speedrun_96': Step('experiments.speedrun 96 20 {workdir}/speedrun', '… and to 96 %'),
    'pipeline_resnet18': Step(
        'experiments.bench.pipeline resnet18 cifar10 5', 'cold start to end, beside the classic loop'
    ),
    'pipeline_resnet32': Step(
        'experiments.bench.pipeline resnet32 cifar100 5', '… of steps that the host must keep up with'
    ),
    'loaders': Step('experiments.bench.loaders cifar10 resnet18', 'whether input keeps up'),
    'augmentations': Step('experiments.bench.augmentations', 'what augmentation costs'),
    'mutual': Step(
        'experiments.run experiments/mutual_table.py --workdir {workdir}/mutual', 'mutual learning, 3 seeds'
    ),
    'long_tail': Step(
        'experiments.run experiments/long_tail_table.py --workdir {workdir}/long_tail', 'long tail, 3 seeds'
    ),
    'ternary': Step(
        'experiments.run experiments/ternary_table.py --workdir {workdir}/ternary', 'ternary, 3 seeds'
    ),
    'resnet18': Step(
        f'{MAIN}resnet18 --config configs/expert.py:resnet18,strong,all --config.members=3 {FAST} '
        '&& experiments.record {workdir}/resnet18',
        'ResNet-18 on all of CIFAR-100, 3 seeds',
    ),
    'wideresnet28_10': Step(
        f'{MAIN}wideresnet28_10 --config configs/expert.py:wideresnet28_10,strong,all --config.members=3 '
        f'{FAST} && experiments.record {{workdir}}/wideresnet28_10',
        'WRN-28-10 on all of CIFAR-100, 3 seeds',
    ),
    'fusion': Step(
        'experiments.run experiments/fusion_4gpu.py --workdir {workdir}/fusion', 'experts and their fusion'
    ),
}


def device_kind() -> str:
    """What jax runs on here; asked in another process, since one that has asked keeps the memory."""
    ask = 'import jax; print(jax.devices()[0].device_kind)'
    return subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout.strip()


def finished() -> dict[tuple[str, str], str]:
    """(step, device) that came to their end, and the seconds that this took."""
    return {(row['step'], row['device']): row['seconds'] for row in results.read('on_gpu')}


def take(name: str, device: str, workdir: Path, deadline: float):
    """Run a step; raises `Preempted` at the deadline."""
    start = time.monotonic()
    for command in STEPS[name].commands.format(workdir=shlex.quote(str(workdir))).split(' && '):
        print(f'[{name}] python -m {command}', flush=True)
        # In a group, so that what the command starts can be asked to leave with it.
        process = subprocess.Popen([sys.executable, '-m', *shlex.split(command)], process_group=0)
        try:
            status = process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            raise Preempted(f'{name} was stopped in time; the same command goes on there') from None
        finally:
            end(process)
        if status:
            seconds = time.monotonic() - start
            raise UserError(f'{name} failed with exit status {status} after {seconds:.0f} s')
    seconds = time.monotonic() - start
    results.append('on_gpu', [{**results.here(device), 'step': name, 'seconds': f'{seconds:.0f}'}])


def end(process: subprocess.Popen):
    """Leave nothing of a process and its children running; if it runs, it may save first."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAVE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main():
    """The command line."""
    parser = command_parser('experiments.on_gpu', __doc__)
    parser.add_argument('--workdir', type=Path, default=Path('runs'), help='folder of the runs (runs)')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='stop after so many')
    parser.add_argument('--only', help='steps, joined by commas')
    parser.add_argument('--list', action='store_true', help='show the steps and leave')
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes - SAVE_SECONDS
    names = args.only.split(',') if args.only else list(STEPS)
    device, done, failed = device_kind(), finished(), []
    for name in names:
        step, seconds = lookup('step', STEPS, name), done.get((name, device))
        if args.list:
            state = 'to do' if seconds is None else f'done in {seconds} s'
            print(f'{name:24} {state:16} {step.why}')
        elif seconds is not None:
            print(f'[{name}] finished before on {device}, in {seconds} s', flush=True)
        else:
            try:
                take(name, device, args.workdir, deadline)
            except UserError as error:  # the others may work
                print(error, flush=True)
                failed.append(name)
    if failed:
        raise UserError(f'failed: {", ".join(failed)}; the same command tries them again')


if __name__ == '__main__':
    run_command(main)
