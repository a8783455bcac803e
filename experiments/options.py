"""What options bring to our training step: python -m experiments.options [NETWORK [BATCH [ROUNDS]]]

Each variant is timed in turns with the step as it comes (on a GPU in bfloat16), the first of them being
that same step again, which shows what chance does. Medians over rounds by the clock, with the slowest and
fastest. GLIBC_TUNABLES=glibc.malloc.hugetlb=0 in front shows it all without huge pages. A variant's row is
appended to experiments/results/options.csv as soon as it is measured; what this version has measured on
this device is not measured again, so that the command goes on where it was stopped. The seconds to compile
are a warm process's: XLA remembers which of cuDNN's algorithms were the fastest.
"""

import math
import statistics
import time
from typing import Any
from unittest import mock

import jax
import numpy as np

from experiments import results
from experiments.augmentations import Step
from experiments.results import ON_GPU
from experiments.worker import CLASSES, noise
from jaxcifar.data.datasets import Dataset
from jaxcifar.machine.command import run_words
from jaxcifar.machine.compiler import compiler_options, knows
from jaxcifar.machine.memory import describe
from jaxcifar.models import convolution

PRECISION = 'bfloat16' if ON_GPU else 'float32'
STEPS = 32 if ON_GPU else 1  # that are timed together, if a call does not take more
MEASURED = ('ms', 'slowest', 'fastest', 'times_default', 'megabytes', 'compile_seconds')
# What XLA records in command buffers, CUDA's graphs, by itself; it leaves convolutions out, since not
# all of cuDNN's can be recorded.
RECORDED = 'FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION'
ALL = {
    'xla_gpu_enable_command_buffer': f'{RECORDED},CONVOLUTION,CONDITIONAL,WHILE',
    'xla_gpu_graph_min_graph_size': '1',
}
# What does not wait for each other may run side by side: most of all members.
CONCURRENT = {**ALL, 'xla_gpu_command_buffer_scheduling_mode': 'CONCURRENT'}

# By backend: name -> fields of the config, arguments of `jax.jit`, the least channels of Winograd's
# convolutions, and options of XLA by their names (None leaves one to XLA). What may bring a device down
# comes last.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    'cpu': {
        'default again': {},
        'bfloat16': {'precision': 'bfloat16'},
        'not donated': {'donate_argnums': ()},
        'without Winograd': {'winograd_channels': math.inf},
    },
    'gpu': {
        'default again': {},
        'float32': {'precision': 'float32'},
        'not donated': {'donate_argnums': ()},
        '4 members': {'members': 4},
        '4 steps a call': {'steps_per_call': 4},
        '16 steps a call': {'steps_per_call': 16},
        'nothing recorded': {'xla_gpu_enable_command_buffer': ''},
        'recorded from 1 operation': {'xla_gpu_graph_min_graph_size': '1'},
        'latency hiding': {'xla_gpu_enable_latency_hiding_scheduler': 'True'},
        'no autotuning': {'xla_gpu_autotune_level': '0'},
        'deterministic': {'xla_gpu_deterministic_ops': 'True'},
        'deterministic, autotuned': {'xla_gpu_exclude_nondeterministic_ops': 'True'},
        'convolutions in fusions': {'xla_gpu_experimental_enable_conv_fusion': 'True'},
        'convolutions recorded': {'xla_gpu_enable_command_buffer': f'{RECORDED},CONVOLUTION'},
        'all recorded': ALL,
        'all recorded, concurrent': CONCURRENT,
        '4 members, all recorded, concurrent': {'members': 4, **CONCURRENT},
        '16 steps a call, all recorded': {'steps_per_call': 16, **ALL},
    },
}


def variants() -> dict[str, dict[str, Any]]:
    """This backend's, and one without each of the options that the project has chosen for it."""
    without = {f'without {name}': {name: None} for name in compiler_options()}
    return VARIANTS[jax.default_backend()] | without


def of_compiler(changes: dict[str, Any]) -> dict[str, Any]:
    """Those changes that are options of XLA."""
    return {name: value for name, value in changes.items() if name.startswith('xla_')}


