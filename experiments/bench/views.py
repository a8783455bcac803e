"""Measure what training through the quantiser costs: python -m experiments.bench.views [NETWORK] [BATCH]

Times the training step with floats and with ternary weights, in turns; without a GPU in the CPU time of one
core. A row is appended to experiments/results/views.csv after a way's last turn.
"""

from configs import single
from experiments import results
from experiments.bench.ours import OurStep
from experiments.bench.turns import clock, take_turns
from jaxcifar.data.datasets import load_dataset
from jaxcifar.machine.command import run_words
from jaxcifar.runs.resolve import finalize

ROUNDS = 5
STEPS = 20 if results.ON_GPU else 1  # that a turn times together
VIEWS = {
    'floats': {},
    'TWN': {'view': 'ternary'},
    'TWN per channel': {'view': 'ternary', 'ternary.per': 'channel'},
    'TTQ': {'view': 'ternary', 'ternary.rule': 'ttq'},
}


def build(network: str, dataset, batch: int, **fields) -> OurStep:
    """Return a CIFAR-10 network's step without augmentation, with these fields changed."""
    config = single.get_config(f'{network},cifar10')
    config.update_from_flattened_dict({'augment': 'none', 'batch_size': batch, 'devices': 1, **fields})
    return OurStep(config, dataset)


def turn_of(step: OurStep):
    """Return a turn of the step: its milliseconds."""

    def turn() -> dict[str, float]:
        return {'ms': clock(lambda: step.take(STEPS))['ms'] / STEPS}

    return turn


def main(network: str = 'resnet18', size: str = '32'):
    """Measure, append and print."""
    dataset = load_dataset('cifar10', finalize(single.get_config()).data.root)
    # All are compiled before the first turn.
    steps = {name: build(network, dataset, int(size), **fields) for name, fields in VIEWS.items()}
    here = results.here_pinned()
    turns = {name: turn_of(step) for name, step in steps.items()}
    for name, times in take_turns(turns, ROUNDS, warm=1):
        ms, more = times.median('ms'), times.ratio('ms') - 1
        row = {'network': network, 'batch': size, 'view': name, 'ms': round(ms, 2), 'more': round(more, 4)}
        results.append('views', [here | row])
        print(f'{network} ({size}) {name:16} {ms:9.1f} ms {more:+7.2%}', flush=True)


if __name__ == '__main__':
    results.pin()
    run_words(main)
