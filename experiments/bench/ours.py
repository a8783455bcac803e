"""Build our training step on a batch already on the device, for all programs that measure it."""

import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.bench.worker import CLASSES, noise
from jaxcifar.data.datasets import Dataset
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import formats, init_state
from jaxcifar.engine.step import make_train_step
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.profile import count_flops
from jaxcifar.runs.resolve import finalize

# What XLA records in command buffers, CUDA's graphs, by itself; it leaves convolutions out, since not
# all of cuDNN's can be recorded.
RECORDED = 'FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION'
ALL = {  # the whole step is one graph then
    'xla_gpu_enable_command_buffer': f'{RECORDED},CONVOLUTION,CONDITIONAL,WHILE',
    'xla_gpu_graph_min_graph_size': '1',
}


def noise_dataset(count: int, size: int = 32) -> Dataset:
    """Return a data set of `count` random images of `size` pixels in CLASSES classes."""
    images, labels = noise(count, size)
    names = tuple(map(str, range(CLASSES)))
    return Dataset('noise', images, labels, images, labels, names, (0.5,) * 3, (0.25,) * 3)


def first_batch(dataset: Dataset, count: int) -> dict[str, np.ndarray]:
    """Return the first `count` training images as the loaders give them to a step."""
    # Augmentations that alternate between epochs look at the images' numbers.
    index = np.arange(count)
    return {'image': np.asarray(dataset.x_train[index]), 'label': dataset.y_train[index], 'index': index}


class OurStep:
    """Hold our compiled step, the one batch that it takes every time, and its current state.

    config: a run's, with its batch_size, network, members and devices; it is finalised here.
    donated, options: arguments of `jax.jit` and options of XLA in place of those that training uses; an
      option of None is left to XLA.
    """

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        donated: int | tuple = 0,
        options: dict[str, Any] | None = None,
    ):
        config = finalize(config)
        self.steps = config.steps_per_call
        self.batch_size = config.batch_size
        start = time.perf_counter()
        made = Population(config, dataset.num_classes, dataset.image_size, make_mesh(config))
        self.state = jax.block_until_ready(init_state(config, made))
        self.init_seconds = time.perf_counter() - start
        self.batch = self._put(first_batch(dataset, config.batch_size), made)
        step = make_train_step(config, made, dataset, 100, self.state)
        # Training's own step is measured as it is, unless a change asks for another.
        if donated != 0 or options is not None:
            # A jitted function's options can be added to but not taken back, so it is jitted anew.
            known = {name: value for name, value in (options or {}).items() if value is not None}
            options = compiler_options() if options is None else known
            place = formats(self.state), None
            step = jax.jit(
                step.__wrapped__,
                in_shardings=place,
                out_shardings=place,
                donate_argnums=donated,
                compiler_options=options,
            )
        # Tracing counts as compiling: both come once, before the first step.
        start = time.perf_counter()
        traced = step.trace(self.state, self.batch)
        self.program = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - start
        self.flops = count_flops(traced.jaxpr.jaxpr)

    def _put(self, batch: dict[str, np.ndarray], population: Population) -> dict[str, jax.Array]:
        sharding = population.sharding('data')
        if self.steps > 1:
            batch = {name: np.stack([array] * self.steps) for name, array in batch.items()}
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        return jax.device_put(batch, sharding)

    def take(self, calls: int):
        """Call the step so many times, each with the state before it, and wait for the last."""
        for _ in range(calls):
            self.state, row = self.program(self.state, self.batch)
        jax.block_until_ready((self.state, row))

    def turn(self, steps: int = 1) -> dict[str, float]:
        """Return a step's mean milliseconds: 'ms' by the wall clock, 'cpu_ms' summed over all cores."""
        calls = max(steps // self.steps, 1)
        start = time.perf_counter(), time.process_time()
        self.take(calls)
        scale = 1e3 / (calls * self.steps)
        return {
            'ms': scale * (time.perf_counter() - start[0]),
            'cpu_ms': scale * (time.process_time() - start[1]),
        }

    def check_alive(self):
        """Raise `UserError` if the device is lost, so that what comes next is not recorded as failed."""
        try:
            self.turn()
        except RuntimeError as error:
            said = str(error).splitlines()[0][:200]
            raise UserError(f'the device is lost: {said}', 'run the same command again') from None

    def megabytes(self) -> str:
        """Return the device memory of a call, in MB; '' where the backend does not say."""
        return megabytes(self.program)


def megabytes(program) -> str:
    """Return the device memory of a call of a compiled program, in MB; '' where the backend does not say."""
    memory: Any = program.memory_analysis()
    if not memory:
        return ''
    # Donated inputs are reused for outputs.
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes
    return f'{(sum(sizes) - memory.alias_size_in_bytes) / 1e6:.0f}'
