"""All that needs a GPU, the most important first: python -m experiments.on_gpu [--workdir runs] [--minutes N]

Each step is a command of this repository that keeps its rows in experiments/results; what came to its
end is noted in on_gpu.csv there and skipped the next time on the same kind of device. Steps that were
stopped go on where they were. --minutes stops in time: the step that runs then is asked to save and leave.
--list shows the steps, --only runs some.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from experiments import results
from jaxcifar.cli import run_command
from jaxcifar.errors import Preempted, UserError, lookup

SAVE_SECONDS = 60  # between asking a step to leave and making it


class Step(NamedTuple):
    """A command and why it is worth the time; {workdir} stands for the folder of runs."""

    command: str
    why: str


MAIN = 'jaxcifar.main --workdir {workdir}/'
STEPS = {
    'smoke': Step(
        MAIN + 'smoke --config configs/single.py:resnet18,cifar10 --config.members=2 --config.epochs=2 '
        '--config.precision=bfloat16 --config.data.loader=device --config.profile.steps=50,60',
        'the whole program works here: transfer guard, device loader, trace',
    ),
    'bench': Step('experiments.bench', 'images/s beside PyTorch, six networks, batches of 128 and 512'),
    'members': Step('experiments.members resnet32 64 32 30', 'what K members cost'),
    'loaders': Step('experiments.loaders cifar10 resnet18', 'whether input keeps up'),
    'augmentations': Step('experiments.augmentations', 'what augmentation costs'),
    'pipeline': Step('experiments.pipeline resnet18 cifar10 5', 'cold start to end, beside the classic loop'),
    'speedrun': Step('experiments.speedrun 94 20', 'CIFAR-10 to 94 %, 20 runs'),
    'mutual': Step(
        'experiments.run experiments/mutual_table.py --workdir {workdir}/mutual', 'mutual learning, 3 seeds'
    ),
    'long_tail': Step(
        'experiments.run experiments/long_tail_table.py --workdir {workdir}/long_tail', 'long tail, 3 seeds'
    ),
    'ternary': Step(
        'experiments.run experiments/ternary_table.py --workdir {workdir}/ternary', 'ternary, 3 seeds'
    ),
    'fusion': Step(
        'experiments.run experiments/fusion_4gpu.py --workdir {workdir}/fusion', 'experts and their fusion'
    ),
}


def device_kind() -> str:
    """What jax runs on here; asked in another process, since one that has asked keeps the memory."""
    ask = 'import jax; print(jax.devices()[0].device_kind)'
    return subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout.strip()


def finished() -> set[tuple[str, str]]:
    """(step, device) that came to their end."""
    return {(row['step'], row['device']) for row in results.read('on_gpu')}


def take(name: str, device: str, workdir: Path, deadline: float):
    """Run a step; raises `Preempted` at the deadline."""
    command = STEPS[name].command.format(workdir=workdir)
    print(f'[{name}] python -m {command}', flush=True)
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, '-m', *shlex.split(command)])
    try:
        status = process.wait(max(deadline - start, 0))
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise Preempted(f'{name} was stopped in time; the same command goes on there') from None
    seconds = time.monotonic() - start
    if status:
        raise UserError(f'{name} failed with exit status {status} after {seconds:.0f} s')
    results.append('on_gpu', [{**results.here(device), 'step': name, 'seconds': f'{seconds:.0f}'}])


def main():
    """The command line."""
    usage = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('python -m experiments.on_gpu', None, __doc__, formatter_class=usage)
    parser.add_argument('--workdir', type=Path, default=Path('runs'), help='folder of the runs (runs)')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='stop after so many')
    parser.add_argument('--only', help='steps, joined by commas')
    parser.add_argument('--list', action='store_true', help='show the steps and leave')
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes - SAVE_SECONDS
    names = args.only.split(',') if args.only else list(STEPS)
    device, done, failed = device_kind(), finished(), []
    for name in names:
        lookup('step', STEPS, name)
        state = 'done' if (name, device) in done else 'to do'
        if args.list:
            print(f'{name:14} {state:6} {STEPS[name].why}')
        elif state == 'done':
            print(f'[{name}] finished before on {device}', flush=True)
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
