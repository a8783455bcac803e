"""What training through the quantiser costs: python -m experiments.views [NETWORK] [BATCH]

Milliseconds of the training step with floats and with ternary weights. Rounds in turn, medians, on a CPU the
CPU time of one core; appended to experiments/results/views.csv.
"""

import statistics

import jax
import numpy as np

from configs import single
from experiments import results
from experiments.augmentations import Step, milliseconds
from jaxcifar.data.datasets import load_dataset
from jaxcifar.machine.command import run_words
from jaxcifar.runs.resolve import finalize

ROUNDS = 5
VIEWS = {
    'floats': {},
    'TWN': {'view': 'ternary'},
    'TWN per channel': {'view': 'ternary', 'ternary.per': 'channel'},
    'TTQ': {'view': 'ternary', 'ternary.rule': 'ttq'},
}


def main(network: str = 'resnet18', size: str = '32'):
    """Measure, print and keep."""
    dataset = load_dataset('cifar10', finalize(single.get_config()).data.root)
    index = np.arange(int(size))
    batch = jax.device_put({'image': dataset.x_train[index], 'label': dataset.y_train[index], 'index': index})
    steps = {name: Step(network, dataset, batch, **changes) for name, changes in VIEWS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        jax.block_until_ready(step())  # compiles
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name].append(milliseconds(step, 1))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows, here = [], results.here_pinned()
    for name, ms in medians.items():
        more = ms / medians['floats'] - 1
        print(f'{network} ({size}) {name:16} {ms:9.1f} ms {more:+7.2%}')
        rows.append({**here, 'network': network, 'batch': size, 'view': name, 'ms': round(ms, 2),
                     'more': round(more, 4)})  # fmt: skip
    results.append('views', rows)


if __name__ == '__main__':
    results.pin()
    run_words(main)
