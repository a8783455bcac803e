"""How fast batches come, alone and in training: python -m experiments.loaders [DATASET] [NETWORK]

Runs host and device loader in turn, three rounds, and prints the median images a second of each
alone (batches on the device, nothing done with them) and of the whole training loop.
"""

import csv
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np

from configs import single
from jaxcifar.config import finalize
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.loader import Order, batches
from jaxcifar.population import Population, make_mesh
from jaxcifar.state import init_state
from jaxcifar.step import make_train_step
from jaxcifar.workdirs import git_commit

ROUNDS, LOADER_STEPS, TRAIN_STEPS = 3, 2000, 40
COLUMNS = ('date', 'commit', 'machine', 'device', 'dataset', 'network', 'batch', 'what', 'images_per_second')


class Bench:
    """A run without evaluation and files."""

    def __init__(self, dataset: str, network: str):
        self.config = finalize(single.get_config(f'{network},{dataset}'))
        self.dataset = load_dataset(dataset, self.config.data.root)
        mesh = make_mesh(self.config)
        self.population = Population(self.config, self.dataset.num_classes, 32, mesh)
        self.config.data.drop_last = True
        self.order = Order(self.config, np.arange(len(self.dataset.y_train)), 1)
        self.state = init_state(self.config, self.population)
        steps = self.order.steps_per_epoch
        self.step = make_train_step(self.config, self.population, self.dataset, steps, self.state)

    def stream(self, loader: str, steps: int):
        """A loader's batches; the first is on the device when this returns, as are all images."""
        self.config.data.loader = loader
        source = batches(self.config, self.dataset, self.order, self.population, range(steps + 1))
        jax.block_until_ready(next(source))
        return source

    def alone(self, loader: str) -> float:
        """Images a second that arrive on the device."""
        source = self.stream(loader, LOADER_STEPS)
        start = time.perf_counter()
        for batch in source:
            jax.block_until_ready(batch)
        return LOADER_STEPS * self.config.batch_size / (time.perf_counter() - start)

    def training(self, loader: str) -> float:
        """Images a second that are trained on."""
        source = self.stream(loader, TRAIN_STEPS + 1)
        self.state, row = self.step(self.state, next(source))
        jax.block_until_ready(row)
        start = time.perf_counter()
        for batch in source:
            self.state, row = self.step(self.state, batch)
        jax.block_until_ready(row)
        return TRAIN_STEPS * self.config.batch_size / (time.perf_counter() - start)


def main(dataset: str = 'cifar10', network: str = 'resnet20'):
    """Measure, print and append to experiments/results/loaders.csv."""
    bench = Bench(dataset, network)
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for loader in ('host', 'device'):
            rates.setdefault(f'{loader} loader alone', []).append(bench.alone(loader))
            rates.setdefault(f'training, {loader} loader', []).append(bench.training(loader))
    path = Path(__file__).parent / 'results' / 'loaders.csv'
    new = not path.exists()
    with path.open('a', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        if new:
            writer.writerow(COLUMNS)
        for what, values in rates.items():
            rate = statistics.median(values)
            print(f'{what:26} {rate:12,.0f} images/s  ({min(values):,.0f} to {max(values):,.0f})')
            now = datetime.now(UTC).date().isoformat()
            machine = f'{platform.machine()} x {len(jax.devices())}'
            device = jax.devices()[0].device_kind
            writer.writerow([now, git_commit(), machine, device, dataset, network,
                             bench.config.batch_size, what, f'{rate:.0f}'])  # fmt: skip


if __name__ == '__main__':
    main(*sys.argv[1:])
