"""The training step beside PyTorch's: python -m experiments.bench [NETWORK…] [--batch 128,512]

For each network and batch, in one process and in turn: our compiled step, the same layers in plain Flax
Linen, and PyTorch in each of its forms (`WAYS`). On a CPU the process is pinned to one core and its
CPU time is taken, so that other programs disturb little, and batches are those of a step of some 30
GFLOP; on a GPU the time on the wall. Rates are medians of the rounds, with the slowest and fastest.

Rows are appended to experiments/results/bench.csv; what this version has measured on this device is
not measured again, so that the command goes on where it was stopped. The picture, bench.png, is
drawn from the newest rows. `python -m experiments.bench start_up` measures the seconds to initialise and
compile alone, of all networks, into start_up.csv.
"""

import os

os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '.45')  # the rest of a GPU is PyTorch's

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from experiments import results
from experiments.results import ON_GPU, clock
from experiments.steps import CLASSES, Step, linen, noise, ours, pytorch
from experiments.torch_networks import TORCH
from jaxcifar.cli import run_command
from jaxcifar.errors import lookup
from jaxcifar.models import NETWORKS
from jaxcifar.models.__main__ import describe
from jaxcifar.profile import PEAK

CHOSEN = ('resnet18', 'resnet32', 'wideresnet28_10', 'densenet121', 'resnext29_8x64d', 'mobilenetv2')
ROUNDS, STEPS = (7, 20) if ON_GPU else (5, 1)
GRAPHS = {'compile, graphs': partial(pytorch, compiled='reduce-overhead')} if ON_GPU else {}
COMPILED = {'compile': partial(pytorch, compiled='default'), **GRAPHS}
WAYS: dict[str, Callable[[str, dict], Step]] = {
    'ours': ours,
    'ours bf16': partial(ours, precision='bfloat16'),
    'linen': linen,
    'torch': pytorch,
    'torch channels_last': partial(pytorch, channels_last=True),
    'torch channels_last bf16': partial(pytorch, channels_last=True, bfloat16=True),
    **{f'torch {how}': make for how, make in COMPILED.items()},
    **{f'torch {how} channels_last': partial(make, channels_last=True) for how, make in COMPILED.items()},
    **{
        f'torch {how} channels_last bf16': partial(make, channels_last=True, bfloat16=True)
        for how, make in COMPILED.items()
    },
}


def cpu_batch(name: str) -> int:
    """The power of two, up to 128, whose step is some 30 GFLOP."""
    images = 30e9 / 3 / describe(name, CLASSES)['flops']
    return int(2 ** np.clip(np.log2(images).round(), 2, 7))


def peak_flops() -> float:
    """Of the device: bfloat16 by its data sheet, or else float32 products of matrices as measured."""
    kind = jax.devices()[0].device_kind
    if kind in PEAK:
        return PEAK[kind]
    a = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    times = []
    for _ in range(6):
        start = clock()
        jax.block_until_ready(product(a))
        times.append(clock() - start)
    return 2 * 1024**3 / statistics.median(times[1:])


def measure(name: str, batch_size: int, peak: float) -> list[dict]:
    """A row for each way."""
    batch, steps, failed = noise(batch_size), dict[str, Step](), dict[str, str]()
    for way, make in WAYS.items():
        try:
            steps[way] = make(name, batch)
            steps[way].take(STEPS)
        except (RuntimeError, jax.errors.JaxRuntimeError) as error:  # most of all, out of memory
            steps.pop(way, None)
            failed[way] = str(error).splitlines()[0][:80]
    rates: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(ROUNDS):
        for way, step in steps.items():
            start = clock()
            step.take(STEPS)
            rates[way].append(STEPS * batch_size / (clock() - start))
    torch.compiler.reset()
    flops = steps['ours'].flops / batch_size if 'ours' in steps else float('nan')
    common = results.here_pinned()
    common |= {'jax': jax.__version__, 'torch': torch.__version__, 'network': name, 'batch': batch_size}
    rows = []
    for way in WAYS:
        done = steps.get(way)
        rate = statistics.median(rates[way]) if done else float('nan')
        rows.append({
            **common,
            'way': way,
            'images_per_second': f'{rate:.4g}',
            'slowest': f'{min(rates[way]):.4g}' if done else '',
            'fastest': f'{max(rates[way]):.4g}' if done else '',
            'share_of_peak': f'{rate * flops / peak:.3f}',
            'peak_gflops': f'{peak / 1e9:.0f}',
            'megabytes': known(done.bytes / 1e6, '.0f') if done else '',
            'compile_seconds': known(done.compile_seconds, '.1f') if done else '',
            'failed': failed.get(way, ''),
        })  # fmt: skip
    return rows


