"""The training step beside PyTorch's: python -m experiments.bench [NETWORK…] [--batch 128,512]

For each network and batch: our compiled step, the same layers in plain Flax Linen, and PyTorch in each of
its forms (`WAYS`), each in a process of its own, on all cores, by the clock. On a CPU all are alive
together and take turns, so that what disturbs one disturbs all; batches are those of a step of some 100
GFLOP, at least 16. A GPU's memory does not hold them all: they come one after another, and the whole
series runs twice, the second time with what the first has compiled. Rates are medians of the turns, with
the slowest and fastest; compile seconds are those of a first time. Memory is the peak: of a GPU's, or
what the process has come to above its imports, compiling included. Let nothing else run: PyTorch's
threads wait for each other by spinning, and beside another program its steps take many times as long.

Rows are appended to experiments/results/bench.csv; what this version has measured on this device is
not measured again, so that the command goes on where it was stopped. The picture, bench.png, is
drawn from the newest rows. `python -m experiments.bench start_up` measures the seconds to initialise and
compile alone, of all networks, into start_up.csv.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments import comparison, results
from experiments.comparison import known
from experiments.results import ON_GPU
from experiments.steps import ours
from experiments.worker import CLASSES, Worker, WorkerError
from jaxcifar.machine.command import run_command
from jaxcifar.machine.errors import lookup
from jaxcifar.models import NETWORKS
from jaxcifar.models.__main__ import describe

CHOSEN = ('resnet18', 'resnet32', 'wideresnet28_10', 'densenet121', 'resnext29_8x64d', 'mobilenetv2')
TOGETHER = not ON_GPU  # whether the processes of all ways are alive at once
PASSES, ROUNDS, SECONDS = (2, 4, 0.5) if ON_GPU else (1, 7, 1)  # of a turn, some
PAUSE = 0 if ON_GPU else 0.3  # seconds in which the spinning threads of the one before go to sleep
DEVICE, OURS, LINEN = 'experiments.steps:device', 'experiments.steps:ours', 'experiments.steps:linen'
TORCH = 'experiments.torch_steps:pytorch'
LAST = {'channels_last': True}
COMPILED = {'compile': 'default', **({'compile, graphs': 'reduce-overhead'} if ON_GPU else {})}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # what `Worker` is given
    'ours': (OURS, {}),
    'ours bf16': (OURS, {'precision': 'bfloat16'}),
    'linen': (LINEN, {}),
    'torch': (TORCH, {}),
    'torch channels_last': (TORCH, LAST),
    'torch channels_last bf16': (TORCH, {**LAST, 'bfloat16': True}),
    # On a CPU torch.compile goes to channels_last by itself, with minutes of compiling.
    **({f'torch {how}': (TORCH, {'compiled': mode}) for how, mode in COMPILED.items()} if ON_GPU else {}),
    **{f'torch {how} channels_last': (TORCH, {**LAST, 'compiled': mode}) for how, mode in COMPILED.items()},
    **{
        f'torch {how} channels_last bf16': (TORCH, {**LAST, 'compiled': mode, 'bfloat16': True})
        for how, mode in COMPILED.items()
    },
}


@dataclass
class Measured:
    """What is known of a way."""

    report: dict[str, float] = field(default_factory=dict)  # of the first pass
    rates: list[float] = field(default_factory=list)  # images a second, of each turn
    bytes: float = float('nan')  # of the last pass, in which a GPU's has nothing to compile
    failed: str = ''

    @contextmanager
    def noting_failure(self):
        """Its worker may fail within: the others go on."""
        try:
            yield
        except WorkerError as error:
            self.failed = str(error)


def measure(network: str, batch: int) -> dict[str, Measured]:
    """All ways."""
    found = {way: Measured() for way in WAYS}
    groups = [list(WAYS)] if TOGETHER else [[way] for way in WAYS]
    with tempfile.TemporaryDirectory() as folder:
        for group in groups * PASSES:
            take_turns({way: found[way] for way in group}, network, batch, Path(folder))
    return found


def take_turns(group: dict[str, Measured], network: str, batch: int, folder: Path):
    """Those of a group that work are alive together, and each takes a turn in every round."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for way, found in group.items():
            make, options = WAYS[way]
            if not found.failed:
                own = folder / way.replace(' ', '_')  # a C++ compiler's words end at a blank
                worker = Worker(make, own, network=network, batch=batch, **options)
                workers[way] = stack.enter_context(worker)
                with found.noting_failure():  # before the next is started, which would slow its compiler
                    found.report = worker.answer() | found.report
        for _ in range(ROUNDS):
            for way, worker in workers.items():
                found = group[way]
                if not found.failed:
                    time.sleep(PAUSE)
                    with found.noting_failure():
                        turn = worker.turn(SECONDS)
                        found.rates.append(turn['steps'] * batch / turn['seconds'])
                        found.bytes = turn['bytes']


