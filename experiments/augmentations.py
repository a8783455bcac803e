"""What augmentation costs: python -m experiments.augmentations [BATCH]

Milliseconds of each preset, from uint8 images to what the network sees, alone and as a share of the
training step of ResNet-18 and ResNet-20 without any. Rounds in turn, medians, on a CPU the CPU time of
one core; appended to experiments/results/augmentations.csv.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from configs import single
from experiments import results
from jaxcifar.augment.pipeline import PRESETS, Augmentation
from jaxcifar.data.datasets import load_dataset
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.engine.step import make_train_step
from jaxcifar.machine.command import run_words
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.runs.resolve import finalize

ROUNDS, CALLS = 3, 5
NETWORKS = ('resnet18', 'resnet20')
MORE = ('none', 'randaugment(2,9)', 'trivial_augment', 'auto_augment', 'cutmix(1.0)')


class Step:
    """A network's training step on one batch that is there already, without augmentation."""

    def __init__(self, network: str, dataset, batch, **changes):
        config = single.get_config(f'{network},cifar10')
        config.update_from_flattened_dict({'augment': 'none', **changes})
        config = finalize(config)
        population = Population(config, dataset.num_classes, dataset.image_size, make_mesh(config))
        self.state = init_state(config, population)
        self.step, self.batch = make_train_step(config, population, dataset, 100, self.state), batch

    def __call__(self):
        self.state, row = self.step(self.state, self.batch)
        return row


def milliseconds(run, calls: int) -> float:
    """One of several calls that wait for each other."""
    start = results.clock()
    for _ in range(calls):
        jax.block_until_ready(run())
    return 1e3 * (results.clock() - start) / calls


def main(size: str = '128'):
    """Measure, print and keep."""
    config = single.get_config()
    dataset = load_dataset('cifar10', finalize(config).data.root)
    index = np.arange(int(size))
    arrays = {'image': dataset.x_train[index], 'label': dataset.y_train[index], 'index': index}
    batch = jax.device_put(arrays)
    runs: dict[str, Callable] = {}
    for name in (*MORE, *PRESETS):
        augment = jax.jit(Augmentation(name, dataset.mean, dataset.std), compiler_options=compiler_options())
        runs[name] = partial(augment, jax.random.key(0), batch, np.int32(0))
    steps: dict[str, Callable] = {network: Step(network, dataset, batch) for network in NETWORKS}
    times: dict[str, list[float]] = {name: [] for name in (*runs, *steps)}
    for run in (*runs.values(), *steps.values()):
        jax.block_until_ready(run())  # compiles
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(milliseconds(run, CALLS))
        for network, step in steps.items():
            times[network].append(milliseconds(step, 1))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f'{"batch of " + size:30} {"ms":>8}' + ''.join(f'{n:>10}' for n in NETWORKS))
    rows, here = [], results.here_pinned()
    for name in (*steps, *runs):
        shares = {f'share_of_{n}': round(medians[name] / medians[n], 5) for n in NETWORKS}
        print(f'{name:30} {medians[name]:8.2f}' + ''.join(f'{s:10.2%}' for s in shares.values()))
        rows.append({**here, 'batch': size, 'what': name, 'ms': round(medians[name], 3), **shares})
    results.append(Path(__file__).stem, rows)


if __name__ == '__main__':
    results.pin()
    run_words(main)
