"""Measure how fast batches come: python -m experiments.bench.loaders [DATASET] [NETWORK]

Compares the classic pipeline (a PIL image and torchvision's transforms for each sample) with the host
and the device loader, in turns. Prints the median images a second of

- batches alone: on the device, nothing done with them;
- batches prepared: augmented and normalised there, as the classic ones are when they arrive;
- the training of a small network on them,

and appends each to experiments/results/loaders.csv after its last turn.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from configs import single
from experiments import results
from experiments.bench import classic
from experiments.bench.turns import Times, Turn, take_turns
from jaxcifar.augment.pipeline import Augmentation
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.loader import Order, batches
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.engine.step import make_train_step
from jaxcifar.machine.command import run_words
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.runs.resolve import finalize

ROUNDS, ALONE_STEPS, PREPARED_STEPS, CLASSIC_STEPS, TRAIN_STEPS = 3, 2000, 200, 30, 12
PREPARED = {
    'crop and flip': 'crop(4)+flip',
    'RandAugment and erasing': 'crop(4)+flip+randaugment(2,9)+erasing(.25)',
}
WARM = 8  # batches before the clock starts: more than loaders have in store


class Bench:
    """Hold a run without evaluation and files."""

    def __init__(self, dataset: str, network: str):
        self.config = finalize(single.get_config(f'{network},{dataset}'))
        self.config.data.drop_last = True
        self.config.steps_per_call = 1  # the classic stream has one batch a step
        self.dataset = load_dataset(dataset, self.config.data.root, self.config.data.image_size)
        size, mesh = self.dataset.image_size, make_mesh(self.config)
        self.population = Population(self.config, self.dataset.num_classes, size, mesh)
        self.order = Order(self.config, np.arange(len(self.dataset.y_train)), 1)
        self.state = init_state(self.config, self.population)
        self.step = self._step(self.dataset)
        # The classic stream has augmented its images already.
        self.config.augment = 'none'
        # Classic images are normalised already: this takes nothing out of them.
        self.classic_step = self._step(replace(self.dataset, mean=(0.0,) * 3, std=(1 / 255,) * 3))

    def _step(self, dataset):
        return make_train_step(self.config, self.population, dataset, self.order.steps_per_epoch, self.state)

    def preparing(self, augment_text: str):
        """Return (batch, step) -> images as the network gets them."""
        augment, key = Augmentation(augment_text, self.dataset.mean, self.dataset.std), jax.random.key(0)

        @partial(jax.jit, compiler_options=compiler_options())
        def prepare(batch, step):
            return augment(jax.random.fold_in(key, step), batch, step // self.order.steps_per_epoch)

        return prepare

    def ours(self, loader: str, use: Callable, steps: int) -> dict[str, float]:
        """Return the images a second of the host or the device loader."""
        self.config.data.loader = loader
        source = batches(self.config, self.dataset, self.order, self.population.mesh, range(WARM + steps))
        with contextlib.closing(source):
            return self._rate(source, use, steps)

    def classic(self, source, use: Callable, steps: int) -> dict[str, float]:
        """Return the images a second of a classic stream."""
        return self._rate(source, use, steps)

    def _rate(self, source, use: Callable, steps: int) -> dict[str, float]:
        """Return the images a second of a source; `use(batch, i)` returns what must be ready at the end."""
        done, start = None, 0.0
        # What loaders hold in store must not count, so some batches go before the clock starts.
        for i in range(WARM + steps):
            if i == WARM:
                jax.block_until_ready(done)
                start = time.perf_counter()
            done = use(next(source), i)
        jax.block_until_ready(done)
        return {'images_per_second': steps * self.config.batch_size / (time.perf_counter() - start)}

    def arrive(self, batch, i):
        """Put the batch on the device and wait for it."""
        return jax.block_until_ready(jax.device_put(batch))

    def train(self, step, batch, i):
        """Take a step of training."""
        self.state, row = step(self.state, batch)
        return row


def measurements(bench: Bench) -> dict[str, Turn]:
    """Return what is measured, by name."""
    turns: dict[str, Turn] = {}
    for augment in classic.MORE:
        for workers in (0, 2):
            source = classic.stream(bench.dataset, augment, bench.config.batch_size, workers)
            name, run = f'classic, {augment}, {workers} workers', partial(bench.classic, source)
            turns[f'{name}: prepared'] = partial(run, bench.arrive, CLASSIC_STEPS)
            turns[f'{name}: training'] = partial(run, partial(bench.train, bench.classic_step), TRAIN_STEPS)
    for loader in ('host', 'device'):
        run = partial(bench.ours, loader)
        turns[f'{loader} loader: alone'] = partial(run, bench.arrive, ALONE_STEPS)
        for name, augment in PREPARED.items():
            prepare = bench.preparing(augment)
            turns[f'{loader} loader, {name}: prepared'] = partial(run, prepare, PREPARED_STEPS)
        turns[f'{loader} loader: training'] = partial(run, partial(bench.train, bench.step), TRAIN_STEPS)
    return turns


def main(dataset: str = 'cifar10', network: str = 'resnet8'):
    """Measure, append and print."""
    bench, times = Bench(dataset, network), dict[str, Times]()
    common = {**results.here(), 'dataset': dataset, 'network': network, 'batch': bench.config.batch_size}
    for what, measured in take_turns(measurements(bench), ROUNDS):
        rate, (low, high) = measured.median('images_per_second'), measured.spread('images_per_second')
        results.append('loaders', [{**common, 'what': what, 'images_per_second': f'{rate:.0f}'}])
        print(f'{what:56} {rate:12,.0f} images/s  ({low:,.0f} to {high:,.0f})', flush=True)
        times[what] = measured
    medians = {what: measured.median('images_per_second') for what, measured in times.items()}
    # The classic pipeline is the measure of both loaders.
    for workers in (0, 2):
        base = medians[f'classic, crop and flip, {workers} workers: prepared']
        ratios = (f'{w} {medians[w] / base:,.1f}x' for w in medians if 'alone' in w or 'loader, crop' in w)
        print(f'to classic, crop and flip, {workers} workers: {", ".join(ratios)}')


if __name__ == '__main__':
    run_words(main)
