"""Measure how each option changes the speed of our training step.

    python -m experiments.bench.options [NETWORK [BATCH [ROUNDS [VARIANTS]]]]

Each variant is timed in turns with the default step (on a GPU in bfloat16). The first variant is the default
step again, which shows the noise. Medians are over rounds by the wall clock, with the slowest and fastest.
VARIANTS are names or patterns joined by semicolons (all). Prefix the command with
GLIBC_TUNABLES=glibc.malloc.hugetlb=0 to measure without huge pages. A variant's row is appended to
experiments/results/options.csv as soon as it is measured. Rows that this version has measured on this device
are skipped, so that the same command continues where it was stopped. The seconds to compile are those of a
warm process: XLA remembers which of cuDNN's algorithms were the fastest.
"""

import math
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from unittest import mock

import jax

from configs import single
from experiments import results
from experiments.bench.ours import ALL, RECORDED, OurStep, noise_dataset
from experiments.bench.turns import Times, take_turns
from experiments.results import ON_GPU
from jaxcifar.machine.command import run_words
from jaxcifar.machine.compiler import compiler_options, knows
from jaxcifar.machine.memory import describe
from jaxcifar.models import convolution

PRECISION = 'bfloat16' if ON_GPU else 'float32'
STEPS = 32 if ON_GPU else 1  # that are timed together, if a call does not take more
MEASURED = ('ms', 'slowest', 'fastest', 'times_default', 'megabytes', 'compile_seconds')
# Independent operations may run side by side, above all those of different members.
CONCURRENT = {**ALL, 'xla_gpu_command_buffer_scheduling_mode': 'CONCURRENT'}

# By backend: name -> fields of the config, `donated` of `OurStep`, the least channels of Winograd's
# convolutions, and options of XLA by their names (None leaves one to XLA). What may bring a device down
# comes last. Options that change how XLA chooses cuDNN's algorithms cannot be compared here: it remembers
# those of the first program in the process.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    'cpu': {
        'default again': {},
        'bfloat16': {'precision': 'bfloat16'},
        'not donated': {'donated': ()},
        'without Winograd': {'winograd_channels': math.inf},
    },
    'gpu': {
        'default again': {},
        'float32': {'precision': 'float32'},
        'not donated': {'donated': ()},
        '4 members': {'members': 4},
        '8 steps a call': {'steps_per_call': 8},
        '32 steps a call': {'steps_per_call': 32},
        'nothing recorded': {'xla_gpu_enable_command_buffer': ''},
        'recorded from 1 operation': {'xla_gpu_graph_min_graph_size': '1'},
        'latency hiding': {'xla_gpu_enable_latency_hiding_scheduler': 'True'},
        'convolutions in fusions': {'xla_gpu_experimental_enable_conv_fusion': 'True'},
        'convolutions recorded': {'xla_gpu_enable_command_buffer': f'{RECORDED},CONVOLUTION'},
        '1 step a call, all recorded': {'steps_per_call': 1, **ALL},
        'all recorded, unrolled': {**ALL, 'xla_gpu_command_buffer_unroll_loops': 'True'},
        'all recorded': ALL,
        'all recorded, concurrent': CONCURRENT,
        '4 members, all recorded, concurrent': {'members': 4, **CONCURRENT},
        '32 steps a call, all recorded': {'steps_per_call': 32, **ALL},
    },
}


def variants(patterns: str) -> dict[str, dict[str, Any]]:
    """Return this backend's variants that match a pattern, in the order of the patterns.

    For each option that the project has chosen for this backend, there is also a variant without it.
    """
    without = {f'without {name}': {name: None} for name in compiler_options()}
    named = VARIANTS[jax.default_backend()] | without
    return {name: named[name] for p in patterns.split(';') for name in named if fnmatchcase(name, p)}


def of_compiler(changes: dict[str, Any]) -> dict[str, Any]:
    """Return those changes that are options of XLA."""
    return {name: value for name, value in changes.items() if name.startswith('xla_')}


def build(network: str, batch: int, changes: dict[str, Any]) -> OurStep:
    """Return our compiled step with some changes."""
    own = of_compiler(changes)
    fields = {name: value for name, value in changes.items() if name not in own}
    donated = fields.pop('donated', 0)
    channels = fields.pop('winograd_channels', convolution.WINOGRAD_CHANNELS)
    config = single.get_config(f'{network},cifar100')
    defaults = {'augment': 'none', 'batch_size': batch, 'devices': 1, 'precision': PRECISION}
    config.update_from_flattened_dict({**defaults, **fields})
    with mock.patch.object(convolution, 'WINOGRAD_CHANNELS', channels):
        options = compiler_options() | own if own else None
        return OurStep(config, noise_dataset(batch), donated=donated, options=options)


def measure(default: OurStep, network: str, batch: int, changes: dict[str, Any], rounds: int):
    """Return what a variant's row says of it."""
    try:
        step = build(network, batch, changes)
    except RuntimeError as error:  # most of all what XLA or cuDNN cannot do, or out of memory
        return {**dict.fromkeys(MEASURED, ''), 'failed': str(error).splitlines()[0][:80]}
    turns = {'default': partial(default.turn, STEPS), 'variant': partial(step.turn, STEPS)}
    times: Times = dict(take_turns(turns, rounds, warm=1))['variant']
    if failed := times.failed or times.base.failed:
        return {**dict.fromkeys(MEASURED, ''), 'failed': failed}
    fastest, slowest = times.spread('ms')
    return {
        'ms': f'{times.median("ms"):.4g}',
        'slowest': f'{slowest:.4g}',
        'fastest': f'{fastest:.4g}',
        'times_default': f'{times.ratio("ms"):.3f}',
        'megabytes': step.megabytes(),
        'compile_seconds': f'{step.compile_seconds:.1f}',
        'failed': '',
    }


def show(row: dict[str, str]):
    """Print a line of the table."""
    cells = ''.join(f'{row[name]:>{len(name) + 3}}' for name in MEASURED)
    print(f'{row["variant"]:46}{cells}  {row["failed"]}', flush=True)


def main(network: str = 'resnet32', batch: str = '64', rounds: str = '5', patterns: str = '*'):
    """Measure what is missing, append it and print the table."""
    here = {**results.here(), 'jax': jax.__version__, 'memory': describe()}
    here |= {'network': network, 'batch': batch}
    same = {name: here[name] for name in ('commit', 'device', 'memory', 'network', 'batch')}
    done = {row['variant']: row for row in results.read('options') if same.items() <= row.items()}
    size, default = int(batch), None
    title = f'{network}, batch {batch}, {PRECISION}'
    show({name: name for name in MEASURED} | {'variant': title, 'failed': ''})
    for name, changes in variants(patterns).items():
        if name in done:
            show(done[name])
            continue
        unknown = [o for o, v in of_compiler(changes).items() if v is not None and not knows(o, v)]
        if unknown:
            print(f'{name:46} left out: this XLA does not know {", ".join(unknown)} or its value')
            continue
        default = default or build(network, size, {})
        row = {**here, 'variant': name, **measure(default, network, size, changes, int(rounds))}
        results.append('options', [row])
        show(row)
        if row['failed']:
            default.check_alive()


if __name__ == '__main__':
    run_words(main)