def to_rows(common: dict, found: dict[str, Measured], peak: float) -> list[dict[str, str]]:
    """A row for each way."""
    flops = next((m.report['flops'] for m in found.values() if 'flops' in m.report), float('nan'))
    rows = []
    for way, measured in found.items():
        rates = measured.rates if not measured.failed else [float('nan')]
        rate = statistics.median(rates)
        rows.append({
            **common,
            'way': way,
            'images_per_second': known(rate, '.4g'),
            'slowest': known(min(rates), '.4g'),
            'fastest': known(max(rates), '.4g'),
            'share_of_peak': known(rate * flops / common['batch'] / peak, '.3f'),
            'peak_gflops': f'{peak / 1e9:.0f}',
            'megabytes': known(measured.bytes / 1e6, '.0f'),
            'compile_seconds': known(measured.report.get('compile_seconds', float('nan')), '.1f'),
            'failed': measured.failed,
        })  # fmt: skip
    return rows


def cpu_batch(name: str) -> int:
    """The power of two from 16 to 128 whose step is some 100 GFLOP."""
    images = 100e9 / 3 / describe(name, CLASSES)['flops']
    return int(2 ** np.clip(np.log2(images).round(), 4, 7))


def start_up(names: list[str]):
    """Measure, keep and print how long our step takes to begin, at a batch of 8."""
    print(f'{"network":24} seconds to initialise  to compile')
    for name in names or NETWORKS:
        took = ours(name, 8).report
        row = {**results.here(), 'jax': version('jax'), 'network': name}
        row |= {'init_seconds': round(took['init_seconds'], 2)}
        results.append('start_up', [row | {'compile_seconds': round(took['compile_seconds'], 1)}])
        print(f'{name:24} {took["init_seconds"]:21.2f} {took["compile_seconds"]:11.1f}', flush=True)


def main():
    """Measure what is missing and print the table."""
    usage = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('python -m experiments.bench', None, __doc__, formatter_class=usage)
    parser.add_argument('networks', nargs='*', help='start_up, or networks: ' + ', '.join(CHOSEN))
    parser.add_argument('--batch', help='batch sizes (128,512 on a GPU; steps of 100 GFLOP on a CPU)')
    args = parser.parse_args()
    if args.networks[:1] == ['start_up']:
        return start_up(args.networks[1:])
    names = args.networks or CHOSEN
    for name in names:
        lookup('network', NETWORKS, name)
    with tempfile.TemporaryDirectory() as folder, Worker(DEVICE, Path(folder)) as worker:
        device = worker.answer()
    here, groups = results.here(device['kind']), []
    sizes = args.batch or ('128,512' if ON_GPU else '')
    for name in names:
        for size in map(int, sizes.split(',')) if sizes else [cpu_batch(name)]:
            groups.append(rows_of(name, size, here, device['peak']))
    Console(width=160).print(comparison.table(groups))
    comparison.draw(comparison.newest(results.read('bench'), here))
    return None


def rows_of(network: str, batch: int, here: dict, peak: float) -> list[dict[str, str]]:
    """Those that are there already, or else measured now."""
    same = {key: here[key] for key in ('commit', 'device', 'machine')}
    same |= {'network': network, 'batch': str(batch)}
    rows = [row for row in results.read('bench') if same.items() <= row.items()]
    if not rows:
        print(f'{network}, batch {batch} …', flush=True)
        common = {
            **here,
            'jax': version('jax'),
            'torch': version('torch'),
            'network': network,
            'batch': batch,
        }
        rows = to_rows(common, measure(network, batch), peak)
        for row in rows:
            if row['failed']:
                print(f'{row["way"]} failed: {row["failed"]}', flush=True)
        results.append('bench', rows)
    return rows


if __name__ == '__main__':
    run_command(main)
