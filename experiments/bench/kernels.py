"""Count the kernels that a training step launches on a GPU, without one.

    python -m experiments.bench.kernels single:resnet32,cifar100 --precision bfloat16

XLA's own compiler for GPUs compiles the step for one H200. The command prints groups of equal kernels, those
with the longest times first, and appends the totals to experiments/results/kernels.csv. The times are XLA's
estimates. They leave out launches, copies, and what libraries compute. Nothing is tuned, unlike on a GPU. The
images are random, of 100 classes and of the config's size. The command needs JAX's plug-in for GPUs, in the
version of jax:

    pip install --no-deps --target plugin jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION
    export PYTHONPATH=plugin JAX_PLATFORMS=cpu
"""

import re
import sys
import time
from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from experiments import results
from experiments.bench.ours import first_batch, megabytes, noise_dataset
from jaxcifar.config.command_line import parse_about
from jaxcifar.data import splits
from jaxcifar.engine import step as engine_step
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.machine.command import asked_for_help, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 l2_cache_size: 52428800
  memory_bandwidth: 4800000000000 device_memory_size: 150000000000 clock_rate_ghz: 1.98
  cuda_compute_capability { major: 9 } device_vendor: "NVIDIA Corporation" name: "NVIDIA H200"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
"""
OPTIONS = {'xla_gpu_autotune_level': '0', 'xla_gpu_collect_cost_model_stats': 'True'}
SHOWN = 12  # groups of kernels
COMPUTATION = re.compile(r'^(?:ENTRY )?%?[\w.\-]+ \(.*?\{\n.*?^\}', re.MULTILINE | re.DOTALL)
KERNEL = re.compile(
    r'^\s+(?:ROOT )?%?([\w.\-]+) = \(?(\w+\[[\d,]*\]).*? (fusion|custom-call|copy)\(', re.MULTILINE
)
TIME = r'"exec_time_us":([\d.]+)[^}]*"name":"%s'


class Kernel(NamedTuple):
    """Hold what a program says of one of its kernels."""

    kind: str  # fusion, custom-call or copy
    name: str
    shape: str  # of its first output
    operation: str  # the last operation in it, as JAX names it
    microseconds: float  # as XLA expects; 0 for calls of libraries


def read_kernels(text: str) -> list[Kernel]:
    """Return the kernels of one step from a compiled program's text: the body of its loop, if it has one."""
    body = max(COMPUTATION.findall(text), key=lambda part: len(KERNEL.findall(part)))
    kernels = []
    for line in body.splitlines():
        if found := KERNEL.match(line):
            name, shape, kind = found.groups()
            operation = re.search(r'op_name="([^"]*)"', line)
            # For Triton's kernels the first estimate knows only their sizes; the other one knows their loops.
            estimate = re.search(TIME % 'indexing', line) if '"__triton' in line else None
            estimate = estimate or re.search(TIME % '', line)
            words = operation[1].split('/')[-3:] if operation else []
            microseconds = float(estimate[1]) if estimate and kind != 'custom-call' else 0.0
            kernels.append(Kernel(kind, name.rstrip('.0123456789'), shape, '/'.join(words), microseconds))
    return kernels


def find_card():
    """Return an H200 to compile for; raises `UserError` without the plug-in of this version."""
    parts = ' '.join(f'jax-cuda13-{part}=={jax.__version__}' for part in ('plugin', 'pjrt'))
    remedy = f'pip install --no-deps --target plugin {parts}, then PYTHONPATH=plugin'
    try:
        found = version('jax-cuda13-pjrt')
    except PackageNotFoundError:
        found = 'none'
    if found != jax.__version__:
        raise UserError(f"expected JAX's plug-in for GPUs of version {jax.__version__}, got {found}", remedy)
    return topologies.get_topology_desc('', 'cuda', target_config=H200, topology='1x1x1').devices[0]


def compile_for_gpu(config: ConfigDict):
    """Return (the step's program, the finalised config); `UserError` as from `find_card`."""
    mesh = Mesh(np.array([[find_card()]]), ('member', 'data'), axis_types=(AxisType.Auto,) * 2)
    config.devices = 1
    with (
        mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
        mock.patch.object(engine_step, 'compiler_options', lambda: OPTIONS),
    ):
        config = finalize(config)
        dataset = noise_dataset(2 * config.batch_size, config.data.image_size)
        size = dataset.num_classes, dataset.image_size
        here, there = (Population(config, *size, mesh) for mesh in (make_mesh(config), mesh))
        images = dataset.normalised(np.arange(config.batch_size)) if here.needs_images else None

        def placed(x, *lead: int):
            dtype = jax.dtypes.canonicalize_dtype(x.dtype)
            return jax.ShapeDtypeStruct((*lead, *x.shape), dtype, sharding=there.sharding())

        state = jax.tree.map(placed, init_state(config, here, images))
        own = config.data.order == 'member' or splits.population(config) is not None
        lead = [config.steps_per_call] * (config.steps_per_call > 1) + [config.members] * own
        batch = {name: placed(x, *lead) for name, x in first_batch(dataset, config.batch_size).items()}
        step = engine_step.make_train_step(config, there, dataset, 100, state)
        return step.trace(state, batch).lower().compile(), config


def show(kernels: list[Kernel]):
    """Print the groups of equal kernels that XLA expects to take the longest."""
    groups: dict[tuple, list[float]] = defaultdict(list)
    for kernel in kernels:
        operation = re.sub(r'\d+', 'N', kernel.operation)  # layers differ only in their numbers
        groups[kernel.name, kernel.shape, operation].append(kernel.microseconds)
    print('number  µs in all  output                    kernel')
    for (name, shape, operation), times in sorted(groups.items(), key=lambda g: -sum(g[1]))[:SHOWN]:
        print(f'{len(times):6}{sum(times):11.1f}  {shape:24}  {name}  {operation}')


def main():
    """Run the command line."""
    if asked_for_help(__doc__):
        return
    start = time.perf_counter()
    config, _ = parse_about(sys.argv, 'unused')
    program, config = compile_for_gpu(config)
    text = program.as_text()
    kernels = read_kernels(text)
    kinds = Counter(kernel.kind for kernel in kernels)
    row = {**results.here('NVIDIA H200, not run'), 'jax': jax.__version__}
    row |= {name: config[name] for name in ('network', 'members', 'coupling', 'view', 'precision')}
    row |= {'batch': config.batch_size, 'steps_per_call': config.steps_per_call, 'kernels': len(kernels)}
    row |= {'calls': kinds['custom-call'], 'copies': kinds['copy']}
    expected = round(sum(kernel.microseconds for kernel in kernels))
    row |= {'expected_us': expected, 'megabytes': megabytes(program)}
    results.append('kernels', [row])
    show(kernels)
    print(
        f'{len(kernels)} kernels a step, {kinds["custom-call"]} of libraries; XLA expects {expected} µs for '
        f'the others; {row["megabytes"]} MB; {config.steps_per_call} steps a call; compiled in '
        f'{time.perf_counter() - start:.0f} s'
    )


if __name__ == '__main__':
    run_command(main)
