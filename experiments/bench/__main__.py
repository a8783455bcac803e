"""Put the training step beside PyTorch's: python -m experiments.bench [NETWORK…] [--batch 128,512]

Times, for each network and batch, our compiled step, the same layers in plain Flax Linen, and PyTorch in
each of its forms. Each runs in its own process on all cores, by the wall clock. On a CPU all processes are
alive together and take turns, so that a disturbance affects them all; a batch makes a step of some 100 GFLOP,
but is at least 16. A GPU's memory does not hold them all, so they run one after another; the series runs
--passes times, from the second on with what the first has compiled. Rates are medians of the turns, with the
slowest and fastest. Compile seconds are those of the first pass. Memory is the peak: of the GPU, or of the
process above its imports, compilation included. Run nothing else: PyTorch's threads wait for each other by
spinning, and beside another program its steps take many times as long.

A row is appended to experiments/results/bench.csv after the last turn. Rows that this version has measured on
this device are skipped, so that the same command continues where it was stopped. The picture, bench.png, is
drawn from the newest rows. `python -m experiments.bench start_up` measures only the seconds to initialise and
to compile, for all networks, into start_up.csv.
"""

import argparse
import tempfile
import time
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments import results
from experiments.bench import compare, comparison
from experiments.bench.steps import ours
from experiments.bench.worker import CLASSES, Worker
from experiments.results import ON_GPU
from jaxcifar.machine.command import command_parser, run_command
from jaxcifar.machine.errors import Preempted, UserError, lookup
from jaxcifar.models import NETWORKS
from jaxcifar.models.__main__ import describe

CHOSEN = ('resnet18', 'resnet32', 'wideresnet28_10', 'densenet121', 'resnext29_8x64d', 'mobilenetv2')


def cpu_batch(name: str) -> int:
    """Return the power of two from 16 to 128 whose step is some 100 GFLOP."""
    # A step is about three forward passes: forward, and both gradients of each product.
    images = 100e9 / 3 / describe(name, CLASSES)['flops']
    return int(2 ** np.clip(np.log2(images).round(), 4, 7))


def start_up(names: list[str]):
    """Measure, append and print how long our step takes to begin, at a batch of 8."""
    print(f'{"network":24} seconds to initialise  to compile')
    for name in names or NETWORKS:
        took = ours(name, 8).report
        row = {**results.here(), 'jax': version('jax'), 'network': name}
        row |= {'init_seconds': round(took['init_seconds'], 2)}
        results.append('start_up', [row | {'compile_seconds': round(took['compile_seconds'], 1)}])
        print(f'{name:24} {took["init_seconds"]:21.2f} {took["compile_seconds"]:11.1f}', flush=True)


def chosen_ways(patterns: str) -> list[str]:
    """Return the ways that match any of these names or patterns, joined by commas."""
    ways: dict[str, None] = {}
    for pattern in patterns.split(','):
        fitting = [way for way in compare.WAYS if fnmatchcase(way, pattern)]
        if not fitting:
            raise UserError(
                f'expected ways of {", ".join(compare.WAYS)}, or patterns as torch*; got {pattern}'
            )
        ways |= dict.fromkeys(fitting)
    return list(ways)


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = command_parser('experiments.bench', __doc__)
    parser.add_argument('networks', nargs='*', help='start_up, or networks: ' + ', '.join(CHOSEN))
    parser.add_argument('--batch', help='batch sizes (128,512 on a GPU; steps of 100 GFLOP on a CPU)')
    parser.add_argument('--ways', default='*', help='ways or patterns joined by commas, as ours,torch* (all)')
    parser.add_argument('--passes', type=int, default=compare.PASSES, help=f'({compare.PASSES})')
    parser.add_argument(
        '--rounds', type=int, default=compare.ROUNDS, help=f'turns of each ({compare.ROUNDS})'
    )
    parser.add_argument(
        '--seconds', type=float, default=compare.SECONDS, help=f"a turn's ({compare.SECONDS})"
    )
    parser.add_argument('--budget', type=float, default=np.inf, help='seconds after which no way begins')
    return parser.parse_args()


def main():
    """Measure what is missing and print the table."""
    args = parse()
    if args.networks[:1] == ['start_up']:
        return start_up(args.networks[1:])
    ways, until = chosen_ways(args.ways), time.monotonic() + args.budget
    plan = compare.Plan(args.passes, args.rounds, args.seconds, until)
    if min(plan.passes, plan.rounds) < 1:
        raise UserError(f'--passes and --rounds must be at least 1, got {args.passes} and {args.rounds}')
    names = args.networks or CHOSEN
    # All names are checked before minutes of measuring begin.
    for name in names:
        lookup('network', NETWORKS, name)
    # The device is asked in a process that ends: one that has asked keeps a GPU's memory.
    with tempfile.TemporaryDirectory() as folder, Worker(compare.DEVICE, Path(folder)) as worker:
        device = worker.answer()
    here, groups = results.here(device['kind']), []
    # A GPU's step has to fill it; a CPU's must end within a second or so.
    sizes = args.batch or ('128,512' if ON_GPU else '')
    missing: list[str] = []
    for name in names:
        for size in map(int, sizes.split(',')) if sizes else [cpu_batch(name)]:
            job = compare.Job(name, size, here, device['peak'])
            if rows := compare.rows_of(job, ways, plan):
                groups.append(rows)
            missing += [f'{way} of {name}' for way in ways if way not in {row['way'] for row in rows}]
    Console(width=160).print(comparison.table(groups))
    # The picture shows older rows of this machine too, so it does not shrink with --ways.
    if pictured := comparison.newest(results.read('bench'), here):
        comparison.draw(pictured)
    if missing:
        raise Preempted(
            f'no time was left for {", ".join(missing)}; the same command measures what is missing'
        )
    return None


if __name__ == '__main__':
    run_command(main)