class Case:
    """Our compiled step with some changes, and the state that it has come to."""

    def __init__(self, network: str, size: int, changes: dict[str, Any]):
        options = compiler_options() | of_compiler(changes)
        fields = {'precision': PRECISION, 'devices': 1, **changes}
        fields = {name: value for name, value in fields.items() if name not in options}
        donated = fields.pop('donate_argnums', 0)
        self.steps = fields.get('steps_per_call', 1)
        images, labels = noise(size)
        names = tuple(map(str, range(CLASSES)))
        dataset = Dataset('noise', images, labels, images, labels, names, (0.5,) * 3, (0.25,) * 3)
        batch = {'image': images, 'label': labels}
        if self.steps > 1:
            batch = {name: np.stack([array] * self.steps) for name, array in batch.items()}
        channels = fields.pop('winograd_channels', convolution.WINOGRAD_CHANNELS)
        with mock.patch.object(convolution, 'WINOGRAD_CHANNELS', channels):
            self._compile(Step(network, dataset, jax.device_put(batch), **fields), donated, options)

    def _compile(self, made: Step, donated: int | tuple, options: dict[str, Any]):
        self.state, self.batch = made.state, made.batch
        # Made once more of the bare function: a jitted one's options can be added to, but not taken back.
        step = jax.jit(
            made.step.__wrapped__,
            donate_argnums=donated,
            compiler_options={name: value for name, value in options.items() if value is not None},
        )
        start = time.perf_counter()
        self.program = step.lower(self.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start
        self.megabytes = ''
        if memory := self.program.memory_analysis():
            # What is given away is used again for what comes out.
            sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes
            self.megabytes = f'{(sum(sizes) - memory.alias_size_in_bytes) / 1e6:.0f}'

    def milliseconds(self) -> float:
        """Of a step, the mean of some."""
        calls = max(STEPS // self.steps, 1)
        start = time.perf_counter()
        for _ in range(calls):
            self.state, row = self.program(self.state, self.batch)
        jax.block_until_ready((self.state, row))
        return 1e3 * (time.perf_counter() - start) / (calls * self.steps)


def measure(default: Case, network: str, size: int, changes: dict[str, Any], rounds: int) -> dict[str, str]:
    """What a variant's row says of it."""
    try:
        case = Case(network, size, changes)
        case.milliseconds()  # the first step is a slow one
    except RuntimeError as error:  # most of all what XLA or cuDNN cannot do, or out of memory
        return {**dict.fromkeys(MEASURED, ''), 'failed': str(error).splitlines()[0][:80]}
    turns = [(case.milliseconds(), default.milliseconds()) for _ in range(rounds)]
    times, others = zip(*turns)
    return {
        'ms': f'{statistics.median(times):.4g}',
        'slowest': f'{max(times):.4g}',
        'fastest': f'{min(times):.4g}',
        'times_default': f'{statistics.median(times) / statistics.median(others):.3f}',
        'megabytes': case.megabytes,
        'compile_seconds': f'{case.compile_seconds:.1f}',
        'failed': '',
    }


def show(row: dict[str, str]):
    """A line of the table."""
    cells = ''.join(f'{row[name]:>{len(name) + 3}}' for name in MEASURED)
    print(f'{row["variant"]:46}{cells}  {row["failed"]}', flush=True)


def main(network: str = 'resnet32', batch: str = '64', rounds: str = '5'):
    """Measure what is missing, append it and print the table."""
    here = {**results.here(), 'jax': jax.__version__, 'memory': describe()}
    here |= {'network': network, 'batch': batch}
    same = {name: here[name] for name in ('commit', 'device', 'memory', 'network', 'batch')}
    done = {row['variant']: row for row in results.read('options') if same.items() <= row.items()}
    size, default = int(batch), None
    title = f'{network}, batch {batch}, {PRECISION}'
    show({name: name for name in MEASURED} | {'variant': title, 'failed': ''})
    for name, changes in variants().items():
        if name in done:
            show(done[name])
            continue
        unknown = [o for o, v in of_compiler(changes).items() if v is not None and not knows(o, v)]
        if unknown:
            print(f'{name:46} left out: this XLA does not know {", ".join(unknown)} or its value')
            continue
        if default is None:
            default = Case(network, size, {})
            default.milliseconds()
        row = {**here, 'variant': name, **measure(default, network, size, changes, int(rounds))}
        results.append('options', [row])
        show(row)
        if row['failed']:
            default.milliseconds()  # raises where the device is lost: the rest has not failed


if __name__ == '__main__':
    run_words(main)