def known(value: float, form: str) -> str:
    """The number, or nothing where it is not known."""
    return '' if np.isnan(value) else format(value, form)


def best(rows: list[dict], start: str) -> dict:
    """The fastest of the ways whose names begin so."""
    own = [r for r in rows if r['way'].startswith(start) and not r['failed']]
    return max(own, key=lambda r: float(r['images_per_second']))


def line(rows: list[dict]) -> list[str]:
    """A network and batch in the table that is printed."""
    by_way = {r['way']: r for r in rows}
    mine, theirs = best(rows, 'ours'), best(rows, 'torch')
    float32 = [r for r in rows if 'bf16' not in r['way']]
    ratios = [
        float(best(some, 'ours')['images_per_second']) / float(best(some, 'torch')['images_per_second'])
        for some in (rows, float32)
    ]
    cells = [mine['network'], str(mine['batch'])]
    cells += [by_way[way]['images_per_second'] for way in ('ours', 'ours bf16', 'linen', 'torch')]
    cells += [
        theirs['images_per_second'],
        theirs['way'].removeprefix('torch '),
        *(f'{r:.2f}' for r in ratios),
    ]
    return [*cells, mine['share_of_peak'], mine['megabytes'], theirs['megabytes'], mine['compile_seconds']]


COLUMNS = (
    'network', 'batch', 'ours', 'ours bf16', 'Linen', 'torch', 'torch best', 'which', 'ours/best',
    'of float32', 'of peak', 'MB ours', 'MB torch', 'compile s',
)  # fmt: skip


def draw(groups: list[list[dict]]):
    """Bars: our best rate over PyTorch's best."""
    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    names = [f'{rows[0]["network"]}, {rows[0]["batch"]}' for rows in groups]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.35 * len(groups)), layout='constrained')
    for way, colour, offset in (('ours', 'tab:blue', -0.2), ('linen', 'tab:gray', 0.2)):
        rates = [float(best(rows, way)['images_per_second']) for rows in groups]
        theirs = [float(best(rows, 'torch')['images_per_second']) for rows in groups]
        places = np.arange(len(groups)) + offset
        axes.barh(places, np.divide(rates, theirs), 0.4, color=colour, label=way)
    axes.axvline(1, color='black', linewidth=1)
    axes.set_yticks(range(len(groups)), names)
    axes.invert_yaxis()
    row = groups[0][0]
    axes.set_xlabel("images/s as a share of PyTorch's fastest form")
    axes.set_title(f'{row["device"]}, {row["machine"]}; jax {row["jax"]}, torch {row["torch"]}', fontsize=8)
    axes.legend()
    figure.savefig(results.FOLDER / 'bench.png', dpi=120)
    plt.close(figure)


def start_up(names: list[str]):
    """Measure, keep and print how long our step takes to begin, at a batch of 8."""
    print(f'{"network":24} seconds to initialise  to compile')
    for name in names or NETWORKS:
        step = ours(name, noise(8))
        row = {**results.here_pinned(), 'jax': jax.__version__, 'network': name}
        row |= {'init_seconds': round(step.init_seconds, 2)}
        results.append('start_up', [row | {'compile_seconds': round(step.compile_seconds, 1)}])
        print(f'{name:24} {step.init_seconds:21.2f} {step.compile_seconds:11.1f}', flush=True)


def main():
    """Measure what is missing and print the table."""
    usage = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('python -m experiments.bench', None, __doc__, formatter_class=usage)
    parser.add_argument('networks', nargs='*', help='start_up, or networks: ' + ', '.join(CHOSEN))
    parser.add_argument('--batch', help='batch sizes (128,512 on a GPU; steps of 30 GFLOP on a CPU)')
    args = parser.parse_args()
    if args.networks[:1] == ['start_up']:
        return start_up(args.networks[1:])
    here, peak, groups = results.here(), peak_flops(), []
    batch_sizes = args.batch or ('128,512' if ON_GPU else '')
    rows = results.read('bench')
    table = Table(*COLUMNS, box=None)
    for name in args.networks or CHOSEN:
        lookup('network', TORCH, name)
        for size in map(int, batch_sizes.split(',')) if batch_sizes else [cpu_batch(name)]:
            same = {'commit': here['commit'], 'device': here['device'], 'network': name, 'batch': str(size)}
            group = [r for r in rows if same.items() <= r.items()]
            if not group:
                print(f'{name}, batch {size} …', flush=True)
                group = measure(name, size, peak)
                results.append('bench', group)
            groups.append(group)
            table.add_row(*line(group))
    Console(width=160).print(table)
    draw(groups)
    return None


if __name__ == '__main__':
    results.pin()
    run_command(main)
