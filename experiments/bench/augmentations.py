"""Measure what augmentation costs: python -m experiments.bench.augmentations [BATCH]

Times each preset, from uint8 images to the network's input, in turns with the training steps of ResNet-18
and ResNet-20 without augmentation, and gives it as a share of these too. Without a GPU, it takes the CPU time
of one core. A row is appended to experiments/results/augmentations.csv after each preset's last turn.
"""

from functools import partial

import jax
import numpy as np

from configs import single
from experiments import results
from experiments.bench.ours import first_batch
from experiments.bench.turns import Times, Turn, clock, take_turns
from experiments.bench.views import build, turn_of
from jaxcifar.augment.pipeline import PRESETS, Augmentation
from jaxcifar.data.datasets import load_dataset
from jaxcifar.machine.command import run_words
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.runs.resolve import finalize

ROUNDS = 3
CALLS = 200 if results.ON_GPU else 5  # that a turn times together
NETWORKS = ('resnet18', 'resnet20')
MORE = ('none', 'randaugment(2,9)', 'trivial_augment', 'auto_augment', 'cutmix(1.0)')


def main(size: str = '128'):
    """Measure, append and print."""
    dataset = load_dataset('cifar10', finalize(single.get_config()).data.root)
    batch = jax.device_put(first_batch(dataset, int(size)))
    turns: dict[str, Turn] = {n: turn_of(build(n, dataset, int(size))) for n in NETWORKS}
    for name in (*MORE, *PRESETS):
        # Compiled alone, while in training it is a part of the step and fused with it.
        augment = jax.jit(Augmentation(name, dataset.mean, dataset.std), compiler_options=compiler_options())
        turns[name] = partial(clock, partial(augment, jax.random.key(0), batch, np.int32(0)), CALLS)
    here, measured = results.here_pinned(), dict[str, Times]()
    print(f'{"batch of " + size:30} {"ms":>8}' + ''.join(f'{n:>10}' for n in NETWORKS))
    # The networks have their turns first, so that their medians are known when shares are.
    for last, times in take_turns(turns, ROUNDS, warm=1):
        measured[last] = times
        if not set(NETWORKS) <= set(measured):
            continue
        # The networks' rows have each other's share, so they come together.
        for name in NETWORKS if last == NETWORKS[-1] else [last]:
            ms = measured[name].median('ms')
            shares = {f'share_of_{n}': round(ms / measured[n].median('ms'), 5) for n in NETWORKS}
            row = {'batch': size, 'what': name, 'ms': round(ms, 3), **shares}
            results.append('augmentations', [here | row])
            print(f'{name:30} {ms:8.2f}' + ''.join(f'{s:10.2%}' for s in shares.values()), flush=True)


if __name__ == '__main__':
    results.pin()
    run_words(main)
